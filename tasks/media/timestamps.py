"""The time of every frame, kept exactly and small enough for JSON."""

import base64
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np

from flashvsr_core.errors import UserError

STANDARD_RATES = tuple(Fraction(n) for n in (24, 25, 30, 48, 50, 60, 100, 120))
STANDARD_RATES += tuple(Fraction(n * 1000, 1001) for n in (24, 30, 60, 120))
# A rate is constant when all frames lie within less than one tick (containers round to ticks) or this many seconds:
# Matroska's millisecond after another container's rounding.
TOLERANCE = Fraction(11, 10000)
LARGEST_RATE = 1000  # frames per second; a "rate" above it is a time base
NEAR_RATE = Fraction(1, 200)  # frames per second by which 23.976 and its like are rounded
FINE = 4  # ticks per frame; with fewer, a tick is no rounding error but a good part of a frame


@dataclass(frozen=True)
class Timestamps:
    """Presentation times in ticks of the stream's time base, rising. `packed` is base64(zlib(int64 differences)).

    Differences repeat, so a constant rate costs a few kB for hours; jittering phone footage about 2 bytes per frame.
    """

    count: int
    packed: str

    @classmethod
    def of(cls, pts: np.ndarray | Sequence[int]) -> "Timestamps":
        steps = np.diff(np.asarray(pts, dtype="<i8"), prepend=0)
        return cls(len(steps), base64.b64encode(zlib.compress(steps.astype("<i8").tobytes())).decode("ascii"))

    @cached_property
    def array(self) -> np.ndarray:
        """All times, int64, in ticks."""
        return np.cumsum(np.frombuffer(zlib.decompress(base64.b64decode(self.packed)), dtype="<i8"))

    def pts(self, index: int) -> int:
        return int(self.array[index])


def constant_rate(pts: np.ndarray, time_base: Fraction, candidates: Sequence[Fraction | None]) -> Fraction | None:
    """The frame rate that explains all of `pts` (int64 ticks, rising), trying `candidates` first; None: it varies."""
    measured = average_rate(pts, time_base)
    nearest = [rate for rate in STANDARD_RATES if measured and abs(rate / measured - 1) < 0.002]
    for rate in (*candidates, *nearest, measured):
        if rate and rate > 0 and _explains(rate, pts, time_base):
            return rate
    return None


def average_rate(pts: np.ndarray, time_base: Fraction) -> Fraction | None:
    """Frames per second over the whole video, as a fraction of small numbers; None for a single frame."""
    if len(pts) < 2:
        return None
    return (Fraction(len(pts) - 1, int(pts[-1] - pts[0])) / time_base).limit_denominator(1001)


def _explains(rate: Fraction, pts: np.ndarray, time_base: Fraction) -> bool:
    step = 1 / (rate * time_base)  # ticks per frame
    # Integer arithmetic: float64 would lose ticks in long videos with a fine time base.
    index = np.arange(len(pts), dtype=np.int64)
    deviation = (pts - pts[0]) * step.denominator - index * step.numerator
    spread = Fraction(int(deviation.max() - deviation.min()), step.denominator)
    rounded = spread < 1 and step >= FINE
    return rounded or spread * time_base <= TOLERANCE


def parse_rate(text: str | None) -> Fraction | None:
    """Frames per second such as 24, 23.976 (which means 24000/1001) or 30000/1001."""
    if text is None:
        return None
    try:
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if not 0 < rate <= LARGEST_RATE:
        raise UserError(f"fps {text!r} is no rate up to {LARGEST_RATE}; write for example 24, 23.976 or 30000/1001")
    broadcast = Fraction(round(rate * 1001 / 1000) * 1000, 1001)
    return broadcast if rate.denominator > 1 and abs(rate - broadcast) < NEAR_RATE else rate
