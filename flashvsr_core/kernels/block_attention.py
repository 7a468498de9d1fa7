"""Block-sparse attention: each window of 128 queries sees the selected windows of 128 keys."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

BlockAttention = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def attend_torch(q: Tensor, k: Tensor, v: Tensor, blocks: Tensor) -> Tensor:
    """Reference in plain PyTorch, computing only selected blocks.

    q: B heads Wq 128 d; k, v: B heads Wk 128 d; blocks: bool B heads Wq Wk. Returns B heads Wq 128 d. A query
    window with nothing selected gives zeros.
    """
    out = torch.zeros_like(q)
    batch, heads, windows = q.shape[:3]
    blocks = blocks.cpu()
    for b in range(batch):
        for h in range(heads):
            for w in range(windows):
                chosen = blocks[b, h, w].nonzero().flatten().to(q.device)
                if chosen.numel():
                    keys = k[b, h].index_select(0, chosen).flatten(0, 1)
                    values = v[b, h].index_select(0, chosen).flatten(0, 1)
                    # Four dimensions: with fewer, PyTorch takes its slow path, which stores all weights.
                    parts = (x[None, None] for x in (q[b, h, w], keys, values))
                    out[b, h, w] = F.scaled_dot_product_attention(*parts)[0, 0]
    return out


def attention_backend(name: str) -> BlockAttention:
    """The backend called `name`; nothing is chosen silently."""
    backends: dict[str, BlockAttention] = {"torch": attend_torch}
    return backends[name]
