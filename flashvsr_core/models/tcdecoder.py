"""TCDecoder, the `tiny` decoder: latents and the enlarged input become frames; a child of TAEHV (Bohan, 2025)."""

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from flashvsr_core.kernels import last_layers
from flashvsr_core.kernels.finish_frames import finish_frames
from flashvsr_core.kernels.last_layers import LastKernels, RoundedKernels
from flashvsr_core.kernels.repeat_pixels import repeat_pixels
from flashvsr_core.models.decoder_layers import Clamp, MemBlock, ShuffleGrow, TimeGrow
from flashvsr_core.models.fused_decoder import FusedLayers, InPlaceLayers, Memory, PhaseLayers, RoundedLayers
from flashvsr_core.registry import TcDecoderSpec

FRAMES_PER_LATENT = 4
_PATCH = 8  # output pixels of one latent pixel
_SAMPLE = (24, 40)  # latent pixels from which means of channels are taken


class TcDecoder(nn.Module):
    """Keys as published: `decoder` is numbered as there, layers without weights included."""

    front_memories = 0  # tensors of the memory that belong to `front`
    latents_per_pass = 2  # decoded side by side; bounds memory in a stream's first step, which has 6

    def __init__(self, spec: TcDecoderSpec) -> None:
        super().__init__()
        a, b, c, d = spec.channels
        self.fused: FusedLayers | None = None
        self.gate: nn.Conv2d | None = None
        self.residual = spec.residual
        self.condition = spec.condition
        self.latent_channels = spec.latent_channels
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
            # From the frames of one time step at this resolution (4 of them at 1/4, 2 at 1/2), 2x2 pixels of each.
            self.detail = nn.ModuleDict({str(n): nn.Conv2d(3 * n * 4, at[n], 3, padding=1) for n in spec.detail})
            self.gate = nn.Conv2d(c, c, 1) if spec.gate else None
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

    def fuse(self, repeat: Callable[[Tensor, int], Tensor] = repeat_pixels) -> None:
        """From now on use cuDNN's fused kernels: for half precision on GPUs and one stream at a time."""
        if not self.detail and self.gate is None:
            self.fused = FusedLayers(self.decoder, repeat)

    def fuse_in_place(
        self,
        repeat: Callable[[Tensor, int], Tensor] = repeat_pixels,
        finish: Callable[[Tensor, Tensor], None] = finish_frames,
    ) -> None:
        """As `fuse`, and nothing is concatenated: results are written where the next layer reads them."""
        if self._is_published:
            self.fused = InPlaceLayers(self.decoder, repeat, finish)

    def fuse_phases(self, kernels: LastKernels = last_layers.TORCH) -> None:
        """As `fuse_in_place`, with fewer products and other roundings; see `PhaseLayers`."""
        if self._is_published:
            self.fused = PhaseLayers(self.decoder, kernels)

    def fuse_rounded(
        self, kernels: LastKernels = last_layers.TORCH, rounded: RoundedKernels = last_layers.ROUNDED
    ) -> None:
        """As `fuse_phases`, with the convolution before the last one in fp8 where it has the channels for it; see
        `RoundedLayers`."""
        self.fuse_phases(kernels)
        if self._is_published and self.decoder[-1].in_channels == last_layers.CHANNELS:
            self.fused = RoundedLayers(self.decoder, kernels, rounded, self._sample())

    @property
    def _is_published(self) -> bool:
        """Whether frames are what the layers give: nothing comes in beside them, and nothing is added after."""
        return not (self.detail or self.residual or self.gate is not None)

    @property
    def reach(self) -> int:
        """How many output pixels away what an output pixel depends on may lie, a multiple of 8."""
        spread, scale = 0, _PATCH
        for layer in self.decoder:
            if isinstance(layer, nn.Upsample):
                scale //= 2
            spread += sum(scale * (m.kernel_size[0] // 2) for m in layer.modules() if isinstance(m, nn.Conv2d))
            if isinstance(layer, ShuffleGrow):
                scale //= 2
        return _PATCH * -(-spread // _PATCH)

    def front(self, latents: Tensor, memory: Memory | None) -> tuple[Tensor, Memory]:
        """What must see the whole picture before `back`: nothing here."""
        return latents, []

    def back(self, latents: Tensor, condition: Tensor, memory: Memory | None) -> tuple[Tensor, Memory]:
        """`forward`, which may be computed for parts of the picture."""
        return self.forward(latents, condition, memory)

    def forward(self, latents: Tensor, condition: Tensor, memory: Memory | None) -> tuple[Tensor, Memory]:
        """latents: B C F h w; condition: B 3 T H W in [-1, 1], the frames to emit: T = 4F, or 4F - 3 in a stream's
        first call (memory None). Returns frames B 3 T H W, not clamped (they reach beyond [-1, 1]), and the memory.
        """
        missing = FRAMES_PER_LATENT * latents.shape[2] - condition.shape[2]
        if missing:
            condition = torch.cat([condition[:, :, :1].expand(-1, -1, missing, -1, -1), condition], dim=2)
        kept = memory or []
        if isinstance(self.fused, InPlaceLayers):
            out, kept = self._decode_in_place(latents, condition, kept, self.fused)
            return out[:, :, missing:], kept
        frames = []
        for start in range(0, latents.shape[2], self.latents_per_pass):
            part = slice(start, start + self.latents_per_pass)
            pixels = condition[:, :, FRAMES_PER_LATENT * part.start : FRAMES_PER_LATENT * part.stop]
            decoded, kept = self._decode(latents[:, :, part], pixels, kept)
            frames.append(decoded)
        out = torch.cat(frames, dim=2)[:, :, missing:]
        if self.residual:
            return condition[:, :, missing:] + self.residual * out, kept
        return out * 2 - 1, kept

    @torch.no_grad()
    def _sample(self) -> Tensor:
        """What `InPlaceLayers.decode` takes, for latents as they are spread and a picture of waves."""
        weight = cast(Tensor, self.decoder[-1].weight)
        latents = torch.randn(1, self.latent_channels, 2, *_SAMPLE, generator=torch.Generator().manual_seed(0))
        height, width = (_PATCH * side for side in _SAMPLE)
        at = torch.arange(height)[:, None] / 11 + torch.arange(width)[None] / 7
        waves = torch.stack([torch.sin(at * (1 + color)) for color in range(3)])
        condition = waves[None, :, None].expand(-1, -1, 2 * FRAMES_PER_LATENT, -1, -1)
        return self._side_by_side(latents.to(weight), condition.to(weight)).permute(0, 3, 1, 2)

    def _decode_in_place(
        self, latents: Tensor, condition: Tensor, memory: Memory, layers: InPlaceLayers
    ) -> tuple[Tensor, Memory]:
        """Frames 1 3 4F H W, as `forward` returns them, and the memory."""
        _, _, count, height, width = latents.shape
        x = self._side_by_side(latents, condition)
        out = latents.new_empty(1, 3, FRAMES_PER_LATENT * count, _PATCH * height, _PATCH * width)
        pieces = out[0].split(FRAMES_PER_LATENT * self.latents_per_pass, dim=1)
        for part, target in zip(x.split(self.latents_per_pass), pieces):
            memory = layers.decode(part.permute(0, 3, 1, 2), memory, target)
        return out, memory

    def _side_by_side(self, latents: Tensor, condition: Tensor) -> Tensor:
        """f h w c: patches of the condition, where there is one, and latents."""
        _, channels, count, height, width = latents.shape
        given = 3 * FRAMES_PER_LATENT * _PATCH**2 if self.condition else 0
        x = latents.new_empty(count, height, width, given + channels)
        x[..., given:].copy_(rearrange(latents[0], "c f h w -> f h w c"))
        if given:
            patches = {"t": FRAMES_PER_LATENT, "p": _PATCH, "q": _PATCH}
            x[..., :given].unflatten(-1, (3, FRAMES_PER_LATENT, _PATCH, _PATCH)).copy_(
                rearrange(condition[0], "c (f t) (h p) (w q) -> f h w c t p q", **patches)
            )
        return x

    def _decode(self, latents: Tensor, condition: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        batch = latents.shape[0]
        x = rearrange(latents, "b c f h w -> (b f) h w c")
        if self.condition:
            patches = rearrange(
                condition.to(latents.dtype), "b c (f t) (h p) (w q) -> (b f) h w (c t p q)",
                t=FRAMES_PER_LATENT, p=_PATCH, q=_PATCH,
            )  # fmt: skip
            x = torch.cat([patches, x], dim=-1)
        x = rearrange(x, "n h w c -> n c h w")
        if self.fused is not None:
            x, last = self.fused(x, memory)
            return rearrange(x, "(b t) c h w -> b c t h w", b=batch), last
        details = self.details(condition, latents.dtype) if self.detail else {}
        scale = _PATCH
        kept: Memory = []
        enlarge: nn.Upsample | None = None
        for layer in self.decoder:
            if isinstance(layer, nn.Upsample):
                enlarge = layer
            elif isinstance(layer, TimeGrow) and enlarge is not None:
                # A 1x1 convolution of repeated pixels is the repetition of its result, at a quarter of the work.
                x, enlarge = enlarge(layer(x)), None
            elif isinstance(layer, MemBlock):
                previous = memory[len(kept)] if memory else None
                past, newest = _shift(x, previous, batch)
                kept.append(newest)
                x = layer(x, past)
            else:
                if self.gate is not None and scale == 2 and isinstance(layer, ShuffleGrow):
                    x = x * (2 * torch.sigmoid(self.gate(x)))  # where the input is sharp already, little is added
                x = layer(x)
                if isinstance(layer, ShuffleGrow):
                    scale //= 2
                    if scale in details:
                        x = x + details[scale]
        return rearrange(x, "(b t) c h w -> b c t h w", b=batch), kept

    def details(self, condition: Tensor, dtype: torch.dtype) -> dict[int, Tensor]:
        """What the condition (B 3 T H W) adds by resolution: its high frequencies, convolved; (b t/n) C H/n W/n.

        At 1/4 half the size shows all that matters there: the finest of it is added at 1/2.
        """
        high = high_frequencies(rearrange(condition, "b c t h w -> (b t) c h w")).to(dtype)
        return {
            int(n): conv(rearrange(reduced, "(b t) c (h p) (w q) -> b (t c p q) h w", t=int(n), p=2, q=2))
            for n, conv in self.detail.items()
            for reduced in [F.avg_pool2d(high, int(n) // 2) if int(n) > 2 else high]
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
