"""LQ projection: the enlarged input becomes tokens that are added before block 0 of the DiT."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from flashvsr_core.kernels.fp8_linear import Fp8Linear
from flashvsr_core.kernels.fp8_patches import Unfold, layer_of, scale_of
from flashvsr_core.models.layers import ChannelRmsNorm
from flashvsr_core.registry import LqSpec
from flashvsr_core.segments import STEP

CLIP = 4  # frames that become one token slice
_PAST = 2  # frames of its past that each convolution sees
_PATCH = 16  # pixels of one token
# Channels, and tokens of a frame (512x512 pixels), from which on a product in fp8 pays; with few of both, cuBLASLt has
# none for patches as long as these (CUBLAS_STATUS_NOT_SUPPORTED for 64 rows x 27648 x 96).
FP8_LEAST = 1024
_LARGE = 2**22  # pixels
_AT_ONCE = 2  # frames whose patches are unfolded at once: 36 times as large as they are in fp8

Multiply = Callable[[Tensor, Tensor, Fp8Linear], Tensor]
"""(fp8 rows, float32 scale of each, layer) -> the layer applied."""


def projected_at_once(pixels: int) -> int:
    """Frames of so many pixels that are projected at once: a stream's first step needs no more memory than those after
    it, and large pictures need less still, for which no step is too small to be computed well."""
    return STEP if pixels <= _LARGE else CLIP


@dataclass(frozen=True)
class Fp8Convolution:
    """A convolution's layer on patches in fp8, what unfolds these, and what multiplies."""

    layer: Fp8Linear
    unfold: Unfold
    multiply: Multiply

    def __call__(self, x: Tensor, taps: int, stride: int) -> Tensor:
        """x: B T H W C. Returns B C T' H W, channels last in memory."""
        batch, frames, height, width, _ = x.shape
        count = (frames - taps) // stride + 1
        scale = scale_of(x)
        parts = []
        for first in range(0, count, _AT_ONCE):
            last = min(first + _AT_ONCE, count) - 1
            rows = self.unfold(x[:, first * stride : last * stride + taps], scale, taps, stride)
            y = self.multiply(rows, scale.expand(rows.shape[0]).contiguous(), self.layer)
            parts.append(y.view(batch, last + 1 - first, height, width, -1))
        return rearrange(torch.cat(parts, dim=1), "b t h w c -> b c t h w")


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
        self.fp8: dict[nn.Conv3d, Fp8Convolution] = {}
        self.least = FP8_LEAST

    def fuse(self) -> None:
        """Lay the convolutions' weights out as `_convolve_with` reads them, so that it need not copy them each time."""
        for conv in (self.conv1, self.conv2):
            laid_out = rearrange(conv.weight, "o i t h w -> o h w t i").contiguous()
            conv.weight = nn.Parameter(rearrange(laid_out, "o h w t i -> o i t h w"), requires_grad=False)

    def quantise(self, unfold: Unfold, multiply: Multiply, least: int = FP8_LEAST) -> None:
        """From now on compute convolutions as fp8 products over patches, where there are `least` channels and tokens of
        a frame."""
        self.least = least
        large = [conv for conv in (self.conv1, self.conv2) if conv.out_channels >= least]
        self.fp8 = {conv: Fp8Convolution(layer_of(conv), unfold, multiply) for conv in large}

    def forward(self, frames: Tensor, caches: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """frames: B 3 T H W in [-1, 1]; T = 1 + 4n in a stream's first call (caches None), else 4n.

        Returns tokens B (n h w) C and the caches for the next call: two frames of each convolution's input.
        """
        dtype = self.conv1.weight.dtype
        if caches is None:
            caches = self._open(frames[:, :, :1].to(dtype))
            frames = frames[:, :, 1:]
        found = []
        for part in frames.split(projected_at_once(frames.shape[-2] * frames.shape[-1]), dim=2):
            tokens, caches = self._project(part.to(dtype), caches)
            found.append(tokens)
        return found[0] if len(found) == 1 else torch.cat(found, dim=1), caches

    def _project(self, frames: Tensor, caches: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        x = _unshuffle(frames)
        y = F.silu(self.norm1(self._convolve(self.conv1, x, caches[0], clip=CLIP)))
        z = F.silu(self.norm2(self._convolve(self.conv2, y, caches[1], clip=CLIP // 2)))
        tokens = self.linear_layers[0](rearrange(z, "b c f h w -> b (f h w) c"))
        return tokens, (x[:, :, -_PAST:].clone(), y[:, :, -_PAST:].clone())

    def _open(self, frame: Tensor) -> tuple[Tensor, Tensor]:
        """A stream's first clip is one frame, repeated: it takes the first convolution only and fills both caches."""
        x = _unshuffle(frame.expand(-1, -1, CLIP, -1, -1))
        y = F.silu(self.norm1(self._convolve_with(self.conv1, x[:, :, :_PAST], x)))
        return x[:, :, -_PAST:], y[:, :, -_PAST:]

    def _convolve(self, conv: nn.Conv3d, x: Tensor, past: Tensor, clip: int) -> Tensor:
        """Convolve n clips of `clip` frames. Causal clips follow each other, so all of them are one convolution."""
        if self.kind == "causal":
            return self._convolve_with(conv, past, x)
        batch = x.shape[0]
        clips = rearrange(x, "b c (n f) h w -> (b n) c f h w", f=clip)
        return rearrange(
            self._convolve_with(conv, clips[:, :, -_PAST:], clips), "(b n) c f h w -> b c (n f) h w", b=batch
        )

    def _convolve_with(self, conv: nn.Conv3d, past: Tensor, x: Tensor) -> Tensor:
        if conv not in self.fp8 or x.shape[-2] * x.shape[-1] < self.least:
            return _convolve_with(conv, past, x)
        joined = rearrange(torch.cat([past, x], dim=2), "b c t h w -> b t h w c")
        return self.fp8[conv](joined, conv.kernel_size[0], conv.stride[0])


def _unshuffle(frames: Tensor) -> Tensor:
    """Patches to channels; these lie last in memory, where convolutions want them."""
    patches = rearrange(frames, "b c f (h p) (w q) -> b f h w (c p q)", p=_PATCH, q=_PATCH)
    return rearrange(patches, "b f h w c -> b c f h w")


def _convolve_with(conv: nn.Conv3d, past: Tensor, x: Tensor) -> Tensor:
    """One causal convolution: two past frames in front, borders replicated by one token.

    Its 4 taps in time become channels of a convolution in space, for which faster kernels exist.
    """
    taps, stride = conv.kernel_size[0], conv.stride[0]
    x = rearrange(torch.cat([past, x], dim=2), "b c t h w -> b t h w c")
    x = torch.cat([x[:, :, :1], x, x[:, :, -1:]], dim=2)
    x = torch.cat([x[:, :, :, :1], x, x[:, :, :, -1:]], dim=3)
    count = (x.shape[1] - taps) // stride + 1
    folded = torch.cat([x[:, tap : tap + stride * (count - 1) + 1 : stride] for tap in range(taps)], dim=-1)
    weight = rearrange(conv.weight, "o i t h w -> o (t i) h w")
    y = F.conv2d(rearrange(folded, "b t h w c -> (b t) c h w"), weight, conv.bias)
    return rearrange(y, "(b t) c h w -> b c t h w", t=count)
