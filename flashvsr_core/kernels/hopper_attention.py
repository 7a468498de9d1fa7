"""Block-sparse attention for Hopper (compute capability 9.0), in Gluon, the language below Triton.

What Triton's compiler does not do by itself (its kernel waits for a product before it begins the next) is written by
hand here, after FlashAttention-3 (Shah and others, 2024): one warp does nothing but copy windows of keys and values
into shared memory; two groups of four warps compute 64 queries each, and each has the product with the values of one
window in flight while it takes the softmax of the next one.

Apart from block_attention_triton.py, because Gluon is experimental: it may be missing or changed in a Triton to come.
"""

import torch
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
from flashvsr_core.kernels.block_attention import Blocks
from flashvsr_core.kernels.block_attention_triton import LOG2_E, WINDOW, list_blocks, order_rows, row_count
from flashvsr_core.kernels.token_ops_triton import on

DIM = 128  # of a head

# Triton 3.9 calls it async_load; 3.6, which PyTorch 2.11 brings, has the other name only.
_load = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared


@gluon.jit
def _copy(q, k, v, tiles, ready, free, listed, count, q_row, k_first, v_first):
    """The copying warp: both halves of the queries, then keys and values of every selected window, as room comes."""
    TOKENS: gl.constexpr = k.block_type.shape[0]
    STAGES: gl.constexpr = tiles[1].shape[0]
    HALF: gl.constexpr = q.block_type.shape[0]
    mbarrier.expect(ready[0], 2 * q.block_type.nbytes)
    _load(q, [q_row, 0], ready[0], tiles[0].index(0))
    _load(q, [q_row + HALF, 0], ready[0], tiles[0].index(1))
    for i in range(count):
        slot = i % STAGES
        turn = (i // STAGES) & 1
        first = gl.load(listed + i) * TOKENS
        mbarrier.wait(free[0].index(slot), turn ^ 1)
        mbarrier.expect(ready[1].index(slot), k.block_type.nbytes)
        _load(k, [k_first + first, 0], ready[1].index(slot), tiles[1].index(slot))
        mbarrier.wait(free[1].index(slot), turn ^ 1)
        mbarrier.expect(ready[2].index(slot), v.block_type.nbytes)
        _load(v, [v_first + first, 0], ready[2].index(slot), tiles[2].index(slot))


@gluon.jit
def _compute(half: gl.constexpr, tiles, ready, free, count, out, target, stride, scale):
    """One group of warps: 64 queries against every selected window. Results go to rows `stride` apart."""
    HALF: gl.constexpr = tiles[0].shape[1]
    TOKENS: gl.constexpr = tiles[1].shape[1]
    DIM: gl.constexpr = tiles[0].shape[2]
    STAGES: gl.constexpr = tiles[1].shape[0]
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TOKENS, 16])
    RESULT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, DIM, 16])
    WEIGHTS: gl.constexpr = gl.DotOperandLayout(0, RESULT, 2)
    kind: gl.constexpr = tiles[2].dtype
    queries = tiles[0].index(half)
    nothing = gl.zeros([HALF, TOKENS], gl.float32, SCORES)
    result = gl.zeros([HALF, DIM], gl.float32, RESULT)
    total = gl.zeros([HALF], gl.float32, gl.SliceLayout(1, SCORES))
    if count > 0:
        mbarrier.wait(ready[0], 0)
        mbarrier.wait(ready[1].index(0), 0)
        pending = warpgroup_mma(queries, tiles[1].index(0).permute((1, 0)), nothing, use_acc=False, is_async=True)
        scores = warpgroup_mma_wait(0, deps=[pending])
        mbarrier.arrive(free[0].index(0))
        # Maxima before scaling: then scale and difference are one fused multiply-add.
        peak = gl.max(scores, 1)
        shares = gl.exp2(scores * scale - gl.expand_dims(peak * scale, 1))
        total = gl.sum(shares, 1)
        weights = gl.convert_layout(shares.to(kind), WEIGHTS)
        for i in range(1, count):
            slot = i % STAGES
            mbarrier.wait(ready[1].index(slot), (i // STAGES) & 1)
            keys = tiles[1].index(slot).permute((1, 0))
            pending = warpgroup_mma(queries, keys, nothing, use_acc=False, is_async=True)
            last = (i - 1) % STAGES
            mbarrier.wait(ready[2].index(last), ((i - 1) // STAGES) & 1)
            growing = warpgroup_mma(weights, tiles[2].index(last), result, is_async=True)
            scores = warpgroup_mma_wait(1, deps=[pending])
            mbarrier.arrive(free[0].index(slot))
            higher = gl.maximum(peak, gl.max(scores, 1))
            shares = gl.exp2(scores * scale - gl.expand_dims(higher * scale, 1))
            shrink = gl.exp2((peak - higher) * scale)
            total = total * shrink + gl.sum(shares, 1)
            peak = higher
            result = warpgroup_mma_wait(0, deps=[growing])
            mbarrier.arrive(free[1].index(last))
            result = result * gl.expand_dims(gl.convert_layout(shrink, gl.SliceLayout(1, RESULT)), 1)
            weights = gl.convert_layout(shares.to(kind), WEIGHTS)
        last = (count - 1) % STAGES
        mbarrier.wait(ready[2].index(last), ((count - 1) // STAGES) & 1)
        growing = warpgroup_mma(weights, tiles[2].index(last), result, is_async=True)
        result = warpgroup_mma_wait(0, deps=[growing])
    # Nothing selected: total is 0 and the result stays zero.
    inverse = gl.convert_layout(1.0 / gl.where(total > 0, total, 1.0), gl.SliceLayout(1, RESULT))
    lines = (result * gl.expand_dims(inverse, 1)).to(out.dtype.element_ty)
    LINES: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [4, 1], [1, 0])
    rows = half * HALF + gl.arange(0, HALF, gl.SliceLayout(1, LINES))
    columns = gl.arange(0, DIM, gl.SliceLayout(0, LINES))
    place = gl.expand_dims(rows.to(gl.int64) * stride, 1) + gl.expand_dims(columns, 0)
    gl.store(out + target + place, gl.convert_layout(lines, LINES))


@gluon.jit
def _compute_upper(tiles, ready, free, count, out, target, stride, scale):
    _compute(0, tiles, ready, free, count, out, target, stride, scale)


@gluon.jit
def _compute_lower(tiles, ready, free, count, out, target, stride, scale):
    _compute(1, tiles, ready, free, count, out, target, stride, scale)


@gluon.jit
def _attend(
    q, k, v, out, counts, indices, order, k_batch, k_head, v_batch, v_head, heads, query_windows, key_windows, scale,
    STAGES: gl.constexpr,
):  # fmt: skip
    """As `block_attention_triton._attend`; q too is a descriptor, of 64 rows."""
    HALF: gl.constexpr = q.block_type.shape[0]
    TOKENS: gl.constexpr = k.block_type.shape[0]
    DIM: gl.constexpr = k.block_type.shape[1]
    head = gl.program_id(1)
    window = gl.load(order + head.to(gl.int64) * query_windows + gl.program_id(0))
    row = head.to(gl.int64) * query_windows + window
    count = gl.load(counts + row)
    target = (((head // heads).to(gl.int64) * query_windows + window) * TOKENS * heads + head % heads) * DIM
    k_first = (head // heads) * k_batch + (head % heads) * k_head
    v_first = (head // heads) * v_batch + (head % heads) * v_head
    queries = gl.allocate_shared_memory(q.dtype, [2, HALF, DIM], q.layout)
    keys = gl.allocate_shared_memory(k.dtype, [STAGES, TOKENS, DIM], k.layout)
    values = gl.allocate_shared_memory(v.dtype, [STAGES, TOKENS, DIM], v.layout)
    BARRIER: gl.constexpr = mbarrier.MBarrierLayout()
    q_ready = gl.allocate_shared_memory(gl.int64, [1], BARRIER)
    k_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    v_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    k_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    v_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    mbarrier.init(q_ready, 1)
    for i in gl.static_range(STAGES):
        mbarrier.init(k_ready.index(i), 1)
        mbarrier.init(v_ready.index(i), 1)
        mbarrier.init(k_free.index(i), 2)
        mbarrier.init(v_free.index(i), 2)
    fence_async_shared()
    tiles = (queries, keys, values)
    ready = (q_ready, k_ready, v_ready)
    free = (k_free, v_free)
    stride = heads * DIM
    listed = indices + row * key_windows
    gl.warp_specialize(
        [
            (_compute_upper, (tiles, ready, free, count, out, target, stride, scale)),
            (_compute_lower, (tiles, ready, free, count, out, target, stride, scale)),
            (_copy, (q, k, v, tiles, ready, free, listed, count, row.to(gl.int32) * TOKENS, k_first, v_first)),
        ],
        [4, 1],
        [240, 24],
    )


def attend_hopper(q: Tensor, k: Tensor, v: Tensor, blocks: Blocks) -> Tensor:
    """What `attend_torch` computes, on Hopper. Arguments and result as of `block_attention_triton.attend_triton`, in
    bf16 or fp16 and with heads of 128."""
    tokens, dim = q.shape[-2:]
    if q.dtype not in (torch.bfloat16, torch.float16) or k.dtype != q.dtype or v.dtype != q.dtype:
        raise UserError(f"attention 'hopper' has no kernel for {q.dtype}; use --precision bf16 or fp16, or 'triton'")
    if dim != DIM or tokens != WINDOW:
        raise UserError(f"attention 'hopper' has no kernel for heads of {dim} and windows of {tokens}; use 'triton'")
    blocks = list_blocks(blocks) if isinstance(blocks, Tensor) else blocks
    batch, heads, query_windows = q.shape[:3]
    q = q.contiguous()
    k, v = (x if x[0, 0].is_contiguous() else x.contiguous() for x in (k, v))
    out = q.new_empty(batch, query_windows, tokens, heads, dim)
    with on(q):
        _attend[(query_windows, batch * heads)](
            _rows(q, tokens // 2), _rows(k, tokens), _rows(v, tokens), out, blocks.counts, blocks.indices,
            order_rows(blocks), k.stride(0) // dim, k.stride(1) // dim, v.stride(0) // dim, v.stride(1) // dim,
            heads, query_windows, k.shape[2], dim**-0.5 * LOG2_E, STAGES=2, num_warps=4,
        )  # fmt: skip
    return out.permute(0, 3, 1, 2, 4)


def _rows(x: Tensor, count: int) -> TensorDescriptor:
    """See `block_attention_triton.as_rows`."""
    rows, dim = row_count(x), x.shape[-1]
    return TensorDescriptor(x, [rows, dim], [dim, 1], [count, dim], gl.NVMMASharedLayout(128, 8 * x.element_size(), 2))
