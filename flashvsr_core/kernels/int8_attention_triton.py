"""`int8_attention` in Triton: two passes that quantise, and the walk over selected blocks with int8 products."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from flashvsr_core.errors import UserError
from flashvsr_core.kernels import block_attention_triton as exact
from flashvsr_core.kernels.block_attention import BlockList, Blocks
from flashvsr_core.kernels.block_attention_triton import WINDOW, Tile
from flashvsr_core.kernels.int8_attention import LEVELS, Quantised, common
from flashvsr_core.kernels.token_ops_triton import on

_HEAD_DIMS = (32, 64, 128)  # int8 products are at least 32 deep
TILE = Tile(keys=128, warps=8, stages=2)  # tests/bench/speed.md


@triton.jit
def _quantise(
    x, less, out, scales, x_batch, x_head, heads, windows,
    LESS: tl.constexpr, BY_WINDOW: tl.constexpr, TOKENS: tl.constexpr, DIM: tl.constexpr, LEVELS: tl.constexpr,
):  # fmt: skip
    """One window of one head."""
    window, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    rows, columns = tl.arange(0, TOKENS), tl.arange(0, DIM)
    place = rows[:, None] * DIM + columns[None, :]
    first = (head // heads) * x_batch + (head % heads) * x_head + window * TOKENS * DIM
    value = tl.load(x + first + place).to(tl.float32)
    if LESS:
        value -= tl.load(less + head * DIM + columns)[None, :]
    largest = tl.max(tl.abs(value), 1)
    if BY_WINDOW:
        largest = tl.zeros([TOKENS], tl.float32) + tl.max(largest, 0)
    scale = largest / LEVELS
    value = value / tl.where(scale > 0, scale, 1.0)[:, None]
    value += tl.where(value >= 0, 0.5, -0.5)  # conversion cuts: halves go away from zero
    at = head * windows + window
    tl.store(out + at * TOKENS * DIM + place, value.to(tl.int8))
    tl.store(scales + at * TOKENS + rows, scale)


@triton.jit
def _attend(
    q, k, v, q_scales, k_scales, out, counts, indices, order, v_batch, v_head, heads, query_windows, key_windows, scale,
    TOKENS: tl.constexpr, KEYS: tl.constexpr, DIM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """As `block_attention_triton._attend`. q, k int8 without gaps; q_scales by token, k_scales alike in a window."""
    head = tl.program_id(1)
    window = tl.load(order + head.to(tl.int64) * query_windows + tl.program_id(0))
    row = head.to(tl.int64) * query_windows + window
    rows = tl.arange(0, TOKENS)
    columns = tl.arange(0, DIM)
    tokens = ((head // heads).to(tl.int64) * query_windows + window) * TOKENS + rows
    target = (tokens * heads + head % heads)[:, None] * DIM + columns[None, :]
    k_first = head * key_windows * TOKENS
    v_first = (head // heads) * v_batch + (head % heads) * v_head
    queries = tl.load(q + row * TOKENS * DIM + rows[:, None] * DIM + columns[None, :])
    q_scale = tl.load(q_scales + row * TOKENS + rows) * scale
    count = tl.load(counts + row)
    result = tl.zeros([TOKENS, DIM], tl.float32)
    total = tl.zeros([TOKENS], tl.float32)
    peak = tl.full([TOKENS], float("-inf"), tl.float32)
    PARTS: tl.constexpr = TOKENS // KEYS
    for i in range(count * PARTS):
        first = tl.load(indices + row * key_windows + i // PARTS) * TOKENS + (i % PARTS) * KEYS
        key = k.load([k_first + first, 0])
        scores = tl.dot(queries, tl.trans(key))  # int32: at most 128 * 127 * 127
        factor = q_scale * tl.load(k_scales + k_first.to(tl.int64) + first)
        # Maxima of whole numbers, before scaling: scale and difference are one fused multiply-add.
        higher = tl.maximum(peak, tl.max(scores, 1).to(tl.float32) * factor)
        weights = tl.exp2(scores.to(tl.float32) * factor[:, None] - higher[:, None])
        shrink = tl.exp2(peak - higher)
        total = total * shrink + tl.sum(weights, 1)
        value = v.load([v_first + first, 0])
        result = tl.dot(weights.to(value.dtype), value, result * shrink[:, None], input_precision=PRECISION)
        peak = higher
    result = result / tl.where(total > 0, total, 1.0)[:, None]
    tl.store(out + target, result.to(out.dtype.element_ty))


def attend_int8(q: Tensor, k: Tensor, v: Tensor, blocks: Blocks) -> Tensor:
    """What `attend_int8_torch` computes. Arguments and result as of `block_attention_triton.attend_triton`; d 32, 64
    or 128."""
    check("int8", q)
    return attend_quantised(quantise(q, None, by_window=False), quantise(k, common(k), by_window=True), v, blocks)


def check(name: str, q: Tensor) -> None:
    """UserError for shapes that the int8 kernels have no code for."""
    tokens, dim = q.shape[-2:]
    if dim not in _HEAD_DIMS or tokens != WINDOW:
        raise UserError(f"attention {name!r} has no kernel for heads of {dim} and windows of {tokens}; use 'torch'")


def quantise(x: Tensor, less: Tensor | None, by_window: bool) -> Quantised:
    """See `int8_attention.quantise_torch`. A head's windows may be the start of a longer buffer."""
    batch, heads, windows, tokens, dim = x.shape
    x = x if x[0, 0].is_contiguous() else x.contiguous()
    out = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    scales = torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)
    with on(x):
        _quantise[(windows, batch * heads)](
            x, x if less is None else less, out, scales, x.stride(0), x.stride(1), heads, windows,
            LESS=less is not None, BY_WINDOW=by_window, TOKENS=tokens, DIM=dim, LEVELS=LEVELS, num_warps=8,
        )  # fmt: skip
    return Quantised(out, scales)


def attend_quantised(q: Quantised, k: Quantised, v: Tensor, blocks: Blocks, tile: Tile = TILE) -> Tensor:
    """The walk alone; the result has the type of v, in memory as that of `attend_triton`."""
    listed: BlockList = exact.list_blocks(blocks) if isinstance(blocks, Tensor) else blocks
    batch, heads, query_windows, tokens, dim = q.values.shape
    v = v if v[0, 0].is_contiguous() else v.contiguous()
    # Tiles of float32 are twice as large as there is room for.
    tile = tile if v.element_size() == 2 else exact.SINGLE
    out = v.new_empty(batch, query_windows, tokens, heads, dim)
    with on(v):
        _attend[(query_windows, batch * heads)](
            q.values, exact.as_rows(k.values, tile.keys), exact.as_rows(v, tile.keys), q.scales, k.scales, out,
            listed.counts, listed.indices, exact.order_rows(listed), v.stride(0) // dim, v.stride(1) // dim,
            heads, query_windows, k.values.shape[2], dim**-0.5 * exact.LOG2_E,
            TOKENS=tokens, KEYS=tile.keys, DIM=dim, PRECISION="ieee", num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    return out.permute(0, 3, 1, 2, 4)
