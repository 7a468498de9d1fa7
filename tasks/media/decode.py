"""Exactly the frames asked for, as RGB: a worker reads its own range from the middle of any file."""

import logging
from collections.abc import Generator, Iterator
from contextlib import closing
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Literal

import av
import av.container
import av.video
import av.video.codeccontext
import av.video.frame
import numpy as np
from av.filter import Graph
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from flashvsr_core.config import Deinterlace
from flashvsr_core.errors import BadInput, FlashvsrError
from tasks.media.probe import VideoInfo
from tasks.media.source import bound_pixels, open_source, os_reason
from tasks.media.stills import PICTURES, float_alpha, float_to_rgb, is_float, picture_frames

log = logging.getLogger(__name__)

Channel = Literal["colour", "alpha"]

CHUNK = 8  # frames per array, the model's step
WITH_LIBVPX = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # decoders that give transparency, which libavcodec's own drop
# Where a seek lands too late (transport streams, leading frames of open groups) the next one goes this far back.
STEPS_BACK = (0, 2, 4, 8, 16)  # seconds; then the start of the file
# swscale's fast paths are up to 3 levels off; with these flags 8 bits are within 0.51 of exact arithmetic. Do not add
# FULL_CHR_H_INP: with 10-bit 4:2:0 it gives garbage (libswscale of PyAV 18.1).
FLAGS = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
COLORSPACE = {"bt601": Colorspace.SMPTE170M, "bt709": Colorspace.ITU709, "bt2020": Colorspace.BT2020}


def read_frames(
    path: str | Path,
    info: VideoInfo,
    start: int,
    stop: int,
    *,
    deinterlace: Deinterlace = "off",
    channel: Channel = "colour",
) -> Generator[np.ndarray, None, None]:
    """Frames [start, stop) in arrays of 1 to 8 frames, T H W 3 RGB as coded (rotation is carried by the merge).

    uint8 for sources of 8 bits, uint16 over the full 0..65535 for deeper ones. `channel` alpha gives the transparency
    as a grey picture instead. Raises BadInput naming the frame that is missing, damaged or of another size.
    """
    if not 0 <= start <= stop <= info.frames:
        raise FlashvsrError(f"frames [{start}, {stop}) are outside the {info.frames} frames of {str(path)!r}")
    if start == stop:
        return
    convert = RgbConverter(info) if channel == "colour" else AlphaConverter(info)
    wanted = deinterlace == "on" or (deinterlace == "auto" and info.interlaced)
    if wanted:
        pictures = deinterlaced(path, info, start, stop, flagged_only=deinterlace == "auto")
    else:
        pictures = _checked(path, info, start, stop, warn_of_fields=deinterlace == "auto")
    with closing(pictures):
        while chunk := [convert(frame) for frame in islice(pictures, CHUNK)]:
            yield np.stack(chunk)


def _checked(
    path: str | Path, info: VideoInfo, start: int, stop: int, warn_of_fields: bool = False
) -> Generator[av.VideoFrame, None, None]:
    """Decoded frames [start, stop), each of them the one it should be."""
    times = info.timestamps.array[start:stop]
    decoded = _decoded(path, info, start)
    with closing(decoded):
        for number, time in enumerate(times.tolist(), start):
            frame = next(decoded, None)
            if frame is None:
                raise BadInput(_fault(path, info, number, "is missing: the video ends before it"))
            if info.timed and frame.pts != time:
                raise BadInput(_fault(path, info, number, f"is missing: expected at tick {time}, found {frame.pts}"))
            if frame.is_corrupt:
                raise BadInput(_fault(path, info, number, "is damaged"))
            if (frame.width, frame.height) != (info.width, info.height):
                size = f"is {frame.width}x{frame.height}, the video {info.width}x{info.height}"
                raise BadInput(_fault(path, info, number, size))
            if warn_of_fields and frame.interlaced_frame:
                log.warning("%r: frame %d is interlaced, the first were not; see --deinterlace on", str(path), number)
                warn_of_fields = False
            yield frame


def _decoded(path: str | Path, info: VideoInfo, start: int) -> Generator[av.VideoFrame, None, None]:
    if info.container in PICTURES:
        return picture_frames(path, info, start)
    return _from_time(path, info, start) if info.timed else _counted(path, info, start)


class RgbConverter:
    """Frames to RGB arrays with the video's matrix and range, whatever single frames claim."""

    def __init__(self, info: VideoInfo) -> None:
        self._reformatter = VideoReformatter()
        self._format = "rgb24" if info.bit_depth <= 8 else "rgb48le"
        self._colorspace = COLORSPACE[info.matrix]
        self._range = ColorRange.JPEG if info.full_range else ColorRange.MPEG
        self._correction: np.ndarray | None = None

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        """One frame -> H W 3, uint8 or uint16."""
        if is_float(frame):
            return float_to_rgb(frame)
        if (
            frame.format.is_rgb
            and frame.format.name in av.video.frame.supported_np_pix_fmts
            and self._format != "rgb24"
        ):
            return self._corrected(frame, frame.to_ndarray())  # swscale would lose precision here
        rgb = self._reformatter.reformat(
            frame,
            format=self._format,
            src_colorspace=self._colorspace,
            dst_colorspace=self._colorspace,
            src_color_range=ColorRange.JPEG if frame.format.is_rgb else self._range,
            dst_color_range=ColorRange.JPEG,
            interpolation=FLAGS,
            threads=1,  # the result must not depend on the machine
        ).to_ndarray()
        if self._format == "rgb24":
            return rgb
        return self._corrected(frame, rgb)

    def _corrected(self, frame: av.VideoFrame, rgb: np.ndarray) -> np.ndarray:
        """uint16 H W 3 or 4 with the white that `frame` has -> H W 3 over 0..65535."""
        if self._correction is None:
            self._correction = _white_correction(frame, self._range == ColorRange.MPEG)
        return self._correction[rgb[..., :3]]


class AlphaConverter:
    """Transparency of frames as grey RGB arrays: 0 is clear, the largest value opaque."""

    def __init__(self, info: VideoInfo) -> None:
        self._reformatter = VideoReformatter()
        self._deep = info.bit_depth > 8

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        """One frame -> H W 3, uint8 or uint16 over the full range of the type."""
        alpha = self._plane(frame)
        return np.repeat(alpha[..., None], 3, axis=2)

    def _plane(self, frame: av.VideoFrame) -> np.ndarray:
        if is_float(frame):
            return float_alpha(frame)
        components = frame.format.components
        if frame.format.is_planar and len(frame.planes) == 4 and len(components) == 4:
            bits = components[3].bits
            plane = frame.planes[3]
            dtype = np.dtype("u1") if bits <= 8 else np.dtype(">u2" if frame.format.is_big_endian else "<u2")
            lines = np.frombuffer(memoryview(plane), dtype).reshape(-1, plane.line_size // dtype.itemsize)
            values = lines[: plane.height, : plane.width].astype(np.uint32)
            peak = 65535 if self._deep else 255
            return ((values * peak + (2**bits - 1) // 2) // (2**bits - 1)).astype(np.uint16 if self._deep else np.uint8)
        form = "rgba64le" if self._deep else "rgba"
        return self._reformatter.reformat(frame, format=form, threads=1).to_ndarray()[..., 3]


def deinterlaced(
    path: str | Path, info: VideoInfo, start: int, stop: int, flagged_only: bool
) -> Generator[av.VideoFrame, None, None]:
    """Frames [start, stop) through bwdif, one picture per frame, at its time.

    bwdif looks at one frame either side, so one more is read at both ends: the pictures do not depend on where a
    segment begins. With `flagged_only`, frames that say they are progressive pass as they are.
    """
    first, end = max(0, start - 1), min(info.frames, stop + 1)
    graph: _Bwdif | None = None
    number = first
    with closing(_checked(path, info, first, end)) as frames:
        for frame in frames:
            graph = graph or _Bwdif(frame, info, flagged_only)
            for picture in graph.push(frame):
                if start <= number < stop:
                    yield picture
                number += 1
    if graph is not None:
        for picture in graph.push(None):
            if start <= number < stop:
                yield picture
            number += 1
    if number < stop:
        raise FlashvsrError(f"bwdif gave {number - first} frames of {end - first} of {str(path)!r}; report this")


class _Bwdif:
    """One run of ffmpeg's bwdif filter; frames come out one later than they go in."""

    def __init__(self, like: av.VideoFrame, info: VideoInfo, flagged_only: bool) -> None:
        parity = "auto" if info.field_order == "frame" else info.field_order
        deint = "interlaced" if flagged_only and info.field_order == "frame" else "all"
        self._graph = Graph()
        self._graph.threads = 1
        source = self._graph.add_buffer(
            width=like.width, height=like.height, format=like.format, time_base=Fraction(*info.time_base)
        )
        bwdif = self._graph.add("bwdif", f"mode=send_frame:parity={parity}:deint={deint}")
        sink = self._graph.add("buffersink")
        self._graph.link_nodes(source, bwdif, sink).configure()
        self._number = 0

    def push(self, frame: av.VideoFrame | None) -> Iterator[av.VideoFrame]:
        if frame is not None:
            # Counted, not timed: files without usable times have several frames at one.
            frame.pts = self._number
            self._number += 1
        self._graph.vpush(frame)
        while True:
            try:
                yield self._graph.vpull()
            except (av.BlockingIOError, av.EOFError):
                return


def _white_correction(frame: av.VideoFrame, limited: bool) -> np.ndarray:
    """uint16 table: swscale's 16-bit RGB has its white at 255 * 256 (limited range) or at the coded peak shifted up.

    Measured with PyAV 18.1: uncorrected, 10-bit white comes out 4 codes dark; corrected, within 0.05 of a code.
    """
    depth = max(component.bits for component in frame.format.components)
    if frame.format.is_rgb:  # taken as it is
        white = 2**depth - 1
    else:
        white = 255 << 8 if limited else (2**depth - 1) << (16 - depth)
    levels = np.arange(65536, dtype=np.uint64)
    return np.minimum(65535, (levels * 65535 + white // 2) // white).astype(np.uint16)


def _counted(path: str | Path, info: VideoInfo, start: int) -> Generator[av.VideoFrame, None, None]:
    """Frames from number `start` of a file without usable times: decode from its beginning and count."""
    with open_source(path) as container:
        stream = _prepare(container, info)
        number = 0
        try:
            for frame in decoded_frames(container, stream, info):
                if number >= info.skipped + start:
                    yield frame
                number += 1
        except av.FFmpegError as error:
            raise BadInput(_fault(path, info, number, f"cannot be decoded ({os_reason(error)})")) from error


def _from_time(path: str | Path, info: VideoInfo, start: int) -> Generator[av.VideoFrame, None, None]:
    """Frames from number `start`: seek, look at what comes first, and seek further back where that is too late."""
    target = info.timestamps.pts(start)
    first = info.timestamps.pts(0)
    for back in STEPS_BACK:
        position = target - int(back / Fraction(*info.time_base))
        if position <= first and not info.skipped:
            break
        with open_source(path) as container:
            stream = _prepare(container, info)
            found = False
            number = start
            try:
                container.seek(position, stream=stream, backward=True)
                for frame in _exactly_from(target, decoded_frames(container, stream, info)):
                    found = True
                    yield frame
                    number += 1
            except av.FFmpegError as error:
                if found:
                    raise BadInput(_fault(path, info, number, f"cannot be decoded ({os_reason(error)})")) from error
            if found:
                return
    with open_source(path) as container:
        number = 0
        try:
            for frame in decoded_frames(container, _prepare(container, info), info):
                played = frame.pts is not None and frame.pts >= first
                if frame.pts is None or frame.pts >= target:
                    yield frame
                number += played
        except av.FFmpegError as error:
            raise BadInput(_fault(path, info, number, f"cannot be decoded ({os_reason(error)})")) from error


def _exactly_from(target: int, frames: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    """Frames from `target` on; nothing where this seek did not land safely before it."""
    frame = next(frames, None)
    if frame is None or frame.pts is None or frame.pts > target or (frame.pts == target and not frame.key_frame):
        return
    while frame is not None and frame.pts is not None and frame.pts < target:
        frame = next(frames, None)
    if frame is None or frame.pts != target:
        return
    yield frame
    yield from frames


def decoded_frames(
    container: av.container.InputContainer, stream: av.video.VideoStream, info: VideoInfo
) -> Iterator[av.VideoFrame]:
    """Frames from where the container stands; transparent VP8 and VP9 by the one decoder that gives transparency."""
    if not (info.has_alpha and info.codec in WITH_LIBVPX):
        yield from container.decode(stream)
        return
    context = av.CodecContext.create(WITH_LIBVPX[info.codec], "r")
    assert isinstance(context, av.video.codeccontext.VideoCodecContext)
    bound_pixels(context, info.width * info.height)
    for packet in container.demux(stream):
        yield from context.decode(packet)


def _prepare(container: av.container.InputContainer, info: VideoInfo) -> av.video.VideoStream:
    stream = container.streams[info.stream_index]
    assert isinstance(stream, av.video.VideoStream)
    stream.thread_type = "AUTO"
    bound_pixels(stream.codec_context, info.width * info.height)  # a picture that grows midway is refused anyway
    return stream


def _fault(path: str | Path, info: VideoInfo, number: int, finding: str) -> str:
    return (
        f"{str(path)!r}: frame {number} of {info.frames} {finding}; copy the file again, have ffmpeg conceal the "
        "damage (ffmpeg -i IN OUT), or cut the video before that frame"
    )
