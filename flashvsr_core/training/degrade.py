"""From clean frames to the small, damaged ones that a model is given. All on the frames' own device."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from flashvsr_core.training.jpeg import jpeg

Frames = Tensor
"""T 3 H W float32 in [0, 1]."""

_PLAIN_SHARE = 0.4  # a third of all clips: those that H.264 damaged are drawn elsewhere
_MILD_SHARE = 1 / 4
_KERNELS = ("bicubic", "bilinear", "area")
_SOFT_SIGMA = (0.4, 2.0)  # of a soft camera's blur, in pixels of the full picture, drawn evenly in its logarithm
_SOFT_SIZE = (0.35, 0.9)  # or its size before it was enlarged


def reduce(frames: Frames, scale: int, kernel: str = "bicubic") -> Frames:
    """Antialiased reduction by a whole number; sides must be multiples of it."""
    if kernel == "area":
        return F.avg_pool2d(frames, scale)
    size = [n // scale for n in frames.shape[-2:]]
    return F.interpolate(frames, size=size, mode=kernel, antialias=True, align_corners=False).clamp(0, 1)


def blur(frames: Frames, sigma: float) -> Frames:
    """Gaussian blur with replicated borders."""
    reach = max(1, int(3 * sigma + 0.5))
    x = torch.arange(-reach, reach + 1, device=frames.device, dtype=torch.float32)
    row = torch.exp(-x.square() / (2 * sigma**2))
    row = (row / row.sum()).expand(3, 1, 1, -1)
    x = F.pad(frames, (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(x, row, groups=3), row.transpose(2, 3), groups=3)


def add_noise(frames: Frames, sigma: float, generator: torch.Generator | None = None) -> Frames:
    """Gaussian noise, sigma in levels of 255. A CPU `generator` makes it repeatable."""
    device = "cpu" if generator else frames.device
    noise = torch.randn(frames.shape, generator=generator, device=device).to(frames.device)
    return (frames + noise * (sigma / 255)).clamp(0, 1)


def quantise(frames: Frames) -> Frames:
    return (frames * 255).round() / 255


def plain(truth: Frames, scale: int) -> Frames:
    """Plain reduction to 8 bits."""
    return quantise(reduce(truth, scale))


def mild(truth: Frames, scale: int, seed: int = 0) -> Frames:
    """What figures on degraded input are measured with: blur 0.8 (large pixels), reduction, noise 2/255, JPEG 75."""
    small = reduce(blur(truth, 0.8), scale)
    small = quantise(add_noise(small, 2, torch.Generator().manual_seed(seed)))
    return quantise(jpeg(small, 75))


DEGRADATIONS: dict[str, Callable[[Frames, int], Frames]] = {"plain": plain, "mild": mild}


def random_degradation(truth: Frames, scale: int, rng: np.random.Generator) -> Frames:
    """40 % plain, a quarter near `mild`; else blur, noise, JPEG and resizing in random order. 8 bits at the end."""
    kind = rng.random()
    if kind < _PLAIN_SHARE:
        return plain(truth, scale)
    if kind < _PLAIN_SHARE + _MILD_SHARE:
        small = reduce(blur(truth, float(rng.uniform(0.5, 1.1))), scale)
        small = quantise(add_noise(small, float(rng.uniform(1, 3))))
        return quantise(jpeg(small, int(rng.integers(65, 86))))
    if rng.random() < 0.6:
        truth = blur(truth, float(rng.uniform(0.4, 2.5)))
    small = reduce(truth, scale, str(rng.choice(_KERNELS, p=(0.7, 0.15, 0.15))))
    return random_steps(small, rng)


def random_steps(small: Frames, rng: np.random.Generator) -> Frames:
    """Blur, noise, JPEG and resizing, each or not, in random order. 8 bits at the end. Before or after H.264 too."""
    for step in rng.permutation(len(_STEPS)):
        small = _STEPS[step](small, rng)
    return quantise(small.clamp(0, 1))


def soft_camera(truth: Frames, rng: np.random.Generator) -> Frames:
    """What a softer camera would have taken, alike in all frames: blurred (2 of 3), or enlarged from a smaller size.

    Photographs that were reduced are sharper than film; a model that knows only them adds too much to film.
    """
    if rng.random() < 2 / 3:
        return blur(truth, float(np.exp(rng.uniform(*np.log(_SOFT_SIGMA)))))
    return _through(truth, rng.uniform(*_SOFT_SIZE), "bicubic")


def _random_blur(frames: Frames, rng: np.random.Generator) -> Frames:
    return blur(frames, float(rng.uniform(0.3, 0.8))) if rng.random() < 0.25 else frames


def _random_noise(frames: Frames, rng: np.random.Generator) -> Frames:
    return add_noise(frames, float(rng.uniform(0.5, 5))) if rng.random() < 0.75 else frames


def _random_jpeg(frames: Frames, rng: np.random.Generator) -> Frames:
    return jpeg(frames.clamp(0, 1), int(rng.integers(55, 96))) if rng.random() < 0.75 else frames


def _random_resize(frames: Frames, rng: np.random.Generator) -> Frames:
    """To another size and back, as material that was scaled before has been."""
    if rng.random() > 0.2:
        return frames
    return _through(frames, rng.uniform(0.75, 1.3), "bilinear")


def _through(frames: Frames, factor: float, kernel: str) -> Frames:
    """To `factor` times the size by `kernel`, and back."""
    size = [max(8, int(n * factor)) for n in frames.shape[-2:]]
    resized = F.interpolate(frames, size=size, mode=kernel, antialias=True, align_corners=False)
    back = F.interpolate(resized, size=frames.shape[-2:], mode="bicubic", antialias=True, align_corners=False)
    return back.clamp(0, 1)


_STEPS = (_random_blur, _random_noise, _random_jpeg, _random_resize)
