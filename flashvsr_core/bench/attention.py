"""The attention kernel alone, against dense cuDNN and FlexAttention on the same blocks in the same run."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from flashvsr_core.bench.speed import milliseconds
from flashvsr_core.config import UpscaleParams
from flashvsr_core.errors import UserError
from flashvsr_core.geometry import Geometry
from flashvsr_core.kernels.backends import kernels
from flashvsr_core.kernels.block_attention import BlockAttention, BlockList, attention_backend
from flashvsr_core.kernels.block_mask import local_window, top_k
from flashvsr_core.kernels.token_ops import WINDOW_TOKENS
from flashvsr_core.registry import DitSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Attention:
    """One way to compute a layer's attention: time of a call, and rate on the blocks that it has to compute."""

    name: str
    ms: float
    tflops: float


@dataclass(frozen=True)
class Layer:
    """Attention of one layer in a steady step on CUDA: bf16, random, with blocks chosen as `params` has them."""

    q: Tensor
    k: Tensor
    v: Tensor
    pooled: tuple[Tensor, Tensor]
    local: Tensor
    topk: int

    @classmethod
    def of(cls, spec: DitSpec, params: UpscaleParams, geometry: Geometry, device: torch.device) -> "Layer":
        rows, columns = geometry.windows
        n, slices = rows * columns, int(params.kv_ratio) + 1
        generator = torch.Generator(device).manual_seed(0)
        shape = (1, spec.num_heads, n, WINDOW_TOKENS, spec.head_dim)
        q, k, v = (
            torch.randn((*shape[:2], n * count, *shape[3:]), generator=generator, device=device).bfloat16()
            for count in (1, slices, slices)
        )
        # Means of random windows are all alike; scaled, they choose as sharply as those of pictures.
        pooled_q, pooled_k = (4 * x.float().mean(dim=-2) for x in (q, k))
        topk = top_k(n, params.sparse_ratio, geometry.padded_height, geometry.padded_width)
        return cls(q, k, v, (pooled_q, pooled_k), local_window(rows, columns, params.local_range).to(device), topk)

    def select(self) -> BlockList:
        """The blocks, by Triton."""
        blocks = kernels("triton").select(*self.pooled, self.local, self.topk)
        assert isinstance(blocks, BlockList)
        return blocks


def compare_attention(
    spec: DitSpec, params: UpscaleParams, geometry: Geometry, device: torch.device
) -> list[Attention]:
    """Our backends that are installed, FlexAttention and dense cuDNN on one layer of a steady step; CUDA only, bf16."""
    layer = Layer.of(spec, params, geometry, device)
    q, k, v, blocks = layer.q, layer.k, layer.v, layer.select()
    block = 4 * WINDOW_TOKENS**2 * spec.head_dim
    sparse, dense = block * float(blocks.counts.sum()), block * float(blocks.indices.numel())
    flat = [x.flatten(2, 3) for x in (q, k, v)]
    ways: list[tuple[str, float, Callable[[], Tensor]]] = [
        *((name, sparse, partial(attend, q, k, v, blocks)) for name, attend in _ours()),
        ("FlexAttention", sparse, _flex(flat, blocks)),
        ("dense cuDNN", dense, lambda: _dense(flat)),
    ]
    found = []
    for name, work, function in ways:
        ms = milliseconds(function, device)
        found.append(Attention(name, ms, work / ms / 1e9))
    return found


def _ours() -> Iterator[tuple[str, BlockAttention]]:
    for name in ("hopper", "triton", "int8", "sage"):
        try:
            yield name, attention_backend(name)
        except UserError as error:
            log.info("attention %s is left out: %s", name, error)


def _dense(tensors: list[Tensor]) -> Tensor:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    q, k, v = tensors
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return F.scaled_dot_product_attention(q, k, v)


def _flex(tensors: list[Tensor], blocks: BlockList) -> Callable[[], Tensor]:
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    listed = torch.arange(blocks.indices.shape[-1], device=blocks.counts.device) < blocks.counts[..., None]
    indices = blocks.indices.where(listed, torch.zeros_like(blocks.indices))
    none = torch.zeros_like(blocks.counts), torch.zeros_like(indices)
    mask = BlockMask.from_kv_blocks(*none, blocks.counts, indices, BLOCK_SIZE=WINDOW_TOKENS)
    compiled: Callable[..., Tensor] = torch.compile(flex_attention)
    q, k, v = tensors
    return lambda: compiled(q, k, v, block_mask=mask)
