"""One segment of finished video: planes in, a file with closed groups of pictures, tags and exact times out."""

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar, Literal, cast, get_args

import av
import av.container
import av.video
import numpy as np

from flashvsr_core.config import FORM
from flashvsr_core.errors import FlashvsrError, UserError
from flashvsr_core.layout import Planes, YuvLayout
from tasks.media.probe import VideoInfo
from tasks.media.source import file_url, open_source, os_reason, video_streams
from tasks.media.tags import COLORSPACES, MATRIX_OF_TAG, PRIMARIES, RANGES, TAG_OF_MATRIX, TRANSFERS

Codec = Literal["h264", "h265"]
Preset = Literal[
    "ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow", "placebo"
]
PixFmt = Literal[
    "auto", "yuv420p", "yuv444p", "yuv420p10le", "yuv444p10le", "rgb24", "rgb48be", "rgb48le", "gbrp10be", "gbrpf32le"
]
Container = Literal["mp4", "mkv", "mov", "png", "tiff", "dpx", "exr"]

DEFAULT_CRF = {"h264": 18, "h265": 20}
LARGEST_CRF = 51
LARGEST_SIDE = {"h264": 16384, "h265": 16384}  # pixels; what libx264 and libx265 take
# Width and height in pixels. libx265 4.2 (PyAV 18.1) writes beyond its memory in narrow pictures, and the process dies
# of it sooner or later (malloc's checks find it at every width tried up to 48, and at none from 52 on).
SMALLEST = {"h264": (1, 1), "h265": (64, 16)}
# Frames by which libx265 decodes ahead with every preset. Set by us: in segments of one or two frames its own decoding
# times are left-overs of memory (PyAV 18.1), so that files differ and some cannot be written at all.
X265_DELAY = 2
SMALLEST_TIMESCALE = 10_000  # ticks per second of segments: what ffmpeg would raise a smaller one to
SEGMENT_FORMAT: Literal["mp4"] = "mp4"


@dataclass(frozen=True)
class EncodeParams:
    """How the result is encoded. Unset and `auto` fields are resolved once, when a job is planned."""

    __pydantic_config__: ClassVar[dict[str, Any]] = FORM

    codec: Codec = "h264"
    """h264 (plays everywhere) or h265 (smaller files, slower)."""
    crf: int | None = None
    """Constant quality, 0 (best) to 51; empty: 18 for h264, 20 for h265."""
    preset: Preset = "medium"
    """Speed of the encoder, ultrafast to placebo; slower makes smaller files."""
    pix_fmt: PixFmt = "auto"
    """Pixel format; auto: 4:2:0 (4:4:4 where a side is odd) with 8 bits, or 10 for sources deeper than 8.

    Images have formats of their own: png rgb24 (8 bits) or rgb48be (16), tiff rgb48le or rgb24, dpx gbrp10be, exr
    gbrpf32le (written as half)."""
    container: Container = "mp4"
    """Kind of the finished file: mp4, mkv (holds every kind of stream), mov; or images: png, tiff, dpx, exr."""
    threads: int = 4
    """Encoder threads; a fixed number, because it changes the encoder's result."""

    def __post_init__(self) -> None:
        for name, choices in (("codec", Codec), ("preset", Preset), ("pix_fmt", PixFmt), ("container", Container)):
            value = getattr(self, name)
            if value not in get_args(choices):
                raise UserError(f"{name} {value!r} is not known; choose one of {', '.join(get_args(choices))}")
        if self.crf is not None and not 0 <= self.crf <= LARGEST_CRF:
            raise UserError(f"crf {self.crf} is out of range; allowed are 0 to {LARGEST_CRF}")
        if not 1 <= self.threads <= 64:
            raise UserError(f"threads {self.threads} is out of range; allowed are 1 to 64")

    @property
    def is_resolved(self) -> bool:
        return self.crf is not None and self.pix_fmt != "auto"


@dataclass(frozen=True)
class EncodedSegment:
    """A segment file that was written: `frames` of `width` x `height`, `bytes` long."""

    frames: int
    bytes: int
    width: int
    height: int


def resolve(params: EncodeParams, info: VideoInfo, out_width: int, out_height: int) -> EncodeParams:
    """Decide what was left open, for an output of this size in pixels; raises UserError where choices contradict it."""
    odd = bool(out_width % 2 or out_height % 2)
    depth = "10le" if info.bit_depth > 8 else ""
    pix_fmt = params.pix_fmt
    if pix_fmt == "auto":
        pix_fmt = cast(PixFmt, f"yuv{'444' if odd else '420'}p{depth}")
    if not pix_fmt.startswith("yuv"):
        raise UserError(f"pixel format {pix_fmt} is for images, not for {params.container}; choose yuv420p or auto")
    if odd and pix_fmt.startswith("yuv420p"):
        raise UserError(
            f"pixel format {pix_fmt} cannot hold the odd output size {out_width}x{out_height} exactly; choose "
            f"{pix_fmt.replace('420', '444')} or auto"
        )
    (least_width, least_height), largest = SMALLEST[params.codec], LARGEST_SIDE[params.codec]
    if max(out_width, out_height) > largest:
        raise UserError(
            f"output size {out_width}x{out_height} is beyond {largest} pixels a side, the most {params.codec} "
            "can encode; choose a smaller scale"
        )
    if out_width < least_width or out_height < least_height:
        raise UserError(
            f"output size {out_width}x{out_height} is below {least_width}x{least_height}, the least {params.codec} can "
            "encode; choose codec h264 or a larger scale"
        )
    crf = params.crf if params.crf is not None else DEFAULT_CRF[params.codec]
    return replace(params, crf=crf, pix_fmt=pix_fmt)


def layout_of(encode: EncodeParams, info: VideoInfo) -> YuvLayout:
    """Which planes the encoder wants."""
    _check_resolved(encode)
    return YuvLayout(
        subsampling="444" if "444" in encode.pix_fmt else "420",
        depth=10 if encode.pix_fmt.endswith("10le") else 8,
        matrix=info.matrix,
        full_range=info.full_range,
    )


def encode_segment(
    chunks: Iterable[Planes], path: str | Path, info: VideoInfo, encode: EncodeParams, width: int, height: int
) -> EncodedSegment:
    """Encode planes (Y, U, V), each T h w, uint8 or uint16 with the value in the low bits, into the file `path`.

    Errors of `chunks` pass through; the file is then closed and incomplete, for the caller to delete.
    """
    _check_resolved(encode)
    rate = Fraction(*info.frame_rate)
    timescale = rate.numerator * -(-SMALLEST_TIMESCALE // rate.numerator)
    scales = {"movie_timescale": str(timescale), "video_track_timescale": str(timescale)}
    frames = 0
    packets = 0
    with writing(path):
        container = av.open(file_url(path), "w", format=SEGMENT_FORMAT, options=scales)
    try:
        with writing(path):
            stream = _add_stream(container, info, encode, width, height, rate)
        for planes in chunks:
            for y, u, v in zip(*planes, strict=True):
                frame = _frame((y, u, v), encode.pix_fmt, width, height)
                frame.pts = frames
                frame.time_base = 1 / rate
                with writing(path):
                    packets += _mux(container, stream.encode(frame), packets, encode.codec)
                frames += 1
        if not frames:
            raise FlashvsrError(f"no frames came for segment {str(path)!r}; at least 1 is needed")
        with writing(path):
            packets += _mux(container, stream.encode(), packets, encode.codec)
    except BaseException:
        _abandon(container)
        raise
    with writing(path):
        container.close()
    return EncodedSegment(frames, Path(path).stat().st_size, width, height)


def check_segment(path: str | Path, frames: int, width: int, height: int) -> None:
    """Decode all of a segment; raises FlashvsrError saying which of count, size and times is not as expected."""
    found = 0
    name = repr(str(path))
    with open_source(path) as container:
        stream = video_streams(container)[0]
        stream.thread_type = "AUTO"
        step = 1 / (stream.guessed_rate * stream.time_base) if stream.guessed_rate and stream.time_base else None
        try:
            for frame in container.decode(stream):
                if (frame.width, frame.height) != (width, height):
                    raise FlashvsrError(
                        f"segment {name} frame {found} is {frame.width}x{frame.height}, expected {width}x{height}; "
                        "delete it and run again"
                    )
                if frame.pts is None or (step and abs(frame.pts - found * step) >= 1):
                    raise FlashvsrError(f"segment {name} frame {found} has time {frame.pts}; delete it and run again")
                found += 1
        except av.FFmpegError as error:
            raise FlashvsrError(f"segment {name} frame {found}: {os_reason(error)}; delete it and run again") from error
    if found != frames:
        raise FlashvsrError(f"segment {name} has {found} frames, expected {frames}; delete it and run again")


def _mux(container: av.container.OutputContainer, packets: list[av.Packet], number: int, codec: Codec) -> int:
    """Write packets, the first of which is the file's packet `number`; how many there were."""
    for packet in packets:
        if codec == "h265":
            packet.dts = number - X265_DELAY
        container.mux(packet)
        number += 1
    return len(packets)


def _check_resolved(encode: EncodeParams) -> None:
    if not encode.is_resolved:
        raise FlashvsrError(f"encode settings still have open choices ({encode}); pass the result of resolve()")


def _add_stream(
    container: av.container.OutputContainer,
    info: VideoInfo,
    encode: EncodeParams,
    width: int,
    height: int,
    rate: Fraction,
) -> av.video.VideoStream:
    stream = container.add_stream(f"lib{encode.codec.replace('h', 'x')}", rate=rate)
    assert isinstance(stream, av.video.VideoStream)
    context = stream.codec_context
    context.width, context.height, context.pix_fmt = width, height, encode.pix_fmt
    context.time_base = 1 / rate
    context.thread_count = encode.threads
    context.sample_aspect_ratio = Fraction(*info.sample_aspect_ratio)
    # The tags of the source; its matrix and range are written even where it says nothing, since they were assumed.
    known = info.colorspace if MATRIX_OF_TAG.get(info.colorspace or "") == info.matrix else None
    context.colorspace = COLORSPACES[known or TAG_OF_MATRIX[info.matrix]]
    context.color_range = RANGES["pc" if info.full_range else "tv"]
    if info.color_primaries:
        context.color_primaries = PRIMARIES[info.color_primaries]
    if info.color_trc:
        context.color_trc = TRANSFERS[info.color_trc]
    if info.display_matrix:
        stream.set_display_matrix(info.display_matrix)
    stream.options = {"preset": encode.preset, "crf": str(encode.crf), **_codec_options(encode)}
    if encode.codec == "h265":
        context.codec_tag = "hvc1"  # what Apple players need
    return stream


def _codec_options(encode: EncodeParams) -> dict[str, str]:
    if encode.codec == "h264":
        # cpu-independent: another machine must give the same frames. Without it not even the same machine does: the
        # AVX-512 code for macroblock trees in PyAV 18.1's libx264 gave 12 different files in 12 runs.
        return {"x264-params": f"open-gop=0:cpu-independent=1:threads={encode.threads}"}
    # Without repeated headers frames are lost or wrong when a merge joins differently encoded segments (measured).
    # Unset, pools and frame-threads follow the machine's cores, and frame-threads changes the result.
    pools = f"pools={encode.threads}:frame-threads={1 + (encode.threads >= 4)}"
    return {"x265-params": f"open-gop=0:repeat-headers=1:log-level=error:{pools}"}


def _frame(planes: tuple[np.ndarray, ...], pix_fmt: str, width: int, height: int) -> av.VideoFrame:
    """Copy three planes (h w) into a new frame, whose lines are padded."""
    frame = av.VideoFrame(width, height, pix_fmt)
    dtype = np.dtype("<u2") if pix_fmt.endswith("10le") else np.dtype("u1")
    for plane, values in zip(frame.planes, planes, strict=True):
        if values.shape != (plane.height, plane.width) or values.dtype != dtype:
            raise FlashvsrError(
                f"a plane is {values.shape[1]}x{values.shape[0]} {values.dtype}, {pix_fmt} at {width}x{height} wants "
                f"{plane.width}x{plane.height} {dtype}"
            )
        lines = np.frombuffer(memoryview(plane), dtype).reshape(-1, plane.line_size // dtype.itemsize)
        lines[: plane.height, : plane.width] = values
    return frame


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turns faults of encoder and muxer into errors that name the file; full disks into UserError."""
    try:
        yield
    except av.FFmpegError as error:
        name = repr(str(path))
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"no space left to write segment {name}; free some, or choose another store") from error
        raise FlashvsrError(f"segment {name} cannot be encoded: {os_reason(error)}; see the log") from error


def _abandon(container: av.container.OutputContainer) -> None:
    """Close after an error; a second error of the same file would hide the first."""
    try:
        container.close()
    except av.FFmpegError as error:
        error.add_note("while closing an unfinished segment")
