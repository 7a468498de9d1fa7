"""LQ projection: the enlarged input becomes tokens that are added before block 0 of the DiT."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from flashvsr_core.models.layers import ChannelRmsNorm
from flashvsr_core.registry import LqSpec

CLIP = 4  # frames that become one token slice
_PAST = 2  # frames of its past that each convolution sees
_PATCH = 16  # pixels of one token


class LqProj(nn.Module):
    """Projection of clips of 4 frames; keys as published. What a convolution sees as its past is `spec.kind`."""

    def __init__(self, spec: LqSpec, out_dim: int) -> None:
        super().__init__()
        first, second = spec.hidden
        self.kind = spec.kind
        self.conv1 = nn.Conv3d(3 * _PATCH**2, first, (4, 3, 3), stride=(2, 1, 1))
        self.norm1 = ChannelRmsNorm(first)
        self.conv2 = nn.Conv3d(first, second, (4, 3, 3), stride=(2, 1, 1))
        self.norm2 = ChannelRmsNorm(second)
        self.linear_layers = nn.ModuleList(nn.Linear(second, out_dim) for _ in range(spec.layers))

    def forward(self, frames: Tensor, caches: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """frames: B 3 T H W in [-1, 1]; T = 1 + 4n in a stream's first call (caches None), else 4n.

        Returns tokens B (n h w) C and the caches for the next call: two frames of each convolution's input.
        """
        frames = frames.to(self.conv1.weight.dtype)
        if caches is None:
            caches = self._open(frames[:, :, :1])
            frames = frames[:, :, 1:]
        x = _unshuffle(frames)
        y = F.silu(self.norm1(self._convolve(self.conv1, x, caches[0], clip=CLIP)))
        z = F.silu(self.norm2(self._convolve(self.conv2, y, caches[1], clip=CLIP // 2)))
        tokens = self.linear_layers[0](rearrange(z, "b c f h w -> b (f h w) c"))
        return tokens, (x[:, :, -_PAST:].clone(), y[:, :, -_PAST:].clone())

    def _open(self, frame: Tensor) -> tuple[Tensor, Tensor]:
        """A stream's first clip is one frame, repeated: it takes the first convolution only and fills both caches."""
        x = _unshuffle(frame.expand(-1, -1, CLIP, -1, -1))
        y = F.silu(self.norm1(_convolve_with(self.conv1, x[:, :, :_PAST], x)))
        return x[:, :, -_PAST:], y[:, :, -_PAST:]

    def _convolve(self, conv: nn.Conv3d, x: Tensor, past: Tensor, clip: int) -> Tensor:
        """Convolve n clips of `clip` frames. Causal clips follow each other, so all of them are one convolution."""
        if self.kind == "causal":
            return _convolve_with(conv, past, x)
        batch = x.shape[0]
        clips = rearrange(x, "b c (n f) h w -> (b n) c f h w", f=clip)
        return rearrange(_convolve_with(conv, clips[:, :, -_PAST:], clips), "(b n) c f h w -> b c (n f) h w", b=batch)


def _unshuffle(frames: Tensor) -> Tensor:
    return rearrange(frames, "b c f (h p) (w q) -> b (c p q) f h w", p=_PATCH, q=_PATCH)


def _convolve_with(conv: nn.Conv3d, past: Tensor, x: Tensor) -> Tensor:
    """One causal convolution: two past frames in front, borders replicated by one token."""
    x = torch.cat([past, x], dim=2)
    return conv(F.pad(x, (1, 1, 1, 1, 0, 0), mode="replicate"))
