"""Noise keyed by absolute latent frame, so that it does not depend on where a stream or segment starts."""

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from flashvsr_core.transfer import fetched, pinned


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


class NoiseAhead:
    """`step_noise` of a video, the next step's drawn in a thread while the device works on this one's."""

    def __init__(self, seed: int, shape: tuple[int, int, int], device: torch.device) -> None:
        self.seed, self.shape, self.device = seed, shape, device
        self._thread = ThreadPoolExecutor(1, "noise")
        self._ahead: tuple[tuple[int, int], Future[Tensor]] | None = None

    def take(self, first_latent: int, count: int, following: int) -> Tensor:
        """Noise of `count` latent frames on the device, float32; `following` more are drawn for the next call."""
        wanted, ahead = (first_latent, count), self._ahead
        future = ahead[1] if ahead and ahead[0] == wanted else self._draw(*wanted)
        noise = future.result()
        self._ahead = (first_latent + count, following), self._draw(first_latent + count, following)
        return fetched(noise, self.device)

    def _draw(self, first_latent: int, count: int) -> Future[Tensor]:
        def draw() -> Tensor:
            return pinned(step_noise(self.seed, first_latent, count, self.shape), self.device)

        return self._thread.submit(draw)
