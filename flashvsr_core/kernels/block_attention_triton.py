"""Block-sparse attention in Triton: one program per head and query window walks the list of its selected key windows.

Apart from block_attention.py, because Triton must be imported before its kernels are defined, and CPU installations
have none.
"""

from contextlib import nullcontext
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from flashvsr_core.errors import UserError

WINDOW = 128  # tokens of a query or key window
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_HEAD_DIMS = (16, 32, 64, 128)
_LOG2_E = 1.4426950408889634  # the kernel's softmax is in powers of 2


@dataclass(frozen=True)
class Tile:
    """How one program works: keys of a window taken at once, warps, and loads in flight."""

    keys: int
    warps: int
    stages: int


# Measured in tests/bench/full_size.md. Tiles of fp32 are twice as large.
HALF = Tile(keys=64, warps=4, stages=2)
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
def _attend(
    q, k, v, out, counts, indices,
    k_batch, k_head, v_batch, v_head, heads, query_windows, key_windows, scale,
    TOKENS: tl.constexpr, KEYS: tl.constexpr, DIM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    window, head = tl.program_id(0), tl.program_id(1)
    row = head.to(tl.int64) * query_windows + window
    rows = tl.arange(0, TOKENS)
    columns = tl.arange(0, DIM)
    keys = tl.arange(0, KEYS)
    own = row * TOKENS * DIM + rows[:, None] * DIM + columns[None, :]
    k += (head // heads).to(tl.int64) * k_batch + (head % heads).to(tl.int64) * k_head
    v += (head // heads).to(tl.int64) * v_batch + (head % heads).to(tl.int64) * v_head
    queries = tl.load(q + own)
    count = tl.load(counts + row)
    result = tl.zeros([TOKENS, DIM], tl.float32)
    total = tl.zeros([TOKENS], tl.float32)
    peak = tl.full([TOKENS], float("-inf"), tl.float32)
    PARTS: tl.constexpr = TOKENS // KEYS
    for i in range(count * PARTS):
        block = tl.load(indices + row * key_windows + i // PARTS).to(tl.int64)
        first = (block * TOKENS + (i % PARTS) * KEYS) * DIM
        key = tl.load(k + first + keys[None, :] * DIM + columns[:, None])
        scores = tl.dot(queries, key, input_precision=PRECISION) * scale
        higher = tl.maximum(peak, tl.max(scores, 1))
        weights = tl.exp2(scores - higher[:, None])
        shrink = tl.exp2(peak - higher)
        total = total * shrink + tl.sum(weights, 1)
        value = tl.load(v + first + keys[:, None] * DIM + columns[None, :])
        result = tl.dot(weights.to(value.dtype), value, result * shrink[:, None], input_precision=PRECISION)
        peak = higher
    # Nothing selected: total is 0 and the result stays zero.
    result = result / tl.where(total > 0, total, 1.0)[:, None]
    tl.store(out + own, result.to(out.dtype.element_ty))


def attend_triton(q: Tensor, k: Tensor, v: Tensor, blocks: Tensor) -> Tensor:
    """What `attend_torch` computes, in one launch over lists of selected blocks; softmax and sums in float32.

    q: B heads Wq 128 d; k, v: B heads Wk 128 d, contiguous from the windows on (a head's windows may be the start of a
    longer buffer); blocks: bool B heads Wq Wk. bf16, fp16 or fp32; d 16, 32, 64 or 128. Returns B heads Wq 128 d.
    """
    tokens, dim = q.shape[-2:]
    if q.dtype not in _DTYPES or k.dtype != q.dtype or v.dtype != q.dtype:
        raise UserError(f"attention 'triton' has no kernel for {q.dtype}; use --precision bf16, fp16 or fp32")
    if dim not in _HEAD_DIMS or tokens != WINDOW:
        raise UserError(f"attention 'triton' has no kernel for heads of {dim} and windows of {tokens}; use 'torch'")
    counts, indices = list_blocks(blocks)
    return launch(q, k, v, counts, indices, HALF if q.element_size() == 2 else SINGLE)


def launch(q: Tensor, k: Tensor, v: Tensor, counts: Tensor, indices: Tensor, tile: Tile) -> Tensor:
    """The kernel alone, on lists made by `list_blocks`."""
    batch, heads, query_windows, tokens, dim = q.shape
    q = q.contiguous()
    k, v = (x if x[0, 0].is_contiguous() else x.contiguous() for x in (k, v))
    out = torch.empty_like(q)
    with torch.cuda.device(q.device) if q.is_cuda else nullcontext():
        _attend[(query_windows, batch * heads)](
            q, k, v, out, counts, indices,
            k.stride(0), k.stride(1), v.stride(0), v.stride(1), heads, query_windows, k.shape[2],
            dim**-0.5 * _LOG2_E, TOKENS=tokens, KEYS=tile.keys, DIM=dim, PRECISION="ieee",
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    return out


def list_blocks(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Bool B heads Wq Wk -> selected blocks per row (B heads Wq, int32) and their numbers in front (..., Wk, int32)."""
    *rows, windows = blocks.shape
    counts = torch.empty(rows, dtype=torch.int32, device=blocks.device)
    indices = torch.empty(blocks.shape, dtype=torch.int32, device=blocks.device)
    _list_blocks[(counts.numel(),)](
        blocks.contiguous().view(torch.uint8), counts, indices, windows, WIDTH=triton.next_power_of_2(windows)
    )
    return counts, indices
