"""TCDecoder, the `tiny` decoder: latents and the enlarged input become frames; a child of TAEHV (Bohan, 2025)."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from flashvsr_core.registry import TcDecoderSpec

FRAMES_PER_LATENT = 4
_PATCH = 8  # output pixels of one latent pixel
_LATENTS_PER_PASS = 2  # decoded side by side; bounds memory in a stream's first step, which has 6

Memory = list[Tensor]


class MemBlock(nn.Module):
    """`act(conv(cat[x, previous]) + x)`, previous = this block's input one time step earlier; `bare`: without act."""

    def __init__(self, channels: int, leak: float, bare: bool) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(2 * channels, channels, 3, padding=1),
            nn.LeakyReLU(leak),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.LeakyReLU(leak),
            nn.Conv2d(channels, channels, 3, padding=1),
        )
        self.last = nn.Identity() if bare else nn.LeakyReLU(leak)

    def forward(self, x: Tensor, past: Tensor) -> Tensor:
        return self.last(self.conv(torch.cat([x, past], dim=1)) + x)


class Clamp(nn.Module):
    def __init__(self, limit: float = 3.0) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / self.limit) * self.limit


class TimeGrow(nn.Module):
    """1x1 convolution whose output channels are (time, C): each frame becomes `stride` frames."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(channels, channels * stride, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return rearrange(self.conv(x), "n (s c) h w -> (n s) c h w", s=self.stride)


class ShuffleGrow(nn.Module):
    """Convolution and pixel shuffle: each frame becomes `stride` frames of twice the size in `out` channels."""

    def __init__(self, channels: int, out: int, stride: int, kernel: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(channels, out * stride * 4, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        return rearrange(self.conv(x), "n (s c p q) h w -> (n s) c (h p) (w q)", s=self.stride, p=2, q=2)


class TcDecoder(nn.Module):
    """Keys as published: `decoder` is numbered as there, layers without weights included."""

    def __init__(self, spec: TcDecoderSpec) -> None:
        super().__init__()
        a, b, c, d = spec.channels
        self.residual = spec.residual
        self.condition = spec.condition
        first = spec.latent_channels + (3 * FRAMES_PER_LATENT * _PATCH**2 if spec.condition else 0)
        at_8, at_4, at_2 = (
            [MemBlock(n, spec.leak, spec.bare) for _ in range(count)] for n, count in zip((a, b, c), spec.blocks)
        )
        opening = (Clamp(spec.clamp), nn.Conv2d(first, a, 3, padding=1), nn.LeakyReLU(spec.leak),
                   nn.Conv2d(a, a, 3, padding=1, bias=False), nn.LeakyReLU(spec.leak), *at_8)  # fmt: skip
        if spec.shuffle:
            self.decoder = nn.Sequential(
                *opening,
                ShuffleGrow(a, b, 1),
                *at_4,
                ShuffleGrow(b, c, 2),
                *at_2,
                ShuffleGrow(c, d, 2, kernel=3),
            )
            at = {4: b, 2: c}
            # From the frames of one time step at this resolution: 4 of them at 1/4, 2 at 1/2.
            self.detail = nn.ModuleDict({str(n): nn.Conv2d(3 * n**3, at[n], 3, padding=1) for n in spec.detail})
            return
        self.detail = nn.ModuleDict()
        self.decoder = nn.Sequential(
            *opening, nn.Upsample(scale_factor=2), TimeGrow(a, 1),
            nn.Conv2d(a, b, 3, padding=1, bias=False),
            *at_4, nn.Upsample(scale_factor=2), TimeGrow(b, 2),
            nn.Conv2d(b, c, 3, padding=1, bias=False),
            *at_2, nn.Upsample(scale_factor=2), TimeGrow(c, 2),
            nn.Conv2d(c, d, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(d, d, 3, padding=1, bias=False), nn.ReLU(),
            nn.Conv2d(d, 3, 3, padding=1),
        )  # fmt: skip

    def forward(self, latents: Tensor, condition: Tensor, memory: Memory | None) -> tuple[Tensor, Memory]:
        """latents: B C F h w; condition: B 3 T H W in [-1, 1], the frames to emit: T = 4F, or 4F - 3 in a stream's
        first call (memory None). Returns frames B 3 T H W, not clamped (they reach beyond [-1, 1]), and the memory.
        """
        missing = FRAMES_PER_LATENT * latents.shape[2] - condition.shape[2]
        if missing:
            condition = torch.cat([condition[:, :, :1].expand(-1, -1, missing, -1, -1), condition], dim=2)
        frames = []
        kept = memory or []
        for start in range(0, latents.shape[2], _LATENTS_PER_PASS):
            part = slice(start, start + _LATENTS_PER_PASS)
            pixels = condition[:, :, FRAMES_PER_LATENT * part.start : FRAMES_PER_LATENT * part.stop]
            decoded, kept = self._decode(latents[:, :, part], pixels, kept)
            frames.append(decoded)
        out = torch.cat(frames, dim=2)[:, :, missing:]
        if self.residual:
            return condition[:, :, missing:] + self.residual * out, kept
        return out * 2 - 1, kept

    def _decode(self, latents: Tensor, condition: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        batch = latents.shape[0]
        x = latents
        if self.condition:
            patches = rearrange(
                condition, "b c (f t) (h p) (w q) -> b (c t p q) f h w", t=FRAMES_PER_LATENT, p=_PATCH, q=_PATCH
            )
            x = torch.cat([patches.to(latents.dtype), latents], dim=1)
        x = rearrange(x, "b c f h w -> (b f) c h w")
        details = self.details(condition, latents.dtype) if self.detail else {}
        scale = _PATCH
        kept: Memory = []
        for layer in self.decoder:
            if isinstance(layer, MemBlock):
                previous = memory[len(kept)] if memory else None
                past, last = _shift(x, previous, batch)
                kept.append(last)
                x = layer(x, past)
            else:
                x = layer(x)
                if isinstance(layer, ShuffleGrow):
                    scale //= 2
                    if scale in details:
                        x = x + details[scale]
        return rearrange(x, "(b t) c h w -> b c t h w", b=batch), kept

    def details(self, condition: Tensor, dtype: torch.dtype) -> dict[int, Tensor]:
        """What the condition (B 3 T H W) adds by resolution: its high frequencies, convolved; (b t/n) C H/n W/n."""
        high = high_frequencies(rearrange(condition, "b c t h w -> (b t) c h w")).to(dtype)
        return {
            int(n): conv(rearrange(high, "(b t) c (h p) (w q) -> b (t c p q) h w", t=int(n), p=int(n), q=int(n)))
            for n, conv in self.detail.items()
        }


def high_frequencies(x: Tensor) -> Tensor:
    """4 x (x - its mean over 9x9 pixels). N C H W."""
    low = F.avg_pool2d(x, (9, 1), stride=1, padding=(4, 0), count_include_pad=False)
    return 4 * (x - F.avg_pool2d(low, (1, 9), stride=1, padding=(0, 4), count_include_pad=False))


def _shift(x: Tensor, previous: Tensor | None, batch: int) -> tuple[Tensor, Tensor]:
    """One time step back: x is (b t) c h w, `previous` the last step of the call before (zeros at the start)."""
    steps = rearrange(x, "(b t) c h w -> b t c h w", b=batch)
    first = torch.zeros_like(steps[:, :1]) if previous is None else previous[:, None]
    past = torch.cat([first, steps[:, :-1]], dim=1)
    return rearrange(past, "b t c h w -> (b t) c h w"), steps[:, -1].clone()
