"""How good a result is without knowing the truth: stability over time, joins of segments, colours; and pictures.

Frames of the result are reduced to the source's size by block means and compared with the source there, in levels of
8 bits. What is looked at is a sample spread over the video, taken until a time allowance is used up.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F

from flashvsr_core.config import Deinterlace
from tasks.media.decode import read_frames
from tasks.media.guard import describe
from tasks.media.probe import VideoInfo

log = logging.getLogger(__name__)

T = TypeVar("T")

MARGIN = 4  # frames either side of a join or sample that are looked at
SAMPLES = 24  # places at most
FEWEST = 4  # places at least, where the video is long enough
PICTURES = 4  # places of which a frame is shown, and scored
LUMA = np.array([0.2126, 0.7152, 0.0722], dtype=np.float32)
CUT = 10.0  # levels: a source that changes by more, and by 5 times more than around, changes the scene
STILL = 0.02  # levels: below this a frame does not differ from the one before, and ratios say nothing


@dataclass(frozen=True)
class JoinQuality:
    """The step over one join of segments, between frames `frame` - 1 and `frame`.

    Changes are mean absolute differences of luma between the two frames, in levels of 8 bits. `flicker` is the change
    of (result - source): what the result adds to the source's own motion; `flicker_around` is the median of the same
    over the steps within 4 frames. `excess` = flicker - flicker_around: above about 0.5 a join may be seen, unless the
    source itself changes the scene there (`cut`).
    """

    frame: int
    change: float
    source_change: float
    flicker: float
    flicker_around: float
    excess: float
    cut: bool


@dataclass(frozen=True)
class Quality:
    """Numbers without a ground truth, in levels of 8 bits where nothing else is said.

    `stability` is the median over all steps of change / source change: 1 as lively as the source, above 1 something
    flickers, below 1 it is smoother. `flicker` is the mean change of (result - source). `color_drift` is the largest
    difference of a frame's mean red, green or blue from the source's, `color_bias` the mean differences.
    `reference` holds PSNR (dB), SSIM and VMAF against a given file; `scores` those of no-reference models.
    """

    frames_measured: int
    stability: float | None
    flicker: float | None
    joins: tuple[JoinQuality, ...]
    joins_total: int
    color_drift: float
    color_bias: tuple[float, float, float]
    reference: dict[str, float]
    reference_file: str
    scores: dict[str, float]
    notes: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class Sight:
    """One frame of source and result, uint8 H W 3 each."""

    frame: int
    source: np.ndarray
    result: np.ndarray


@dataclass(frozen=True)
class Window:
    """Differences within frames [start, start + n) around `place`: one value a frame or a step between two."""

    place: int
    start: int
    changes: np.ndarray
    source_changes: np.ndarray
    flicker: np.ndarray
    bias: np.ndarray  # n 3: mean colour of the result minus that of the source


def measure(
    result: Path,
    source: Path,
    info: VideoInfo,
    joins: Sequence[int],
    seconds: float,
    pictures: int = PICTURES,
    deinterlace: Deinterlace = "auto",
) -> tuple[Quality, tuple[Sight, ...]]:
    """Look at `result`, the enlarged `source`, around `joins` (first frames of segments) and elsewhere.

    `deinterlace` is what the source was read with. Ends after about `seconds`; at least one place is looked at.
    """
    begun = time.monotonic()
    made = describe(result)
    places = sample_places(joins, info.frames)
    show = set(spread(places)[:pictures])
    windows, sights = [], []
    for place in spread(places):
        start, stop = max(0, place - MARGIN), min(info.frames, place + MARGIN + 1)
        theirs = _read(source, info, start, stop, deinterlace)
        ours = _read(result, made, start, stop)
        windows.append(window(place, start, theirs, ours))
        if place in show:
            middle = place - start
            sights.append(Sight(place, theirs[middle], ours[middle]))
        if time.monotonic() - begun > seconds:
            break
    found = summarise(windows, set(joins), time.monotonic() - begun)
    return found, tuple(sorted(sights, key=lambda sight: sight.frame))


def sample_places(joins: Sequence[int], frames: int) -> list[int]:
    """Frames to look around: joins, at most 24 of them, and others where there are few, in order."""
    if len(joins) > SAMPLES:
        joins = [joins[round(i * (len(joins) - 1) / (SAMPLES - 1))] for i in range(SAMPLES)]
    others = [round((i + 0.5) * frames / FEWEST) for i in range(FEWEST)] if len(joins) < FEWEST else []
    return sorted({min(place, frames - 1) for place in [*joins, *others]})


def spread(places: Sequence[int]) -> list[int]:
    """The places in an order whose every beginning is spread over the whole."""
    ordered: list[int] = []
    ranges = [(0, len(places))]
    while ranges:
        start, stop = ranges.pop(0)
        if start < stop:
            middle = (start + stop) // 2
            ordered.append(places[middle])
            ranges += [(start, middle), (middle + 1, stop)]
    return ordered


def window(place: int, start: int, source: np.ndarray, result: np.ndarray) -> Window:
    """Compare frames of the source, uint8 T H W 3, and the result, larger than it."""
    small = reduced(result, source.shape[1:3])
    ours, theirs = small @ LUMA, source.astype(np.float32) @ LUMA
    return Window(
        place,
        start,
        _steps(ours),
        _steps(theirs),
        _steps(ours - theirs),
        small.mean((1, 2)) - source.astype(np.float32).mean((1, 2)),
    )


def reduced(frames: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """uint8 T H W 3 -> float32 T h w 3, `size` = (h, w): means of the areas that become one pixel."""
    small = np.empty((len(frames), *size, 3), dtype=np.float32)
    for i, frame in enumerate(frames):  # frame by frame: eight 4K frames as float would take a gigabyte
        picture = torch.from_numpy(frame).permute(2, 0, 1)[None].float()
        small[i] = F.interpolate(picture, size, mode="area")[0].permute(1, 2, 0).numpy()
    return small


def summarise(windows: Sequence[Window], joins: set[int], seconds: float) -> Quality:
    """The numbers of all windows together."""
    changes = np.concatenate([w.changes for w in windows])
    source_changes = np.concatenate([w.source_changes for w in windows])
    flicker = np.concatenate([w.flicker for w in windows])
    bias = np.concatenate([w.bias for w in windows])
    moving = source_changes > STILL
    red, green, blue = (round(float(value), 3) for value in bias.mean(0))
    return Quality(
        frames_measured=len({frame for w in windows for frame in range(w.start, w.start + len(w.bias))}),
        stability=_rounded(np.median(changes[moving] / source_changes[moving])) if moving.any() else None,
        flicker=_rounded(flicker.mean()) if len(flicker) else None,
        joins=tuple(sorted((join for w in windows for join in _joins(w, joins)), key=lambda join: join.frame)),
        joins_total=len(joins),
        color_drift=_rounded(abs(bias).max()),
        color_bias=(red, green, blue),
        reference={},
        reference_file="",
        scores={},
        notes=(),
        seconds=round(seconds, 2),
    )


def _joins(found: Window, joins: set[int]) -> list[JoinQuality]:
    """The join that a window was taken for; others that it happens to hold have windows of their own."""
    step = found.place - found.start - 1
    if found.place not in joins or not 0 <= step < len(found.flicker):
        return []

    def around(values: np.ndarray) -> float:
        others = np.delete(values, step)
        return float(median(others.tolist())) if len(others) else float(values[step])

    flicker, change = float(found.flicker[step]), float(found.source_changes[step])
    return [
        JoinQuality(
            frame=found.place,
            change=_rounded(found.changes[step]),
            source_change=_rounded(change),
            flicker=_rounded(flicker),
            flicker_around=_rounded(around(found.flicker)),
            excess=_rounded(flicker - around(found.flicker)),
            cut=change > max(CUT, 5 * around(found.source_changes)),
        )
    ]


def _steps(frames: np.ndarray) -> np.ndarray:
    """Mean absolute difference of each frame from the one before: T H W -> T - 1."""
    return np.abs(np.diff(frames, axis=0)).mean((1, 2))


def _read(path: Path, info: VideoInfo, start: int, stop: int, deinterlace: Deinterlace = "off") -> np.ndarray:
    frames = np.concatenate(list(read_frames(path, info, start, stop, deinterlace=deinterlace)))
    return frames if frames.dtype == np.uint8 else (frames >> 8).astype(np.uint8)


def _rounded(value: float | np.floating) -> float:
    return round(float(value), 3)


def or_note(what: str, make: Callable[[], T]) -> tuple[T | None, tuple[str, ...]]:
    """What `make` finds; or None and why it fails, as a note: numbers about a result must not cost the result."""
    try:
        return make(), ()
    except Exception as error:  # noqa: BLE001 - told, in the report
        log.warning("%s was not measured: %s", what, error)
        return None, (f"{what} was not measured: {error}",)
