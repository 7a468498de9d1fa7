"""Noise keyed by absolute latent frame, so that it does not depend on where a stream or segment starts."""

import numpy as np
import torch
from torch import Tensor


def latent_noise(seed: int, latent_frame: int, shape: tuple[int, int, int]) -> Tensor:
    """Standard normal noise of one latent frame of the whole padded picture: (channels, H/8, W/8), float32, on the CPU.

    A counter-based generator (Philox) makes every (seed, frame) an independent draw without drawing those before it.
    """
    generator = np.random.Generator(np.random.Philox(key=[seed, latent_frame]))
    return torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))


def step_noise(seed: int, first_latent: int, count: int, shape: tuple[int, int, int]) -> Tensor:
    """Noise of consecutive latent frames: 1 channels count H/8 W/8."""
    frames = [latent_noise(seed, first_latent + i, shape) for i in range(count)]
    return torch.stack(frames, dim=1)[None]
