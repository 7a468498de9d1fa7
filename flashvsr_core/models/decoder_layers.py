"""Layers of the decoder that know time or enlarge."""

import torch
from einops import rearrange
from torch import Tensor, nn


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
