"""One segment of finished video: planes in, a file with closed groups of pictures, tags and exact times out."""

import errno
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar, Literal, cast, get_args

import av
import av.container

from flashvsr_core.config import FORM
from flashvsr_core.errors import FlashvsrError, UserError
from flashvsr_core.layout import Planes, YuvLayout
from tasks.media import codecs
from tasks.media.codecs import CodecSpec, Container, Encoder
from tasks.media.delivery import DELIVERIES, DeliveryName
from tasks.media.encoder import SMALLEST_TIMESCALE, add_stream, coded_format, probe_encoder, restamp, video_frame
from tasks.media.probe import VideoInfo
from tasks.media.scheduling import ordinary_scheduling
from tasks.media.size import parse_target
from tasks.media.source import file_url, open_source, os_reason, video_streams

Codec = Literal["auto", codecs.Codec]
Preset = Literal["auto", codecs.Preset]
PixFmt = Literal["auto", codecs.PixFmt]

LARGEST_CRF = 63
BITRATES = (10, 2_000_000)  # kbit/s
# Names of segments in the store end so, whatever the codec: only we read them, and we look at what they are.
SEGMENT_SUFFIX: Literal["mp4"] = "mp4"


@dataclass(frozen=True)
class EncodeParams:
    """How the result is encoded. Unset and `auto` fields are resolved once, when a job is planned."""

    __pydantic_config__: ClassVar[dict[str, Any]] = FORM

    delivery: DeliveryName = "none"
    """A named set of choices for what is left open: web, archive or edit (flashvsr presets lists them)."""
    codec: Codec = "auto"
    """h264, h265, av1, vp9, prores (422 HQ), prores4444 or ffv1; auto: h264, h265 for HDR, vp9 or av1 in webm."""
    encoder: Encoder = "software"
    """software, or nvenc (h264, h265, av1 on NVIDIA GPUs; tried when a job is planned)."""
    crf: int | None = None
    """Constant quality, 0 (best) to 51, or 63 for av1 and vp9; empty: 18 h264, 20 h265, 28 av1, 24 vp9."""
    bitrate: int | None = None
    """Average of every segment in kbit/s, instead of a constant quality."""
    preset: Preset = "auto"
    """Speed of the encoder, ultrafast to placebo; slower makes smaller files; auto: medium."""
    pix_fmt: PixFmt = "auto"
    """Pixel format; auto: 4:2:0 (4:4:4 where a side is odd), 8 bits, or 10 for deeper sources; alpha if it can.

    Images have formats of their own: png rgb24, rgb48be, rgba, rgba64be; tiff rgb48le, rgb24, rgba64le, rgba; dpx
    gbrp10be; exr gbrpf32le, gbrapf32le (written as half)."""
    codec_args: str = ""
    """More encoder arguments, key=value:key=value, that only tune the picture; refused in runs of deployments."""
    target_size: str = ""
    """Final size as displayed: WIDTHxHEIGHT, or HEIGHTp such as 2160p; empty: exactly scale x the source."""
    container: Container = "mp4"
    """Kind of the finished file: mp4, mkv (holds every kind of stream), mov, webm; or images: png, tiff, dpx, exr."""
    threads: int = 4
    """Encoder threads; a fixed number, because it changes the encoder's result."""

    def __post_init__(self) -> None:
        for name, choices in (
            ("delivery", get_args(DeliveryName)),
            ("codec", ("auto", *get_args(codecs.Codec))),
            ("encoder", get_args(Encoder)),
            ("preset", ("auto", *get_args(codecs.Preset))),
            ("pix_fmt", ("auto", *get_args(codecs.PixFmt))),
            ("container", get_args(Container)),
        ):
            value = getattr(self, name)
            if value not in choices:
                raise UserError(f"{name} {value!r} is not known; choose one of {', '.join(choices)}")
        if self.crf is not None and not 0 <= self.crf <= LARGEST_CRF:
            raise UserError(f"crf {self.crf} is out of range; allowed are 0 to {LARGEST_CRF}")
        if self.bitrate is not None and not BITRATES[0] <= self.bitrate <= BITRATES[1]:
            raise UserError(
                f"bitrate {self.bitrate} kbit/s is out of range; allowed are {BITRATES[0]} to {BITRATES[1]}"
            )
        if self.crf is not None and self.bitrate is not None:
            raise UserError("crf and bitrate exclude each other; give one of them")
        if not 1 <= self.threads <= 64:
            raise UserError(f"threads {self.threads} is out of range; allowed are 1 to 64")
        codecs.parse_args(self.codec_args)
        parse_target(self.target_size)

    @property
    def is_resolved(self) -> bool:
        spec = None if self.codec == "auto" else codecs.spec_of(self.codec, self.encoder)
        if spec is None or self.pix_fmt == "auto":
            return False
        has_quality = spec.crf is None or self.crf is not None or self.bitrate is not None
        return has_quality and (not spec.presets or self.preset != "auto")


@dataclass(frozen=True)
class EncodedSegment:
    """A segment file that was written: `frames` of `width` x `height`, `bytes` long."""

    frames: int
    bytes: int
    width: int
    height: int


def resolve(params: EncodeParams, info: VideoInfo, out_width: int, out_height: int) -> EncodeParams:
    """Decide what was left open, for an output of this size in pixels; raises UserError where choices contradict it."""
    delivery = DELIVERIES.get(params.delivery)
    codec = params.codec if params.codec != "auto" else _auto_codec(params, info)
    spec = codecs.spec_of(codec, params.encoder)
    if spec is None:
        raise UserError(f"nvenc does not encode {codec}; choose h264, h265 or av1, or --encoder software")
    if params.container not in spec.containers:
        raise UserError(
            f"{params.container} does not hold {codec}; choose an output ending in "
            f"{', '.join('.' + name for name in spec.containers)}, or a codec of {params.container}: "
            f"{', '.join(codecs.codecs_for(params.container))}"
        )
    pix_fmt = params.pix_fmt
    if pix_fmt == "auto" and delivery and codec == _delivered_codec(params, info):
        given = delivery.hdr_pix_fmt if info.is_hdr else delivery.pix_fmt
        pix_fmt = cast(PixFmt, _with_alpha(given, spec, info)) if given else pix_fmt
        if pix_fmt != "auto" and not _fits(pix_fmt, out_width, out_height):
            pix_fmt = "auto"
    if pix_fmt == "auto":
        pix_fmt = _auto_pix_fmt(spec, info, out_width, out_height)
    _check_pix_fmt(codec, spec, pix_fmt, out_width, out_height)
    _check_size(codec, spec, out_width, out_height)
    crf = _resolved_crf(params, codec, spec)
    preset = params.preset
    if preset == "auto" and spec.presets:
        preset = cast(Preset, (delivery and delivery.preset) or "medium")
    if preset != "auto" and not spec.presets:
        raise UserError(f"{codec} has no presets; leave --preset out")
    if unknown := codecs.parse_args(params.codec_args).keys() - spec.args:
        raise UserError(
            f"codec argument {min(unknown)!r} is not let through to {spec.encoder}; allowed are "
            f"{', '.join(sorted(spec.args))}"
        )
    if params.encoder != "software":
        probe_encoder(spec.encoder, pix_fmt, out_width, out_height)
    return replace(params, codec=codec, crf=crf, preset=preset, pix_fmt=pix_fmt)


def _delivered_codec(params: EncodeParams, info: VideoInfo) -> str | None:
    delivery = DELIVERIES.get(params.delivery)
    if delivery is None:
        return None
    if info.has_alpha and delivery.alpha_codec:
        return delivery.alpha_codec
    return delivery.hdr_codec if info.is_hdr else delivery.codec


def _auto_codec(params: EncodeParams, info: VideoInfo) -> codecs.Codec:
    if found := _delivered_codec(params, info):
        return cast(codecs.Codec, found)
    if params.container == "webm":
        # The VP9 encoder in PyAV holds 8 bits; AV1 holds 10, but no transparency.
        return "av1" if params.encoder == "nvenc" or (info.bit_depth > 8 and not info.has_alpha) else "vp9"
    return "h265" if info.is_hdr else "h264"


def _fits(pix_fmt: str, width: int, height: int) -> bool:
    """Whether chroma planes have whole pixels: what 4:2:0 and 4:2:2 need to hold a size exactly."""
    subsampling = codecs.subsampling_of(pix_fmt)
    return subsampling == "444" or (width % 2 == 0 and (subsampling == "422" or height % 2 == 0))


def _with_alpha(pix_fmt: str, spec: CodecSpec, info: VideoInfo) -> str:
    transparent = pix_fmt.replace("yuv", "yuva")
    return transparent if info.has_alpha and transparent in spec.pix_fmts else pix_fmt


def _auto_pix_fmt(spec: CodecSpec, info: VideoInfo, width: int, height: int) -> PixFmt:
    """The format that keeps transparency, the size and the depth, in this order, and is smallest then."""
    depth = 10 if info.bit_depth > 8 else 8

    def faults(name: str) -> tuple[bool, bool, bool, int, int]:
        missing = depth - codecs.depth_of(name)
        return (
            codecs.has_alpha(name) != info.has_alpha,
            not _fits(name, width, height),
            missing > 0,
            abs(missing),
            ("420", "444", "422").index(codecs.subsampling_of(name)),  # 4:2:2 in H.264 plays in few places
        )

    return cast(PixFmt, min(spec.pix_fmts, key=faults))


def _check_pix_fmt(codec: str, spec: CodecSpec, pix_fmt: str, width: int, height: int) -> None:
    if pix_fmt in get_args(codecs.ImagePixFmt):
        raise UserError(f"pixel format {pix_fmt} is for images, not for videos; choose yuv420p or auto")
    if pix_fmt not in spec.pix_fmts:
        raise UserError(f"{codec} does not encode {pix_fmt}; choose one of {', '.join(spec.pix_fmts)}")
    if not _fits(pix_fmt, width, height):
        better = re.sub("42[02]", "444", pix_fmt)
        remedy = f"choose {better} or auto" if better in spec.pix_fmts else "choose another codec or --target-size"
        raise UserError(f"pixel format {pix_fmt} cannot hold the odd output size {width}x{height} exactly; {remedy}")


def _check_size(codec: str, spec: CodecSpec, width: int, height: int) -> None:
    if max(width, height) > spec.largest:
        raise UserError(
            f"output size {width}x{height} is beyond {spec.largest} pixels a side, the most {codec} "
            "can encode; choose a smaller scale"
        )
    if width < spec.smallest[0] or height < spec.smallest[1]:
        raise UserError(
            f"output size {width}x{height} is below {spec.smallest[0]}x{spec.smallest[1]}, the least {codec} can "
            "encode; choose codec h264 or a larger scale"
        )


def _resolved_crf(params: EncodeParams, codec: str, spec: CodecSpec) -> int | None:
    if params.bitrate is not None:
        if not spec.has_bitrate:
            raise UserError(f"{codec} has no bitrate to choose; leave --bitrate out")
        return None
    if spec.crf is None:
        if params.crf is not None:
            raise UserError(f"{codec} has no crf to choose; leave --crf out")
        return None
    default, largest = spec.crf
    if params.crf is None:
        delivery = DELIVERIES.get(params.delivery)
        return (delivery.crf or {}).get(codec, default) if delivery else default
    if params.crf > largest:
        raise UserError(f"crf {params.crf} is out of range; allowed for {codec} are 0 to {largest}")
    return params.crf


def encoder_text(encode: Mapping[str, Any]) -> str:
    """Resolved encoder settings (fields of EncodeParams) in one line."""
    if encode["codec"] == "auto":
        return f"{encode['container']} images, {encode['pix_fmt']}"
    quality = f", crf {encode['crf']}" if encode["crf"] is not None else ""
    quality += f", {encode['bitrate']} kbit/s" if encode["bitrate"] is not None else ""
    preset = f", preset {encode['preset']}" if encode["preset"] != "auto" else ""
    return f"{encode['codec']} ({encode['encoder']}) {encode['pix_fmt']}{quality}{preset}, {encode['container']}"


def layout_of(encode: EncodeParams, info: VideoInfo) -> YuvLayout:
    """Which planes the encoder wants."""
    _check_resolved(encode)
    return YuvLayout(
        subsampling=codecs.subsampling_of(encode.pix_fmt),
        depth=codecs.depth_of(encode.pix_fmt),
        matrix=info.matrix,
        full_range=info.full_range,
    )


def segment_format(encode: EncodeParams) -> str:
    """Muxer of this job's segments."""
    return codecs.segment_format(encode.codec, encode.pix_fmt)


def encode_segment(
    chunks: Iterable[Planes], path: str | Path, info: VideoInfo, encode: EncodeParams, width: int, height: int
) -> EncodedSegment:
    """Encode planes (Y, U, V and, for formats with transparency, A), each T h w, into the file `path`.

    uint8, or uint16 with the value in the low bits. Errors of `chunks` pass through; the file is then closed and
    incomplete, for the caller to delete.
    """
    _check_resolved(encode)
    rate = Fraction(*info.frame_rate)
    timescale = rate.numerator * -(-SMALLEST_TIMESCALE // rate.numerator)
    scales = {"movie_timescale": str(timescale), "video_track_timescale": str(timescale)}
    muxer = segment_format(encode)
    frames = 0
    packets = 0
    with writing(path):
        container = av.open(file_url(path), "w", format=muxer, options=scales if muxer != "webm" else {})
    try:
        with writing(path):
            stream = add_stream(container, info, encode, width, height, rate)
        for planes in chunks:
            for picture in zip(*planes, strict=True):
                frame = video_frame(picture, encode.pix_fmt, width, height)
                if coded_format(encode) != encode.pix_fmt:
                    frame = frame.reformat(format=coded_format(encode))
                frame.pts = frames
                frame.time_base = 1 / rate
                # The first frame opens the encoder.
                with writing(path), nullcontext() if frames else ordinary_scheduling():
                    packets += _mux(container, stream.encode(frame), packets, encode)
                frames += 1
        if not frames:
            raise FlashvsrError(f"no frames came for segment {str(path)!r}; at least 1 is needed")
        with writing(path):
            packets += _mux(container, stream.encode(), packets, encode)
    except BaseException as error:  # also Ctrl-C: the file must not stay open, whoever called deletes it
        error.add_note(f"while encoding segment {str(path)!r}, after {frames} frames")
        _abandon(container, error)
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


def _mux(container: av.container.OutputContainer, packets: list[av.Packet], number: int, encode: EncodeParams) -> int:
    """Write packets, the first of which is the file's packet `number`; how many there were."""
    for packet in packets:
        restamp(packet, number, encode)
        container.mux(packet)
        number += 1
    return len(packets)


def _check_resolved(encode: EncodeParams) -> None:
    if not encode.is_resolved:
        raise FlashvsrError(f"encode settings still have open choices ({encode}); pass the result of resolve()")


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


def _abandon(container: av.container.OutputContainer, cause: BaseException) -> None:
    """Close after an error. What closing complains of in turn is told with the first error and does not hide it."""
    try:
        container.close()
    except av.FFmpegError as error:
        cause.add_note(f"closing it failed as well: {os_reason(error)}")
