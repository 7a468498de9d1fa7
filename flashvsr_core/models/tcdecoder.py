"""TCDecoder, the `tiny` decoder: latents and the enlarged input become frames; a child of TAEHV (Bohan, 2025)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from flashvsr_core.kernels.finish_frames import finish_frames
from flashvsr_core.kernels.interleave import interleave
from flashvsr_core.kernels.repeat_pixels import repeat_pixels
from flashvsr_core.registry import TcDecoderSpec

FRAMES_PER_LATENT = 4
_PATCH = 8  # output pixels of one latent pixel
_FRAMES_PER_PASS = 2  # time steps of half the output size (4 frames) that go through the last layers at once
_LAST_CHANNELS = 8  # of the last layer, with zeros

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

    def convolutions(self) -> list[nn.Conv2d]:
        return [layer for layer in self.conv if isinstance(layer, nn.Conv2d)]

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

    front_memories = 0  # tensors of the memory that belong to `front`
    latents_per_pass = 2  # decoded side by side; bounds memory in a stream's first step, which has 6

    def __init__(self, spec: TcDecoderSpec) -> None:
        super().__init__()
        a, b, c, d = spec.channels
        self.fused: FusedLayers | None = None
        self.gate: nn.Conv2d | None = None
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
        if not (self.detail or self.residual or self.gate is not None):
            self.fused = InPlaceLayers(self.decoder, repeat, finish)

    def fuse_phases(
        self,
        interleave: Callable[[Tensor, int], Tensor] = interleave,
        finish: Callable[[Tensor, Tensor], None] = finish_frames,
    ) -> None:
        """As `fuse_in_place`, with fewer products and other roundings; see `PhaseLayers`."""
        if not (self.detail or self.residual or self.gate is not None):
            self.fused = PhaseLayers(self.decoder, interleave, finish)

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

    def _decode_in_place(
        self, latents: Tensor, condition: Tensor, memory: Memory, layers: "InPlaceLayers"
    ) -> tuple[Tensor, Memory]:
        """Frames 1 3 4F H W, as `forward` returns them, and the memory."""
        _, channels, count, height, width = latents.shape
        given = 3 * FRAMES_PER_LATENT * _PATCH**2 if self.condition else 0
        x = latents.new_empty(count, height, width, given + channels)
        x[..., given:].copy_(rearrange(latents[0], "c f h w -> f h w c"))
        if given:
            patches = {"t": FRAMES_PER_LATENT, "p": _PATCH, "q": _PATCH}
            x[..., :given].unflatten(-1, (3, FRAMES_PER_LATENT, _PATCH, _PATCH)).copy_(
                rearrange(condition[0], "c (f t) (h p) (w q) -> f h w c t p q", **patches)
            )
        out = latents.new_empty(1, 3, FRAMES_PER_LATENT * count, _PATCH * height, _PATCH * width)
        pieces = out[0].split(FRAMES_PER_LATENT * self.latents_per_pass, dim=1)
        for part, target in zip(x.split(self.latents_per_pass), pieces):
            memory = layers.decode(part.permute(0, 3, 1, 2), memory, target)
        return out, memory

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


class FusedLayers:
    """The published layers as cuDNN kernels that add and rectify, channels last in memory, for one stream.

    The two halves of a memory block's first convolution are separate: the past is then a view, one time step earlier,
    of the very frames, and nothing is concatenated along channels.
    """

    def __init__(self, layers: nn.Sequential, repeat: Callable[[Tensor, int], Tensor]) -> None:
        layers.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.repeat = repeat
        self.layers = list(layers)
        self.halves: dict[MemBlock, list[Tensor]] = {}
        for layer in self.layers:
            if isinstance(layer, MemBlock):
                halves = layer.convolutions()[0].weight.chunk(2, dim=1)
                self.halves[layer] = [half.contiguous(memory_format=torch.channels_last) for half in halves]
        self.tail = max(i for i, layer in enumerate(self.layers) if isinstance(layer, nn.Upsample))

    def __call__(self, x: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """x: t c h w, consecutive time steps, channels last. Returns frames t' 3 H W and the memory."""
        kept: Memory = []
        for number, layer in enumerate(self.layers[: self.tail]):
            if isinstance(layer, MemBlock):
                previous = memory[len(kept)] if memory else torch.zeros_like(x[:1])
                kept.append(x[-1:].clone())
                x = self._remember(layer, torch.cat([previous, x]))
            else:
                x = self._apply(number, x)
        frames = []
        # The last layers know no time and have the largest tensors: a part of the frames after the other.
        for part in x.split(_FRAMES_PER_PASS):
            for number in range(self.tail, len(self.layers)):
                part = self._apply(number, part)
            frames.append(part)
        return torch.cat(frames), kept

    def _apply(self, number: int, x: Tensor) -> Tensor:
        layer = self.layers[number]
        if isinstance(layer, nn.Upsample | nn.ReLU | nn.LeakyReLU):
            return x  # done by the layer after, or the one before
        if isinstance(layer, TimeGrow):
            return self.repeat(layer.conv(x), layer.stride)
        following = self.layers[number + 1] if number + 1 < len(self.layers) else None
        if isinstance(layer, nn.Conv2d) and isinstance(following, nn.ReLU | nn.LeakyReLU):
            return _convolve_relu(x, layer.weight, layer.bias)
        return layer(x)

    def _remember(self, block: MemBlock, x: Tensor) -> Tensor:
        """x: t+1 c h w, the first of which is the last time step before."""
        return self._add_past(block, x[1:], F.conv2d(x[:-1], self.halves[block][1], padding=1))

    def _add_past(self, block: MemBlock, x: Tensor, past: Tensor) -> Tensor:
        """x: t c h w; past: what the first convolution makes of the time step before each."""
        first, second, third = block.convolutions()
        y = _convolve_add_relu(x, self.halves[block][0], past, first.bias)
        return _convolve_add_relu(_convolve_relu(y, second.weight, second.bias), third.weight, x, third.bias)


class InPlaceLayers(FusedLayers):
    """The same numbers with less copying. Memory is what the first convolutions made of the last time step: it is
    written beside that of the others, one place further on, where the next time step looks for its past.

    The last layer has few output channels; with zeros up to `_LAST_CHANNELS` of them faster kernels can compute it.
    """

    def __init__(
        self, layers: nn.Sequential, repeat: Callable[[Tensor, int], Tensor], finish: Callable[[Tensor, Tensor], None]
    ) -> None:
        super().__init__(layers, repeat)
        self.finish = finish
        last = self.layers[-1]
        assert isinstance(last, nn.Conv2d)
        more = _LAST_CHANNELS - last.out_channels
        weight = F.pad(last.weight, (0, 0, 0, 0, 0, 0, 0, more))
        self.last = weight.contiguous(memory_format=torch.channels_last), F.pad(last.bias, (0, more))  # type: ignore[arg-type]

    def decode(self, x: Tensor, memory: Memory, out: Tensor) -> Memory:
        """x: t c h w, consecutive time steps, channels last; out: 3 t' H W, to be written. Returns the memory."""
        kept: Memory = []
        for number, layer in enumerate(self.layers[: self.tail]):
            if isinstance(layer, MemBlock):
                x, newest = self._step(layer, x, memory[len(kept)] if memory else None)
                kept.append(newest)
            else:
                x = self._apply(number, x)
        frames = out.shape[1] // x.shape[0]  # of one time step
        for part, target in zip(x.split(_FRAMES_PER_PASS), out.split(frames * _FRAMES_PER_PASS, dim=1)):
            for number in range(self.tail, len(self.layers) - 1):
                part = self._apply(number, part)
            self.finish(F.conv2d(part, *self.last, padding=1), target)
        return kept

    def _step(self, block: MemBlock, x: Tensor, previous: Tensor | None) -> tuple[Tensor, Tensor]:
        """One block on t time steps. Returns its output, and the memory for the step after them."""
        steps, _, height, width = x.shape
        weight = self.halves[block][1]
        size = (steps + 1, weight.shape[0], height, width)
        past = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        _convolve_into(x, weight, past[1:])
        if previous is None:
            past[0].zero_()
        else:
            past[:1].copy_(previous)
        return self._add_past(block, x, past[:-1]), past[-1:].clone()


class PhaseLayers(InPlaceLayers):
    """Growth in time, enlargement by 2 and the convolution of 3x3 pixels after it as one convolution of 2x2 pixels of
    the small picture for each of four phases: repeated pixels meet two taps at once, whose sum is the weight. That is 4
    products instead of 9, and what lies between is never stored.
    """

    def __init__(
        self,
        layers: nn.Sequential,
        interleave: Callable[[Tensor, int], Tensor],
        finish: Callable[[Tensor, Tensor], None],
    ) -> None:
        super().__init__(layers, repeat_pixels, finish)
        self.interleave = interleave
        self.phases = {
            number + 1: phase_weights(layer, self.layers[number + 1])  # type: ignore[arg-type]
            for number, layer in enumerate(self.layers)
            if isinstance(layer, TimeGrow)
        }

    def _apply(self, number: int, x: Tensor) -> Tensor:
        if isinstance(self.layers[number], TimeGrow):
            return x  # a part of the layer after
        if number not in self.phases:
            return super()._apply(number, x)
        rectified = isinstance(self.layers[number + 1], nn.ReLU | nn.LeakyReLU)
        weight, grow = self.phases[number], self.layers[number - 1]
        assert isinstance(grow, TimeGrow)
        return self.interleave(
            _convolve_relu(x, weight, None) if rectified else F.conv2d(x, weight, padding=1), grow.stride
        )


def phase_weights(grow: TimeGrow, layer: nn.Conv2d) -> Tensor:
    """Weights (s p q o) i 2 2 of what `grow` (s time steps), repetition and `layer` (3x3 pixels) do to small pixels."""
    small = rearrange(grow.conv.weight.float(), "(s m) i 1 1 -> s m i", s=grow.stride)
    whole = torch.einsum("omuv,smi->soiuv", layer.weight.float(), small)
    # Taps of phase 0 meet small pixels -1, 0, 0, those of phase 1 meet 0, 0, 1.
    meets = whole.new_tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])
    weights = torch.einsum("soiuv,pau,qbv->spqoiab", whole, meets, meets).flatten(0, 3)
    return weights.to(layer.weight.dtype).contiguous(memory_format=torch.channels_last)


def _convolve_into(x: Tensor, weight: Tensor, out: Tensor) -> None:
    if not x.is_cuda:
        out.copy_(F.conv2d(x, weight, padding=1))
        return
    cudnn = torch.backends.cudnn
    torch.ops.aten.cudnn_convolution.out(
        x, weight, (1, 1), (1, 1), (1, 1), 1, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, out=out
    )


def _convolve_relu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if not x.is_cuda:
        return F.relu(F.conv2d(x, weight, bias, padding=1))
    return torch.cudnn_convolution_relu(x, weight, bias, (1, 1), (1, 1), (1, 1), 1)


def _convolve_add_relu(x: Tensor, weight: Tensor, added: Tensor, bias: Tensor | None) -> Tensor:
    if not x.is_cuda:
        return F.relu(F.conv2d(x, weight, bias, padding=1) + added)
    return torch.cudnn_convolution_add_relu(x, weight, added, 1.0, bias, (1, 1), (1, 1), (1, 1), 1)


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
