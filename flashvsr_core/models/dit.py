"""The streaming diffusion transformer (Wan 2.1 with locality-constrained sparse attention), one step at a time.

Tokens stay in window order (slices of 2 latent frames, then windows of 8x8 tokens) from patch embedding to head, so
attention needs no permutation; everything else works token by token.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from flashvsr_core.kernels.backends import REFERENCE, Kernels
from flashvsr_core.kernels.block_attention import BlockAttention
from flashvsr_core.kernels.fp8_linear import Fp8Linear, Rounded, Rounding
from flashvsr_core.kernels.token_ops import WINDOW_TOKENS
from flashvsr_core.models.kv_ring import KvRing
from flashvsr_core.models.layers import RmsNorm, rope_angles, sinusoidal_embedding
from flashvsr_core.registry import DitSpec

WINDOW = (2, 8, 8)  # tokens of one attention window: latent frames, rows, columns
assert WINDOW[0] * WINDOW[1] * WINDOW[2] == WINDOW_TOKENS
_TIMESTEP = 1000.0

_AXES = dict(zip("arc", WINDOW))


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


@dataclass(frozen=True)
class DitConstants:
    """What timestep and prompt, both fixed, determine: modulation (blocks 6 C), head (2 C), cross keys and values."""

    modulation: Tensor
    head: Tensor
    cross: list[tuple[Tensor, Tensor]]


Around = Callable[[int, list[KvRing]], AbstractContextManager[object]]


def nothing_around(number: int, rings: list[KvRing]) -> AbstractContextManager[object]:
    return nullcontext()


class SelfAttention(nn.Module):
    def __init__(self, spec: DitSpec) -> None:
        super().__init__()
        self.heads = spec.num_heads
        self.q, self.k, self.v, self.o = (nn.Linear(spec.dim, spec.dim) for _ in range(4))
        self.norm_q = RmsNorm(spec.dim, spec.eps)
        self.norm_k = RmsNorm(spec.dim, spec.eps)
        self.fused: tuple[Tensor, Tensor] | None = None
        self.fp8: Fp8Projection | None = None

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

    def _project(self, x: Tensor | Rounded) -> tuple[Tensor, ...]:
        if self.fp8 is not None:
            return self.fp8(x, False).chunk(3, dim=-1)
        assert isinstance(x, Tensor)
        if self.fused is None:
            return self.q(x), self.k(x), self.v(x)
        return F.linear(x, *self.fused).chunk(3, dim=-1)


class CrossAttention(nn.Module):
    """Attention to the fixed prompt; no RoPE, no mask."""

    def __init__(self, spec: DitSpec) -> None:
        super().__init__()
        self.heads = spec.num_heads
        self.q, self.k, self.v, self.o = (nn.Linear(spec.dim, spec.dim) for _ in range(4))
        self.norm_q = RmsNorm(spec.dim, spec.eps)
        self.norm_k = RmsNorm(spec.dim, spec.eps)
        self.fp8: Fp8Projection | None = None

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


class Block(nn.Module):
    def __init__(self, spec: DitSpec) -> None:
        super().__init__()
        self.eps = spec.eps
        self.self_attn = SelfAttention(spec)
        self.cross_attn = CrossAttention(spec)
        self.norm3 = nn.LayerNorm(spec.dim, eps=spec.eps)
        self.ffn = nn.Sequential(
            nn.Linear(spec.dim, spec.ffn_dim), nn.GELU(approximate="tanh"), nn.Linear(spec.ffn_dim, spec.dim)
        )
        self.modulation = nn.Parameter(torch.zeros(1, 6, spec.dim))
        self.fp8: tuple[Fp8Projection, Fp8Projection] | None = None
        self.rounding: Rounding | None = None
        self.last = False  # whether the head comes next, which is not in fp8

    def quantise(self, multiply: Fp8Multiply, rounding: Rounding | None, last: bool) -> None:
        """From now on compute q, k, v and the feed-forward layers in fp8; after `SelfAttention.fuse`.

        The layers after both attentions stay: at 1536 x 1536 a pass that quantises their input costs what the faster
        product saves. So do cross-attention's queries without `rounding`, by which norms round what they give to fp8
        layers.
        """
        assert self.self_attn.fused is not None
        self.rounding, self.last = rounding, last
        self.self_attn.fp8 = Fp8Projection(Fp8Linear.of(*self.self_attn.fused), multiply, rounding)
        widen, _, narrow = self.ffn
        layers = (Fp8Linear.of(layer.weight, layer.bias) for layer in (widen, narrow))  # type: ignore[arg-type]
        first, second = (Fp8Projection(layer, multiply, rounding) for layer in layers)
        self.fp8 = first, second
        attention, query = self.self_attn, self.cross_attn.q
        replaced = [attention.q, attention.k, attention.v, widen, narrow]
        if rounding is not None:
            self.cross_attn.fp8 = Fp8Projection(Fp8Linear.of(query.weight, query.bias), multiply, rounding)
            replaced.append(query)
        attention.fused = None
        for layer in replaced:
            layer.weight = layer.bias = None  # type: ignore[assignment]  # what they were rounded to is enough

    def stored(self) -> list[Tensor]:
        """What the block computes with, those of q, k and v side by side. Keys and values of the prompt were made once
        (`Dit.constants`), so what makes them is left out."""
        fused = self.self_attn.fused or ()
        return [*fused, *(getattr(owner, name) for owner, name in self._places())]

    def restore(self, tensors: Sequence[Tensor]) -> None:
        """Compute with these from now on, in the order of `stored`."""
        others = list(tensors)
        if self.self_attn.fused is not None:
            weight, bias, *others = others
            self.self_attn.join(weight, bias)
        for (owner, name), tensor in zip(self._places(), others, strict=True):
            is_parameter = isinstance(owner, nn.Module)
            setattr(owner, name, nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor)

    def _places(self) -> list[tuple[object, str]]:
        attention, cross = self.self_attn, self.cross_attn
        left_out = {attention.q, attention.k, attention.v, cross.k, cross.v}
        rounded = [p.layer for p in (attention.fp8, cross.fp8, *(self.fp8 or ())) if p is not None]
        return [
            *((m, name) for m in self.modules() if m not in left_out for name, p in m.named_parameters(recurse=False)),
            *((layer, name) for layer in rounded for name in ("weight", "scales", "bias")),
        ]

    def _feed_forward(self, y: Tensor | Rounded, kernels: Kernels) -> Tensor:
        if self.fp8 is not None:
            first, second = self.fp8
            return second(first(y, False), True)
        assert isinstance(y, Tensor)
        widen, _, narrow = self.ffn
        return cast(Tensor, narrow(kernels.linear_gelu(y, widen.weight, widen.bias)))  # type: ignore[arg-type]

    def forward(
        self,
        x: Tensor,
        y: Tensor | Rounded,
        modulation: Tensor,
        following: tuple[Tensor, Tensor],
        prompt: tuple[Tensor, Tensor],
        rope: tuple[Tensor, Tensor],
        ring: KvRing,
        sparsity: Sparsity,
    ) -> tuple[Tensor, Tensor | Rounded]:
        """x: the residual stream, y: x normalised and modulated for this block. Returns both for what follows, whose
        modulation is `following` (shift, scale): every residual sum is made together with the norm after it."""
        kernels = sparsity.kernels
        add_norm = kernels.add_norm if self.rounding is None else self.rounding.add_norm
        _, _, gate, ffn_shift, ffn_scale, ffn_gate = modulation
        out = self.self_attn(y, rope, ring, sparsity)
        x, out = add_norm(x, out, gate, self.norm3.weight, self.norm3.bias, self.eps, 0.0)
        out = self.cross_attn(out, prompt, kernels)
        x, y = add_norm(x, out, None, ffn_scale, ffn_shift, self.eps, 1.0)
        out = self._feed_forward(y, kernels)
        shift, scale = following
        return (kernels.add_norm if self.last else add_norm)(x, out, ffn_gate, scale, shift, self.eps, 1.0)


class Head(nn.Module):
    def __init__(self, spec: DitSpec) -> None:
        super().__init__()
        t, h, w = spec.patch_size
        self.head = nn.Linear(spec.dim, spec.out_dim * t * h * w)
        self.modulation = nn.Parameter(torch.zeros(1, 2, spec.dim))


class Dit(nn.Module):
    """Keys as published. `forward` predicts what one denoising step removes from the noise."""

    def __init__(self, spec: DitSpec) -> None:
        super().__init__()
        self.spec = spec
        dim = spec.dim
        self.patch_embedding = nn.Conv3d(spec.in_dim, dim, spec.patch_size, stride=spec.patch_size)
        self.text_embedding = nn.Sequential(
            nn.Linear(spec.text_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim)
        )
        self.time_embedding = nn.Sequential(nn.Linear(spec.freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.blocks = nn.ModuleList(Block(spec) for _ in range(spec.num_layers))
        self.head = Head(spec)

    def fuse(self) -> None:
        """See `SelfAttention.fuse`: for all blocks."""
        for block in cast(list[Block], list(self.blocks)):
            block.self_attn.fuse()

    def quantise(self, multiply: Fp8Multiply, rounding: Rounding | None = None) -> None:
        """See `Block.quantise`: for all blocks."""
        for number, block in enumerate(cast(list[Block], list(self.blocks))):
            block.quantise(multiply, rounding, last=number == len(self.blocks) - 1)

    def constants(self, context: Tensor) -> DitConstants:
        """Everything that depends only on timestep and prompt (context: 1 tokens text_dim)."""
        weight = self.patch_embedding.weight
        blocks = cast(list[Block], list(self.blocks))
        time = self.time_embedding(sinusoidal_embedding(self.spec.freq_dim, _TIMESTEP).to(weight)[None])
        projected = self.time_projection(time).unflatten(-1, (6, -1))
        prompt = self.text_embedding(context.to(weight))
        modulation = torch.cat([block.modulation + projected for block in blocks])
        return DitConstants(
            modulation=modulation,
            head=(self.head.modulation + time[:, None])[0],
            cross=[block.cross_attn.prompt(prompt) for block in blocks],
        )

    def forward(
        self,
        latents: Tensor,
        lq_tokens: Tensor,
        first_latent: int | Tensor,
        rings: list[KvRing],
        constants: DitConstants,
        sparsity: Sparsity,
        around: Around = nothing_around,
    ) -> Tensor:
        """latents: B C F h w, F even; lq_tokens: B (F h/2 w/2) dim; first_latent: absolute index of latent frame 0, as
        a number or an integer tensor of no dimensions on the device.

        around: entered around each block's work (see `Offloader`).
        """
        x = self.patch_embedding(latents)
        grid = dict(zip("fhw", (size // window for size, window in zip(x.shape[2:], WINDOW))))
        x = rearrange(x, "b d (f a) (h r) (w c) -> b (f h w a r c) d", **_AXES)
        x = x + rearrange(
            lq_tokens, "b (f a h r w c) d -> b (f h w a r c) d", **grid, **_AXES
        )  # fmt: skip
        rope = _rope(self.spec.head_dim, grid, first_latent, x.device)
        modulations = list(constants.modulation)
        followings = [*((m[0], m[1]) for m in modulations[1:]), tuple(constants.head)]
        shift, scale, *_ = modulations[0]
        rounding = cast(Block, self.blocks[0]).rounding
        norm = sparsity.kernels.norm if rounding is None else rounding.norm
        y: Tensor | Rounded = norm(x, scale, shift, self.spec.eps, 1.0)
        each = enumerate(zip(self.blocks, modulations, followings, constants.cross, rings))
        for number, (block, modulation, following, prompt, ring) in each:
            with around(number, rings):
                x, y = block(x, y, modulation, following, prompt, rope, ring, sparsity)
        x = self.head.head(y)
        patch = dict(zip("xyz", self.spec.patch_size))
        return rearrange(
            x, "b (f h w a r c) (x y z d) -> b d (f a x) (h r y) (w c z)", **grid, **_AXES, **patch
        )  # fmt: skip


def _rope(
    head_dim: int, grid: dict[str, int], first_latent: int | Tensor, device: torch.device
) -> tuple[Tensor, Tensor]:
    """cos and sin of every token's rotation, in window order, S x head_dim/2, float32."""
    axes = (torch.arange(grid[axis] * window, device=device) for axis, window in zip("fhw", WINDOW))
    frames, rows, columns = torch.meshgrid(*axes, indexing="ij")
    positions = (
        rearrange(p, "(f a) (h r) (w c) -> (f h w a r c)", **_AXES) for p in (frames + first_latent, rows, columns)
    )
    angles = rope_angles(head_dim, *positions)
    return angles.cos().float(), angles.sin().float()
