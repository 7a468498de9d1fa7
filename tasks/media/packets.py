"""What packets tell without being decoded: times of frames, where sound begins, what is missing."""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import av.container
import av.video
import numpy as np

from tasks.media.limits import Limits
from tasks.media.source import os_reason
from tasks.media.structure import cut_short, states_its_size

# Containers whose duration is a promise made before the data; missing packets show there.
DECLARING = ("matroska", "flv", "asf")
DURATION_SLACK = 1.0  # seconds of a declared duration that need not be covered by packets


@dataclass(frozen=True)
class Packets:
    """What reading all packets of a file tells."""

    pts: list[int]  # of decodable frames, in the order of the file; the decoding time where there is no other
    dts: list[int]
    timed: bool
    reordered: int  # frames that may be decoded before one that is shown earlier
    corrupt: list[int]  # which of them are not whole
    end: float  # seconds, of the longest stream
    audio_start: float | None  # seconds
    error: str | None


def read_packets(
    name: str, container: av.container.InputContainer, video: av.video.VideoStream, limits: Limits
) -> Packets:
    """Go through the whole file once. Packets an edit list hides, and invisible VP8 frames, are no frames."""
    pts: list[int] = []
    dts: list[int] = []
    times_missing = False
    corrupt: list[int] = []
    end = Fraction(0)
    audio_start: Fraction | None = None
    audio = next((stream.index for stream in container.streams.audio), None)
    error = None
    hidden_vp8 = video.codec_context.name == "vp8"
    try:
        for packet in container.demux():
            if not packet.size:  # flushes the decoder at the end; AVI also has empty ones for repeated frames
                continue
            time = packet.pts if packet.pts is not None else packet.dts
            if time is not None and packet.time_base:
                end = max(end, (time + (packet.duration or 0)) * packet.time_base)
                if packet.stream_index == audio and audio_start is None and not packet.is_discard:
                    audio_start = time * packet.time_base + _skipped(packet)
            if packet.stream_index != video.index:
                continue
            if packet.is_discard or (hidden_vp8 and not bytes(packet)[0] & 0x10):
                continue
            times_missing |= packet.pts is None
            pts.append(time if time is not None else len(pts))
            dts.append(packet.dts if packet.dts is not None else pts[-1])
            if packet.is_corrupt:
                corrupt.append(len(pts) - 1)
            limits.check_frames(name, len(pts))
    except av.FFmpegError as problem:
        error = os_reason(problem)
    # AVI stores one time per packet in coding order: with reordered frames it is no presentation time.
    reordered_avi = container.format.name == "avi" and video.codec_context.has_b_frames
    timed = not times_missing and not reordered_avi and len(set(pts)) == len(pts)
    first = (container.start_time or 0) / av.time_base
    # What lies before the start of the programme (encoder priming behind an edit list) is not played.
    sound = None if audio_start is None else max(0.0, float(audio_start) - first)
    depth = video.codec_context.reorder_depth
    return Packets(pts if timed else dts, dts, timed, depth, corrupt, float(end) - first, sound, error)


def _skipped(packet: av.Packet) -> Fraction:
    """Seconds of a first packet that are not played: encoder priming, which Matroska stores before time 0."""
    if not packet.has_sidedata("skip_samples"):
        return Fraction(0)
    samples = int.from_bytes(bytes(packet.get_sidedata("skip_samples"))[:4], "little")
    return Fraction(samples, packet.stream.codec_context.sample_rate or 1)


def declared_duration(path: str | Path, container: av.container.InputContainer) -> float | None:
    """Seconds the header promises, where that is a promise and the container has no size field of its own."""
    if container.duration is None or not any(name in container.format.name for name in DECLARING):
        return None
    if "matroska" in container.format.name and states_its_size(path):
        return None
    return container.duration / av.time_base


def truncation(path: str | Path, packets: Packets, declared: float | None) -> str | None:
    """What says that a file was cut short, None where nothing does. `declared`: seconds that its header promises."""
    finding = cut_short(path)
    if finding:
        return finding
    if packets.error:
        return f"reading stops after {len(packets.pts)} frames ({packets.error})"
    if declared is not None and packets.end < declared - DURATION_SLACK:
        return f"its header says {declared:.1f} s, its packets end at {packets.end:.1f} s"
    return None


def display_times(packets: Packets, first: av.VideoFrame, truncated: bool) -> np.ndarray:
    """Times of all frames a decoder gives, int64, rising, in ticks; `first` is the first that it gave."""
    pts, dts = np.array(packets.pts, dtype=np.int64), np.array(packets.dts, dtype=np.int64)
    if truncated:  # the last packet is there in part
        pts, dts = np.delete(pts, packets.corrupt), np.delete(dts, packets.corrupt)
    pts.sort()
    if not packets.timed:
        return pts[: max(1, len(pts) - packets.reordered)] if truncated else pts
    if first.pts is not None:
        # A recording that begins in the middle has packets before its first key frame: nothing decodes them.
        pts = pts[pts >= first.pts]
    if truncated and len(pts):
        # What is shown after the last packet's decoding time belongs among packets that are gone.
        pts = pts[pts <= max(dts.max(), pts[0])]
    return pts
