"""Pictures as video: single images, sequences of them, and animated WebP (which libavformat cannot read)."""

import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import av.container
import av.video
import numpy as np
from PIL import Image, UnidentifiedImageError

from flashvsr_core.errors import BadInput
from tasks.media.limits import DEFAULT_LIMITS, Limits
from tasks.media.probe import StreamInfo, VideoInfo, default_matrix
from tasks.media.sequence import find_images, is_image, is_sequence
from tasks.media.source import IMAGE, open_source, os_reason
from tasks.media.structure import cut_short
from tasks.media.tags import COLORSPACES, PRIMARIES, RANGES, TRANSFERS, name_of
from tasks.media.timestamps import Timestamps, average_rate, constant_rate

DEFAULT_FPS = Fraction(25)  # of sequences, where the user names no rate
STILL = "image"  # `VideoInfo.container` of a single image ...
SEQUENCE = "images"  # ... of a sequence of them ...
ANIMATION = "webp"  # ... and of an animated WebP
PICTURES = (STILL, SEQUENCE, ANIMATION)
MILLISECONDS = Fraction(1, 1000)
ANIMATION_FLAG = 2  # of the VP8X chunk
SRGB_KNEE = 0.0031308  # linear light below which the sRGB curve is a line
FLOAT_DEPTH = 16  # bits at which floating-point pictures are processed


@dataclass(frozen=True)
class _Picture:
    """What the first frame tells of all."""

    width: int
    height: int
    frame: av.VideoFrame
    codec: str


def is_pictures(path: str | Path) -> bool:
    """Whether a source is a sequence of images, a single image or an animated WebP, by its name."""
    return is_sequence(path) or is_image(str(path))


def probe_pictures(
    path: str | Path,
    fps: Fraction | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> VideoInfo:
    """Describe pictures as a video of rate `fps`. Raises BadInput naming the image that is damaged or unlike the first.

    A single image is a video of one frame; an animated WebP has its own times, and `fps` is refused.
    """
    name = repr(str(path))
    if is_sequence(path):
        files = find_images(path).files
        limits.check_frames(name, len(files))
        return _still_info(files, fps or DEFAULT_FPS, limits, SEQUENCE)
    if fps is not None:
        raise BadInput(f"{name} is one file, and --fps is for sequences of images; leave it out")
    if _is_animated(path):
        return _animation_info(path, limits)
    return _still_info((Path(path),), DEFAULT_FPS, limits, STILL)


def picture_frames(path: str | Path, info: VideoInfo, start: int) -> Generator[av.VideoFrame, None, None]:
    """Decoded frames from number `start` on, of a source that `probe_pictures` described."""
    if info.container == ANIMATION:
        yield from _animation_frames(path, info.skipped + start)
        return
    files = find_images(path).files if info.container == SEQUENCE else (Path(path),)
    for file in files[info.skipped + start :]:
        yield decode_image(file)


def _still_info(files: tuple[Path, ...], rate: Fraction, limits: Limits, container: str) -> VideoInfo:
    first = _first(files[0], limits)
    depth = _depth(first.frame)
    clear = _is_clear(first.frame)
    for file in files[1:]:
        width, height, pix_fmt = _header(file)
        if (width, height) != (first.width, first.height):
            raise BadInput(
                f"{str(file)!r} is {width}x{height}, the first image {first.width}x{first.height}; all images of a "
                "sequence must have one size"
            )
        if _format_depth(pix_fmt) != depth:
            raise BadInput(
                f"{str(file)!r} has {_format_depth(pix_fmt)} bits, the first image {depth}; all images of a sequence "
                "must have one depth"
            )
        clear |= has_alpha(pix_fmt)
    pts = np.arange(len(files), dtype=np.int64)
    return _info(first, pts, 1 / rate, rate, container, timed=False, clear=clear)


def _first(file: Path, limits: Limits) -> _Picture:
    width, height, _ = _header(file)
    limits.check_size(repr(str(file)), width, height)
    with _image(file) as (container, stream):
        codec = stream.codec_context.codec.canonical_name
        frame = _frame(file, container, stream)
    return _Picture(frame.width, frame.height, frame, codec)


def _info(
    picture: _Picture,
    pts: np.ndarray,
    time_base: Fraction,
    rate: Fraction,
    container: str,
    timed: bool,
    clear: bool,
) -> VideoInfo:
    frame = picture.frame
    constant = container != ANIMATION or constant_rate(pts, time_base, (rate,)) is not None
    colorspace = name_of(COLORSPACES, frame.colorspace)
    color_range = name_of(RANGES, frame.color_range)
    depth = _depth(frame)
    matrix = default_matrix(repr(picture.codec), frame, colorspace)
    stream = StreamInfo(0, "video", picture.codec, None, None, default=True, forced=False, cover=False)
    return VideoInfo(
        width=picture.width,
        height=picture.height,
        rotation=0,
        display_matrix=None,
        sample_aspect_ratio=(1, 1),
        frame_rate=(rate.numerator, rate.denominator),
        time_base=(time_base.numerator, time_base.denominator),
        frames=len(pts),
        constant_rate=constant,
        timestamps=Timestamps.of(pts),
        timed=timed,
        start_time=0.0,
        audio_start=None,
        duration=float(int(pts[-1] - pts[0]) * time_base + 1 / rate),
        container=container,
        codec=picture.codec,
        pix_fmt=frame.format.name,
        bit_depth=depth,
        interlaced=False,
        field_order="frame",
        has_alpha=clear,
        color_primaries=name_of(PRIMARIES, frame.color_primaries),
        color_trc=None if is_float(frame) else name_of(TRANSFERS, frame.color_trc),
        colorspace=None if frame.format.is_rgb else colorspace,
        color_range=None if frame.format.is_rgb else color_range,  # of what is made of it, which is YUV
        # JFIF and WebP are BT.601 whatever their size.
        matrix="bt601" if picture.codec in ("webp", "vp8", "mjpeg") and not colorspace else matrix,
        full_range=not frame.format.is_rgb and (color_range == "pc" or frame.format.name.startswith("yuvj")),
        mastering_display=None,
        content_light=None,
        dynamic_metadata=(),
        timecode=None,
        stream_index=0,
        streams=(stream,),
        chapters=0,
        truncated=False,
        damage=None,
    )


def is_float(frame: av.VideoFrame) -> bool:
    """Whether pixels are floating-point numbers, which by convention are linear light."""
    return is_float_format(frame.format.name)


def float_to_rgb(frame: av.VideoFrame) -> np.ndarray:
    """Linear light (1.0 is white) -> uint16 H W 3 with the sRGB curve; what is brighter than white is clipped.

    Colours of transparent pictures are, as OpenEXR has it, multiplied with their alpha, and are divided by it.
    """
    name = frame.format.name
    if name.startswith("gray"):
        linear = np.repeat(_plane(frame, 0)[..., None], 3, axis=2)
    else:  # planes are green, blue, red
        linear = np.stack([_plane(frame, index) for index in (2, 0, 1)], axis=-1)
        if len(frame.planes) == 4:
            alpha = _plane(frame, 3)[..., None].astype(np.float32)
            linear = np.divide(linear, alpha, out=linear.astype(np.float32), where=alpha > 0)
    linear = np.nan_to_num(linear.astype(np.float32), posinf=1.0, neginf=0.0).clip(0, 1)
    curve = np.where(linear <= SRGB_KNEE, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(curve * 65535).astype(np.uint16)


def float_alpha(frame: av.VideoFrame) -> np.ndarray:
    """The alpha of floating-point pictures as uint16 H W; opaque where there is none."""
    if len(frame.planes) != 4:
        return np.full((frame.height, frame.width), 65535, np.uint16)
    alpha = np.nan_to_num(_plane(frame, 3).astype(np.float32)).clip(0, 1)
    return np.rint(alpha * 65535).astype(np.uint16)


def rgb_to_float(rgb: np.ndarray) -> np.ndarray:
    """uint16 with the sRGB curve -> float32 linear light, 1.0 is white."""
    value = rgb.astype(np.float32) / 65535
    return np.where(value <= SRGB_KNEE * 12.92, value / 12.92, ((value + 0.055) / 1.055) ** 2.4).astype(np.float32)


def _plane(frame: av.VideoFrame, index: int) -> np.ndarray:
    plane = frame.planes[index]
    dtype = np.dtype("<f2" if "f16" in frame.format.name else "<f4")
    lines = np.frombuffer(memoryview(plane), dtype).reshape(-1, plane.line_size // dtype.itemsize)
    return lines[: frame.height, : frame.width]


def has_alpha(pix_fmt: str) -> bool:
    """Whether pictures of a format can be transparent; those with a palette are not known by their format."""
    if pix_fmt.startswith(("pal8", "mono")):
        return False
    return any(component.is_alpha for component in av.VideoFormat(pix_fmt, 16, 16).components)


def _is_clear(frame: av.VideoFrame) -> bool:
    if frame.format.name == "pal8":
        return bool((frame.reformat(format="rgba").to_ndarray()[..., 3] < 255).any())
    return has_alpha(frame.format.name)


def is_float_format(pix_fmt: str) -> bool:
    """Whether pixels of a format are floating-point numbers."""
    return "f32" in pix_fmt or "f16" in pix_fmt


def _depth(frame: av.VideoFrame) -> int:
    return _format_depth(frame.format.name)


def _format_depth(pix_fmt: str) -> int:
    if pix_fmt.startswith(("pal8", "mono")):
        return 8
    bits = max(component.bits for component in av.VideoFormat(pix_fmt, 16, 16).components)
    return FLOAT_DEPTH if is_float_format(pix_fmt) else bits


@contextmanager
def _image(file: Path) -> Iterator[tuple[av.container.InputContainer, av.video.VideoStream]]:
    """An image file and its one stream; damage is an error, not a grey patch."""
    with open_source(file, IMAGE) as container:
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise BadInput(f"{str(file)!r} is coded in a way that is not known here; convert it to PNG")
        if stream.codec_context.name != "tiff":  # its decoder then refuses sound files that ffmpeg itself wrote
            stream.codec_context.options = {"err_detect": "explode"}
        stream.codec_context.thread_count = 1
        yield container, stream


def _header(file: Path) -> tuple[int, int, str]:
    if finding := cut_short(file):
        raise BadInput(f"{str(file)!r} is cut short: {finding}; copy it again")
    with _image(file) as (_, stream):
        context = stream.codec_context
        if not context.width or not context.pix_fmt:
            raise BadInput(f"{str(file)!r} is damaged or cut short; copy it again")
        return context.width, context.height, context.pix_fmt


def decode_image(file: Path) -> av.VideoFrame:
    """The picture in a file; BadInput where it is damaged."""
    with _image(file) as (container, stream):
        return _frame(file, container, stream)


def _frame(file: Path, container: av.container.InputContainer, stream: av.video.VideoStream) -> av.VideoFrame:
    try:
        frame = next(container.decode(stream), None)
    except av.FFmpegError as error:
        raise BadInput(f"{str(file)!r} cannot be decoded ({os_reason(error)}); copy it again") from error
    if frame is None or frame.is_corrupt:
        raise BadInput(f"{str(file)!r} is damaged or cut short; copy it again")
    return frame


def _is_animated(path: str | Path) -> bool:
    if Path(path).suffix.lower() != ".webp" or not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        head = file.read(21)
    return len(head) == 21 and head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and bool(head[20] & ANIMATION_FLAG)


def _animation_info(path: str | Path, limits: Limits) -> VideoInfo:
    name = repr(str(path))
    with _animation(path) as image:
        limits.check_size(name, image.width, image.height)
        frames = getattr(image, "n_frames", 1)
        limits.check_frames(name, frames)
        pts = [0]
        clear = False
        for _ in _each(name, image):
            clear |= image.has_transparency_data
            pts.append(pts[-1] + max(1, round(image.info.get("duration", 0))))
        times = np.array(pts[:-1], dtype=np.int64)
        image.seek(0)
        frame = _as_frame(image)
    rate = constant_rate(times, MILLISECONDS, ()) or average_rate(times, MILLISECONDS)
    if rate is None:
        rate = Fraction(1000, pts[-1])
    picture = _Picture(frame.width, frame.height, frame, "webp")
    return _info(picture, times, MILLISECONDS, rate, ANIMATION, timed=False, clear=clear)


def _animation_frames(path: str | Path, start: int) -> Iterator[av.VideoFrame]:
    with _animation(path) as image:
        for number in _each(repr(str(path)), image):
            if number >= start:
                yield _as_frame(image)


def _each(name: str, image: Image.Image) -> Iterator[int]:
    """Go through the frames, decoding each."""
    frames = getattr(image, "n_frames", 1)
    for number in range(frames):
        try:
            image.seek(number)
            image.load()
        except (EOFError, OSError, ValueError, SyntaxError) as error:
            raise BadInput(f"{name}: frame {number} of {frames} cannot be decoded ({error}); copy it again") from error
        yield number


def _animation(path: str | Path) -> Image.Image:
    try:
        return Image.open(path, formats=("WEBP",))
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise BadInput(f"{str(path)!r} is a WebP animation that cannot be read ({error}); copy it again") from error


def _as_frame(image: Image.Image) -> av.VideoFrame:
    kind = "RGBA" if image.has_transparency_data else "RGB"
    return av.VideoFrame.from_ndarray(np.asarray(image.convert(kind)), format="rgba" if kind == "RGBA" else "rgb24")
