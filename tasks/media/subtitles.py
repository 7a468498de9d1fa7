"""Subtitles of a part of a video: what is on screen when it begins is shown from its first moment."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path

import av
import av.container
import av.stream

from flashvsr_core.errors import FlashvsrError
from tasks.media.source import file_url, open_source, os_reason

LOOK_BACK = 600  # seconds before the start within which a subtitle that is still shown may begin
DISORDER = 30  # seconds by which packets of a file may be stored too late
TICKS = Fraction(1, 1000)  # seconds; Matroska's, and fine enough for text
PGS = "hdmv_pgs_subtitle"
PGS_EPOCH = 0x80  # composition state of a display set that needs none before it
PGS_STATE_AT = 10  # byte of a packet, after the head of its first segment (3), size (4), rate (1) and number (2)


def cut_subtitles(
    source_path: str | Path, files: Mapping[int, tuple[Path, str]], start: float, end: float | None
) -> None:
    """Write subtitle streams (by index) of [start, end) into files (path, muxer), with times from the start.

    Times are seconds of the programme; None: to its end. Texts that are shown at the start or the end are shortened.
    """
    length = None if end is None else Fraction(end) - Fraction(start)
    try:
        with open_source(source_path) as source, ExitStack() as opened:
            targets: dict[int, tuple[av.container.OutputContainer, av.stream.Stream]] = {}
            for index, (path, muxer) in files.items():
                output = opened.enter_context(av.open(file_url(path), "w", format=muxer))
                targets[index] = (output, _like(output, source.streams[index]))
            begin = Fraction(source.start_time or 0, av.time_base) + Fraction(start)
            source.seek(int((begin - LOOK_BACK) * av.time_base), backward=True)
            for packet, shown, duration in _shown(source, list(files), begin, length):
                output, stream = targets[packet.stream_index]
                packet.stream, packet.time_base = stream, TICKS
                packet.pts = packet.dts = round(shown / TICKS)
                packet.duration = round(duration / TICKS)
                output.mux(packet)
    except av.FFmpegError as error:
        raise FlashvsrError(
            f"the subtitles of {str(source_path)!r} cannot be trimmed: {os_reason(error)}; upscale the whole video, or "
            "leave its subtitles out (ffmpeg -i IN -map 0 -map -0:s -c copy OUT)"
        ) from error


def _like(output: av.container.OutputContainer, stream: av.stream.Stream) -> av.stream.Stream:
    made = output.add_stream_from_template(stream, opaque=True)
    made.metadata.update(stream.metadata)
    made.disposition = stream.disposition
    made.time_base = TICKS
    return made


def _shown(
    source: av.container.InputContainer, indices: list[int], begin: Fraction, length: Fraction | None
) -> Iterator[tuple[av.Packet, Fraction, Fraction]]:
    """Packets that are shown within the part, from when (seconds from its start) and for how long."""
    held: dict[int, av.Packet] = {}  # what is shown until the next of its stream comes: of those without a duration
    begun: set[int] = set()
    for packet in source.demux([source.streams[index] for index in indices]):
        if not packet.size or packet.pts is None or packet.time_base is None:
            continue
        time = packet.pts * packet.time_base - begin
        duration = (packet.duration or 0) * packet.time_base
        if length is not None and time >= length:
            if time >= length + DISORDER:
                break
            continue
        index = packet.stream_index
        if time < 0:
            if not packet.duration:
                held[index] = packet
            elif time + duration > 0:
                yield packet, Fraction(0), _within(time + duration, length)
            continue
        if index not in begun:
            begun.add(index)
            if time > 0 and (before := held.pop(index, None)) is not None and _stands_alone(before):
                yield before, Fraction(0), Fraction(0)
        yield packet, time, _within(duration, None if length is None else length - time)
    for packet in held.values():
        if _stands_alone(packet):
            yield packet, Fraction(0), Fraction(0)


def _within(duration: Fraction, room: Fraction | None) -> Fraction:
    return duration if room is None else min(duration, room)


def _stands_alone(packet: av.Packet) -> bool:
    """Whether a picture needs no packet before it. Texts without a duration are nothing that can be cut."""
    data = bytes(packet)
    if packet.stream.codec_context.codec.canonical_name != PGS:
        return packet.stream.codec_context.codec.canonical_name == "dvb_subtitle"
    return len(data) > PGS_STATE_AT and data[PGS_STATE_AT] == PGS_EPOCH
