"""Layers shared by the model's parts. All are stateless; what streams carry between steps is passed in and returned."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flashvsr_core.kernels.token_ops import rms_norm


class RmsNorm(nn.Module):
    """RMS norm over the last dimension, computed in float32."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class ChannelRmsNorm(nn.Module):
    """`normalize(x, dim=channels) * sqrt(C) * gamma` for tensors B C T H W (Wan 2.1)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1) * (x.shape[1] ** 0.5) * self.gamma


def sinusoidal_embedding(dim: int, position: float) -> Tensor:
    """Timestep embedding `cat(cos, sin)` of `position * 10000^(-i/half)`, float64, shape (dim,)."""
    half = dim // 2
    angles = position * torch.pow(10000.0, -torch.arange(half, dtype=torch.float64) / half)
    return torch.cat([angles.cos(), angles.sin()])


def rope_angles(head_dim: int, frames: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Rotation angles of tokens at integer positions (each of shape S): float64, S x head_dim/2.

    A head's pairs are shared out to frame, height and width as in Wan 2.1: d - 2*(d//3), d//3 and d//3 channels.
    """
    spatial = head_dim // 3
    parts = ((frames, head_dim - 2 * spatial), (rows, spatial), (columns, spatial))
    return torch.cat([_axis_angles(position, channels) for position, channels in parts], dim=-1)


def _axis_angles(position: Tensor, channels: int) -> Tensor:
    exponents = torch.arange(0, channels, 2, dtype=torch.float64, device=position.device)[: channels // 2] / channels
    return torch.outer(position.double(), torch.pow(10000.0, -exponents))
