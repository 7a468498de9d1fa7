"""What benches run on: seeded random weights of a model's shapes, and a moving picture; values cost nothing."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flashvsr_core.config import UpscaleParams
from flashvsr_core.models.dit import Dit
from flashvsr_core.models.lq_proj import LqProj
from flashvsr_core.models.tcdecoder import TcDecoder
from flashvsr_core.models.wan_vae import WanVaeDecoder
from flashvsr_core.registry import ModelSpec
from flashvsr_core.weights import Weights


def random_weights(spec: ModelSpec, mode: str, device: torch.device, seed: int = 0) -> Weights:
    """Seeded random weights of a model's shapes, scaled so that every layer matters; they cost what real ones do."""
    generator = torch.Generator(device).manual_seed(seed)
    with torch.device("meta"):
        modules: dict[str, nn.Module] = {"dit": Dit(spec.dit), "lq_proj": LqProj(spec.lq, spec.dit.dim)}
        if mode == "full" and spec.vae is not None:
            modules["vae"] = WanVaeDecoder(spec.vae)
        else:
            modules["tcdecoder"] = TcDecoder(spec.tcdecoder)
    parts: dict[str, Any] = {
        name: {key: random_tensor(key, tuple(v.shape), generator, device) for key, v in module.state_dict().items()}
        for name, module in modules.items()
    }
    prompt = torch.randn(1, spec.prompt_tokens, spec.dit.text_dim, generator=generator, device=device)
    return Weights(spec, **({"tcdecoder": {}} | parts), prompt=prompt, digests={"random": str(seed)})


def random_tensor(key: str, shape: tuple[int, ...], generator: torch.Generator, device: torch.device) -> Tensor:
    """One parameter by its published key, seeded, float32: norms near 1, biases small, others keep the size."""
    drawn = torch.randn(shape, generator=generator, device=device)
    owner, _, last = key.rpartition(".")
    if last == "gamma" or (last == "weight" and "norm" in owner):
        return 1 + 0.1 * drawn
    if last == "bias":
        return 0.1 * drawn
    return drawn / (shape[-1] if last == "modulation" else max(1, drawn[0].numel())) ** 0.5


def random_clip(frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Moving smooth shapes with noise, T H W 3 uint8: neighbouring frames are alike, as in a video."""
    rng = np.random.default_rng(seed)
    t, y, x, c = np.ogrid[:frames, :height, :width, :3]
    wave = np.sin(0.2 * x + 0.3 * t + c) + np.cos(0.15 * y * (1 + 0.1 * c) - 0.2 * t)
    grain = rng.normal(0, 6, (1, height, width, 3))
    return (127 + 50 * wave + grain).clip(0, 255).astype(np.uint8)


def input_size(params: UpscaleParams, height: int, width: int) -> tuple[int, int]:
    """The input whose output is at least height x width."""
    return -(-height // params.scale), -(-width // params.scale)
