"""`last_layers.convolve` for Hopper (compute capability 9.0), in Gluon, the language below Triton.

All nine taps' weights stay in shared memory; one warp copies pixels. Two groups of four warps take 128 pixels in turn:
while one projects and stores what it has, the other one has the matrix units.
"""

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from flashvsr_core.errors import UserError
from flashvsr_core.kernels.last_layers import CHANNELS, PRODUCTS, TAPS, LastLayers
from flashvsr_core.kernels.token_ops_triton import on

ROWS = 128  # pixels of one turn of one group
_STAGES = 4  # of 16 KiB, beside 144 KiB of weights

# Triton 3.9 calls it async_load; 3.6, which PyTorch 2.11 brings, has the other name only.
_load = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared


@gluon.jit
def _copy(x, weight, projection, tiles, ready, free, loaded, first, step, tiles_in_all, line):
    """The copying warp: all weights, then for every tap of every tile the pixels that it meets."""
    ROWS: gl.constexpr = x.block_type.shape[0]
    TAPS: gl.constexpr = tiles[1].shape[0]
    STAGES: gl.constexpr = tiles[0].shape[0]
    mbarrier.expect(loaded, TAPS * weight.block_type.nbytes + projection.block_type.nbytes)
    for i in gl.static_range(TAPS):
        _load(weight, [i * weight.block_type.shape[0], 0], loaded, tiles[1].index(i))
    _load(projection, [0, 0], loaded, tiles[2])
    count = 0
    for tile in range(first, tiles_in_all, step):
        for tap in range(TAPS):
            slot = count % STAGES
            mbarrier.wait(free.index(slot), ((count // STAGES) & 1) ^ 1)
            mbarrier.expect(ready.index(slot), x.block_type.nbytes)
            # Rows before the first and after the last are zeros.
            row = tile * ROWS + (tap // 3 - 1) * line + tap % 3 - 1
            _load(x, [row, 0], ready.index(slot), tiles[0].index(slot))
            count += 1


@gluon.jit
def _compute(group: gl.constexpr, tiles, ready, free, loaded, turns, offset, out, first, step, tiles_in_all, rows):
    """One group of warps: every other tile of this program."""
    STAGES: gl.constexpr = tiles[0].shape[0]
    ROWS: gl.constexpr = tiles[0].shape[1]
    TAPS: gl.constexpr = tiles[1].shape[0]
    CHANNELS: gl.constexpr = tiles[1].shape[1]
    PRODUCTS: gl.constexpr = tiles[2].shape[0]
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, CHANNELS, 32])
    RESULT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, PRODUCTS, 16])
    RECTIFIED: gl.constexpr = gl.DotOperandLayout(0, RESULT, 2)
    kind: gl.constexpr = tiles[2].dtype
    mbarrier.wait(loaded, 0)
    number = group
    for tile in range(first + group * step, tiles_in_all, 2 * step):
        # The other group has waited for all its pixels: those that are waited for below are this tile's.
        if number > 0:
            mbarrier.wait(turns.index(1 - group), ((number - 1) // 2) & 1)
        sums = gl.zeros([ROWS, CHANNELS], gl.float32, SUMS)
        count = number * TAPS
        for tap in range(TAPS):
            slot = count % STAGES
            mbarrier.wait(ready.index(slot), (count // STAGES) & 1)
            pending = warpgroup_mma(tiles[0].index(slot), tiles[1].index(tap).permute((1, 0)), sums, is_async=True)
            sums = warpgroup_mma_wait(1, deps=[pending])  # the product before is done, and with it its pixels
            if tap > 0:
                mbarrier.arrive(free.index((count - 1) % STAGES))
            count += 1
        mbarrier.arrive(turns.index(group))
        sums = warpgroup_mma_wait(0, deps=[sums])
        mbarrier.arrive(free.index((count - 1) % STAGES))
        sums = sums + gl.expand_dims(gl.load(offset + gl.arange(0, CHANNELS, gl.SliceLayout(0, SUMS))), 0)
        rectified = gl.convert_layout(gl.maximum(sums, 0.0).to(kind), RECTIFIED)
        nothing = gl.zeros([ROWS, PRODUCTS], gl.float32, RESULT)
        pending = warpgroup_mma(rectified, tiles[2].permute((1, 0)), nothing, use_acc=False, is_async=True)
        result = warpgroup_mma_wait(0, deps=[pending])
        at = tile * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, RESULT))
        columns = gl.arange(0, PRODUCTS, gl.SliceLayout(0, RESULT))
        place = gl.expand_dims(at.to(gl.int64) * PRODUCTS, 1) + gl.expand_dims(columns, 0)
        gl.store(out + place, result.to(kind), mask=gl.expand_dims(at < rows, 1))
        number += 2


@gluon.jit
def _compute_even(tiles, ready, free, loaded, turns, offset, out, first, step, tiles_in_all, rows):
    _compute(0, tiles, ready, free, loaded, turns, offset, out, first, step, tiles_in_all, rows)


@gluon.jit
def _compute_odd(tiles, ready, free, loaded, turns, offset, out, first, step, tiles_in_all, rows):
    _compute(1, tiles, ready, free, loaded, turns, offset, out, first, step, tiles_in_all, rows)


@gluon.jit
def _convolve(
    x, weight, projection, offset, out, rows, line, tiles_in_all, STAGES: gl.constexpr, TAPS: gl.constexpr
):  # fmt: skip
    """x: descriptor of rows x channels; line: rows from a pixel to the one below. A program takes every n-th tile."""
    ROWS: gl.constexpr = x.block_type.shape[0]
    CHANNELS: gl.constexpr = x.block_type.shape[1]
    PRODUCTS: gl.constexpr = projection.block_type.shape[0]
    pixels = gl.allocate_shared_memory(x.dtype, [STAGES, ROWS, CHANNELS], x.layout)
    weights = gl.allocate_shared_memory(weight.dtype, [TAPS, CHANNELS, CHANNELS], weight.layout)
    projected = gl.allocate_shared_memory(projection.dtype, [PRODUCTS, CHANNELS], projection.layout)
    BARRIER: gl.constexpr = mbarrier.MBarrierLayout()
    loaded = gl.allocate_shared_memory(gl.int64, [1], BARRIER)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    turns = gl.allocate_shared_memory(gl.int64, [2, 1], BARRIER)
    mbarrier.init(loaded, 1)
    for i in gl.static_range(STAGES):
        mbarrier.init(ready.index(i), 1)
        mbarrier.init(free.index(i), 1)
    for i in gl.static_range(2):
        mbarrier.init(turns.index(i), 1)
    fence_async_shared()
    tiles = (pixels, weights, projected)
    first, step = gl.program_id(0), gl.num_programs(0)
    arguments = (tiles, ready, free, loaded, turns, offset, out, first, step, tiles_in_all, rows)
    gl.warp_specialize(
        [
            (_compute_even, arguments),
            (_compute_odd, arguments),
            (_copy, (x, weight, projection, tiles, ready, free, loaded, first, step, tiles_in_all, line)),
        ],
        [4, 1],
        [240, 24],
    )


def convolve(x: Tensor, layers: LastLayers, offset: Tensor) -> Tensor:
    """See `last_layers.convolve`."""
    frames, height, width, channels = x.shape
    if channels != CHANNELS:
        raise UserError(f"no kernel convolves {channels} channels in fp8; there is one for {CHANNELS}")
    rows = frames * height * width
    tiles = triton.cdiv(rows, ROWS)
    out = torch.empty(frames, height, width, PRODUCTS, dtype=layers.projection.dtype, device=x.device)
    programs = torch.cuda.get_device_properties(x.device).multi_processor_count
    pixels = _blocks(x.view(rows, channels), ROWS)
    weight, projection = _blocks(layers.weight, CHANNELS), _blocks(layers.projection, PRODUCTS)
    with on(x):
        _convolve[(min(programs, tiles),)](
            pixels, weight, projection, offset, out, rows, width, tiles, STAGES=_STAGES, TAPS=TAPS, num_warps=4
        )
    return out


def _blocks(x: Tensor, count: int) -> TensorDescriptor:
    """Blocks of `count` whole rows."""
    layout = gl.NVMMASharedLayout(128, 8 * x.element_size(), 2)
    return TensorDescriptor(x, list(x.shape), [x.shape[1], 1], [count, x.shape[1]], layout)
