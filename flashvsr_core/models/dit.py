"""The streaming diffusion transformer (Wan 2.1 with locality-constrained sparse attention), one step at a time.

Tokens stay in window order (slices of 2 latent frames, then windows of 8x8 tokens) from patch embedding to head, so
attention needs no permutation; everything else works token by token.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn

from flashvsr_core.kernels.backends import Kernels
from flashvsr_core.kernels.fp8_linear import Fp8Linear, Rounded, Rounding
from flashvsr_core.kernels.token_ops import WINDOW_TOKENS
from flashvsr_core.models.attention import CrossAttention, Fp8Multiply, Fp8Projection, SelfAttention, Sparsity, Strip
from flashvsr_core.models.kv_ring import KvRing
from flashvsr_core.models.layers import rope_angles, sinusoidal_embedding
from flashvsr_core.registry import DitSpec

WINDOW = (2, 8, 8)  # tokens of one attention window: latent frames, rows, columns
assert WINDOW[0] * WINDOW[1] * WINDOW[2] == WINDOW_TOKENS
_TIMESTEP = 1000.0

_AXES = dict(zip("arc", WINDOW))


@dataclass(frozen=True)
class DitConstants:
    """What timestep and prompt, both fixed, determine: modulation (blocks 6 C), head (2 C), cross keys and values."""

    modulation: Tensor
    head: Tensor
    cross: list[tuple[Tensor, Tensor]]


Around = Callable[[int, list[KvRing]], AbstractContextManager[object]]


def nothing_around(number: int, rings: list[KvRing]) -> AbstractContextManager[object]:
    return nullcontext()


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
        out = self.self_attn(y, rope, ring, sparsity)
        return self._after_attention(x, out, modulation, following, prompt, sparsity.kernels)

    def in_strips(
        self,
        strips: list[Strip],
        modulation: Tensor,
        following: tuple[Tensor, Tensor],
        prompt: tuple[Tensor, Tensor],
        ring: KvRing,
        sparsity: Sparsity,
    ) -> None:
        """`forward` of a step in strips, which are changed."""
        for strip, out in zip(strips, self.self_attn.in_strips(strips, ring, sparsity)):
            strip.x, strip.y = self._after_attention(strip.x, out, modulation, following, prompt, sparsity.kernels)

    def _after_attention(
        self,
        x: Tensor,
        out: Tensor,
        modulation: Tensor,
        following: tuple[Tensor, Tensor],
        prompt: tuple[Tensor, Tensor],
        kernels: Kernels,
    ) -> tuple[Tensor, Tensor | Rounded]:
        add_norm = kernels.add_norm if self.rounding is None else self.rounding.add_norm
        _, _, gate, ffn_shift, ffn_scale, ffn_gate = modulation
        x, normed = add_norm(x, out, gate, self.norm3.weight, self.norm3.bias, self.eps, 0.0)
        out = self.cross_attn(normed, prompt, kernels)
        x, normed = add_norm(x, out, None, ffn_scale, ffn_shift, self.eps, 1.0)
        out = self._feed_forward(normed, kernels)
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
        lq_tokens: list[Tensor],
        first_latent: int | Tensor,
        rings: list[KvRing],
        constants: DitConstants,
        sparsity: Sparsity,
        around: Around = nothing_around,
        strips: int = 1,
    ) -> Tensor:
        """latents: B C F h w, F even; lq_tokens: B (F h/2 w/2) dim, taken out of the list, so that nobody holds it any
        longer; first_latent: absolute index of latent frame 0, as a number or an integer tensor of no dimensions on the
        device.

        around: entered around each block's work (see `Offloader`). strips: parts of each slice that a block works on
        one after the other, which takes less memory; 1: the whole step at once.
        """
        patch = dict(zip("xyz", self.spec.patch_size))
        tokens = (size // side for size, side in zip(latents.shape[2:], patch.values()))
        grid = dict(zip("fhw", (count // window for count, window in zip(tokens, WINDOW))))
        x = rearrange(lq_tokens.pop(), "b (f a h r w c) d -> b (f h w a r c) d", **grid, **_AXES)
        x = x + rearrange(self.patch_embedding(latents), "b d (f a) (h r) (w c) -> b (f h w a r c) d", **_AXES)
        rope = _rope(self.spec.head_dim, grid, first_latent, x.device)
        modulations = list(constants.modulation)
        followings = [*((m[0], m[1]) for m in modulations[1:]), tuple(constants.head)]
        shift, scale, *_ = modulations[0]
        blocks = cast(list[Block], list(self.blocks))
        rounding = blocks[0].rounding
        norm = sparsity.kernels.norm if rounding is None else rounding.norm

        def normed(x: Tensor) -> Tensor | Rounded:
            return norm(x, scale, shift, self.spec.eps, 1.0)

        each = enumerate(zip(blocks, modulations, followings, constants.cross, rings))
        if strips > 1:
            parts = [Strip(part, normed(part), turns) for part, turns in _cut(x, rope, strips * grid["f"])]
            del x, rope
            for number, (block, modulation, following, prompt, ring) in each:
                with around(number, rings):
                    block.in_strips(parts, modulation, following, prompt, ring, sparsity)
            x = torch.cat([self.head.head(part.take()) for part in parts], dim=1)
        else:
            y = normed(x)
            for number, (block, modulation, following, prompt, ring) in each:
                with around(number, rings):
                    x, y = block(x, y, modulation, following, prompt, rope, ring, sparsity)
            x = self.head.head(y)
        return rearrange(
            x, "b (f h w a r c) (x y z d) -> b d (f a x) (h r y) (w c z)", **grid, **_AXES, **patch
        )  # fmt: skip


def _cut(x: Tensor, rope: tuple[Tensor, Tensor], count: int) -> Iterator[tuple[Tensor, tuple[Tensor, Tensor]]]:
    """Up to `count` about equal parts of the windows of x, B S C, and their rotations; copies, so that each can be
    freed by itself."""
    windows = x.shape[1] // WINDOW_TOKENS
    starts = sorted({i * windows // count * WINDOW_TOKENS for i in range(count + 1)})
    cos, sin = rope
    for part in (slice(*ends) for ends in pairwise(starts)):
        yield x[:, part].clone(), (cos[part], sin[part])


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
