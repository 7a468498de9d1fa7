"""`enlarge` in Triton: the pixels of a row first, then the rows, each sum as PyTorch's antialiased kernel makes it.

That kernel computes the weights anew for each pixel, and each row's sum anew for four rows.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from flashvsr_core.geometry import Geometry
from flashvsr_core.kernels.token_ops_triton import on

_PIXELS = 512  # of one row, in one program
_ROWS, _COLUMNS = 8, 128  # of a part of the result, in one program


@triton.jit
def _cubic(distance):
    """Keys' kernel, a = -0.5."""
    x = tl.abs(distance)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return tl.where(x < 1, near, tl.where(x < 2, far, 0.0))


@triton.jit
def _tap(first, tap: tl.constexpr, place, size):
    """Pixel number `tap` of the four that a position is made of: where it is, whether it exists, and its weight."""
    at = first + tap
    inside = (at >= 0) & (at < size)
    return at, inside, tl.where(inside, _cubic(at - place + 0.5), 0.0)


@triton.jit
def _widen(x, out, width, peak, SCALE: tl.constexpr, PIXELS: tl.constexpr):
    """T h w 3 of whole numbers -> T 3 h W in about [-1, 1]. A program: a part of one channel's row."""
    at = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    row, rows, frame = tl.program_id(1), tl.num_programs(1), tl.program_id(2).to(tl.int64) // 3
    channel = tl.program_id(2) % 3
    place = (at + 0.5) * (1.0 / SCALE)
    first = tl.floor(place - 1.5).to(tl.int32)
    weights = tl.zeros([PIXELS], tl.float32)
    for tap in tl.static_range(4):
        column, inside, weight = _tap(first, tap, place, width)
        weights += weight
    kept = at < width * SCALE
    total = tl.zeros([PIXELS], tl.float32)
    for tap in tl.static_range(4):
        column, inside, weight = _tap(first, tap, place, width)
        value = tl.load(x + ((frame * rows + row) * width + column) * 3 + channel, mask=inside & kept, other=0)
        total += (value.to(tl.float32) * (2 / peak) - 1) * (weight / weights)
    tl.store(out + ((frame * 3 + channel) * rows + row) * (width * SCALE) + at, total, mask=kept)


@triton.jit
def _beyond(at, size, REFLECT: tl.constexpr):
    """Where the padding reads what lies at `at`, in a side of `size`."""
    if REFLECT:
        return tl.where(at < size, at, 2 * (size - 1) - at)
    return tl.minimum(at, size - 1)


@triton.jit
def _heighten(
    x, out, width, height, padded_width,
    SCALE: tl.constexpr, REFLECT_X: tl.constexpr, REFLECT_Y: tl.constexpr, ROWS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """N h W -> N H' W', padded and clamped to [-1, 1]. width: W. height: h. A program: a part of some rows; H' is a
    multiple of ROWS."""
    at = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)[None, :]
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)[:, None]
    rows, picture = tl.num_programs(1) * ROWS, tl.program_id(2).to(tl.int64)
    kept = at < padded_width
    column = _beyond(at, width, REFLECT_X)
    place = (_beyond(row, height * SCALE, REFLECT_Y) + 0.5) * (1.0 / SCALE)
    first = tl.floor(place - 1.5).to(tl.int32)
    weights = tl.zeros([ROWS, 1], tl.float32)
    for tap in tl.static_range(4):
        line, inside, weight = _tap(first, tap, place, height)
        weights += weight
    total = tl.zeros([ROWS, PIXELS], tl.float32)
    for tap in tl.static_range(4):
        line, inside, weight = _tap(first, tap, place, height)
        value = tl.load(x + (picture * height + line) * width + column, mask=inside & kept, other=0.0)
        total += value * (weight / weights)
    total = tl.minimum(tl.maximum(total, -1.0), 1.0)
    tl.store(out + (picture * rows + row) * padded_width + at, total, mask=kept)


def enlarge(frames: Tensor, geometry: Geometry) -> Tensor:
    """See `pixels.enlarge_padded`."""
    count, height, width, _ = frames.shape
    scale, padded = geometry.scale, (geometry.padded_height, geometry.padded_width)
    sides = height * scale, width * scale
    wide = torch.empty(count, 3, height, sides[1], device=frames.device)
    out = torch.empty(count, 3, *padded, device=frames.device)
    reflected = [whole - side < side for whole, side in zip(padded, sides)]
    peak = 255.0 if frames.dtype == torch.uint8 else 65535.0
    with on(frames):
        _widen[(triton.cdiv(sides[1], _PIXELS), height, count * 3)](
            frames.contiguous(), wide, width, peak, SCALE=scale, PIXELS=_PIXELS
        )
        _heighten[(triton.cdiv(padded[1], _COLUMNS), padded[0] // _ROWS, count * 3)](
            wide, out, sides[1], height, padded[1],
            SCALE=scale, REFLECT_Y=reflected[0], REFLECT_X=reflected[1], ROWS=_ROWS, PIXELS=_COLUMNS,
        )  # fmt: skip
    return out
