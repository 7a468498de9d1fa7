"""Block selection in Triton: scores, exact threshold and lists of blocks; nothing is sorted and the host never waits.

Reference: `block_mask.select_blocks`. The threshold is found digit by digit: probabilities are not negative, so their
bit patterns rise with their values, and a histogram of the highest 8 bits tells in which bin the entry of a given rank
lies; the next histogram looks into that bin. Many programs count, whoever reads a histogram draws its conclusion.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from flashvsr_core.kernels.block_attention import BlockList
from flashvsr_core.kernels.token_ops_triton import on

_LOG2_E = tl.constexpr(1.4426950408889634)
_QUERIES = 16  # query windows of one program
_KEYS = 64
_CHUNK = 2048  # entries that one program counts: 9 programs a head at 768x1408, 113 at 1536x2560
_DIGIT = 8  # bits of a histogram: 4 of them for a float32


@triton.jit
def _score(
    q, k, local, weights, n, query_windows, key_windows, k_head, scale,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """Softmax over all keys of the scores inside the local window, for some query windows of one head."""
    head = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    columns = tl.arange(0, DIM)
    inside = rows < query_windows
    queries = tl.load(
        q + (head * query_windows + rows[:, None]) * DIM + columns[None, :], mask=inside[:, None], other=0.0
    )
    own = weights + (head * query_windows + rows[:, None]) * key_windows
    peak = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    for first in range(0, key_windows, KEYS):
        at = first + tl.arange(0, KEYS)
        known = at < key_windows
        keys = tl.load(k + head * k_head + at[None, :] * DIM + columns[:, None], mask=known[None, :], other=0.0)
        scores = tl.dot(queries, keys, input_precision="ieee") * scale
        near = tl.load(local + (rows % n)[:, None] * n + (at % n)[None, :], mask=inside[:, None] & known[None, :],
                       other=0)  # fmt: skip
        scores = tl.where(near != 0, scores, float("-inf"))
        tl.store(own + at[None, :], scores, mask=inside[:, None] & known[None, :])
        # A window is local to itself, but its keys may come late: until then all is minus infinity.
        higher = tl.maximum(peak, tl.max(scores, 1))
        safe = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp2((peak - safe) * _LOG2_E) + tl.sum(tl.exp2((scores - safe[:, None]) * _LOG2_E), 1)
        peak = higher
    tl.debug_barrier()
    safe = tl.where(peak == float("-inf"), 0.0, peak)
    for first in range(0, key_windows, KEYS):
        at = first + tl.arange(0, KEYS)
        mask = inside[:, None] & (at < key_windows)[None, :]
        scores = tl.load(own + at[None, :], mask=mask, other=float("-inf"))
        chance = tl.exp2((scores - safe[:, None]) * _LOG2_E) / total[:, None]
        tl.store(own + at[None, :], chance, mask=mask)


@triton.jit
def _replay(histograms, group, groups, rank, PASSES: tl.constexpr, DIGIT: tl.constexpr):
    """What the first PASSES histograms tell of the `rank`-th largest entry: its highest digits, and its rank among
    the entries that share them. With 32 / DIGIT passes that is its whole bit pattern."""
    BINS: tl.constexpr = 1 << DIGIT
    bins = tl.arange(0, BINS)
    prefix = tl.zeros([], tl.int32)
    for step in tl.static_range(PASSES):
        counts = tl.load(histograms + (step * groups + group) * BINS + bins)
        at_least = tl.sum(counts, 0) - tl.cumsum(counts, 0) + counts
        digit = tl.sum((at_least >= rank).to(tl.int32), 0) - 1
        rank -= tl.sum(tl.where(bins > digit, counts, 0), 0)
        prefix = prefix * BINS + digit
    return prefix, rank


@triton.jit
def _count_digits(
    weights, histograms, entries, groups, rank, PASS: tl.constexpr, DIGIT: tl.constexpr, CHUNK: tl.constexpr
):  # fmt: skip
    """Histogram of the next digit of the entries (float32 >= 0, read as int32) of one head and query slice whose
    higher digits are those of the entry looked for; program 0: which chunk of them."""
    BINS: tl.constexpr = 1 << DIGIT
    SHIFT: tl.constexpr = 32 - (PASS + 1) * DIGIT
    group = tl.program_id(1)
    at = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    value = tl.load(weights + group.to(tl.int64) * entries + at, mask=at < entries, other=0)
    alike = at < entries
    if PASS > 0:
        prefix, _ = _replay(histograms, group, groups, rank, PASS, DIGIT)
        alike &= (value >> (SHIFT + DIGIT)) == prefix
    counts = tl.histogram((value >> SHIFT) & (BINS - 1), BINS, mask=alike)
    target = histograms + (PASS * groups + group) * BINS + tl.arange(0, BINS)
    tl.atomic_add(target, counts, mask=counts > 0)


@triton.jit
def _threshold(histograms, thresholds, groups, rank, DIGIT: tl.constexpr):
    found, _ = _replay(histograms, tl.program_id(0), groups, rank, 32 // DIGIT, DIGIT)
    tl.store(thresholds + tl.program_id(0), found)


@triton.jit
def _list_above(weights, thresholds, counts, indices, n, windows, WIDTH: tl.constexpr):
    """How many entries of a row are above its slice's threshold, and which, ascending."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, WIDTH)
    value = tl.load(weights + row * windows + at, mask=at < windows, other=-1)
    chosen = (value > tl.load(thresholds + row // n)).to(tl.int32)
    place = tl.cumsum(chosen, 0) - 1
    tl.store(indices + row * windows + place, at, mask=chosen != 0)
    tl.store(counts + row, tl.sum(chosen, 0))


def select_blocks(q: Tensor, k: Tensor, local: Tensor, topk: int) -> BlockList:
    """See `block_mask.select_blocks`: the same blocks, as a list. q and k float32, d at least 16 and a power of 2."""
    batch, heads, query_windows, dim = q.shape
    key_windows, n = k.shape[2], local.shape[0]
    entries = n * key_windows
    if k.stride(2) != dim or (batch > 1 and k.stride(0) != heads * k.stride(1)):
        k = k.contiguous()
    rows = (batch, heads, query_windows)
    weights = torch.empty(*rows, key_windows, dtype=torch.float32, device=q.device)
    found = BlockList(
        torch.empty(rows, dtype=torch.int32, device=q.device),
        torch.empty(*rows, key_windows, dtype=torch.int32, device=q.device),
    )
    groups = batch * heads * (query_windows // n)
    passes = 32 // _DIGIT
    histograms = torch.zeros(passes, groups, 1 << _DIGIT, dtype=torch.int32, device=q.device)
    thresholds = torch.empty(groups, dtype=torch.int32, device=q.device)
    rank = max(0, min(topk, entries - 1)) + 1
    with on(q):
        _score[(triton.cdiv(query_windows, _QUERIES), batch * heads)](
            q.contiguous(), k, local.view(torch.uint8), weights, n, query_windows, key_windows, k.stride(1), dim**-0.5,
            QUERIES=_QUERIES, KEYS=_KEYS, DIM=dim,
        )  # fmt: skip
        bits = weights.view(torch.int32)
        for number in range(passes):
            _count_digits[(triton.cdiv(entries, _CHUNK), groups)](
                bits, histograms, entries, groups, rank, PASS=number, DIGIT=_DIGIT, CHUNK=_CHUNK, num_warps=8
            )
        _threshold[(groups,)](histograms, thresholds, groups, rank, DIGIT=_DIGIT)
        _list_above[(batch * heads * query_windows,)](
            bits, thresholds, found.counts, found.indices, n, key_windows, WIDTH=triton.next_power_of_2(key_windows)
        )
    return found
