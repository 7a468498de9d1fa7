"""Weights, noise and video by formula, so that nothing large is stored (see tests/golden/README.md)."""

import zlib

import numpy as np
import torch
from torch import Tensor, nn


def draw(name: str, shape: tuple[int, ...] | list[int], salt: str = "") -> Tensor:
    """Any named random array: standard normal, float32."""
    seed = zlib.crc32((salt + name).encode()) & 0xFFFFFFFF
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(tuple(shape)).astype(np.float32))


def weight(prefix: str, key: str, shape: tuple[int, ...], salt: str = "") -> Tensor:
    """One parameter of module `prefix`."""
    g = draw(prefix + key, shape, salt)
    owner, _, last = key.rpartition(".")
    if last == "gamma" or (last == "weight" and "norm" in owner):
        return 1 + 0.1 * g
    if last == "bias":
        return 0.1 * g
    if last == "modulation":
        return g / shape[-1] ** 0.5
    return g / max(1, g[0].numel()) ** 0.5


def fill(module: nn.Module, prefix: str, salt: str = "") -> nn.Module:
    """Load formula weights into every entry of a module's state dict."""
    state = {key: weight(prefix, key, tuple(value.shape), salt) for key, value in module.state_dict().items()}
    module.load_state_dict(state, strict=True)
    return module.eval()


def video(frames: int, height: int, width: int, first: int = 0) -> Tensor:
    """1 3 F H W in [-1, 1]: stands for the low-resolution video already enlarged to the output size."""
    f = torch.arange(first, first + frames, dtype=torch.float64)[None, :, None, None]
    y = torch.arange(height, dtype=torch.float64)[None, None, :, None]
    x = torch.arange(width, dtype=torch.float64)[None, None, None, :]
    c = torch.arange(3, dtype=torch.float64)[:, None, None, None]
    value = (
        0.5 * torch.sin(0.11 * x + 0.23 * f + 1.3 * c)
        + 0.4 * torch.cos(0.05 * y * (1 + 0.2 * c) - 0.17 * f)
        + 0.1 * torch.sin(0.9 * x + 0.7 * y + 0.5 * f)
    )
    return value.float()[None]


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Relative L2 error; NaN never passes a comparison."""
    actual, expected = actual.cpu().double(), expected.cpu().double()
    return float((actual - expected).norm() / expected.norm())
