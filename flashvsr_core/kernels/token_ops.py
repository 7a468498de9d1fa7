"""What a DiT block does token by token, in plain PyTorch: the reference that every other backend is compared with.

Tensors are B S C (tokens in window order) in the model's type; scale, shift, gate and weights are vectors of C.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from flashvsr_core.kernels.block_mask import pool

WINDOW_TOKENS = 128


class Windows(NamedTuple):
    """Queries, keys and values by head and window, B heads W 128 d, and the queries' means, B heads W d float32."""

    q: Tensor
    k: Tensor
    v: Tensor
    pooled_q: Tensor


def norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float, offset: float) -> Tensor:
    """LayerNorm over channels, times (offset + scale), plus shift. offset 1: modulation; 0: an affine LayerNorm."""
    return F.layer_norm(x, x.shape[-1:], eps=eps) * (offset + scale) + shift


def add_norm(
    x: Tensor, y: Tensor, gate: Tensor | None, scale: Tensor, shift: Tensor, eps: float, offset: float
) -> tuple[Tensor, Tensor]:
    """The residual sum x + gate * y (gate None: x + y) and `norm` of it, which always follows."""
    x = x + (y if gate is None else gate * y)
    return x, norm(x, scale, shift, eps, offset)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS norm over channels, computed in float32."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype) * weight


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate adjacent channel pairs. x: B S heads d; cos, sin: S x d/2 float32. Computed in float32."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).to(x.dtype)


def windows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    weights: tuple[Tensor, Tensor],
    rope: tuple[Tensor, Tensor],
    heads: int,
    eps: float,
    room: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Windows:
    """RMS norm of q and k over all channels (`weights`), RoPE (`rope`: cos, sin, S x d/2), and order by window.

    room: where keys, values and the keys' means shall be written (as `Windows.k`, `.v` and means B heads W d); None:
    new tensors, and no means of the keys.
    """
    q, k = (rotate(_heads(rms_norm(x, w, eps), heads), *rope) for x, w in zip((q, k), weights))
    q, k, v = (rearrange(x, "b (w t) h d -> b h w t d", t=WINDOW_TOKENS).contiguous() for x in (q, k, _heads(v, heads)))
    if room is not None:
        for place, tensor in zip(room, (k, v, pool(k))):
            place.copy_(tensor)
        k, v = room[:2]
    return Windows(q, k, v, pool(q))


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Linear layer and GELU in its tanh form."""
    return F.gelu(F.linear(x, weight, bias), approximate="tanh")


def _heads(x: Tensor, heads: int) -> Tensor:
    return rearrange(x, "b s (h d) -> b s h d", h=heads)
