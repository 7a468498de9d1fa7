"""JPEG's loss on the device: 4:2:0, 8x8 DCT, the standard quantisation tables."""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

# ITU-T T.81, tables K.1 and K.2.
_LUMA = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56,
    14, 17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip
_CHROMA = (
    17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99,
    47, 66, 99, 99, 99, 99, 99, 99, *(99,) * 32,
)  # fmt: skip


def jpeg(frames: Tensor, quality: int) -> Tensor:
    """T 3 H W in [0, 1] -> the same after JPEG compression at `quality` (1..100)."""
    height, width = frames.shape[-2:]
    x = F.pad(frames, (0, -width % 16, 0, -height % 16), mode="replicate") * 255
    r, g, b = x.unbind(1)
    y = 0.299 * r + 0.587 * g + 0.114 * b
    chroma = torch.stack([(b - y) * 0.5643341, (r - y) * 0.7132668], dim=1)
    y = _lossy(y - 128, _table("luma", quality, y.device)) + 128
    chroma = _lossy(F.avg_pool2d(chroma, 2).flatten(0, 1), _table("chroma", quality, y.device)).unflatten(0, (-1, 2))
    # libjpeg's "fancy" upsampling is this triangle filter.
    u, v = F.interpolate(chroma, scale_factor=2, mode="bilinear", align_corners=False).unbind(1)
    rgb = torch.stack([y + 1.402 * v, y - 0.344136 * u - 0.714136 * v, y + 1.772 * u], dim=1)
    return (rgb.round() / 255).clamp(0, 1)[..., :height, :width]


def _lossy(plane: Tensor, table: Tensor) -> Tensor:
    """T H W -> the same after quantising each 8x8 block's DCT."""
    dct = _dct(plane.device)
    height = plane.shape[1] // 8
    blocks = rearrange(plane, "t (h p) (w q) -> (t h w) p q", p=8, q=8)
    coefficients = ((dct @ blocks @ dct.T) / table).round() * table
    return rearrange(dct.T @ coefficients @ dct, "(t h w) p q -> t (h p) (w q)", t=len(plane), h=height)


@lru_cache(maxsize=8)
def _dct(device: torch.device) -> Tensor:
    k = torch.arange(8, dtype=torch.float64)
    matrix = torch.cos((2 * k[None] + 1) * k[:, None] * math.pi / 16) / 2
    matrix[0] /= math.sqrt(2)
    return matrix.float().to(device)


@lru_cache(maxsize=256)
def _table(kind: str, quality: int, device: torch.device) -> Tensor:
    scale = 5000 / quality if quality < 50 else 200 - 2 * quality
    table = torch.tensor(_LUMA if kind == "luma" else _CHROMA, dtype=torch.float64).reshape(8, 8)
    return ((table * scale + 50) / 100).floor().clamp(1, 255).float().to(device)
