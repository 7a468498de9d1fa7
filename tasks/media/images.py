"""Image sequences as results: pictures of a segment travel as packets of a QuickTime file, and leave it as files."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal, cast, get_args

import av
import av.video
import numpy as np

from flashvsr_core.errors import FlashvsrError, UserError
from tasks.media.codecs import ImageKind, has_alpha
from tasks.media.encode import EncodedSegment, EncodeParams, PixFmt, writing
from tasks.media.probe import VideoInfo
from tasks.media.source import file_url, open_source, video_streams
from tasks.media.stills import decode_image, rgb_to_float

CARRIER = "mov"  # holds packets of every image codec here; a packet is the file as it is written
FRAME_NUMBER = re.compile(r"%(0\d)?d")
DEFAULT_PATTERN = "%06d"
LARGEST_SIDE = 16384  # pixels


@dataclass(frozen=True)
class ImageFormat:
    """How one kind of image is made: encoder, pixel formats by preference, depth of each, encoder options."""

    codec: str
    pix_fmts: tuple[tuple[PixFmt, int], ...]
    options: tuple[tuple[str, str], ...] = ()


FORMATS: dict[str, ImageFormat] = {
    "png": ImageFormat("png", (("rgb24", 8), ("rgb48be", 16), ("rgba", 8), ("rgba64be", 16))),
    "tiff": ImageFormat(
        "tiff", (("rgb48le", 16), ("rgb24", 8), ("rgba64le", 16), ("rgba", 8)), (("compression_algo", "deflate"),)
    ),
    "dpx": ImageFormat("dpx", (("gbrp10be", 16),)),
    "exr": ImageFormat("exr", (("gbrpf32le", 16), ("gbrapf32le", 16)), (("format", "half"), ("compression", "zip16"))),
}


def is_images(container: str) -> bool:
    return container in get_args(ImageKind)


def has_number(name: str) -> bool:
    """Whether a name has the place for frame numbers that sequences need (%d, %06d)."""
    return len(FRAME_NUMBER.findall(name)) == 1


def frame_name(pattern: str, number: int) -> str:
    """The name of one image: the pattern with its %06d (%d) replaced, everything else as it is."""
    match = FRAME_NUMBER.search(pattern)
    if match is None:
        raise UserError(f"{pattern!r} has no place for the frame's number; write for example shot_%06d.png")
    width = int(match[1] or 0)
    return f"{pattern[: match.start()]}{number:0{width or 1}d}{pattern[match.end() :]}"


def resolve_images(params: EncodeParams, info: VideoInfo, width: int, height: int) -> EncodeParams:
    """Decide what was left open: PNG has 8 bits for sources of 8 and else 16, the others what they are for.

    Transparency is kept where the format has it. Raises UserError for choices that only videos have.
    """
    _check_no_video_choices(params)
    kinds = FORMATS[params.container].pix_fmts
    if max(width, height) > LARGEST_SIDE:
        raise UserError(f"output size {width}x{height} is beyond {LARGEST_SIDE} pixels a side; choose scale 2")
    pix_fmt = params.pix_fmt
    if pix_fmt == "auto":
        wanted = 8 if params.container == "png" and info.bit_depth <= 8 else 16
        pix_fmt, _ = min(kinds, key=lambda kind: (kind[1] != wanted, has_alpha(kind[0]) != info.has_alpha))
    if pix_fmt not in dict(kinds):
        names = ", ".join(name for name, _ in kinds)
        raise UserError(f"pixel format {pix_fmt} is not one of {params.container} images; choose {names} or auto")
    # The fields of video encoders have fixed values, so that they do not make two jobs of one.
    return EncodeParams(
        pix_fmt=pix_fmt, target_size=params.target_size, container=params.container, threads=params.threads
    )


def _check_no_video_choices(params: EncodeParams) -> None:
    """Quality and speed that are named mean nothing here and are passed over; these would make another file."""
    for option, value, unset in (
        ("--delivery", params.delivery, "none"),
        ("--codec", params.codec, "auto"),
        ("--encoder", params.encoder, "software"),
        ("--bitrate", params.bitrate, None),
        ("--codec-args", params.codec_args, ""),
    ):
        if value != unset:
            raise UserError(
                f"{option} {value} is for videos, and the output is {params.container} images; leave it out, or choose "
                "an output ending in .mp4, .mkv, .mov or .webm"
            )


def kinds_with_alpha() -> tuple[str, ...]:
    """Kinds of images that can be transparent."""
    return tuple(kind for kind, form in FORMATS.items() if any(has_alpha(name) for name, _ in form.pix_fmts))


def bits_per_pixel(encode: EncodeParams) -> int:
    """What one pixel takes in a file, to foresee a full disk: noise does not get smaller in any of the formats."""
    return (4 if has_alpha(encode.pix_fmt) else 3) * depth_of(encode)


def depth_of(encode: EncodeParams) -> Literal[8, 16]:
    """Bits of the frames that `encode_images` takes."""
    return cast(Literal[8, 16], dict(FORMATS[encode.container].pix_fmts)[encode.pix_fmt])


def encode_images(
    chunks: Iterable[np.ndarray], path: str | Path, info: VideoInfo, encode: EncodeParams, width: int, height: int
) -> EncodedSegment:
    """Encode RGB frames, T H W 3 (4 with transparency) of `depth_of(encode)` bits, as pictures in the file `path`.

    EXR holds linear light (1.0 is white), multiplied with alpha; everything else the values as they are.
    """
    kind = FORMATS[encode.container]
    rate = Fraction(*info.frame_rate)
    frames = 0
    with writing(path), av.open(file_url(path), "w", format=CARRIER) as container:
        stream = container.add_stream(kind.codec, rate=rate, options=dict(kind.options))
        assert isinstance(stream, av.video.VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, encode.pix_fmt
        stream.codec_context.thread_count = 1
        for chunk in chunks:
            for rgb in chunk:
                frame = _frame(rgb, encode.pix_fmt, width, height)
                frame.pts, frame.time_base = frames, 1 / rate
                container.mux(stream.encode(frame))
                frames += 1
        if not frames:
            raise FlashvsrError(f"no frames came for segment {str(path)!r}; at least 1 is needed")
        container.mux(stream.encode())
    return EncodedSegment(frames, Path(path).stat().st_size, width, height)


def images_in(path: str | Path) -> Iterator[bytes]:
    """The files in a segment, in order."""
    with open_source(path) as container:
        for packet in container.demux(video_streams(container)[0]):
            if packet.size:
                yield bytes(packet)


def check_image(path: Path, width: int, height: int) -> None:
    """Decode one finished image; FlashvsrError where it is not what was made."""
    frame = decode_image(path)
    if (frame.width, frame.height) != (width, height):
        raise FlashvsrError(f"{str(path)!r} is {frame.width}x{frame.height}, expected {width}x{height}; run again")


def _frame(rgb: np.ndarray, pix_fmt: str, width: int, height: int) -> av.VideoFrame:
    """uint8 or uint16 H W 3 or 4 -> a frame."""
    channels = 4 if has_alpha(pix_fmt) else 3
    if rgb.shape != (height, width, channels):
        raise FlashvsrError(
            f"a frame is {rgb.shape}, expected {(height, width, channels)}; this is a bug, please report it"
        )
    if pix_fmt.startswith("rgb"):
        return av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format=pix_fmt)
    frame = av.VideoFrame(width, height, pix_fmt)
    if pix_fmt == "gbrp10be":
        values = np.rint(rgb.astype(np.float32) * (1023 / 65535)).astype(">u2")
    else:
        values = rgb_to_float(rgb[..., :3])
        if channels == 4:
            alpha = rgb[..., 3:].astype(np.float32) / 65535
            values = np.concatenate([values * alpha, alpha], axis=-1)
        values = values.astype("<f4")
    for plane, channel in zip(frame.planes, (1, 2, 0, 3)):  # green, blue, red, alpha
        lines = np.frombuffer(memoryview(plane), values.dtype).reshape(-1, plane.line_size // values.dtype.itemsize)
        lines[:height, :width] = values[..., channel]
    return frame
