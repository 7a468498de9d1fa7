"""Block-sparse attention: each window of 128 queries sees the selected windows of 128 keys."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from flashvsr_core.errors import UserError


@dataclass(frozen=True)
class BlockList:
    """Selected blocks without a mask: how many key windows each query window sees, and their numbers, ascending.

    counts: int32 B heads Wq; indices: int32 B heads Wq Wk, of which the first `counts` of a row are set.
    """

    counts: Tensor
    indices: Tensor

    def mask(self) -> Tensor:
        """The same as bool B heads Wq Wk, for comparisons."""
        windows = self.indices.shape[-1]
        listed = torch.arange(windows, device=self.counts.device) < self.counts[..., None]
        rows = torch.zeros(*self.indices.shape[:-1], windows + 1, dtype=torch.bool, device=self.counts.device)
        place = self.indices.long().where(listed, torch.full_like(self.indices, windows).long())
        return rows.scatter_(-1, place, True)[..., :windows]


def as_list(mask: Tensor) -> BlockList:
    """A bool mask B heads Wq Wk as a list, in plain PyTorch."""
    indices = mask.int().argsort(dim=-1, descending=True, stable=True)
    return BlockList(mask.sum(-1, dtype=torch.int32), indices.int())


_PACKAGES = {"triton": "triton", "hopper": "triton", "int8": "triton", "sage": "sageattention>=1.0.6,<2"}
BACKENDS = ("torch", *_PACKAGES)
Blocks = Tensor | BlockList


def of_queries(blocks: Blocks, start: int, count: int) -> Blocks:
    """What `count` query windows from `start` on see."""
    part = slice(start, start + count)
    if isinstance(blocks, BlockList):
        return BlockList(blocks.counts[:, :, part].contiguous(), blocks.indices[:, :, part].contiguous())
    return blocks[:, :, part]


BlockAttention = Callable[[Tensor, Tensor, Tensor, Any], Tensor]  # the last: Blocks of a kind that it knows


def attend_torch(q: Tensor, k: Tensor, v: Tensor, blocks: Blocks) -> Tensor:
    """Reference in plain PyTorch, computing only selected blocks.

    q: B heads Wq 128 d; k, v: B heads Wk 128 d; blocks: bool B heads Wq Wk, or the same as a list. Returns B heads
    Wq 128 d. A query window with nothing selected gives zeros.
    """
    out = torch.zeros_like(q)
    batch, heads, windows = q.shape[:3]
    blocks = (blocks.mask() if isinstance(blocks, BlockList) else blocks).cpu()
    for b in range(batch):
        for h in range(heads):
            for w in range(windows):
                chosen = blocks[b, h, w].nonzero().flatten().to(q.device)
                if chosen.numel():
                    keys = k[b, h].index_select(0, chosen).flatten(0, 1)
                    values = v[b, h].index_select(0, chosen).flatten(0, 1)
                    # Four dimensions: with fewer, PyTorch takes its slow path, which stores all weights.
                    query = q[b, h, w][None, None]
                    out[b, h, w] = F.scaled_dot_product_attention(query, keys[None, None], values[None, None])[0, 0]
    return out


def attention_backend(name: str) -> BlockAttention:
    """The backend called `name` (torch, triton, hopper, int8, sage); nothing is chosen silently.

    UserError for other names, and where a package that it needs is missing. Only torch runs without a GPU, except in
    Triton's interpreter.
    """
    if name == "torch":
        return attend_torch
    if name not in BACKENDS:
        raise UserError(f"attention backend {name!r} is not known; choose {', '.join(BACKENDS)}")
    try:
        # Optional: CPU installations have neither Triton nor SageAttention.
        if name == "triton":
            from flashvsr_core.kernels.block_attention_triton import attend_triton as attend
        elif name == "hopper":
            from flashvsr_core.kernels.hopper_attention import attend_hopper as attend
        elif name == "int8":
            from flashvsr_core.kernels.int8_attention_triton import attend_int8 as attend
        else:
            from flashvsr_core.kernels.sage_attention import attend_sage as attend
    except ImportError as error:
        raise UserError(
            f"attention {name!r} needs the package {_PACKAGES[name]} ({error}); pip install 'flashvsr[gpu]', or use "
            f"the slow --attention torch"
        ) from error
    return attend
