"""Attention of one block of the DiT: among windows, sparse and with a past, and to the fixed prompt."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from flashvsr_core.kernels.backends import REFERENCE, Kernels
from flashvsr_core.kernels.block_attention import BlockAttention, of_queries
from flashvsr_core.kernels.fp8_linear import Fp8Linear, Rounded, Rounding
from flashvsr_core.kernels.token_ops import WINDOW_TOKENS
from flashvsr_core.models.kv_ring import KvRing, span
from flashvsr_core.models.layers import RmsNorm
from flashvsr_core.registry import DitSpec


@dataclass(frozen=True)
class Sparsity:
    """How attention chooses blocks: local window matrix (n x n windows of a slice), top-k, and the backends."""

    local: Tensor
    topk: int
    attend: BlockAttention
    kernels: Kernels = REFERENCE


Fp8Multiply = Callable[[Tensor, Fp8Linear, bool], Tensor]
"""(x, layer, whether GELU comes first) -> the layer applied."""


@dataclass(frozen=True)
class Fp8Projection:
    """A layer in fp8, what multiplies with it, and the same for what is rounded already."""

    layer: Fp8Linear
    multiply: Fp8Multiply
    rounding: Rounding | None = None

    def __call__(self, x: Tensor | Rounded, gelu: bool) -> Tensor:
        if isinstance(x, Tensor):
            return self.multiply(x, self.layer, gelu)
        assert self.rounding is not None
        return self.rounding.linear(x, self.layer)


@dataclass
class Strip:
    """Some windows of a step, following each other: what `Block.forward` calls x and y, and their rotations."""

    x: Tensor
    y: Tensor | Rounded | None
    rope: tuple[Tensor, Tensor]

    @property
    def windows(self) -> int:
        return self.x.shape[1] // WINDOW_TOKENS

    def take(self) -> Tensor | Rounded:
        """y, which is not kept."""
        y, self.y = self.y, None
        assert y is not None
        return y


class _Attention(nn.Module):
    """The layers that attention of both kinds has, under their published names."""

    def __init__(self, spec: DitSpec) -> None:
        super().__init__()
        self.heads = spec.num_heads
        self.q, self.k, self.v, self.o = (nn.Linear(spec.dim, spec.dim) for _ in range(4))
        self.norm_q = RmsNorm(spec.dim, spec.eps)
        self.norm_k = RmsNorm(spec.dim, spec.eps)
        self.fp8: Fp8Projection | None = None


class SelfAttention(_Attention):
    def __init__(self, spec: DitSpec) -> None:
        super().__init__(spec)
        self.fused: tuple[Tensor, Tensor] | None = None

    def fuse(self) -> None:
        """Put the weights of q, k and v side by side, so that they are one product; keys and values stay as they are.

        To be called when the weights are in place: loading others into the module afterwards would not be seen.
        """
        parts = (self.q, self.k, self.v)
        self.join(torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts]))

    def join(self, weight: Tensor, bias: Tensor) -> None:
        """Let weight and bias of q, k and v be parts of these."""
        self.fused = weight, bias
        for part, *tensors in zip((self.q, self.k, self.v), weight.chunk(3), bias.chunk(3)):
            part.weight, part.bias = (nn.Parameter(tensor, requires_grad=False) for tensor in tensors)

    def forward(self, x: Tensor | Rounded, rope: tuple[Tensor, Tensor], ring: KvRing, sparsity: Sparsity) -> Tensor:
        kernels, windows = sparsity.kernels, sparsity.local.shape[0]
        room = ring.room(windows) if kernels.in_place else None
        weights = self.norm_q.weight, self.norm_k.weight
        q, k, v, pooled_q = kernels.windows(*self._project(x), weights, rope, self.heads, self.norm_q.eps, room)
        keys, values, pooled = ring.push(k, v, windows) if room is None else ring.advance(windows)
        blocks = kernels.select(pooled_q, pooled, sparsity.local, sparsity.topk)
        out = sparsity.attend(q, keys, values, blocks)
        return self.o(rearrange(out, "b h w t d -> b (w t) (h d)"))

    def in_strips(self, strips: list[Strip], ring: KvRing, sparsity: Sparsity) -> Iterator[Tensor]:
        """`forward` of one strip after the other, which all see each other. Takes away what each holds as its input.

        A whole step is not its one strip: all is written into the ring at once here, which gradients do not survive.
        """
        windows = sparsity.local.shape[0]
        counts = [strip.windows for strip in strips]
        queries, pooled_queries, room = [], [], ring.room(windows)
        opening = room is None
        for strip, start in zip(strips, accumulate(counts, initial=0)):
            projected = self._project(strip.take())
            if room is None:
                room = ring.first_room(sum(counts), windows, self.heads, projected[0])
            place = span(room, start, strip.windows)
            weights = self.norm_q.weight, self.norm_k.weight
            made = sparsity.kernels.windows(*projected, weights, strip.rope, self.heads, self.norm_q.eps, place)
            queries.append(made.q)
            pooled_queries.append(made.pooled_q)
        assert room is not None, "there is at least one strip"
        keys, values, pooled = ring.begin(room, windows) if opening else ring.advance(windows)
        blocks = sparsity.kernels.select(torch.cat(pooled_queries, 2), pooled, sparsity.local, sparsity.topk)
        queries.reverse()
        for strip, start in zip(strips, accumulate(counts, initial=0)):
            out = sparsity.attend(queries.pop(), keys, values, of_queries(blocks, start, strip.windows))
            yield self.o(rearrange(out, "b h w t d -> b (w t) (h d)"))

    def _project(self, x: Tensor | Rounded) -> tuple[Tensor, ...]:
        if self.fp8 is not None:
            return self.fp8(x, False).chunk(3, dim=-1)
        assert isinstance(x, Tensor)
        if self.fused is None:
            return self.q(x), self.k(x), self.v(x)
        return F.linear(x, *self.fused).chunk(3, dim=-1)


class CrossAttention(_Attention):
    """Attention to the fixed prompt; no RoPE, no mask."""

    def prompt(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the embedded prompt (1 tokens C): each 1 heads tokens d."""
        return self._heads(self.norm_k(self.k(context))), self._heads(self.v(context))

    def forward(self, x: Tensor | Rounded, prompt: tuple[Tensor, Tensor], kernels: Kernels) -> Tensor:
        projected = self.q(x) if self.fp8 is None else self.fp8(x, False)
        q = self._heads(kernels.rms_norm(projected, self.norm_q.weight, self.norm_q.eps))
        k, v = (t.expand(q.shape[0], -1, -1, -1) for t in prompt)
        return self.o(rearrange(F.scaled_dot_product_attention(q, k, v), "b h s d -> b s (h d)"))

    def _heads(self, x: Tensor) -> Tensor:
        return rearrange(x, "b s (h d) -> b h s d", h=self.heads)
