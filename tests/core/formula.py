"""Weights, noise and video by formula, so that nothing large is stored (see tests/golden/README.md)."""

import zlib
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from flashvsr_core.models.dit import Dit
from flashvsr_core.models.lq_proj import LqProj
from flashvsr_core.models.tcdecoder import TcDecoder
from flashvsr_core.registry import DitSpec, LqSpec, ModelSpec, TcDecoderSpec
from flashvsr_core.weights import Weights

SMALL = ModelSpec(
    "nano",
    DitSpec(dim=256, ffn_dim=256, num_heads=2, num_layers=2, freq_dim=64, text_dim=32),
    LqSpec("causal", (16, 24)),
    TcDecoderSpec((16, 16, 16, 16)),
    prompt_tokens=4,
)
# For long campaigns, where what is computed matters less than what becomes of it.
LEAST = replace(
    SMALL,
    dit=replace(SMALL.dit, dim=128, ffn_dim=128, num_heads=1),
    lq=LqSpec("causal", (8, 8)),
    tcdecoder=TcDecoderSpec((8, 8, 8, 8)),
)


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


def formula_weights(spec: ModelSpec = SMALL) -> Weights:
    """A small model whose every layer matters: weights by formula, no zero anywhere."""
    modules = {"dit": Dit(spec.dit), "lq_proj": LqProj(spec.lq, spec.dit.dim), "tcdecoder": TcDecoder(spec.tcdecoder)}
    parts = {
        name: {k: weight(f"{name}.", k, tuple(v.shape)) for k, v in module.state_dict().items()}
        for name, module in modules.items()
    }
    prompt = draw("context", (1, spec.prompt_tokens, spec.dit.text_dim))
    return Weights(spec, **parts, prompt=prompt, digests={"formula": "0"})


def moving_clip(frames: int, height: int = 48, width: int = 64, dtype: type = np.uint8, scene: int = 0) -> np.ndarray:
    """A moving pattern, T H W 3, never two frames alike; `scene` changes it altogether."""
    t, y, x, c = np.ogrid[:frames, :height, :width, :3]
    sign = 1 - 2 * (scene % 2)
    wave = np.sin(0.2 * x + 0.3 * t + c + 2 * scene) + np.cos(0.15 * y * (1 + 0.1 * c) - 0.2 * t) * sign
    wave = wave / 4 + 0.5 + 0.2 * sign
    return (wave.clip(0, 1) * np.iinfo(dtype).max).astype(dtype)
