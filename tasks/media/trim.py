"""Trimming: which frames of a source are wanted, and what the source is when there is nothing else."""

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np

from flashvsr_core.config import FORM
from flashvsr_core.errors import UserError
from tasks.media.probe import VideoInfo
from tasks.media.timecode import later
from tasks.media.timestamps import Timestamps

POSITION = re.compile(r"(?:(?:(\d+):)?(\d{1,2}):)?(\d+(?:\.\d+)?)")
FRAME = re.compile(r"(\d+)f")
HALF_TICK = Fraction(1, 2)


@dataclass(frozen=True)
class Trim:
    """A part of the source; empty fields mean its beginning and its end."""

    __pydantic_config__: ClassVar[dict[str, Any]] = FORM

    start: str | None = None
    """First moment wanted: seconds (12.5), a time (1:02:03.5), or a frame's number (300f, from 0)."""
    end: str | None = None
    """Moment at which to stop, likewise; the frame there is not wanted any more."""
    frames: int | None = None
    """How many frames at most."""

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            value = getattr(self, name)
            if value is not None and not (FRAME.fullmatch(value) or POSITION.fullmatch(value)):
                raise UserError(
                    f"{name} {value!r} is no position; write seconds (12.5), a time (1:02:03.5) or a frame (300f)"
                )
        if self.frames is not None and self.frames < 1:
            raise UserError(f"frames {self.frames} is too few; at least 1 is needed")
        if self.end is not None and self.frames is not None:
            raise UserError("--end and --frames both say where to stop; give one of them")

    @property
    def is_whole(self) -> bool:
        return self.start is None and self.end is None and self.frames is None


def frame_range(trim: Trim, info: VideoInfo) -> tuple[int, int]:
    """Frames [start, stop) of a source that `trim` wants; UserError where that is none."""
    start = _frame_at(trim.start, info, 0)
    stop = _frame_at(trim.end, info, info.frames)
    if trim.frames is not None:
        stop = min(stop, start + trim.frames)
    if start >= info.frames:
        raise UserError(
            f"--start {trim.start} is behind the end of the source ({_length(info)}); choose an earlier one"
        )
    if stop <= start:
        raise UserError(f"--end {trim.end} is not behind --start {trim.start or 0}; choose a later one")
    return start, stop


def trimmed(info: VideoInfo, start: int, stop: int) -> VideoInfo:
    """The source as if it held frames [start, stop) only, with the sound that belongs to them."""
    if (start, stop) == (0, info.frames):
        return info
    times = info.timestamps.array
    base = Fraction(*info.time_base)
    rate = Fraction(*info.frame_rate)
    begin = frame_time(info, start)
    end = frame_time(info, stop) if stop < info.frames else None
    kept = times[start:stop]
    sound = info.audio_start
    if sound is not None:
        sound = None if end is not None and sound >= end else max(0.0, sound - begin)
    return replace(
        info,
        frames=stop - start,
        timestamps=Timestamps.of(kept),
        start_time=0.0,
        audio_start=sound,
        duration=float(int(kept[-1] - kept[0]) * base + 1 / rate),
        skipped=info.skipped + start,
        excerpt=(begin, end),
        timecode=info.timecode and later(info.timecode, rate, int(kept[0] - times[0]) * base),
    )


def parse_seconds(text: str) -> Fraction:
    """Seconds of a position such as 12.5, 2:03 or 1:02:03.5."""
    match = POSITION.fullmatch(text)
    if match is None:
        raise UserError(f"{text!r} is no time; write seconds (12.5) or a time (1:02:03.5)")
    hours, minutes, seconds = match.groups()
    return Fraction(seconds) + 60 * int(minutes or 0) + 3600 * int(hours or 0)


def frame_at(seconds: Fraction, info: VideoInfo) -> int:
    """The first frame shown at or after a moment of the programme; the number of frames where there is none."""
    base = Fraction(*info.time_base)
    ticks = (seconds - Fraction(info.start_time).limit_denominator(1_000_000)) / base + info.timestamps.pts(0)
    # Files round times to ticks and users to milliseconds: a frame half a frame early is the one that is meant.
    slack = min(HALF_TICK / base / Fraction(*info.frame_rate), Fraction(2, 1000) / base)
    return int(np.searchsorted(info.timestamps.array, float(ticks - max(slack, HALF_TICK)), side="left"))


def _frame_at(text: str | None, info: VideoInfo, default: int) -> int:
    if text is None:
        return default
    if number := FRAME.fullmatch(text):
        return min(int(number[1]), info.frames)
    return frame_at(parse_seconds(text), info)


def frame_time(info: VideoInfo, frame: int) -> float:
    """When a frame is shown: seconds from the start of the programme."""
    ticks = info.timestamps.pts(frame) - info.timestamps.pts(0)
    return float(ticks * Fraction(*info.time_base)) + info.start_time


def _length(info: VideoInfo) -> str:
    return f"{info.frames} frames, {info.start_time + info.duration:.3f} s"
