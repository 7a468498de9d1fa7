"""`repeat_pixels`, `interleave`, `finish_frames` and `quantise_rgb` in Triton: every input is read once, and written by
whole lines."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from flashvsr_core.errors import UserError
from flashvsr_core.kernels.token_ops_triton import on

_PIXELS = 16  # of one row, in one program
_LINE = 1024  # pixels of one frame that one program finishes


@triton.jit
def _repeat(x, out, height, width, STRIDE: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr):
    columns = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    row, frame = tl.program_id(1), tl.program_id(2).to(tl.int64)
    step, part = frame // STRIDE, frame % STRIDE
    channels = tl.arange(0, CHANNELS)
    inside = (columns < width)[:, None]
    read = ((step * height + row) * width + columns)[:, None] * (STRIDE * CHANNELS) + part * CHANNELS
    value = tl.load(x + read + channels[None, :], mask=inside)
    write = ((frame * 2 * height + 2 * row) * 2 * width + 2 * columns)[:, None] * CHANNELS + channels[None, :]
    below = write + 2 * width * CHANNELS
    tl.store(out + write, value, mask=inside)
    tl.store(out + write + CHANNELS, value, mask=inside)
    tl.store(out + below, value, mask=inside)
    tl.store(out + below + CHANNELS, value, mask=inside)


@triton.jit
def _interleave(x, out, height, width, STRIDE: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr):
    """height, width: of the result. One row of it, in parts."""
    columns = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    row, frame = tl.program_id(1), tl.program_id(2).to(tl.int64)
    step, part = frame // STRIDE, frame % STRIDE
    channels = tl.arange(0, CHANNELS)
    inside = (columns < width)[:, None]
    p, q = row % 2, columns % 2
    place = (step * (height // 2 + 1) + (row // 2 + p)) * (width // 2 + 1) + (columns // 2 + q)
    phase = (part * 4 + p * 2 + q) * CHANNELS
    value = tl.load(x + (place * (STRIDE * 4 * CHANNELS) + phase)[:, None] + channels[None, :], mask=inside)
    write = ((frame * height + row) * width + columns)[:, None] * CHANNELS + channels[None, :]
    tl.store(out + write, value, mask=inside)


@triton.jit
def _finish(x, out, pixels, out_channel, out_frame, STRIDE: tl.constexpr, PIXELS: tl.constexpr):
    """STRIDE: channels of a pixel of x, of which the first 3 are kept."""
    at = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    frame = tl.program_id(1).to(tl.int64)
    inside = at < pixels
    read = x + frame * pixels * STRIDE + at * STRIDE
    write = out + frame * out_frame + at
    for channel in tl.static_range(3):
        value = tl.load(read + channel, mask=inside).to(tl.float32) * 2 - 1
        tl.store(write + channel * out_channel, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _quantise_rgb(x, out, width, x_frame, x_channel, x_row, half, PIXELS: tl.constexpr):
    """x in [-1, 1] -> whole numbers up to 2 * half. A program: a part of a row."""
    at = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    row, rows, frame = tl.program_id(1), tl.num_programs(1), tl.program_id(2).to(tl.int64)
    inside = at < width
    read = x + frame * x_frame + row * x_row + at
    write = out + ((frame * rows + row) * width + at) * 3
    for channel in tl.static_range(3):
        level = (tl.load(read + channel * x_channel, mask=inside, other=0).to(tl.float32) + 1) * half
        level = (level + 12582912.0) - 12582912.0  # 1.5 * 2^23: to the nearest whole number, halves to the even one
        level = tl.minimum(tl.maximum(level, 0.0), 2 * half)
        tl.store(write + channel, level.to(out.dtype.element_ty), mask=inside)


def repeat_pixels(x: Tensor, stride: int) -> Tensor:
    """See `repeat_pixels.repeat_pixels`. x channels last; channels of a frame: a power of 2."""
    steps, channels, height, width = x.shape
    out = _frames(x, "repeats", steps * stride, channels // stride, 2 * height, 2 * width)
    _by_rows(_repeat, x, out, height, width, stride)
    return out


def interleave(x: Tensor, stride: int) -> Tensor:
    """See `interleave.interleave`. x channels last; channels of a frame: a power of 2."""
    steps, channels, height, width = x.shape
    height, width = 2 * height - 2, 2 * width - 2
    out = _frames(x, "interleaves", steps * stride, channels // (4 * stride), height, width)
    _by_rows(_interleave, x, out, height, width, stride)
    return out


def _frames(x: Tensor, does: str, frames: int, channels: int, height: int, width: int) -> Tensor:
    """Room for t c h w, channels last, which the kernels write by whole pixels."""
    if channels & (channels - 1):
        raise UserError(f"no kernel {does} pixels of {channels} channels; they must be a power of 2")
    return x.new_empty(frames, height, width, channels).permute(0, 3, 1, 2)


def _by_rows(kernel: Any, x: Tensor, out: Tensor, height: int, width: int, stride: int) -> None:
    """One program for each part of a row of height x width and each frame of `out`."""
    x = x.contiguous(memory_format=torch.channels_last)
    with on(x):
        kernel[(triton.cdiv(width, _PIXELS), height, out.shape[0])](
            x, out, height, width, STRIDE=stride, CHANNELS=out.shape[1], PIXELS=_PIXELS
        )


def finish_frames(x: Tensor, out: Tensor) -> None:
    """See `finish_frames.finish_frames`. Within a frame and channel, `out` has no gaps."""
    frames, channels, height, width = x.shape
    if out[0, 0].is_contiguous():
        x = x.contiguous(memory_format=torch.channels_last)
        pixels = height * width
        with on(x):
            _finish[(triton.cdiv(pixels, _LINE), frames)](
                x, out, pixels, out.stride(0), out.stride(1), STRIDE=channels, PIXELS=_LINE
            )
        return
    raise UserError(f"frames with strides {out.stride()} cannot be finished; a picture of a channel must have no gaps")


def quantise_rgb(x: Tensor, dtype: torch.dtype) -> Tensor:
    """See `pixels.quantise_rgb`. Rows may have gaps between them, as those of a cropped picture, but none within."""
    frames, _, height, width = x.shape
    x = x if x.stride(3) == 1 else x.contiguous()
    out = torch.empty(frames, height, width, 3, dtype=dtype, device=x.device)
    with on(x):
        _quantise_rgb[(triton.cdiv(width, _LINE), height, frames)](
            x, out, width, x.stride(0), x.stride(1), x.stride(2), torch.iinfo(dtype).max / 2,
            PIXELS=_LINE, enable_fp_fusion=False,  # the product is rounded before it is rounded to a whole number
        )  # fmt: skip
    return out
