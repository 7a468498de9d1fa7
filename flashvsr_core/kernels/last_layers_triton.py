"""`last_layers.project`, `.gather` and `.interleave_rounded` in Triton, bound by what they read and write."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from flashvsr_core.errors import UserError
from flashvsr_core.kernels.fp8_linear import LARGEST
from flashvsr_core.kernels.last_layers import COLORS, PRODUCTS, LastKernels
from flashvsr_core.kernels.pixels_triton import interleave
from flashvsr_core.kernels.token_ops_triton import on

_PIXELS = 64  # that one program multiplies
_ROUNDED = 16  # pixels with all their channels, in one program
_LINE = 128  # pixels of a line that one program adds up


@triton.jit
def _project(x, weight, out, pixels, CHANNELS: tl.constexpr, PRODUCTS: tl.constexpr, PIXELS: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    channels, products = tl.arange(0, CHANNELS), tl.arange(0, PRODUCTS)
    mask = (at < pixels)[:, None]
    value = tl.load(x + at[:, None] * CHANNELS + channels[None, :], mask=mask, other=0.0)
    factors = tl.load(weight + products[None, :] * CHANNELS + channels[:, None])
    made = tl.dot(value, factors, input_precision="ieee")
    tl.store(out + at[:, None] * PRODUCTS + products[None, :], made.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _interleave_rounded(
    x, scale, less, out, height, width,
    STRIDE: tl.constexpr, CHANNELS: tl.constexpr, LARGEST: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """height, width: of a frame without its border, which has a part of some programs."""
    at = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    row, columns = tl.program_id(1) - 1 + tl.zeros_like(at), at - 1
    frame = tl.program_id(2).to(tl.int64)
    step, part = frame // STRIDE, frame % STRIDE
    channels = tl.arange(0, CHANNELS)
    inside = (row >= 0) & (row < height) & (columns >= 0) & (columns < width)
    p, q = row & 1, columns & 1
    place = (step * (height // 2 + 1) + ((row >> 1) + p)) * (width // 2 + 1) + ((columns >> 1) + q)
    phase = (part * 4 + p * 2 + q) * CHANNELS
    read = (place * (STRIDE * 4 * CHANNELS) + phase)[:, None] + channels[None, :]
    value = tl.load(x + read, mask=inside[:, None], other=0.0).to(tl.float32) - tl.load(less + channels)[None, :]
    value = value / tl.load(scale)
    value = tl.minimum(tl.maximum(value, -LARGEST), LARGEST)
    write = ((frame * (height + 2) + row + 1) * (width + 2) + at)[:, None] * CHANNELS + channels[None, :]
    tl.store(out + write, value.to(out.dtype.element_ty), mask=(at < width + 2)[:, None])


@triton.jit
def _gather(
    products, scale, bias, out, height, width, border, out_channel, out_frame,
    COLORS: tl.constexpr, PRODUCTS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """height, width: of a frame without its border."""
    at = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    row, frame = tl.program_id(1) + tl.zeros_like(at), tl.program_id(2).to(tl.int64)
    line = width + 2 * border
    pixel = (frame * (height + 2 * border) + row + border) * line + at + border
    factor = tl.load(scale)
    for color in tl.static_range(COLORS):
        total = tl.zeros([PIXELS], tl.float32)
        for tap in tl.static_range(9):
            down, right = tap // 3 - 1, tap % 3 - 1
            near = (row + down >= 0) & (row + down < height) & (at + right >= 0) & (at + right < width) & (at < width)
            read = products + (pixel + down * line + right) * PRODUCTS + tap * COLORS + color
            total += tl.load(read, mask=near, other=0.0).to(tl.float32)
        value = 2 * (factor * total + tl.load(bias + color)) - 1
        write = out + color * out_channel + frame * out_frame + row * width + at
        tl.store(write, value.to(out.dtype.element_ty), mask=at < width)


def project(x: Tensor, weight: Tensor) -> Tensor:
    """See `last_layers.project`. Channels: a power of 2, at least 16."""
    frames, channels, height, width = x.shape
    if channels & (channels - 1) or channels < 16:
        raise UserError(f"no kernel projects {channels} channels; they must be a power of 2, 16 or more")
    x = x.contiguous(memory_format=torch.channels_last)
    out = torch.empty(frames, height, width, PRODUCTS, dtype=x.dtype, device=x.device)
    pixels = frames * height * width
    with on(x):
        _project[(triton.cdiv(pixels, _PIXELS),)](
            x, weight, out, pixels, CHANNELS=channels, PRODUCTS=PRODUCTS, PIXELS=_PIXELS
        )
    return out


def gather(products: Tensor, scale: Tensor, bias: Tensor, out: Tensor) -> None:
    """See `last_layers.gather`. Within a frame and channel, `out` has no gaps."""
    _, frames, height, width = out.shape
    if not out[0, 0].is_contiguous():
        raise UserError(f"no kernel gathers into frames with strides {out.stride()}; pictures must have no gaps")
    border = (products.shape[1] - height) // 2
    with on(products):
        _gather[(triton.cdiv(width, _LINE), height, frames)](
            products, scale, bias, out, height, width, border, out.stride(0), out.stride(1),
            COLORS=COLORS, PRODUCTS=PRODUCTS, PIXELS=_LINE,
        )  # fmt: skip


def interleave_rounded(x: Tensor, stride: int, scale: Tensor, less: Tensor) -> Tensor:
    """See `last_layers.interleave_rounded`. x channels last; channels of a frame: a power of 2."""
    steps, channels, height, width = x.shape
    frames, channels = steps * stride, channels // (4 * stride)
    height, width = 2 * height - 2, 2 * width - 2
    x = x.contiguous(memory_format=torch.channels_last)
    out = torch.empty(frames, height + 2, width + 2, channels, dtype=torch.float8_e4m3fn, device=x.device)
    with on(x):
        _interleave_rounded[(triton.cdiv(width + 2, _ROUNDED), height + 2, frames)](
            x, scale, less, out, height, width, STRIDE=stride, CHANNELS=channels, LARGEST=LARGEST, PIXELS=_ROUNDED
        )
    return out


TRITON = LastKernels(interleave, project, gather)
