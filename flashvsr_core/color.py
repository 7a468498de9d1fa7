"""Colour corrections: the result takes its colours from the enlarged input. Always float32, whole pictures."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

_LEVELS = 5
_EPS = 1e-5


def adain(frames: Tensor, source: Tensor) -> Tensor:
    """Match mean and deviation of each frame and channel (Huang & Belongie, 2017). T 3 H W float32; [-1, 1] out."""
    std, mean = _statistics(frames)
    source_std, source_mean = _statistics(source)
    factor = source_std / std  # one pass over the frames instead of four
    return torch.addcmul(source_mean - mean * factor, frames, factor).clamp_(-1, 1)


def wavelet(frames: Tensor, source: Tensor) -> Tensor:
    """High frequencies of the result on the low ones of the source. T 3 H W float32, unclamped; [-1, 1] out."""
    return (frames - _low_band(frames) + _low_band(source)).clamp(-1, 1)


def none(frames: Tensor, source: Tensor) -> Tensor:
    """No correction: clamped to [-1, 1]."""
    return frames.clamp(-1, 1)


CORRECTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"adain": adain, "wavelet": wavelet, "none": none}


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(x, dim=(-2, -1), correction=0, keepdim=True)
    return (variance + _EPS).sqrt(), mean


def _low_band(x: Tensor) -> Tensor:
    row = torch.tensor([1.0, 2.0, 1.0], device=x.device) / 4
    kernel = torch.outer(row, row).expand(x.shape[1], 1, 3, 3)
    for level in range(_LEVELS):
        reach = 2**level
        x = F.conv2d(F.pad(x, (reach,) * 4, mode="replicate"), kernel, dilation=reach, groups=x.shape[1])
    return x
