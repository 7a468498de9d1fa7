"""`repeat_pixels` in Triton: every input is read once, and written by whole lines of channels."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from flashvsr_core.errors import UserError
from flashvsr_core.kernels.token_ops_triton import on

_PIXELS = 16  # of one row, in one program


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


def repeat_pixels(x: Tensor, stride: int) -> Tensor:
    """See `repeat_pixels.repeat_pixels`. x channels last; channels of a frame: a power of 2."""
    steps, channels, height, width = x.shape
    channels //= stride
    if channels & (channels - 1):
        raise UserError(f"no kernel repeats pixels of {channels} channels; they must be a power of 2")
    x = x.contiguous(memory_format=torch.channels_last)
    out = x.new_empty(steps * stride, 2 * height, 2 * width, channels)
    with on(x):
        _repeat[(triton.cdiv(width, _PIXELS), height, steps * stride)](
            x, out, height, width, STRIDE=stride, CHANNELS=channels, PIXELS=_PIXELS
        )
    return out.permute(0, 3, 1, 2)
