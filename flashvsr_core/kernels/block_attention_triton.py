"""Block-sparse attention in Triton: one program per head and query window walks the list of its selected key windows.

Apart from block_attention.py, because Triton must be imported before its kernels are defined, and CPU installations
have none.
"""

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from flashvsr_core.errors import UserError
from flashvsr_core.kernels.block_attention import BlockList, Blocks
from flashvsr_core.kernels.token_ops_triton import on

WINDOW = 128  # tokens of a query or key window
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_HEAD_DIMS = (16, 32, 64, 128)
LOG2_E = 1.4426950408889634  # the kernel's softmax is in powers of 2


@dataclass(frozen=True)
class Tile:
    """How one program works: keys of a window taken at once, warps, and loads in flight."""

    keys: int
    warps: int
    stages: int


# Measured in tests/bench/speed.md. Tiles of fp32 are twice as large.
HALF = Tile(keys=128, warps=8, stages=2)
SINGLE = Tile(keys=32, warps=8, stages=1)


@triton.jit
def _list_blocks(mask, counts, indices, windows, WIDTH: tl.constexpr):
    """Row of a bool mask -> how many entries are set, and which, ascending."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, WIDTH)
    chosen = tl.load(mask + row * windows + at, mask=at < windows, other=0).to(tl.int32)
    place = tl.cumsum(chosen, 0) - 1
    tl.store(indices + row * windows + place, at, mask=chosen != 0)
    tl.store(counts + row, tl.sum(chosen, 0))


@triton.jit
def _order_rows(counts, order, windows, WIDTH: tl.constexpr):
    """Query windows of a head by falling number of blocks: long programs that start late would leave the rest idle."""
    window, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    at = tl.arange(0, WIDTH)
    others = tl.load(counts + head * windows + at, mask=at < windows, other=-1)
    own = tl.load(counts + head * windows + window)
    before = (others > own) | ((others == own) & (at < window))
    tl.store(order + head * windows + tl.sum(before.to(tl.int32), 0), window)


@triton.jit
def _attend(
    q, k, v, out, counts, indices, order, k_batch, k_head, v_batch, v_head, heads, query_windows, key_windows, scale,
    TOKENS: tl.constexpr, KEYS: tl.constexpr, DIM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """k and v are descriptors of tensors of rows of DIM; strides k_batch, ... count such rows."""
    head = tl.program_id(1)
    window = tl.load(order + head.to(tl.int64) * query_windows + tl.program_id(0))
    row = head.to(tl.int64) * query_windows + window
    rows = tl.arange(0, TOKENS)
    columns = tl.arange(0, DIM)
    # The result is by token, as the layer that follows wants it: B Wq 128 heads d.
    tokens = ((head // heads).to(tl.int64) * query_windows + window) * TOKENS + rows
    target = (tokens * heads + head % heads)[:, None] * DIM + columns[None, :]
    k_first = (head // heads) * k_batch + (head % heads) * k_head
    v_first = (head // heads) * v_batch + (head % heads) * v_head
    queries = tl.load(q + row * TOKENS * DIM + rows[:, None] * DIM + columns[None, :])
    count = tl.load(counts + row)
    result = tl.zeros([TOKENS, DIM], tl.float32)
    total = tl.zeros([TOKENS], tl.float32)
    peak = tl.full([TOKENS], float("-inf"), tl.float32)
    PARTS: tl.constexpr = TOKENS // KEYS
    for i in range(count * PARTS):
        first = tl.load(indices + row * key_windows + i // PARTS) * TOKENS + (i % PARTS) * KEYS
        key = k.load([k_first + first, 0])
        scores = tl.dot(queries, tl.trans(key), input_precision=PRECISION)
        # Maxima before scaling: then scale and difference are one fused multiply-add.
        higher = tl.maximum(peak, tl.max(scores, 1))
        weights = tl.exp2(scores * scale - (higher * scale)[:, None])
        shrink = tl.exp2((peak - higher) * scale)
        total = total * shrink + tl.sum(weights, 1)
        value = v.load([v_first + first, 0])
        result = tl.dot(weights.to(value.dtype), value, result * shrink[:, None], input_precision=PRECISION)
        peak = higher
    # Nothing selected: total is 0 and the result stays zero.
    result = result / tl.where(total > 0, total, 1.0)[:, None]
    tl.store(out + target, result.to(out.dtype.element_ty))


def attend_triton(q: Tensor, k: Tensor, v: Tensor, blocks: Blocks) -> Tensor:
    """What `attend_torch` computes, in one launch over lists of selected blocks; softmax and sums in float32.

    q: B heads Wq 128 d; k, v: B heads Wk 128 d, contiguous from the windows on (a head's windows may be the start of a
    longer buffer); blocks: a list, or bool B heads Wq Wk. bf16, fp16 or fp32; d 16, 32, 64 or 128. Returns
    B heads Wq 128 d, which lies in memory as B Wq 128 heads d.
    """
    tokens, dim = q.shape[-2:]
    if q.dtype not in _DTYPES or k.dtype != q.dtype or v.dtype != q.dtype:
        raise UserError(f"attention 'triton' has no kernel for {q.dtype}; use --precision bf16, fp16 or fp32")
    if dim not in _HEAD_DIMS or tokens != WINDOW:
        raise UserError(f"attention 'triton' has no kernel for heads of {dim} and windows of {tokens}; use 'torch'")
    if isinstance(blocks, Tensor):
        blocks = list_blocks(blocks)
    return launch(q, k, v, blocks, HALF if q.element_size() == 2 else SINGLE)


def launch(q: Tensor, k: Tensor, v: Tensor, blocks: BlockList, tile: Tile) -> Tensor:
    """The kernel alone."""
    batch, heads, query_windows, tokens, dim = q.shape
    q = q.contiguous()
    k, v = (x if x[0, 0].is_contiguous() else x.contiguous() for x in (k, v))
    out = q.new_empty(batch, query_windows, tokens, heads, dim)
    order = order_rows(blocks)
    with on(q):
        _attend[(query_windows, batch * heads)](
            q, as_rows(k, tile.keys), as_rows(v, tile.keys), out, blocks.counts, blocks.indices, order,
            k.stride(0) // dim, k.stride(1) // dim, v.stride(0) // dim, v.stride(1) // dim, heads, query_windows,
            k.shape[2], dim**-0.5 * LOG2_E, TOKENS=tokens, KEYS=tile.keys, DIM=dim, PRECISION="ieee",
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    return out.permute(0, 3, 1, 2, 4)


def order_rows(blocks: BlockList) -> Tensor:
    """Query windows of each head in the order in which they are to be computed; int32 B heads Wq."""
    *heads, windows = blocks.counts.shape
    order = torch.empty_like(blocks.counts)
    with on(order):
        _order_rows[(windows, math.prod(heads))](blocks.counts, order, windows, WIDTH=triton.next_power_of_2(windows))
    return order


def as_rows(x: Tensor, count: int) -> TensorDescriptor:
    """A tensor B heads W 128 d, between whose heads there may be room, as rows of d of which `count` are read at once.

    Hopper and later read such tiles by their copy engine; for others Triton computes addresses.
    """
    dim = x.shape[-1]
    return TensorDescriptor(x, [row_count(x), dim], [dim, 1], [count, dim])


def row_count(x: Tensor) -> int:
    """Rows of d that a tensor B heads W 128 d spans, with the room between its heads."""
    batch, heads, windows, tokens, dim = x.shape
    return ((batch - 1) * x.stride(0) + (heads - 1) * x.stride(1)) // dim + windows * tokens


def list_blocks(blocks: Tensor) -> BlockList:
    """A bool mask B heads Wq Wk as a list."""
    *rows, windows = blocks.shape
    counts = torch.empty(rows, dtype=torch.int32, device=blocks.device)
    indices = torch.empty(blocks.shape, dtype=torch.int32, device=blocks.device)
    _list_blocks[(counts.numel(),)](
        blocks.contiguous().view(torch.uint8), counts, indices, windows, WIDTH=triton.next_power_of_2(windows)
    )
    return BlockList(counts, indices)
