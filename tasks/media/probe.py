"""What a video file is: sizes, times of all frames, colours, streams. Reads packets, and decodes one frame."""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import av.container
import av.sidedata.sidedata
import av.stream
import av.video
import numpy as np

from flashvsr_core.errors import BadInput
from tasks.media.hdr import (
    ContentLight,
    MasteringDisplay,
    content_light,
    dolby_vision_profile,
    dynamic_metadata,
    mastering_display,
)
from tasks.media.limits import DEFAULT_LIMITS, Limits
from tasks.media.packets import declared_duration, display_times, read_packets, truncation
from tasks.media.source import bound_pixels, open_source, os_reason, video_streams
from tasks.media.structure import foreign_media
from tasks.media.tags import (
    COLORSPACES,
    MATRIX_OF_TAG,
    PRIMARIES,
    RANGES,
    TRANSFERS,
    Matrix,
    guess_matrix,
    name_of,
)
from tasks.media.timestamps import LARGEST_RATE, Timestamps, average_rate, constant_rate

FALLBACK_RATE = Fraction(25)  # of a single frame whose file names no rate
DISPLAY_MATRIX = av.sidedata.sidedata.Type.DISPLAYMATRIX
FIELD_ORDERS = {2: "tff", 3: "bff", 4: "bff", 5: "tff"}  # AVFieldOrder: which field is shown first
NO_FALLBACK = 5  # profile of Dolby Vision whose base picture is in a colour space of its own
LOOK_FOR_FIELDS = 8  # frames decoded to see whether they say that they are interlaced
HDR_TRANSFERS = ("smpte2084", "arib-std-b67")  # PQ and HLG


@dataclass(frozen=True)
class StreamInfo:
    """One stream of the source; `index` is its number in the file."""

    index: int
    kind: Literal["video", "audio", "subtitle", "data", "attachment"]
    codec: str
    language: str | None
    title: str | None
    default: bool
    forced: bool
    cover: bool  # a still picture (cover art), not a video


@dataclass(frozen=True)
class VideoInfo:
    """A video as it is coded: sizes before rotation and before its pixels are made square."""

    width: int
    height: int
    rotation: int  # degrees counter-clockwise to turn the picture for display; pixels are processed as coded
    display_matrix: tuple[int, ...] | None  # the nine numbers `rotation` comes from (they can also mirror)
    sample_aspect_ratio: tuple[int, int]
    frame_rate: tuple[int, int]  # frames per second; the average where it is not constant
    time_base: tuple[int, int]  # seconds per tick of `timestamps`
    frames: int
    constant_rate: bool
    timestamps: Timestamps
    timed: bool  # decoded frames carry these timestamps; False: they can only be counted (AVI, raw streams)
    start_time: float  # seconds from the start of the file's programme to the first frame
    audio_start: float | None  # the same of the first audio stream; None without sound
    duration: float  # seconds, first frame to end of last frame
    container: str
    codec: str
    pix_fmt: str
    bit_depth: int
    interlaced: bool
    field_order: Literal["frame", "tff", "bff"]  # frame: every frame says its own, or none does; else the file's word
    has_alpha: bool
    color_primaries: str | None
    color_trc: str | None
    colorspace: str | None
    color_range: str | None
    matrix: Matrix
    full_range: bool
    mastering_display: MasteringDisplay | None
    content_light: ContentLight | None
    dynamic_metadata: tuple[str, ...]  # kinds of HDR metadata that change from frame to frame
    timecode: str | None  # of the first frame, such as 01:00:00:00
    stream_index: int
    streams: tuple[StreamInfo, ...]
    chapters: int
    truncated: bool
    damage: str | None  # what is missing or corrupt, None for a sound file
    skipped: int = 0  # frames of the source before the first of these, where it was trimmed
    # Seconds of the programme that are kept, where it was trimmed; None at the end: to its end.
    excerpt: tuple[float, float | None] | None = None

    @property
    def is_hdr(self) -> bool:
        return self.color_trc in HDR_TRANSFERS


def probe(path: str | Path, allow_truncated: bool = False, limits: Limits = DEFAULT_LIMITS) -> VideoInfo:
    """Describe the video at `path`; raises BadInput naming the finding and the remedy.

    With `allow_truncated` a file cut short is described as far as it can be read, with `truncated` set.
    """
    name = repr(str(path))
    with open_source(path) as container:
        if reference := foreign_media(path):
            raise BadInput(f"{name} {reference}; give a file that holds its media itself")
        limits.check_streams(name, len(container.streams))
        stream = _video_stream(name, container)
        limits.check_size(name, stream.codec_context.width, stream.codec_context.height)
        packets = read_packets(name, container, stream, limits)
        declared = declared_duration(path, container)
        streams = tuple(_stream_info(s) for s in container.streams)
        chapters = len(container.chapters())
        start = (container.start_time or 0) / av.time_base
        rates = tuple(rate for rate in (stream.guessed_rate, stream.average_rate) if rate and rate <= LARGEST_RATE)
        time_base = stream.time_base or Fraction(1, av.time_base)
        aspect = stream.sample_aspect_ratio or Fraction(1)
        container_name, index = container.format.name, stream.index
        order = FIELD_ORDERS.get(stream.codec_context.field_order)
        timecode = _timecode(container, stream)
        fields = ("colorspace", "color_range", "color_primaries", "color_trc")
        written = {field: int(getattr(stream.codec_context, field)) for field in fields}
        side_alpha = stream.codec_context.name in ("vp8", "vp9") and _tag(stream.metadata, "alpha_mode") == "1"
    finding = truncation(path, packets, declared)
    if not packets.pts:
        raise BadInput(f"{name} has a video stream without frames; give a file with at least one frame")
    frame, flagged = _first_frames(path, name, limits)
    pts = display_times(packets, frame, finding is not None)
    if not len(pts):
        raise BadInput(f"{name} has no frame that can be decoded; copy it again from where it came from")
    if finding and not allow_truncated:
        raise BadInput(
            f"{name} is truncated: {finding}; copy it again, or upscale the {len(pts)} frames that can be read with "
            "--allow-truncated"
        )
    if packets.timed or len(np.unique(pts)) == len(pts):
        constant = constant_rate(pts, time_base, rates)
    else:  # no usable times at all: the nominal rate is all there is
        constant = rates[0] if rates else FALLBACK_RATE
        pts = np.array([int(pts[0]) + round(i / (constant * time_base)) for i in range(len(pts))], dtype=np.int64)
    rate = constant or average_rate(pts, time_base) or FALLBACK_RATE
    damage = finding or (f"{len(packets.corrupt)} video packets are damaged" if packets.corrupt else None)
    limits.check_duration(name, float(int(pts[-1] - pts[0]) * time_base))
    depth = max(component.bits for component in frame.format.components)
    # Some decoders (ProRes) leave out what the container says.
    colorspace, color_range, primaries, transfer = (
        name_of(table, getattr(frame, field)) or name_of(table, written[field])
        for table, field in zip((COLORSPACES, RANGES, PRIMARIES, TRANSFERS), fields)
    )
    matrix = default_matrix(name, frame, colorspace)
    side_data: Any = frame.side_data  # PyAV's stub describes another type; iterating gives the entries
    if dolby_vision_profile(path) == NO_FALLBACK:
        raise BadInput(
            f"{name} is Dolby Vision of profile {NO_FALLBACK}, whose colours only a licensed decoder knows; give a "
            "version in HDR10, HLG or SDR"
        )
    return VideoInfo(
        width=frame.width,
        height=frame.height,
        rotation=frame.rotation,
        display_matrix=_display_matrix(frame),
        sample_aspect_ratio=(aspect.numerator, aspect.denominator),
        frame_rate=(rate.numerator, rate.denominator),
        time_base=(time_base.numerator, time_base.denominator),
        frames=len(pts),
        constant_rate=constant is not None,
        timestamps=Timestamps.of(pts),
        timed=packets.timed,
        start_time=float(int(pts[0]) * time_base) - start,
        audio_start=packets.audio_start,
        duration=float(int(pts[-1] - pts[0]) * time_base + 1 / rate),
        container=container_name,
        codec=streams[index].codec,
        pix_fmt=frame.format.name,
        bit_depth=depth,
        interlaced=flagged or order is not None,
        field_order="frame" if flagged or order is None else order,  # type: ignore[arg-type]
        has_alpha=side_alpha or any(component.is_alpha for component in frame.format.components),
        color_primaries=primaries,
        color_trc=transfer,
        colorspace=colorspace,
        color_range=color_range,
        matrix=matrix,
        # RGB is always full; what is made of it is YUV of the range that every player shows rightly.
        full_range=not frame.format.is_rgb and (color_range == "pc" or frame.format.name.startswith("yuvj")),
        mastering_display=mastering_display(side_data),
        content_light=content_light(side_data),
        dynamic_metadata=dynamic_metadata(side_data, path),
        timecode=timecode,
        stream_index=index,
        streams=streams,
        chapters=chapters,
        truncated=finding is not None,
        damage=damage,
    )


def _video_stream(name: str, container: av.container.InputContainer) -> av.video.VideoStream:
    videos = video_streams(container)
    if videos:
        if videos[0].codec_context is None:
            raise BadInput(f"{name} has video in a coding that is not known here; convert it with ffmpeg")
        return videos[0]
    if container.streams.video:
        raise BadInput(f"{name} has cover art and no video; give a file with moving pictures")
    if container.streams.audio:
        raise BadInput(f"{name} has sound and no video; give a file with moving pictures")
    raise BadInput(f"{name} has no video stream; give a file with moving pictures")


def _first_frames(path: str | Path, name: str, limits: Limits) -> tuple[av.VideoFrame, bool]:
    """Decode a few frames: shows that the file can be decoded. The first, which carries what packets do not say, and
    whether one of them says that it is interlaced. The others are not kept: they may be large."""
    first: av.VideoFrame | None = None
    flagged = False
    with open_source(path) as container:
        stream = video_streams(container)[0]
        bound_pixels(stream.codec_context, limits.max_pixels)
        try:
            for number, frame in enumerate(container.decode(stream), 1):
                first = first or frame
                flagged |= frame.interlaced_frame
                if number == LOOK_FOR_FIELDS:
                    break
        except av.FFmpegError as error:
            if first is None:  # a later fault is named by the worker that gets there
                raise BadInput(
                    f"{name} cannot be decoded ({stream.codec_context.name}: {os_reason(error)}); copy it again or "
                    "convert it with ffmpeg"
                ) from error
    if first is None:
        raise BadInput(f"{name} has a video stream without frames; give a file with at least one frame")
    return first, flagged


def _timecode(container: av.container.InputContainer, video: av.video.VideoStream) -> str | None:
    """Of the video, its timecode track, or the file."""
    tracks = [stream.metadata for stream in container.streams if stream.type == "data"]
    for metadata in (video.metadata, *tracks, container.metadata):
        if found := _tag(metadata, "timecode"):
            return found
    return None


def _tag(metadata: Mapping[str, str], name: str) -> str | None:
    """Matroska spells tags in capitals, other containers do not."""
    return next((value for key, value in metadata.items() if key.lower() == name), None)


def _display_matrix(frame: av.VideoFrame) -> tuple[int, ...] | None:
    side_data: Any = frame.side_data  # PyAV's stub describes another type; iterating gives the entries
    found = [data for data in side_data if data.type == DISPLAY_MATRIX]
    return struct.unpack("=9i", bytes(found[0])) if found else None


def default_matrix(name: str, frame: av.VideoFrame, tag: str | None) -> Matrix:
    """The matrix a frame's tag means, or what players assume where it has none; BadInput for one we cannot undo."""
    if tag is None or frame.format.is_rgb:
        return guess_matrix(frame.width, frame.height)
    if tag not in MATRIX_OF_TAG:
        raise BadInput(
            f"{name} has the colour matrix {tag}, which is not supported (supported: {', '.join(MATRIX_OF_TAG)}); "
            "convert it with ffmpeg -vf scale=out_color_matrix=bt709"
        )
    return MATRIX_OF_TAG[tag]


def _stream_info(stream: av.stream.Stream) -> StreamInfo:
    flags = av.stream.Disposition
    context = getattr(stream, "codec_context", None)
    kind = stream.type if stream.type in ("video", "audio", "subtitle", "attachment") else "data"
    return StreamInfo(
        index=stream.index,
        kind=kind,
        codec=context.codec.canonical_name if context is not None else _data_codec(stream),
        language=stream.metadata.get("language"),
        title=stream.metadata.get("title"),
        default=bool(stream.disposition & flags.default),
        forced=bool(stream.disposition & flags.forced),
        cover=bool(stream.disposition & flags.attached_pic),
    )


def _data_codec(stream: av.stream.Stream) -> str:
    if stream.type == "data" and "timecode" in stream.metadata:
        return "tmcd"
    return getattr(stream, "name", None) or "unknown"


def kinds(streams: Sequence[StreamInfo], kind: str) -> tuple[StreamInfo, ...]:
    """Streams of one kind, cover art left out."""
    return tuple(stream for stream in streams if stream.kind == kind and not stream.cover)
