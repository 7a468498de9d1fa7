"""The published decoder's layers in forms that are faster on GPUs: for half precision and one stream at a time."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from flashvsr_core.kernels.finish_frames import finish_frames
from flashvsr_core.kernels.fp8_patches import scale_of
from flashvsr_core.kernels.last_layers import CHANNELS, LastKernels, LastLayers, RoundedKernels, means, projection
from flashvsr_core.kernels.repeat_pixels import repeat_pixels
from flashvsr_core.models.decoder_layers import MemBlock, TimeGrow

_FRAMES_PER_PASS = 2  # time steps of half the output size (4 frames) that go through the last layers at once
_LAST_CHANNELS = 8  # of the last layer, with zeros

Memory = list[Tensor]


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
        x, kept = self._begin(x, memory)
        frames = out.shape[1] // x.shape[0]  # of one time step
        for part, target in zip(x.split(_FRAMES_PER_PASS), out.split(frames * _FRAMES_PER_PASS, dim=1)):
            self._finish(part, target)
        return kept

    def _begin(self, x: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """The layers that know time: half the output size."""
        kept: Memory = []
        for number, layer in enumerate(self.layers[: self.tail]):
            if isinstance(layer, MemBlock):
                x, newest = self._step(layer, x, memory[len(kept)] if memory else None)
                kept.append(newest)
            else:
                x = self._apply(number, x)
        return x, kept

    def _finish(self, x: Tensor, out: Tensor) -> None:
        """The layers that know no time. x: t c h w, some time steps; out: 3 t' H W."""
        for number in range(self.tail, len(self.layers) - 1):
            x = self._apply(number, x)
        self._end(x, out)

    def _end(self, x: Tensor, out: Tensor) -> None:
        """The last layer: x: t c H W, out: 3 t H W."""
        self.finish(F.conv2d(x, *self.last, padding=1), out)

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
    products instead of 9, and what lies between is never stored. The last layer is one product of all its taps.
    """

    def __init__(self, layers: nn.Sequential, kernels: LastKernels) -> None:
        super().__init__(layers, repeat_pixels, finish_frames)
        self.kernels = kernels
        last = self.layers[-1]
        assert isinstance(last, nn.Conv2d)
        assert last.bias is not None
        self.projection, self.bias, self.one = (
            projection(last.weight),
            last.bias.float(),
            last.bias.new_ones((), dtype=torch.float32),
        )
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
        grown = _convolve_relu(x, weight, None) if rectified else F.conv2d(x, weight, padding=1)
        return self.kernels.interleave(grown, grow.stride)

    def _end(self, x: Tensor, out: Tensor) -> None:
        self.kernels.gather(self.kernels.project(x, self.projection), self.one, self.bias, out)


class RoundedLayers(PhaseLayers):
    """The convolution before the last one in fp8, for `last_layers.CHANNELS` channels.

    What is rounded does not depend on what else is decoded with it: the means that are taken off are those of `sample`
    (t c h w, what `decode` takes), and scales are powers of two, which change no digit of a floating-point number.
    """

    def __init__(self, layers: nn.Sequential, kernels: LastKernels, rounded: RoundedKernels, sample: Tensor) -> None:
        super().__init__(layers, kernels)
        self.rounded = rounded
        grow, _, _, middle, _, last = self.layers[self.tail + 1 :]
        assert isinstance(grow, TimeGrow)
        self.stride, self.grown = grow.stride, self.phases[self.tail + 2]
        self.last_layers = LastLayers.of(middle.weight, last.weight)  # type: ignore[arg-type]
        self.gain = self.grown.float().flatten(1).abs().sum(1).max()
        self.less = means(_convolve_relu(self._begin(sample, [])[0], self.grown, None), CHANNELS)

    def _finish(self, x: Tensor, out: Tensor) -> None:
        # No pixel of the full size can be larger than this says. Floating point forgives that it is too much.
        scale = torch.exp2(torch.ceil(torch.log2(scale_of(x) * self.gain)))
        phases = _convolve_relu(x, self.grown, None)
        rows = self.rounded.interleave_rounded(phases, self.stride, scale, self.less)
        del phases  # the largest of all
        products = self.rounded.convolve(rows, self.last_layers, self.last_layers.offset(self.less, scale))
        self.kernels.gather(products, scale, self.bias, out)


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
