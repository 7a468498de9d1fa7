"""Pixels in and out of the model: enlargement and padding before it, crop, quantisation and RGB to YUV after it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from flashvsr_core.errors import UserError
from flashvsr_core.geometry import Geometry
from flashvsr_core.layout import Planes, YuvLayout

# Kr, Kb of ITU-R BT.601, BT.709 and BT.2020 (non-constant luminance)
_LUMA = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}


@dataclass(frozen=True)
class Pack:
    """How frames leave the core: `quantise` where they were made, `arrange` on the host once they have arrived there.

    quantise: float T 3 H W in [-1, 1] -> integer tensors. arrange: the same as arrays -> what is handed out.
    """

    quantise: Callable[[Tensor], tuple[Tensor, ...]]
    arrange: Callable[[Sequence[np.ndarray]], np.ndarray | Planes]

    def __call__(self, x: Tensor) -> np.ndarray | Planes:
        return self.arrange([tensor.cpu().numpy() for tensor in self.quantise(x)])


def enlarge(frames: Tensor, geometry: Geometry) -> Tensor:
    """uint8 or uint16 T H W 3 -> float32 T 3 H' W' in [-1, 1], exactly `scale` x the input (cubic kernel, a = -0.5)."""
    peak = 255.0 if frames.dtype == torch.uint8 else 65535.0
    x = frames.permute(0, 3, 1, 2).float() * (2 / peak) - 1
    size = (geometry.out_height, geometry.out_width)
    return F.interpolate(x, size=size, mode="bicubic", align_corners=False, antialias=True).clamp(-1, 1)


def enlarge_padded(frames: Tensor, geometry: Geometry) -> Tensor:
    """`enlarge` and `pad`: uint8 or uint16 T H W 3 -> float32 T 3 H' W' of the padded size."""
    return pad(enlarge(frames, geometry), geometry)


def pad(x: Tensor, geometry: Geometry) -> Tensor:
    """T 3 H W -> the padded size: right and bottom reflected, or replicated where the picture is smaller than that."""
    right = geometry.padded_width - geometry.out_width
    bottom = geometry.padded_height - geometry.out_height
    x = F.pad(x, (0, right, 0, 0), mode="reflect" if right < geometry.out_width else "replicate")
    return F.pad(x, (0, 0, 0, bottom), mode="reflect" if bottom < geometry.out_height else "replicate")


def crop(x: Tensor, geometry: Geometry) -> Tensor:
    return x[..., : geometry.out_height, : geometry.out_width]


def quantise_rgb(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Float T 3 H W in [-1, 1] -> T H W 3 over the full range of uint8 or uint16."""
    peak = torch.iinfo(dtype).max
    levels = ((x.float() + 1) * (peak / 2)).round().clamp(0, peak)
    return levels.to(dtype).permute(0, 2, 3, 1).contiguous()


def rgb_packer(depth: Literal[8, 16], quantise: Callable[[Tensor, torch.dtype], Tensor] = quantise_rgb) -> Pack:
    """Float T 3 H W in [-1, 1] -> uint8 or uint16 T H W 3 over the full range of the type; `quantise` as
    `quantise_rgb`."""
    dtype = torch.uint8 if depth == 8 else torch.uint16
    return Pack(lambda x: (quantise(x, dtype),), lambda arrays: arrays[0])


def yuv_packer(layout: YuvLayout) -> Pack:
    """Float T 3 H W in [-1, 1] -> planes (Y, U, V), each T h w, uint8 or uint16 with `depth` bits in the low end."""
    return Pack(lambda x: rgb_to_yuv(x, layout), lambda arrays: (arrays[0], arrays[1], arrays[2]))


def grey_packer(depth: Literal[8, 10, 12, 16]) -> Pack:
    """Float T 3 H W in [-1, 1] -> one plane T H W over the full range of `depth` bits, for transparency."""
    peak = 2**depth - 1
    dtype = torch.uint8 if depth == 8 else torch.uint16

    def quantise(x: Tensor) -> tuple[Tensor, ...]:
        levels = ((x.float().mean(dim=1) + 1) * (peak / 2)).round().clamp(0, peak)
        return (levels.to(dtype),)

    return Pack(quantise, lambda arrays: arrays[0])


def changed(pack: Pack, change: Callable[[Tensor], Tensor]) -> Pack:
    """`pack` after `change`, which maps pictures T 3 H W in [-1, 1] to such pictures."""
    return replace(pack, quantise=lambda x: pack.quantise(change(x)))


def resizer(width: int, height: int) -> Callable[[Tensor], Tensor]:
    """Pictures T 3 H W in [-1, 1] to exactly this size (cubic kernel, a = -0.5, antialiased where it shrinks)."""

    def resize(x: Tensor) -> Tensor:
        if x.shape[-2:] == (height, width):
            return x
        size = (height, width)
        return F.interpolate(x.float(), size=size, mode="bicubic", align_corners=False, antialias=True).clamp(-1, 1)

    return resize


def rgb_to_yuv(x: Tensor, layout: YuvLayout) -> tuple[Tensor, Tensor, Tensor]:
    """Float RGB T 3 H W in [-1, 1] -> quantised Y, U, V. Subsampled chroma is sited left, as in MPEG-2 and H.264."""
    if layout.matrix not in _LUMA:
        raise UserError(f"colour matrix {layout.matrix!r} is not known; choose one of {', '.join(_LUMA)}")
    kr, kb = _LUMA[layout.matrix]
    r, g, b = ((x.float() + 1) / 2).unbind(1)
    y = kr * r + (1 - kr - kb) * g + kb * b
    u = _subsample((b - y) / (2 * (1 - kb)), layout.subsampling)
    v = _subsample((r - y) / (2 * (1 - kr)), layout.subsampling)
    unit = 2 ** (layout.depth - 8)
    peak = 2**layout.depth - 1
    if layout.full_range:
        scale, offset, chroma = float(peak), 0.0, float(peak)
    else:
        scale, offset, chroma = 219.0 * unit, 16.0 * unit, 224.0 * unit
    dtype = torch.uint8 if layout.depth == 8 else torch.uint16
    levels = (y * scale + offset, u * chroma + 128 * unit, v * chroma + 128 * unit)
    luma, first, second = (level.round().clamp(0, peak).to(dtype) for level in levels)
    return luma, first, second


def _subsample(chroma: Tensor, subsampling: str) -> Tensor:
    """T H W -> half width (filter 1 2 1 on even columns, sited left) and, for 4:2:0, half height (pairs averaged)."""
    if subsampling == "444":
        return chroma
    height, width = chroma.shape[-2:]
    chroma = F.pad(chroma[:, None], (1, 1 + width % 2, 0, 0), mode="replicate")[:, 0]
    chroma = (chroma[..., 0:-2:2] + 2 * chroma[..., 1:-1:2] + chroma[..., 2::2]) / 4
    if subsampling == "422":
        return chroma
    if height % 2:
        chroma = torch.cat([chroma, chroma[:, -1:]], dim=1)
    return (chroma[:, 0::2] + chroma[:, 1::2]) / 2
