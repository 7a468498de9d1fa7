"""`fp8_patches` in Triton: pixels are rounded while they are unfolded."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from flashvsr_core.kernels.fp8_linear import LARGEST
from flashvsr_core.kernels.fp8_patches import SIDE
from flashvsr_core.kernels.token_ops_triton import on


@triton.jit
def _unfold(
    x, scale, out, frames, height, width, channels, count, stride,
    TAPS: tl.constexpr, SIDE: tl.constexpr, LARGEST: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One row of one tap of one patch: SIDE pixels."""
    patch = tl.program_id(0)
    tap, i = tl.program_id(1) // SIDE, tl.program_id(1) % SIDE
    column, row = patch % width, (patch // width) % height
    number = patch // (width * height)
    frame = (number // count) * frames + (number % count) * stride + tap
    y = tl.minimum(tl.maximum(row + i - SIDE // 2, 0), height - 1)
    at = tl.arange(0, WIDTH)
    mask = at < channels
    divisor = tl.load(scale)
    target = out + (patch.to(tl.int64) * (TAPS * SIDE) + tl.program_id(1)) * SIDE * channels
    for j in tl.static_range(SIDE):
        z = tl.minimum(tl.maximum(column + j - SIDE // 2, 0), width - 1)
        pixel = (frame.to(tl.int64) * height + y) * width + z
        value = tl.load(x + pixel * channels + at, mask=mask, other=0.0).to(tl.float32) / divisor
        value = tl.minimum(tl.maximum(value, -LARGEST), LARGEST)
        tl.store(target + j * channels + at, value.to(out.dtype.element_ty), mask=mask)


def unfold(x: Tensor, scale: Tensor, taps: int, stride: int) -> Tensor:
    """See `fp8_patches.unfold_torch`."""
    x = x.contiguous()
    batch, frames, height, width, channels = x.shape
    count = (frames - taps) // stride + 1
    patches = batch * count * height * width
    out = torch.empty(patches, taps * SIDE * SIDE * channels, dtype=torch.float8_e4m3fn, device=x.device)
    with on(x):
        _unfold[(patches, taps * SIDE)](
            x, scale, out, frames, height, width, channels, count, stride,
            TAPS=taps, SIDE=SIDE, LARGEST=LARGEST, WIDTH=triton.next_power_of_2(channels),
        )  # fmt: skip
    return out
