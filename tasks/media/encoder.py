"""Setting up libavcodec's encoders: options, tags, HDR metadata, frames; and trying one before it is relied on."""

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING

import av
import av.container
import av.video
import av.video.codeccontext
import numpy as np

from flashvsr_core.errors import FlashvsrError, UserError
from tasks.media import codecs
from tasks.media.hdr import CHROMA_UNIT, LUMINANCE_UNIT
from tasks.media.probe import VideoInfo
from tasks.media.scheduling import ordinary_scheduling
from tasks.media.size import sample_aspect_ratio
from tasks.media.source import os_reason
from tasks.media.tags import COLORSPACES, MATRIX_OF_TAG, PRIMARIES, RANGES, TAG_OF_MATRIX, TRANSFERS

if TYPE_CHECKING:
    from tasks.media.encode import EncodeParams

# Frames by which libx265 decodes ahead with every preset. Set by us: in segments of one or two frames its own decoding
# times are left-overs of memory (PyAV 18.1), so that files differ and some cannot be written at all.
X265_DELAY = 2
SMALLEST_TIMESCALE = 10_000  # ticks per second of segments: what ffmpeg would raise a smaller one to
CARRIES_HDR10 = frozenset({"h264", "h265", "av1"})  # codecs whose own stream holds mastering display and light levels
_TRIAL = (256, 144)  # pixels; NVENC refuses pictures narrower than about 150
_TRIAL_FRAMES = 4
NVENC_SUFFIX = "_nvenc"  # of libavcodec's names


def add_stream(
    container: av.container.OutputContainer,
    info: VideoInfo,
    encode: "EncodeParams",
    width: int,
    height: int,
    rate: Fraction,
) -> av.video.VideoStream:
    """Give the container its video stream, encoder and tags set."""
    spec = codecs.spec_of(encode.codec, encode.encoder)
    assert spec is not None, "encode settings are resolved"
    stream = container.add_stream(spec.encoder, rate=rate)
    assert isinstance(stream, av.video.VideoStream)
    context = stream.codec_context
    context.width, context.height, context.pix_fmt = width, height, coded_format(encode)
    context.time_base = 1 / rate
    context.thread_count = encode.threads
    context.sample_aspect_ratio = sample_aspect_ratio(info, width, height)
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
    stream.options = {**_options(spec, encode, info)}
    if encode.bitrate is not None:
        context.bit_rate = encode.bitrate * 1000
    elif encode.codec == "vp9" or encode.encoder == "nvenc":
        context.bit_rate = 0  # else the quality would be a bound only
    if encode.codec == "h265":
        context.codec_tag = "hvc1"  # what Apple players need
    if encode.codec == "vp9" and codecs.has_alpha(encode.pix_fmt):
        stream.metadata["alpha_mode"] = "1"
    return stream


def _options(spec: codecs.CodecSpec, encode: "EncodeParams", info: VideoInfo) -> dict[str, str]:
    options = dict(spec.options) | spec.presets.get(encode.preset, {})
    if spec.crf is not None and encode.crf is not None:
        options[spec.crf_option] = str(encode.crf)
    given = codecs.parse_args(encode.codec_args)
    if spec.args_option is None:
        return options | given | _plain_options(spec, encode)
    # Ours come last: what a merge and repeatable results rest on is not for arguments to change.
    joined = given | _own_arguments(spec.encoder, encode) | _hdr_arguments(spec.encoder, info)
    return options | {spec.args_option: ":".join(f"{key}={value}" for key, value in joined.items())}


def _plain_options(spec: codecs.CodecSpec, encode: "EncodeParams") -> dict[str, str]:
    if encode.codec == "vp9" and codecs.has_alpha(encode.pix_fmt):
        rates = {"auto-alt-ref": "0"}  # libvpx has no transparency with hidden frames
    else:
        rates = {}
    if encode.codec == "vp9" and encode.bitrate is not None:
        # A constant rate: libvpx's variable one came out 31 % low over 10 s (tests/media/test_outputs.py).
        return rates | dict.fromkeys(("minrate", "maxrate"), str(encode.bitrate * 1000))
    if spec.encoder.endswith(NVENC_SUFFIX):
        return {"rc": "vbr"}
    return rates


def _own_arguments(encoder: str, encode: "EncodeParams") -> dict[str, str]:
    threads = encode.threads
    if encoder == "libx264":
        # cpu-independent: another machine must give the same frames. Without it not even the same machine does: the
        # AVX-512 code for macroblock trees in PyAV 18.1's libx264 gave 12 different files in 12 runs.
        return {"open-gop": "0", "cpu-independent": "1", "threads": str(threads)}
    if encoder == "libsvtav1":
        # As SVT-AV1 comes, a segment of 10 s is 10 to 14 % over its bitrate; so, 2 % at most.
        bounds = {"overshoot-pct": "0", "undershoot-pct": "5"} if encode.bitrate is not None else {}
        return {"lp": str(threads), **bounds}
    # Without repeated headers frames are lost or wrong when a merge joins differently encoded segments (measured).
    # Unset, pools and frame-threads follow the machine's cores, and frame-threads changes the result.
    return {
        "open-gop": "0", "repeat-headers": "1", "log-level": "error", "pools": str(threads),
        "frame-threads": str(1 + (threads >= 4)),
    }  # fmt: skip


def _hdr_arguments(encoder: str, info: VideoInfo) -> dict[str, str]:
    """Mastering display and light levels, as each encoder spells them."""
    found: dict[str, str] = {}
    display, light = info.mastering_display, info.content_light
    if display is not None:
        points = {"G": display.green, "B": display.blue, "R": display.red, "WP": display.white}
        luminance = (display.max_luminance, display.min_luminance)
        if encoder == "libsvtav1":
            points_text = "".join(f"{n}({x / CHROMA_UNIT:.5f},{y / CHROMA_UNIT:.5f})" for n, (x, y) in points.items())
            low, high = luminance[1] / LUMINANCE_UNIT, luminance[0] / LUMINANCE_UNIT
            found["mastering-display"] = f"{points_text}L({high:.4f},{low:.4f})"
        else:
            text = "".join(f"{name}({x},{y})" for name, (x, y) in points.items())
            key = "master-display" if encoder == "libx265" else "mastering-display"
            found[key] = f"{text}L({luminance[0]},{luminance[1]})"
    if light is not None:
        key = {"libx264": "cll", "libx265": "max-cll", "libsvtav1": "content-light"}[encoder]
        found[key] = f"{light.max_cll},{light.max_fall}"
    if encoder == "libx265" and info.color_trc == "smpte2084" and found:
        found["hdr10"] = "1"
    return found


def restamp(packet: av.Packet, number: int, encode: "EncodeParams") -> None:
    """Set the decoding time of the file's packet `number` where the encoder's own cannot be trusted."""
    if encode.codec == "h265" and encode.encoder == "software":
        packet.dts = number - X265_DELAY


def video_frame(planes: Sequence[np.ndarray], pix_fmt: str, width: int, height: int) -> av.VideoFrame:
    """Copy planes (h w each) into a new frame, whose lines are padded."""
    frame = av.VideoFrame(width, height, pix_fmt)
    dtype = np.dtype("u1") if codecs.depth_of(pix_fmt) == 8 else np.dtype("<u2")
    if len(planes) != len(frame.planes):
        raise FlashvsrError(f"{len(planes)} planes came, {pix_fmt} wants {len(frame.planes)}")
    for plane, values in zip(frame.planes, planes, strict=True):
        if values.shape != (plane.height, plane.width) or values.dtype != dtype:
            raise FlashvsrError(
                f"a plane is {values.shape[1]}x{values.shape[0]} {values.dtype}, {pix_fmt} at {width}x{height} wants "
                f"{plane.width}x{plane.height} {dtype}"
            )
        lines = np.frombuffer(memoryview(plane), dtype).reshape(-1, plane.line_size // dtype.itemsize)
        lines[: plane.height, : plane.width] = values
    return frame


def coded_format(encode: "EncodeParams") -> str:
    """The pixel format that the encoder is given: NVENC takes 10 bits only as P010."""
    return _coded_format(encode.pix_fmt, encode.encoder == "nvenc")


def _coded_format(pix_fmt: str, nvenc: bool) -> str:
    return "p010le" if nvenc and pix_fmt == "yuv420p10le" else pix_fmt


def _grey(width: int, height: int, pix_fmt: str, number: int) -> av.VideoFrame:
    frame = av.VideoFrame(width, height, pix_fmt)
    for plane in frame.planes:
        np.frombuffer(memoryview(plane), np.uint8)[:] = 128
    frame.pts = number
    return frame


def _encoded_size(context: av.video.codeccontext.VideoCodecContext, frame: av.VideoFrame | None) -> int:
    return sum(packet.size for packet in context.encode(frame))


@lru_cache
def probe_encoder(encoder: str, pix_fmt: str = "yuv420p", width: int = _TRIAL[0], height: int = _TRIAL[1]) -> None:
    """Encode a few grey frames of this format and size in pixels; raises UserError with the reason where that fails.

    An encoder that is there may still lack a format or a size: GPUs differ by generation.
    """
    coded = _coded_format(pix_fmt, encoder.endswith(NVENC_SUFFIX))
    what = f"{encoder} with {pix_fmt} at {width}x{height}"
    try:
        context = av.CodecContext.create(encoder, "w")
        assert isinstance(context, av.video.codeccontext.VideoCodecContext)
        context.width, context.height, context.pix_fmt = width, height, coded
        context.time_base = Fraction(1, 25)
        with ordinary_scheduling():
            size = sum(_encoded_size(context, _grey(width, height, coded, number)) for number in range(_TRIAL_FRAMES))
            size += _encoded_size(context, None)
    except (av.FFmpegError, ValueError) as error:
        raise UserError(
            f"{what} does not work on this machine ({os_reason(error)}): it needs an NVIDIA GPU whose encoder can do "
            "this, and its driver; use --encoder software"
        ) from error
    if not size:
        raise UserError(f"{what} gave no data on this machine; use --encoder software")
