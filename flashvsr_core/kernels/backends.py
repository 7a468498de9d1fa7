"""The sets of kernels a DiT runs on, by name."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flashvsr_core.errors import UserError
from flashvsr_core.geometry import Geometry
from flashvsr_core.kernels import token_ops
from flashvsr_core.kernels.block_attention import BACKENDS, Blocks
from flashvsr_core.kernels.block_mask import select_blocks
from flashvsr_core.kernels.finish_frames import finish_frames
from flashvsr_core.kernels.interleave import interleave
from flashvsr_core.kernels.repeat_pixels import repeat_pixels
from flashvsr_core.kernels.token_ops import Windows
from flashvsr_core.pixels import enlarge_padded, quantise_rgb


@dataclass(frozen=True)
class Kernels:
    """Everything in a DiT block but linear layers and attention, the decoder's enlargement and end, the input's, and
    the way into whole numbers.

    Arguments: see the functions of these names in `token_ops`, `block_mask`, `repeat_pixels`, `interleave`,
    `finish_frames` and `pixels`, where `enlarge` is `enlarge_padded`.
    """

    name: str
    norm: Callable[[Tensor, Tensor, Tensor, float, float], Tensor]
    add_norm: Callable[[Tensor, Tensor, Tensor | None, Tensor, Tensor, float, float], tuple[Tensor, Tensor]]
    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    windows: Callable[..., Windows]
    linear_gelu: Callable[[Tensor, Tensor, Tensor], Tensor]
    select: Callable[[Tensor, Tensor, Tensor, int], Blocks]
    repeat_pixels: Callable[[Tensor, int], Tensor]
    interleave: Callable[[Tensor, int], Tensor]
    finish_frames: Callable[[Tensor, Tensor], None]
    enlarge: Callable[[Tensor, Geometry], Tensor]
    quantise_rgb: Callable[[Tensor, torch.dtype], Tensor]
    in_place: bool  # whether keys and values are written straight into the ring


REFERENCE = Kernels(
    "torch",
    token_ops.norm,
    token_ops.add_norm,
    token_ops.rms_norm,
    token_ops.windows,
    token_ops.linear_gelu,
    select_blocks,
    repeat_pixels,
    interleave,
    finish_frames,
    enlarge_padded,
    quantise_rgb,
    in_place=False,
)


def kernels(name: str) -> Kernels:
    """The kernels that go with the attention backend `name`: those of Triton with all but torch."""
    if name == REFERENCE.name:
        return REFERENCE
    if name not in BACKENDS:
        raise UserError(f"kernels {name!r} are not known; choose {', '.join(BACKENDS)}")
    # Optional: CPU installations have no Triton; `attention_backend` says so first.
    from flashvsr_core.kernels import token_ops_triton as fused
    from flashvsr_core.kernels.block_mask_triton import select_blocks as select
    from flashvsr_core.kernels.enlarge_triton import enlarge
    from flashvsr_core.kernels.pixels_triton import finish_frames as finish
    from flashvsr_core.kernels.pixels_triton import interleave as interleave_phases
    from flashvsr_core.kernels.pixels_triton import quantise_rgb as quantise
    from flashvsr_core.kernels.pixels_triton import repeat_pixels as repeat

    return Kernels(
        "triton",
        fused.norm,
        fused.add_norm,
        fused.rms_norm,
        fused.windows,
        fused.linear_gelu,
        select,
        repeat,
        interleave_phases,
        finish,
        enlarge,
        quantise,
        in_place=True,
    )
