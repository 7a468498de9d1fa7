"""What profile fast computes of the decoder's last layers.

The last convolution has 3 output channels. What each of its 9 taps makes of a pixel is one product over channels
(`project`), for which all of them are read once; then 9 neighbours are added up (`gather`).

The convolution before it has a form in fp8 (e4m3) for 128 channels, which projects what it makes at once: those 128
channels are never stored (`convolve`). Frames lie in rows then: pixel after pixel, line after line, frame after frame,
with a border of one pixel around every frame, so that a tap of 3x3 is a shift by whole rows, the same for all of them.
Rectified pixels are far from zero on average, and what is rounded is the larger for it: so each channel's mean is taken
off before (`interleave_rounded`), and what it would have given is added after the convolution.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from flashvsr_core.kernels.fp8_linear import LARGEST, quantise_rows_torch
from flashvsr_core.kernels.interleave import interleave

CHANNELS = 128
COLORS = 3
TAPS = 9
PRODUCTS = 32  # numbers of a pixel that `project` gives: 9 taps x 3 colours, and 5 that do not count
_EVERY = 8  # pixels in either direction, of which one is looked at for a channel's mean


@dataclass(frozen=True)
class LastKernels:
    """See the functions of these names; `interleave` is `interleave.interleave`."""

    interleave: Callable[[Tensor, int], Tensor]
    project: Callable[[Tensor, Tensor], Tensor]
    gather: Callable[[Tensor, Tensor, Tensor, Tensor], None]


@dataclass(frozen=True)
class RoundedKernels:
    """See the functions of these names."""

    interleave_rounded: Callable[[Tensor, int, Tensor, Tensor], Tensor]
    convolve: Callable[[Tensor, "LastLayers", Tensor], Tensor]


@dataclass(frozen=True)
class LastLayers:
    """weight: (9 taps, 128 outputs) x 128 inputs, fp8; scales: float32 per output, what its weights are to be
    multiplied with; total: outputs x inputs, float32, the sum of all taps as it was before rounding; projection:
    `PRODUCTS` x 128, which knows the scales."""

    weight: Tensor
    scales: Tensor
    total: Tensor
    projection: Tensor

    @classmethod
    def of(cls, weight: Tensor, last: Tensor) -> "LastLayers":
        """weight: 128 128 3 3, of a convolution that is rectified; last: 3 128 3 3, of the one after it."""
        rounded, scales = quantise_rows_torch(weight.flatten(1), gelu=False)
        scales = torch.where(scales > 0, scales, 1.0)
        # Rearranging knows no fp8.
        taps = rearrange(rounded.view(torch.uint8).view(weight.shape), "o i u v -> (u v o) i").contiguous()
        # A rectified product may be scaled later: scales are not negative.
        scaled = projection(last.float() * scales[:, None, None]).to(last.dtype)
        return cls(taps.view(torch.float8_e4m3fn), scales, weight.float().sum((2, 3)), scaled)

    def offset(self, less: Tensor, scale: Tensor) -> Tensor:
        """What was taken off the pixels (float32 per channel), as it is missing after the convolution: per output."""
        return (self.total @ less) / (scale * self.scales)


def projection(weight: Tensor) -> Tensor:
    """The last convolution's weight (3 C 3 3) as `PRODUCTS` x C: tap after tap, the colours of each together."""
    products = rearrange(weight, "c i u v -> (u v c) i")
    return F.pad(products, (0, 0, 0, PRODUCTS - len(products))).contiguous()


def project(x: Tensor, weight: Tensor) -> Tensor:
    """x: t c H W, channels last; weight: `projection`. Returns t H W PRODUCTS in their type."""
    return F.linear(rearrange(x, "t c h w -> t h w c"), weight)


def gather(products: Tensor, scale: Tensor, bias: Tensor, out: Tensor) -> None:
    """out = 2 y - 1, y the last convolution: `scale` times the sum of what 9 neighbours' taps gave, and the bias
    (float32: one number, and 3).

    products: t H W PRODUCTS, or H+2 W+2 with a border, which does not count; out: 3 t H W, a part of some frames.
    """
    _, _, height, width = out.shape
    border = (products.shape[1] - height) // 2
    inner = products[:, border : border + height, border : border + width, : TAPS * COLORS]
    known = F.pad(rearrange(inner.float(), "t h w (u v c) -> u v c t h w", u=3, v=3), (1, 1, 1, 1))
    total = torch.stack([known[u, v, ..., u : u + height, v : v + width] for u in range(3) for v in range(3)]).sum(0)
    out.copy_(2 * (scale * total + bias[:, None, None, None]) - 1)


def means(x: Tensor, channels: int) -> Tensor:
    """float32: about the mean of each channel of frames that come as phases, t (s p q c) h w."""
    some = x[:, :, ::_EVERY, ::_EVERY]
    return some.float().mean((0, 2, 3)).view(-1, channels).mean(0)


def interleave_rounded(x: Tensor, stride: int, scale: Tensor, less: Tensor) -> Tensor:
    """`interleave`, less `less` (float32 per channel), divided by `scale` (float32, one number), as fp8 in rows: frames
    H+2 W+2 C. The border holds what a pixel of zeros would become."""
    frames = F.pad(interleave(x, stride).float(), (1, 1, 1, 1)) - less[:, None, None]
    rounded = (frames / scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
    return rearrange(rounded.view(torch.uint8), "n c h w -> n h w c").contiguous().view(torch.float8_e4m3fn)


def convolve(x: Tensor, layers: LastLayers, offset: Tensor) -> Tensor:
    """Rectified convolution, `offset` (float32 per output) added before, and what the last one's taps make of each
    pixel: frames H+2 W+2 128 -> the same rows with `PRODUCTS` numbers. Rows of the border do not count."""
    wide = rearrange(x.float(), "n h w c -> n c h w")
    weight = rearrange(layers.weight.float(), "(u v o) i -> o i u v", u=3, v=3)
    made = F.relu(F.conv2d(wide, weight, offset, padding=1)).to(layers.projection.dtype)
    return project(made, layers.projection)


TORCH = LastKernels(interleave, project, gather)
ROUNDED = RoundedKernels(interleave_rounded, convolve)
