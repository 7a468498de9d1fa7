"""Training clips, drawn on the device: photographs under synthetic cameras and shots of a film, clean and degraded."""

import json
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from flashvsr_core.training.camera import draw_path, occlude, pyramid, render
from flashvsr_core.training.degrade import plain, random_degradation, random_steps, reduce, soft_camera

SCALE = 4
_SCALES, _SCALE_SHARES = (4, 3, 2), (0.66, 0.17, 0.17)
CODED_SIZE = 256  # output pixels of the clips in `coded/`
_OCCLUDER_SHARE, _CUT_SHARE, _CODED_SHARE, _HALF_SHARE = 0.25, 0.05, 0.2, 0.7
_WORN_SHARE = 0.4  # of H.264's clips that are damaged further


@dataclass(frozen=True)
class Mix:
    """Where clips come from."""

    film: float = 0.3
    soft: float = 0.0  # share of the clips not coded by H.264 that a soft camera took


class Bank:
    """The prepared cache (scripts/prepare_training_data.py), on one device."""

    def __init__(self, cache: Path, device: torch.device) -> None:
        index = json.loads((cache / "cache.json").read_text())
        self.device = device
        load = lambda path: torch.from_numpy(np.load(cache / path))  # noqa: E731
        self.photos = {name: pyramid(_planes(load(f"photos/{name}.npy").to(device))[0]) for name in index["photos"]}
        self.coded = [(name, seed, load(f"coded/{stem}.npy").to(device)) for stem, name, seed in index["coded"]]
        film = np.load(cache / "film" / "trailer.npy", mmap_mode="r") if index["shots"] else None
        coded = {name: load(f"film/{name}.npy") for name in index["film"]}
        self.shots: list[dict[str, Tensor]] = []  # uint8 T H W 3: the shot, at half size, coded at a quarter
        for first, stop in index["shots"]:
            full = torch.from_numpy(np.array(film[first:stop])).to(device)  # type: ignore[index]
            half = [(reduce(_planes(part), 2) * 255).round().byte().permute(0, 2, 3, 1) for part in full.split(16)]
            shot = {"full": full, "half": torch.cat(half)}
            self.shots.append(shot | {name: clip[first:stop].to(device) for name, clip in coded.items()})
        self.coded_films = index["film"]

    def draw(self, rng: np.random.Generator, batch: int, frames: int, size: int, mix: Mix) -> tuple[Tensor, Tensor]:
        """A batch of clips: condition and truth, both B 3 T size size in [-1, 1]."""
        return self._stack([self._pair(rng, frames, size, mix) for _ in range(batch)])

    def draw_plain(self, rng: np.random.Generator, batch: int, frames: int, size: int) -> tuple[Tensor, Tensor]:
        """The same of photographs that are reduced by 4 and not damaged."""
        truths = [self._photo(rng, frames, size) for _ in range(batch)]
        return self._stack([(_enlarge(plain(truth, SCALE), size), truth) for truth in truths])

    def _stack(self, clips: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        condition, truth = (torch.stack(part).transpose(1, 2) * 2 - 1 for part in zip(*clips))
        return condition, truth

    def _pair(self, rng: np.random.Generator, frames: int, size: int, mix: Mix) -> tuple[Tensor, Tensor]:
        film = bool(self.shots) and rng.random() < mix.film
        if rng.random() < _CODED_SHARE and (film or self.coded):
            truth, small = self._coded_film(rng, frames, size) if film else self._coded_photo(rng, frames)
            if truth.shape == (frames, 3, size, size):
                small = random_steps(small, rng) if rng.random() < _WORN_SHARE else small
                return _augment(rng, _enlarge(small, size), truth)
        scale = int(rng.choice(_SCALES, p=_SCALE_SHARES))
        truth = self._film(rng, frames, size) if film else self._photo(rng, frames, size)
        if rng.random() < _CUT_SHARE:
            at = int(rng.integers(1, frames))
            truth = torch.cat([truth[:at], self._photo(rng, frames - at, size)])
        if mix.soft and rng.random() < mix.soft:  # at 0 the draws stay those of earlier recipes
            truth = soft_camera(truth, rng)
        truth = _recolour(rng, truth)
        exact = size // scale * scale  # what the scale divides; the rest is padded as in the upscaler
        truth = truth[..., :exact, :exact]
        small = random_degradation(truth, scale, rng)
        truth = (truth * 255).round() / 255
        margin = (0, size - exact, 0, size - exact)
        return _augment(rng, F.pad(_enlarge(small, exact), margin, "reflect"), F.pad(truth, margin, "reflect"))

    def _photo(self, rng: np.random.Generator, frames: int, size: int) -> Tensor:
        clip = self._shot_of_photo(rng, frames, size)
        if rng.random() < _OCCLUDER_SHARE:
            clip = occlude(rng, clip, self._shot_of_photo(rng, frames, size))
        return clip

    def _shot_of_photo(self, rng: np.random.Generator, frames: int, size: int) -> Tensor:
        levels = self.photos[str(rng.choice(list(self.photos)))]
        return render(levels, draw_path(rng, frames, levels[0].shape[-2:], size), size)

    def _film(self, rng: np.random.Generator, frames: int, size: int) -> Tensor:
        shot = self._shot(rng)
        clip = shot["half" if rng.random() < _HALF_SHARE and size <= min(shot["half"].shape[1:3]) else "full"]
        start, top, left = (int(rng.integers(0, max(1, n - want + 1))) for n, want in
                            zip(clip.shape, (frames, size, size)))  # fmt: skip
        window = clip[start : start + frames, top : top + size, left : left + size]
        return _planes(_hold(window, frames))

    def _coded_film(self, rng: np.random.Generator, frames: int, size: int) -> tuple[Tensor, Tensor]:
        shot = self._shot(rng)
        small = shot[str(rng.choice(self.coded_films))]
        start, top, left = (int(rng.integers(0, max(1, n - want + 1))) for n, want in
                            zip(small.shape, (frames, size // SCALE, size // SCALE)))  # fmt: skip
        window = small[start : start + frames, top : top + size // SCALE, left : left + size // SCALE]
        top, left = top * SCALE, left * SCALE
        truth = shot["full"][start : start + frames, top : top + size, left : left + size]
        return _planes(_hold(truth, frames)), _planes(_hold(window, frames))

    def _coded_photo(self, rng: np.random.Generator, frames: int) -> tuple[Tensor, Tensor]:
        name, seed, small = self.coded[rng.integers(len(self.coded))]
        levels = self.photos[name]
        path = draw_path(np.random.default_rng(seed), len(small), levels[0].shape[-2:], CODED_SIZE)
        return render(levels, path, CODED_SIZE)[:frames], _planes(small[:frames])

    def _shot(self, rng: np.random.Generator) -> dict[str, Tensor]:
        lengths = np.array([len(shot["full"]) for shot in self.shots], dtype=float)
        return self.shots[rng.choice(len(self.shots), p=lengths / lengths.sum())]


Batch = tuple[Tensor, Tensor]


class Feeder:
    """Batches drawn one ahead, on a stream of their own: drawing is many small launches, which training can hide."""

    def __init__(self, draw: Callable[[], Batch], device: torch.device) -> None:
        self.draw = draw
        self.pool = ThreadPoolExecutor(1) if device.type == "cuda" else None
        self.pending: Future[tuple[Batch, torch.cuda.Event]] | None = None
        if self.pool:
            torch.cuda.synchronize()  # what the bank holds was made on the main stream
            self.side = torch.cuda.Stream()

    def next(self) -> Batch:
        if not self.pool:
            return self.draw()
        batch, ready = (self.pending or self.pool.submit(self._ahead)).result()
        self.pending = self.pool.submit(self._ahead)
        now = torch.cuda.current_stream()
        now.wait_event(ready)
        for tensor in batch:
            tensor.record_stream(now)
        return batch

    def _ahead(self) -> tuple[Batch, torch.cuda.Event]:
        with torch.cuda.stream(self.side):
            batch = self.draw()
            ready = torch.cuda.Event()
            ready.record()
        return batch, ready


def _planes(frames: Tensor) -> Tensor:
    """uint8 (T) H W 3 -> T 3 H W in [0, 1]."""
    frames = frames if frames.dim() == 4 else frames[None]
    return frames.permute(0, 3, 1, 2).float() / 255


def _hold(clip: Tensor, frames: int) -> Tensor:
    """A clip that is too short stands still at its end."""
    missing = frames - len(clip)
    return clip if missing <= 0 else torch.cat([clip, clip[-1:].expand(missing, -1, -1, -1)])


def _enlarge(small: Tensor, size: int) -> Tensor:
    """As `pixels.enlarge`, on values in [0, 1]."""
    return F.interpolate(small, size=(size, size), mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)


def _recolour(rng: np.random.Generator, clip: Tensor) -> Tensor:
    if rng.random() < 0.3:
        clip = clip.clamp(1e-3, 1) ** float(np.exp(rng.normal(0, 0.2))) * float(rng.uniform(0.7, 1.0))
    return clip[:, torch.from_numpy(rng.permutation(3))] if rng.random() < 0.1 else clip


def _augment(rng: np.random.Generator, *clips: Tensor) -> tuple[Tensor, Tensor]:
    """The same flips, transposition and direction of time for all clips."""
    flips = [axis for axis in (0, 2, 3) if rng.random() < 0.5]
    transpose = rng.random() < 0.5
    out = [clip.transpose(2, 3) if transpose else clip for clip in clips]
    first, second = (clip.flip(flips) if flips else clip for clip in out)
    return first, second
