"""The streaming state with gradients: the same `stream.step` as at work, over several steps."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashvsr_core.kernels.block_mask import local_window
from flashvsr_core.kernels.token_ops import WINDOW_TOKENS
from flashvsr_core.models.attention import Sparsity
from flashvsr_core.models.dit import Dit
from flashvsr_core.models.kv_ring import KvRing
from flashvsr_core.models.lq_proj import LqProj
from flashvsr_core.models.tcdecoder import TcDecoder
from flashvsr_core.registry import ModelSpec
from flashvsr_core.segments import FIRST_READ, STEP
from flashvsr_core.stream import LATENT_PIXELS, Network, StreamState, latents_of, step


class TrainingRing(KvRing):
    """The ring without writes in place, which gradients would not survive; it remembers the same slices."""

    def push(self, k: Tensor, v: Tensor, windows: int) -> tuple[Tensor, Tensor, Tensor]:
        new = (k, v, k.float().mean(dim=-2))
        seen = new if self.buffers is None else tuple(torch.cat(pair, dim=2) for pair in zip(self.buffers, new))
        self.buffers = tuple(tensor[:, :, -(self.slots - 1) * windows :] for tensor in seen)  # type: ignore[assignment]
        return seen  # type: ignore[return-value]


def masked_attention(q: Tensor, k: Tensor, v: Tensor, blocks: Tensor) -> Tensor:
    """`attend_torch` as one masked product: wasteful, but without a loop and with gradients. Same arguments."""
    some = blocks.any(dim=-1, keepdim=True)
    mask = (blocks | ~some).repeat_interleave(WINDOW_TOKENS, 2).repeat_interleave(WINDOW_TOKENS, 3)
    q, k, v = (x.flatten(2, 3).to(v.dtype) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).unflatten(2, (-1, WINDOW_TOKENS))
    return out * some[..., None]


class DroppingDecoder(TcDecoder):
    """TCDecoder whose detail injection can be withheld per clip, so that the latents have to carry the picture."""

    keep: Tensor | None = None  # B, 0 or 1
    latents_per_pass = 6  # gradients keep everything anyway; fewer, larger launches

    def details(self, condition: Tensor, dtype: torch.dtype) -> dict[int, Tensor]:
        details = super().details(condition, dtype)
        if self.keep is None:
            return details
        keep = self.keep.to(dtype)
        return {n: x * keep.repeat_interleave(len(x) // len(keep))[:, None, None, None] for n, x in details.items()}


class Model(nn.Module):
    """All that is trained: the modules under the names they are exported by, and the prompt."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.dit = Dit(spec.dit)
        self.lq_proj = LqProj(spec.lq, spec.dit.dim)
        self.tcdecoder = DroppingDecoder(spec.tcdecoder)
        self.prompt = nn.Parameter(torch.randn(1, spec.prompt_tokens, spec.dit.text_dim))

    def network(self) -> Network:
        return Network(self.dit, self.lq_proj, self.tcdecoder, self.dit.constants(self.prompt))


@dataclass(frozen=True)
class Window:
    """What attention may see in one training pass."""

    kv_ratio: int
    local_range: int
    share: float  # of the entries of a later step that are selected


def unroll(model: Model, condition: Tensor, window: Window, first_latent: int = 0) -> Tensor:
    """Stream B 3 T H W in [-1, 1] (T = 25 + 8k) through the model: decoded frames B 3 T-4 H W, unclamped."""
    rows, columns = (n // 128 for n in condition.shape[-2:])
    local = local_window(rows, columns, window.local_range).to(condition.device)
    entries = (rows * columns) ** 2 * (window.kv_ratio + 1)
    sparsity = Sparsity(local, max(1, int(entries * window.share) - 1), masked_attention)
    net = model.network()
    state = StreamState([TrainingRing(window.kv_ratio) for _ in net.dit.blocks], first_latent)
    decoded, read = [], 0
    while read < condition.shape[2]:
        count = STEP if read else FIRST_READ
        frames = condition[:, :, read : read + count]
        size = [n // LATENT_PIXELS for n in frames.shape[-2:]]
        latents = latents_of(count, first_step=not read)
        noise = torch.randn(len(frames), net.dit.spec.in_dim, latents, *size, device=frames.device)
        decoded.append(step(net, state, frames, noise, sparsity)[1])
        read += count
    return torch.cat(decoded, dim=2)
