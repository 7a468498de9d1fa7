"""Segments and the source's other streams become one file; only what its container cannot hold is converted."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import av.codec
import av.container
import av.video
import ffmpeg
from ffmpeg.nodes import FilterableStream

from flashvsr_core.errors import FlashvsrError
from tasks.media.codecs import MUXER
from tasks.media.encode import EncodeParams, segment_format
from tasks.media.encoder import SMALLEST_TIMESCALE
from tasks.media.ffmpeg import COPYING_MB, run_ffmpeg, seconds_for
from tasks.media.probe import StreamInfo, VideoInfo
from tasks.media.source import FORMATS, PROTOCOLS, file_url, open_source, os_reason, video_streams
from tasks.media.stills import PICTURES as PICTURES_ALONE
from tasks.media.subtitles import cut_subtitles

SEGMENTS = "concat,mov,matroska"  # demuxers of the list of segments and of what it names
TEXT_SUBTITLES = {"subrip", "ass", "ssa", "webvtt", "mov_text", "text", "ttml"}
STYLED_SUBTITLES = {"ass", "ssa"}
TEXT_TARGET = {"mp4": "mov_text", "mov": "mov_text", "mkv": "subrip", "webm": "webvtt"}
TEXT_TARGET_NAME = {"mov_text": "mov_text", "subrip": "srt", "webvtt": "webvtt"}
AUDIO_TARGET = {"mp4": "aac", "mov": "aac", "mkv": "aac", "webm": "opus"}
AUDIO_ENCODER = {"aac": "aac", "opus": "libopus"}
# Listed by libavformat, and refused when it writes: truehd without a switch that few players follow, the rest in mov.
REFUSED = {"mp4": {"truehd"}, "mov": {"truehd", "opus", "flac"}}
PICTURES = {"mp4": {"mjpeg", "png"}, "mkv": {"mjpeg", "png"}}  # cover art; mov and webm have no place for it
PICTURE_FILES = {"mjpeg": ("cover.jpg", "image/jpeg"), "png": ("cover.png", "image/png")}
PICTURE_DEMUXERS = {"mjpeg": "jpeg_pipe", "png": "png_pipe"}
AUDIO_BITRATE = "256k"  # where a container forces a conversion
VFR_TIMESCALE = 90_000  # ticks per second where the source's own time base does not fit into mp4
# QuickTime numbers languages; ffmpeg knows one of the two ISO 639-2 spellings of each and drops the other in silence.
MOV_LANGUAGE = {
    "fre": "fra", "deu": "ger", "nld": "dut", "ell": "gre", "isl": "ice", "zho": "chi", "rum": "ron", "cze": "ces",
    "slo": "slk", "sqi": "alb", "mkd": "mac", "hye": "arm", "kat": "geo", "bod": "tib", "mya": "bur", "msa": "may",
    "swe": "sve",
}  # fmt: skip
TIMECODE = "tmcd"
TIMECODE_TRACK = ("mp4", "mov")  # containers with a track for the timecode
CHAPTER_TRACKS = {"bin_data", "text", "mov_text"}  # how mp4 stores chapters; -map_chapters carries them


@dataclass
class _Carried:
    """How the source's streams travel: maps of stream numbers, codecs by output stream, notes."""

    indices: list[int] = field(default_factory=list)
    codecs: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    cover: StreamInfo | None = None  # the picture that becomes an attachment
    counts: dict[str, int] = field(default_factory=lambda: {"a": 0, "s": 0, "v": 1, "t": 0})

    def add(self, stream: StreamInfo, kind: str, codec: str | None = None) -> None:
        self.indices.append(stream.index)
        if kind in self.counts:
            if codec:
                self.codecs[f"c:{kind}:{self.counts[kind]}"] = AUDIO_ENCODER.get(codec, codec)
                if kind == "a":
                    self.codecs[f"b:a:{self.counts[kind]}"] = AUDIO_BITRATE
            self.counts[kind] += 1


def merge(
    segments: Sequence[tuple[str | Path, int]],
    source_path: str | Path,
    info: VideoInfo,
    encode: EncodeParams,
    output_path: str | Path,
    program: str | None = None,
) -> tuple[str, ...]:
    """Join `segments` (file, frames), add the source's sound, subtitles, chapters and metadata, write `output_path`.

    Returns notes: what the container could not hold as it was. The caller publishes the file (it is written in place).
    """
    frames = sum(count for _, count in segments)
    if frames != info.frames:
        raise FlashvsrError(f"the segments have {frames} frames, the video {info.frames}; segments are missing")
    carried = _carry(info, encode)
    seconds = seconds_for(
        *(path for path, _ in segments), *(() if info.container in PICTURES_ALONE else (source_path,))
    )
    bounds: Any = {"seconds": seconds, "memory_mb": COPYING_MB}
    with tempfile.TemporaryDirectory(prefix=".merge-", dir=Path(output_path).resolve().parent) as folder:
        listing = _write_list(Path(folder), segments, Fraction(*info.frame_rate))
        concat = {"format": "concat", "safe": "0", "protocol_whitelist": PROTOCOLS, "format_whitelist": SEGMENTS}
        rate = Fraction(*info.frame_rate)
        timescale = rate.numerator * -(-SMALLEST_TIMESCALE // rate.numerator)
        picture: FilterableStream
        if info.constant_rate:
            picture = ffmpeg.input(str(listing), itsoffset=f"{info.start_time:.6f}", **concat)
        else:
            muxer = segment_format(encode)
            joined, timed = Path(folder, f"joined.{muxer}"), Path(folder, f"timed.{muxer}")
            plain = ffmpeg.input(str(listing), **concat)
            scales = {"movie_timescale": timescale, "video_track_timescale": timescale} if muxer != "webm" else {}
            run_ffmpeg(
                ffmpeg.output(plain["v:0"], file_url(joined), format=muxer, c="copy", **scales), program, **bounds
            )
            timescale = _vfr_timescale(info)
            _retime(joined, timed, info, timescale, muxer)
            picture = ffmpeg.input(
                file_url(timed),
                itsoffset=f"{info.start_time:.6f}",
                protocol_whitelist=PROTOCOLS,
                format="matroska" if muxer == "webm" else "mov",
            )
        options = _output_options(info, encode, timescale, carried) | carried.codecs
        streams = [picture["v:0"]]
        if info.container in PICTURES_ALONE:
            options |= {"map_metadata": -1, "map_chapters": -1}
        else:
            cut, lasting = _excerpt(info)
            options |= lasting
            options |= _attached_cover(source_path, carried, Path(folder))
            source = ffmpeg.input(file_url(source_path), protocol_whitelist=PROTOCOLS, format_whitelist=FORMATS, **cut)
            # With no stream to carry, a map that matches nothing keeps the source an input: its metadata is wanted.
            others = {index: source[str(index)] for index in carried.indices}
            if info.excerpt is not None:
                others |= _trimmed_subtitles(source_path, info, carried, Path(folder))
            covers = _loose_covers(source_path, info, carried, Path(folder))
            # The source comes first: metadata and chapters are those of input 1.
            streams += [stream for index, stream in others.items() if index not in covers] or [source["t:9999?"]]
            streams += covers.values()
            options |= {f"disposition:v:{number}": "attached_pic" for number in range(1, 1 + len(covers))}
        run_ffmpeg(ffmpeg.output(*streams, file_url(output_path), **options), program, **bounds)
    return tuple(carried.notes)


def _excerpt(info: VideoInfo) -> tuple[dict[str, str], dict[str, str]]:
    """Options of the source and of the output that leave of sound, subtitles and chapters what a trimmed video has."""
    if info.excerpt is None:
        return {}, {}
    start, end = info.excerpt
    length = {} if end is None else {"t": f"{end - start:.6f}"}
    # Seeking lands on a key frame of the picture; what sound has between that and the start is not wanted.
    return {"ss": f"{start:.6f}", **length}, {"copypriorss": "0", **length}


def _trimmed_subtitles(
    source_path: str | Path, info: VideoInfo, carried: _Carried, folder: Path
) -> dict[int, FilterableStream]:
    """Subtitles of a source that is trimmed, as files of their own: seeking leaves out what is on screen at the start,
    and conversion in one go would keep everything before it and move all so that the first is at zero."""
    assert info.excerpt is not None
    files = {}
    for stream in info.streams:
        if stream.kind == "subtitle" and stream.index in carried.indices:
            kind = next(name for name in ("mkv", "mp4") if stream.codec in holds(name))
            files[stream.index] = (folder / f"subtitle{stream.index}.{kind}", MUXER[kind])
    if files:
        cut_subtitles(source_path, files, *info.excerpt)
    plain = {"protocol_whitelist": PROTOCOLS, "format_whitelist": FORMATS}
    return {index: ffmpeg.input(file_url(path), **plain)["0"] for index, (path, _) in files.items()}


def _output_options(info: VideoInfo, encode: EncodeParams, timescale: int, carried: _Carried) -> dict[str, Any]:
    options: dict[str, Any] = {
        "format": MUXER[encode.container],
        "c": "copy",
        "map_metadata": 1,
        "map_chapters": 1,
    }
    if info.timecode:
        # mp4 and mov make a timecode track of it, Matroska a tag.
        options |= {"timecode": info.timecode} if encode.container in TIMECODE_TRACK else {}
        options |= {"metadata": f"timecode={info.timecode}"} if encode.container not in TIMECODE_TRACK else {}
    if encode.container in ("mp4", "mov"):
        options |= {"movie_timescale": timescale, "video_track_timescale": timescale, "movflags": "+faststart"}
        if encode.codec == "h265":
            options["tag:v:0"] = "hvc1"  # what Apple players need
    video = next(stream for stream in info.streams if stream.index == info.stream_index)
    if video.default:
        options["disposition:v:0"] = "default"
    options |= _mov_languages(info, carried) if encode.container == "mov" else {}
    # Two spellings of the first stream, since ffmpeg-python gives an option once. (-map_metadata:s would do it too, and
    # would switch off ffmpeg's own copying of every other stream's language.)
    if video.language and video.language != "und":
        language = MOV_LANGUAGE.get(video.language, video.language) if encode.container == "mov" else video.language
        options["metadata:s:v:0"] = f"language={language}"
    if video.title:
        options["metadata:s:0"] = f"title={video.title}"
    return options


def _attached_cover(source_path: str | Path, carried: _Carried, folder: Path) -> dict[str, Any]:
    """Options that attach cover art as Matroska wants it: a file named cover.*, after the source's own attachments."""
    if carried.cover is None:
        return {}
    name, kind = PICTURE_FILES[carried.cover.codec]
    _write_picture(source_path, carried.cover, folder / name)
    return {"attach": str(folder / name), f"metadata:s:t:{carried.counts['t']}": f"mimetype={kind}"}


def _loose_covers(
    source_path: str | Path, info: VideoInfo, carried: _Carried, folder: Path
) -> dict[int, FilterableStream]:
    """Cover art of a source that is trimmed, as files of its own: it lies at time 0, which seeking leaves behind."""
    found: dict[int, FilterableStream] = {}
    for stream in info.streams:
        if info.excerpt is not None and stream.cover and stream.index in carried.indices:
            path = folder / f"picture{stream.index}"
            _write_picture(source_path, stream, path)
            demuxer = PICTURE_DEMUXERS[stream.codec]
            found[stream.index] = ffmpeg.input(file_url(path), protocol_whitelist=PROTOCOLS, format=demuxer)["0"]
    return found


def _write_picture(source_path: str | Path, stream: StreamInfo, path: Path) -> None:
    with open_source(source_path) as container:
        packets = container.demux(container.streams[stream.index])
        path.write_bytes(next(bytes(packet) for packet in packets if packet.size))


def _mov_languages(info: VideoInfo, carried: _Carried) -> dict[str, Any]:
    """Options that respell languages of sound and subtitles for mov."""
    kinds = {"audio": "a", "subtitle": "s"}
    numbers = {"a": 0, "s": 0}
    options: dict[str, Any] = {}
    streams = {stream.index: stream for stream in info.streams}
    for stream in (streams[index] for index in carried.indices if streams[index].kind in kinds):
        kind = kinds[stream.kind]
        if stream.language in MOV_LANGUAGE:
            options[f"metadata:s:{kind}:{numbers[kind]}"] = f"language={MOV_LANGUAGE[stream.language]}"
        numbers[kind] += 1
    return options


def _carry(info: VideoInfo, encode: EncodeParams) -> _Carried:
    """Decide for every stream of the source: copied, converted or left out, and say what is not copied."""
    carried = _Carried()
    container = encode.container
    for stream in info.streams:
        if stream.index == info.stream_index:
            continue
        label = _label(stream)
        if stream.kind == "audio":
            if stream.codec in holds(container):
                carried.add(stream, "a")
            else:
                target = AUDIO_TARGET[container]
                carried.add(stream, "a", target)
                remedy = "; mkv can" if container != "mkv" else ""
                carried.notes.append(f"{label} was converted to {target}: {container} cannot hold it{remedy}")
        elif stream.kind == "subtitle":
            _carry_subtitle(carried, stream, label, container)
        elif stream.cover and stream.codec in PICTURES.get(container, ()):
            if container != "mkv":
                carried.add(stream, "v")
            elif carried.cover is None:
                carried.cover = stream
            else:
                carried.notes.append(f"{label} was left out: one picture is attached, the first; mp4 can hold more")
        elif stream.kind == "attachment" and container == "mkv":
            carried.add(stream, "t")
        elif stream.kind == "video" and not stream.cover:
            carried.notes.append(f"{label} was left out: one video stream is upscaled, the first")
        elif stream.kind == "data" and container in ("mp4", "mov") and _is_telemetry(stream, info):
            carried.add(stream, "d")
        elif stream.kind == "data" and info.timecode and stream.codec == TIMECODE:
            pass  # made anew
        elif not (stream.kind == "data" and info.chapters and stream.codec in CHAPTER_TRACKS):
            able = "mkv can" if stream.kind == "attachment" else "mp4 and mkv can" if stream.cover else ""
            remedy = f"; {able}" if able else ""
            carried.notes.append(f"{label} was left out: {container} cannot hold it{remedy}")
    return carried


def _carry_subtitle(carried: _Carried, stream: StreamInfo, label: str, container: str) -> None:
    if stream.codec in holds(container):
        carried.add(stream, "s")
    elif stream.codec in TEXT_SUBTITLES:
        target = TEXT_TARGET[container]
        carried.add(stream, "s", TEXT_TARGET_NAME[target])
        lost = " without its styling" if stream.codec in STYLED_SUBTITLES else ""
        carried.notes.append(f"{label} was converted to {target}{lost}: {container} cannot hold {stream.codec}")
    else:
        remedy = "; mkv can" if container != "mkv" and stream.codec in holds("mkv") else ""
        carried.notes.append(f"{label} was left out: {container} cannot hold it{remedy}")


def _is_telemetry(stream: StreamInfo, info: VideoInfo) -> bool:
    """Whether a data stream is a camera's (gpmd): the one kind that mp4 gives and takes. Chapters look the same."""
    return stream.codec == "bin_data" and info.container.startswith("mov") and not info.chapters


def _label(stream: StreamInfo) -> str:
    language = f", {stream.language}" if stream.language and stream.language != "und" else ""
    kind = "cover art" if stream.cover else stream.kind
    return f"{kind} stream {stream.index} ({stream.codec}{language})"


@lru_cache
def holds(container: str) -> frozenset[str]:
    """Names of the codecs that may be copied into a container, as libavformat says."""
    # Nothing is written: the file is created with the first packet.
    with av.open(os.devnull, "w", format=MUXER[container]) as output:
        names = output.supported_codecs
    canonical = set()
    for name in names:
        try:
            canonical.add(av.codec.Codec(name, "r").canonical_name)
        except av.codec.codec.UnknownCodecError:  # an encoder without a decoder of that name
            canonical.add(av.codec.Codec(name, "w").canonical_name)
    return frozenset(canonical - REFUSED.get(container, set()))


def _write_list(folder: Path, segments: Sequence[tuple[str | Path, int]], rate: Fraction) -> Path:
    """ffconcat list. Links give files plain names whatever their paths contain; durations stop drift at joins."""
    lines = ["ffconcat version 1.0"]
    for number, (path, frames) in enumerate(segments):
        link = folder / f"{number:06d}.mp4"
        link.symlink_to(Path(path).resolve())
        lines += [f"file {link.name}", f"duration {float(frames / rate):.6f}"]
    listing = folder / "list.ffconcat"
    listing.write_text("\n".join(lines) + "\n")
    return listing


def _vfr_timescale(info: VideoInfo) -> int:
    """Ticks per second that hold the source's times exactly, where mp4 can count so finely."""
    numerator, denominator = info.time_base
    return denominator if numerator == 1 and 1000 <= denominator <= 1_000_000 else VFR_TIMESCALE


def _retime(joined: Path, timed: Path, info: VideoInfo, timescale: int, muxer: str) -> None:
    """Copy packets of a constant rate, giving each the source's time of its frame (by rank of display time)."""
    ticks = Fraction(*info.time_base) * timescale
    times = [round((pts - info.timestamps.pts(0)) * ticks) for pts in info.timestamps.array.tolist()]
    last = round(timescale / Fraction(*info.frame_rate))
    durations = [b - a for a, b in pairwise(times)] + [last]
    options = {"video_track_timescale": str(timescale), "movie_timescale": str(timescale)} if muxer != "webm" else {}
    try:
        with open_source(joined) as source, av.open(file_url(timed), "w", format=muxer, options=options) as output:
            stream = output.add_stream_from_template(video_streams(source)[0], opaque=True)
            stream.time_base = Fraction(1, timescale)
            stream.metadata.update(video_streams(source)[0].metadata)  # says that VP9 is transparent
            for packet, rank, decoded in _ranked(source, info):
                packet.stream = stream
                packet.time_base = Fraction(1, timescale)
                packet.pts = times[rank]
                packet.dts = times[decoded] if decoded >= 0 else decoded * last
                packet.duration = durations[rank]
                output.mux(packet)
    except av.FFmpegError as error:
        raise FlashvsrError(f"the merged video cannot be given its times back: {os_reason(error)}") from error


def _ranked(source: av.container.InputContainer, info: VideoInfo) -> Iterator[tuple[av.Packet, int, int]]:
    """Packets with the display rank of their frame and the rank whose time they are decoded at (below 0: earlier)."""
    stream = video_streams(source)[0]
    assert stream.time_base is not None
    step = 1 / (Fraction(*info.frame_rate) * stream.time_base)
    delay = None
    number = 0
    for packet in source.demux(stream):
        if not packet.size or packet.pts is None or packet.dts is None:
            continue
        rank = round((packet.pts - (stream.start_time or 0)) / step)
        if delay is None:
            delay = round((packet.pts - packet.dts) / step)
        if not 0 <= rank < info.frames or rank < number - delay:
            raise FlashvsrError(f"merged packet {number} has time {packet.pts}, which is no frame's; run again")
        yield packet, rank, number - delay
        number += 1
    if number != info.frames:
        raise FlashvsrError(f"the merged video has {number} frames, expected {info.frames}; run again")
