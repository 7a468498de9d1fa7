"""Synthetic cameras: photographs become clips by pan, zoom, rotation and hand shake, with things passing in front."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

PYRAMID_STEP = 1.5  # between the sizes in which a photograph is kept


@dataclass(frozen=True)
class Path:
    """Where a camera looks, per frame: centre (x, y) in 0..1 of the picture, source pixels per output pixel, angle."""

    center: np.ndarray  # T 2
    zoom: np.ndarray  # T
    angle: np.ndarray  # T, radians


def draw_path(rng: np.random.Generator, frames: int, picture: Sequence[int], size: int) -> Path:
    """A random path over a picture (height, width) for frames of `size` pixels square; it stays inside if it can."""
    height, width = picture
    limit = min(height, width) / size / 1.15
    zoom = min(float(np.exp(rng.uniform(np.log(0.9), np.log(3.5)))), max(0.7, limit))
    t = np.arange(frames) - frames / 2
    speed = rng.exponential(1.5) if rng.random() > 0.15 else 0.0  # output pixels per frame
    heading = rng.uniform(0, 2 * np.pi)
    zooms = zoom * np.exp(t * (rng.normal(0, 0.004) if rng.random() < 0.5 else 0.0))
    angles = rng.normal(0, 0.15) + t * (rng.normal(0, 0.006) if rng.random() < 0.4 else 0.0)
    offset = np.stack([np.cos(heading) * t, np.sin(heading) * t], axis=1) * speed
    if rng.random() < 0.5:
        offset = offset + _shake(rng, frames) * rng.exponential(0.7)
    reach = np.array([size / width, size / height]) * zoom / 2 * 1.1
    middle = rng.uniform(np.minimum(reach, 0.5), np.maximum(1 - reach, 0.5))
    center = middle + offset * zooms[:, None] / np.array([width, height])
    return Path(center, zooms, angles)


def _shake(rng: np.random.Generator, frames: int) -> np.ndarray:
    """A hand: first-order low-pass noise of unit variance, T 2."""
    steps = rng.normal(size=(frames, 2))
    for i in range(1, frames):
        steps[i] = 0.8 * steps[i - 1] + 0.6 * steps[i]
    return steps


def pyramid(photo: Tensor) -> list[Tensor]:
    """3 H W in [0, 1] -> the same in falling sizes, antialiased, so that no camera has to skip pixels."""
    levels = [photo[None]]
    while min(levels[-1].shape[-2:]) > 450:
        size = [int(n / PYRAMID_STEP) for n in levels[-1].shape[-2:]]
        levels.append(F.interpolate(levels[-1], size=size, mode="bicubic", antialias=True).clamp(0, 1))
    return levels


def render(levels: list[Tensor], path: Path, size: int) -> Tensor:
    """The clip that a camera takes: T 3 size size in [0, 1]."""
    height, width = levels[0].shape[-2:]
    shrink = float(np.median(path.zoom))
    level = int(np.clip(np.round(np.log(max(shrink, 1e-3)) / np.log(PYRAMID_STEP)), 0, len(levels) - 1))
    device = levels[0].device
    cos, sin = np.cos(path.angle) * path.zoom, np.sin(path.angle) * path.zoom
    # Output pixels (centred) -> normalised coordinates of grid_sample.
    rows = [np.stack([cos * size / width, -sin * size / width, path.center[:, 0] * 2 - 1], axis=1),
            np.stack([sin * size / height, cos * size / height, path.center[:, 1] * 2 - 1], axis=1)]  # fmt: skip
    theta = torch.from_numpy(np.stack(rows, axis=1)).float().to(device)
    frames = len(path.zoom)
    grid = F.affine_grid(theta, [frames, 3, size, size], align_corners=False)
    source = levels[level].expand(frames, -1, -1, -1)
    return F.grid_sample(source, grid, mode="bicubic", padding_mode="reflection", align_corners=False).clamp(0, 1)


def occlude(rng: np.random.Generator, clip: Tensor, other: Tensor) -> Tensor:
    """Let an ellipse or a box filled with `other` (T 3 S S, another clip) pass in front of `clip`."""
    frames, _, height, width = clip.shape
    t = torch.arange(frames, device=clip.device)[:, None, None] - frames / 2
    y = torch.arange(height, device=clip.device)[None, :, None]
    x = torch.arange(width, device=clip.device)[None, None, :]
    speed, start = rng.normal(0, 3, 2), rng.uniform(0.2, 0.8, 2)
    half = rng.uniform(0.05, 0.25, 2) * height
    dx = (x - start[0] * width - speed[0] * t) / half[0]
    dy = (y - start[1] * height - speed[1] * t) / half[1]
    distance = torch.maximum(dx.abs(), dy.abs()) if rng.random() < 0.4 else (dx.square() + dy.square()).sqrt()
    mask = ((1 - distance) * float(half.min()) + 0.5).clamp(0, 1)[:, None]  # edges one pixel wide
    return clip + mask * (other - clip)
