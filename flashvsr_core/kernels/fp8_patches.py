"""Convolutions as fp8 products over unfolded patches: what the LQ projection's two large layers can be computed as."""

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor, nn

from flashvsr_core.kernels.fp8_linear import LARGEST, Fp8Linear

SIDE = 3  # pixels of a patch in either direction

Unfold = Callable[[Tensor, Tensor, int, int], Tensor]
"""(x B T H W C, scale, taps, stride) -> fp8 rows, see `unfold_torch`."""


def layer_of(conv: nn.Conv3d) -> Fp8Linear:
    """The convolution's weight as that of a linear layer on patches: out x (taps, rows, columns, channels)."""
    assert conv.bias is not None
    return Fp8Linear.of(rearrange(conv.weight, "o c t h w -> o (t h w c)"), conv.bias)


def unfold_torch(x: Tensor, scale: Tensor, taps: int, stride: int) -> Tensor:
    """Patches of `taps` frames and 3x3 pixels, divided by `scale` (float32, one number), as fp8.

    x: B T H W C; borders are replicated, frames are not. Returns (B n H W) x (taps 3 3 C), n = (T - taps) / stride + 1.
    """
    _, frames, height, width, _ = x.shape
    scaled = (x.float() / scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
    rows = (torch.arange(-1, height + 1, device=x.device)).clamp(0, height - 1)
    columns = (torch.arange(-1, width + 1, device=x.device)).clamp(0, width - 1)
    # Indexing knows no fp8.
    padded = scaled.view(torch.uint8)[:, :, rows][:, :, :, columns]
    count = (frames - taps) // stride + 1
    parts = [
        padded[:, tap : tap + stride * (count - 1) + 1 : stride, i : i + height, j : j + width]
        for tap in range(taps)
        for i in range(SIDE)
        for j in range(SIDE)
    ]
    return torch.stack(parts, dim=-2).flatten(-2).flatten(0, -2).view(torch.float8_e4m3fn)


def scale_of(x: Tensor) -> Tensor:
    """float32, one number: x divided by it fits into fp8."""
    largest = torch.linalg.vector_norm(x, ord=torch.inf, dtype=torch.float32)
    return torch.where(largest > 0, largest / LARGEST, 1.0)
