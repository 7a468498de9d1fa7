"""Opening files that strangers made: only container formats that cannot name other files, only the `file` protocol."""

import errno
import os
from dataclasses import dataclass
from pathlib import Path

import av
import av.container
import av.stream
import av.video
import av.video.codeccontext

from flashvsr_core.errors import BadInput
from tasks.media.structure import has_movie_index

# Demuxers that read one file and nothing else: no playlists (hls, dash, concat), devices, network, image patterns.
# The audio formats are in so that "it has sound only" can be said of them.
FORMATS = (
    "mov,matroska,webm,mpegts,mpeg,mpegvideo,avi,flv,live_flv,asf,ogg,mxf,nut,ivf,gif,yuv4mpegpipe,h264,hevc,m4v,av1,obu,"
    "vc1,dv,rm,wtv,mp3,wav,flac,aac,w64,aiff,caf,ac3,eac3,dts"
)
PROTOCOLS = "file"


@dataclass(frozen=True)
class Kind:
    """What is expected of a file: demuxers that may read it, and how messages call it."""

    formats: str
    name: str
    accepted: str


VIDEO = Kind(FORMATS, "a video file", "single files such as mp4, mov, mkv, webm, ts, avi (no playlists)")
# How images begin, and the demuxer that reads one of that kind and nothing else (`image2` takes patterns from names).
IMAGE_STARTS = (
    (b"\x89PNG", "png_pipe"), (b"\xff\xd8\xff", "jpeg_pipe"), (b"II*\0", "tiff_pipe"), (b"MM\0*", "tiff_pipe"),
    (b"\x76\x2f\x31\x01", "exr_pipe"), (b"SDPX", "dpx_pipe"), (b"XPDS", "dpx_pipe"), (b"RIFF", "webp_pipe"),
    (b"BM", "bmp_pipe"),
)  # fmt: skip
IMAGE = Kind(
    ",".join(sorted({demuxer for _, demuxer in IMAGE_STARTS})), "an image", "png, jpg, tiff, exr, dpx, webp, bmp"
)


def file_url(path: str | Path) -> str:
    """The path as ffmpeg takes it whatever its name contains (`:`, `%`, a leading `-`)."""
    return f"file:{os.path.abspath(path)}"


def open_source(path: str | Path, kind: Kind = VIDEO) -> av.container.InputContainer:
    """Open for reading, restricted; raises BadInput with the reason where that fails. The caller closes it."""
    name = repr(str(path))
    restrictions = {"format_whitelist": kind.formats, "protocol_whitelist": PROTOCOLS}
    try:
        if os.path.getsize(path) == 0 and os.path.isfile(path):
            raise BadInput(f"{name} is an empty file (0 bytes); copy it again from where it came from")
        demuxer = _image_demuxer(path) if kind is IMAGE else None
        return av.open(file_url(path), format=demuxer, container_options=restrictions, metadata_errors="replace")
    except FileNotFoundError as error:
        raise BadInput(f"{name} does not exist; check the path") from error
    except IsADirectoryError as error:
        raise BadInput(f"{name} is a directory; give the path of {kind.name}") from error
    except PermissionError as error:
        raise BadInput(f"{name} is not readable by this user (permission denied); change its permissions") from error
    except av.EOFError as error:
        raise BadInput(
            f"{name} ends after its header: a video without frames; give a file with at least one frame"
        ) from error
    except av.FFmpegError as error:
        if has_movie_index(path) is False:
            raise BadInput(
                f"{name} is truncated: it has no index (moov box), so no frame of it can be read, not even with "
                "--allow-truncated; copy it again or repair it"
            ) from error
        reason = "" if error.errno in (errno.EINVAL, None) else f" ({os_reason(error)})"
        raise BadInput(
            f"{name} is not {kind.name} of an accepted kind{reason}; accepted are {kind.accepted}"
        ) from error
    except OSError as error:
        raise BadInput(f"{name} cannot be read: {os_reason(error)}; check the disk or copy the file again") from error


def _image_demuxer(path: str | Path) -> str:
    """By content: libavformat goes by the name where it can, and then wants `image2`."""
    with open(path, "rb") as file:
        head = file.read(4)
    for start, demuxer in IMAGE_STARTS:
        if head.startswith(start):
            return demuxer
    raise BadInput(f"{str(path)!r} is not an image of an accepted kind; accepted are {IMAGE.accepted}")


def os_reason(error: Exception) -> str:
    """The sentence of an error without its number and path."""
    return str(getattr(error, "strerror", None) or error)


def video_streams(container: av.container.InputContainer) -> list[av.video.VideoStream]:
    """Moving pictures of a file: cover art is a picture, not the video."""
    cover = av.stream.Disposition.attached_pic
    return [stream for stream in container.streams.video if not stream.disposition & cover]


def bound_pixels(decoder: av.video.codeccontext.VideoCodecContext, pixels: int) -> None:
    """Have the decoder refuse pictures of more pixels, before it takes memory for them."""
    # Coded sizes are rounded up to whole blocks.
    decoder.options = {**decoder.options, "max_pixels": str(pixels + (1 << 20))}
