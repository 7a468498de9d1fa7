"""Which 128x128 blocks attention computes: pooled scores in a local window, thresholded per head and query slice."""

from functools import lru_cache

import torch
from torch import Tensor

REFERENCE_PIXELS = 768 * 1280  # the size at which sparse_ratio is the ratio of blocks to windows squared


def top_k(windows: int, sparse_ratio: float, height: int, width: int) -> int:
    """Blocks selected per head and query slice before entries run out: the ratio falls with the picture's area.

    windows: attention windows of one slice; height, width: padded output size in pixels.
    """
    ratio = sparse_ratio * REFERENCE_PIXELS / (height * width)
    return int(windows * windows * ratio) - 1


@lru_cache(maxsize=32)
def local_window(rows: int, columns: int, span: int) -> Tensor:
    """Bool matrix of windows (rows*columns) squared: True where the key window is local to the query window.

    The local window is truncated at the border, never shifted inwards.
    """
    near_rows = _near(rows, span)
    near_columns = _near(columns, span)
    return torch.einsum("ac,bd->abcd", near_rows, near_columns).reshape(rows * columns, rows * columns).bool()


def _near(count: int, span: int) -> Tensor:
    first = torch.arange(count)[:, None] - span // 2
    other = torch.arange(count)[None, :]
    return ((other >= first) & (other < first + span)).int()


def pool(x: Tensor) -> Tensor:
    """Mean of each window: B heads W 128 d -> B heads W d, float32."""
    return x.float().mean(dim=-2)


def select_blocks(q: Tensor, k: Tensor, local: Tensor, topk: int) -> Tensor:
    """The blocks to compute, as a bool mask B heads Wq Wk.

    q: pooled queries B heads Wq d, k: pooled keys B heads Wk d (float32, after norm and RoPE); Wq and Wk are whole
    slices of n windows; local: n x n, the same for every slice. For each head and query slice the threshold is the
    (topk+1)-th largest of its n x Wk probabilities; blocks strictly above it are selected.
    """
    n = local.shape[0]
    slices = k.shape[2] // n
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    local = local.to(scores.device).repeat(q.shape[2] // n, slices)
    weights = scores.masked_fill(~local, float("-inf")).softmax(dim=-1)
    grouped = weights.unflatten(2, (-1, n)).flatten(-2)  # B heads query-slices (n * Wk)
    entries = grouped.shape[-1]
    kept = max(0, min(topk, entries - 1))
    threshold = grouped.topk(kept + 1, dim=-1).values[..., -1:]
    return (grouped > threshold).unflatten(-1, (n, -1)).flatten(2, 3)
