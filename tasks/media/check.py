"""Facts about a finished file, and the checks that it is what was asked for."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from flashvsr_core.errors import FlashvsrError
from tasks.media.decode import read_frames
from tasks.media.probe import VideoInfo, kinds, probe

LARGEST_DRIFT = 0.002  # seconds; 0.5 ms is usual in Matroska, which rounds source and result to milliseconds
LONGEST_PACKET = 0.1  # seconds of sound; AAC has 21 to 64 ms, FLAC up to 96
REMEDY = "run again (finished segments are reused)"


@dataclass(frozen=True)
class MediaFacts:
    """What packets say about a file; times in seconds."""

    frames: int
    width: int
    height: int
    duration: float  # of the video
    video_start: float  # after the start of the programme
    audio_start: float | None  # of the first audio stream, None without sound
    audio_streams: int
    subtitle_streams: int
    chapters: int
    info: VideoInfo


def inspect(path: str | Path) -> MediaFacts:
    """Read all packets of a file; raises BadInput where it is no sound video."""
    info = probe(path)
    return MediaFacts(
        frames=info.frames,
        width=info.width,
        height=info.height,
        duration=info.duration,
        video_start=info.start_time,
        audio_start=info.audio_start,
        audio_streams=len(kinds(info.streams, "audio")),
        subtitle_streams=len(kinds(info.streams, "subtitle")),
        chapters=info.chapters,
        info=info,
    )


def check_against(path: str | Path, source: VideoInfo, width: int, height: int) -> MediaFacts:
    """Compare a finished file with its source: exact frames and size; times, duration, A/V start within one frame."""
    facts = inspect(path)
    name = repr(str(path))
    if facts.frames != source.frames:
        raise FlashvsrError(f"{name} has {facts.frames} frames, expected {source.frames}; {REMEDY}")
    if (facts.width, facts.height) != (width, height):
        raise FlashvsrError(f"{name} is {facts.width}x{facts.height}, expected {width}x{height}; {REMEDY}")
    frame = float(1 / Fraction(*source.frame_rate))
    drift = _largest_drift(facts.info, source)
    if drift > LARGEST_DRIFT:
        raise FlashvsrError(
            f"{name} shows a frame {drift * 1000:.2f} ms off its time, allowed are {LARGEST_DRIFT * 1000:.0f} ms; "
            f"{REMEDY}"
        )
    if abs(facts.duration - source.duration) > frame:
        raise FlashvsrError(f"{name} lasts {facts.duration:.3f} s, expected {source.duration:.3f} s; {REMEDY}")
    if (facts.audio_start is None) != (source.audio_start is None) and not source.excerpt:
        here, there = ("no sound", "has it") if facts.audio_start is None else ("sound", "has none")
        raise FlashvsrError(f"{name} has {here}, its source {there}; {REMEDY}")
    if facts.audio_start is not None and source.audio_start is not None:
        offset = facts.video_start - facts.audio_start
        expected = source.start_time - source.audio_start
        # Sound is trimmed between its packets.
        if abs(offset - expected) > frame + (LONGEST_PACKET if source.excerpt else 0):
            raise FlashvsrError(
                f"{name}: the picture starts {offset:+.3f} s after the sound, in its source {expected:+.3f} s; {REMEDY}"
            )
    return facts


def decode_ranges(path: str | Path, ranges: Sequence[tuple[int, int]], info: VideoInfo | None = None) -> int:
    """Decode frames [start, stop) of each range, such as around joins; their number. Raises BadInput on damage."""
    info = info or probe(path)
    decoded = 0
    for start, stop in ranges:
        with closing(read_frames(path, info, max(0, start), min(stop, info.frames))) as chunks:
            decoded += sum(len(chunk) for chunk in chunks)
    return decoded


def decode_all(path: str | Path, info: VideoInfo | None = None) -> int:
    """Decode every frame; the number decoded. Raises BadInput naming a frame that is damaged."""
    info = info or probe(path)
    return decode_ranges(path, [(0, info.frames)], info)


def joins(segments: Sequence[int], margin: int = 4) -> tuple[tuple[int, int], ...]:
    """Ranges of frames `margin` either side of every join, from the frame counts of the segments."""
    ranges = []
    at = 0
    for frames in segments[:-1]:
        at += frames
        ranges.append((max(0, at - margin), min(sum(segments), at + margin)))
    return tuple(ranges)


def _largest_drift(info: VideoInfo, source: VideoInfo) -> float:
    """Seconds by which a frame's time (from the first) differs most from its time in the source."""
    ours, theirs = info.timestamps.array, source.timestamps.array
    ours, theirs = ours - ours[0], theirs - theirs[0]
    a, b = (float(Fraction(*base)) for base in (info.time_base, source.time_base))
    return float(abs(ours * a - theirs * b).max())
