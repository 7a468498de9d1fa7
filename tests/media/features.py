"""What the table of features and containers in docs/media.md is made of: sources that have one thing each to lose."""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av

from tests.media.clips import HEIGHT, WIDTH, numbered, run

CONTAINERS = ("mp4", "mkv", "mov", "webm")
X264 = ("-c:v", "libx264", "-preset", "veryfast", "-pix_fmt", "yuv420p")
HDR_TAGS = ("-color_primaries", "bt2020", "-colorspace", "bt2020nc", "-color_range", "tv")
MASTERING = "G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50)"


@dataclass(frozen=True)
class Feature:
    """One row: how its source is made (into a folder; its path comes back) and what each container does with it.

    A cell is `kept`, `-> CODEC` where it is converted and said so, or `left out` where that is said.
    """

    name: str
    make: Callable[[Path], Path]
    cells: tuple[str, str, str, str]


def _video(name: str, *arguments: str, seconds: float = 1) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        run(*numbered(seconds), *X264, *arguments, folder / name)
        return folder / name

    return make


def _sound(name: str, *arguments: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        run(*numbered(1), "-f", "lavfi", "-i", "sine=d=1:sample_rate=48000", *X264, *arguments, folder / name)
        return folder / name

    return make


def _constant(folder: Path) -> Path:
    run(*numbered(2, "24000/1001"), *X264, "-bf", "3", folder / "cfr.mp4")
    return folder / "cfr.mp4"


def _variable(folder: Path) -> Path:
    vary = "select='gt(random(1),0.4)+eq(n,0)'"
    timing = ("-bf", "3", "-fps_mode", "vfr", "-video_track_timescale", "90000")
    run(*numbered(2, "60", first=vary), *X264, *timing, folder / "vfr.mp4")
    return folder / "vfr.mp4"


def _late_start(folder: Path) -> Path:
    sound = ("-f", "lavfi", "-i", "sine=d=1.5")
    run("-itsoffset", "0.5", *numbered(1), *sound, *X264, "-c:a", "ac3", folder / "late.mkv")
    return folder / "late.mkv"


def _edit_list(folder: Path) -> Path:
    run(*numbered(3), *X264, "-g", "25", folder / "whole.mp4")
    run("-ss", "1.5", "-i", folder / "whole.mp4", "-c", "copy", folder / "edited.mp4")
    return folder / "edited.mp4"


def _turned(folder: Path) -> Path:
    run(*numbered(1), *X264, folder / "straight.mp4")
    run("-display_rotation", "90", "-i", folder / "straight.mp4", "-c", "copy", folder / "turned.mp4")
    return folder / "turned.mp4"


def _hdr(transfer: str, more: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        name = folder / f"{transfer}.mp4"
        form = f"format=yuv420p10le,setparams=color_primaries=bt2020:color_trc={transfer}:colorspace=bt2020nc:range=tv"
        x265 = f"log-level=error:repeat-headers=1{more}"
        codec = ("-c:v", "libx265", "-preset", "veryfast", "-x265-params", x265)
        run(
            "-f", "lavfi", "-i", f"testsrc2=s=128x64:r=25:d=0.4,{form}", *codec, *HDR_TAGS, "-color_trc", transfer, name
        )
        return name

    return make


def _subtitles(codec: str, name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "en.srt").write_text("1\n00:00:00,200 --> 00:00:00,800\nHello\n")
        inputs = (*numbered(1), "-i", folder / "en.srt")
        run(*inputs, "-map", "0", "-map", "1", *X264, "-c:s", codec, "-metadata:s:s:0", "language=ger", folder / name)
        return folder / name

    return make


def _pgs_segment(kind: int, seconds: float, *fields: bytes) -> bytes:
    body = b"".join(fields)
    return b"PG" + struct.pack(">IIBH", int(seconds * 90_000), 0, kind, len(body)) + body


def pgs(path: Path, stop: float = 0.6) -> Path:
    """A Blu-ray subtitle stream (no encoder of ffmpeg makes any): a white bar of 32x8 pixels until `stop` (s)."""
    start = 0.0
    window = struct.pack(">BBHHHH", 1, 0, 16, 40, 32, 8)
    lines = bytes([0, 0x80 | 32, 1, 0, 0]) * 8  # each a run of 32 pixels in colour 1, and the line's end
    shown = struct.pack(">HHBHBBBBHBBHH", WIDTH, HEIGHT, 0x10, 0, 0x80, 0, 0, 1, 0, 0, 0, 16, 40)
    gone = struct.pack(">HHBHBBBB", WIDTH, HEIGHT, 0x10, 1, 0, 0, 0, 0)
    picture = (struct.pack(">HBB", 0, 0, 0xC0), (len(lines) + 4).to_bytes(3, "big"), struct.pack(">HH", 32, 8), lines)
    path.write_bytes(
        _pgs_segment(0x16, start, shown) + _pgs_segment(0x17, start, window)
        + _pgs_segment(0x14, start, bytes([0, 0, 1, 235, 128, 128, 255])) + _pgs_segment(0x15, start, *picture)
        + _pgs_segment(0x80, start)
        + _pgs_segment(0x16, stop, gone) + _pgs_segment(0x17, stop, window) + _pgs_segment(0x80, stop)
    )  # fmt: skip
    return path


def _bitmap_subtitles(codec: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        inputs = (*numbered(1), "-i", pgs(folder / "a.sup"), "-map", "0", "-map", "1")
        run(*inputs, *X264, "-c:s", codec, "-metadata:s:s:0", "language=ger", folder / "made.mkv")
        # Converted from PGS, where nothing says when a picture goes, the first would last for 49 days.
        lasting = () if codec == "copy" else ("-bsf:s", "setts=duration=0.6/TB,noise=drop='gt(n,0)'")
        run("-i", folder / "made.mkv", "-map", "0", "-c", "copy", *lasting, folder / "bitmaps.mkv")
        return folder / "bitmaps.mkv"

    return make


def _languages(folder: Path) -> Path:
    tones = ("-f", "lavfi", "-i", "sine=d=1", "-f", "lavfi", "-i", "sine=f=880:d=1")
    words = (
        "-metadata:s:a:0", "language=eng", "-metadata:s:a:1", "language=ger", "-disposition:a:0", "0",
        "-disposition:a:1", "default",
    )  # fmt: skip
    run(
        *numbered(1),
        *tones,
        "-map",
        "0",
        "-map",
        "1",
        "-map",
        "2",
        *X264,
        "-c:a",
        "libopus",
        *words,
        folder / "two.mkv",
    )
    return folder / "two.mkv"


def _chapters(folder: Path) -> Path:
    marks = "".join(
        f"[CHAPTER]\nTIMEBASE=1/1000\nSTART={start}\nEND={start + 500}\ntitle=Part {start}\n" for start in (0, 500)
    )
    (folder / "meta.txt").write_text(f";FFMETADATA1\ntitle=A film\nartist=Somebody\n{marks}")
    run(*numbered(1), "-i", folder / "meta.txt", "-map", "0", "-map_metadata", "1", *X264, folder / "chapters.mkv")
    return folder / "chapters.mkv"


def _font(folder: Path) -> Path:
    (folder / "font.ttf").write_bytes(b"no real font")
    attach = ("-attach", folder / "font.ttf", "-metadata:s:t", "mimetype=application/x-truetype-font")
    run(*numbered(1), *X264, *attach, folder / "font.mkv")
    return folder / "font.mkv"


def _cover(folder: Path) -> Path:
    run(*numbered(1), *X264, folder / "plain.mp4")
    run("-f", "lavfi", "-i", "color=red:s=32x32", "-frames:v", "1", folder / "cover.png")
    covered = ("-map", "0", "-map", "1", "-c", "copy", "-disposition:v:1", "attached_pic")
    run("-i", folder / "plain.mp4", "-i", folder / "cover.png", *covered, folder / "covered.mp4")
    return folder / "covered.mp4"


def _second_video(folder: Path) -> Path:
    run(*numbered(1), *numbered(1), "-map", "0", "-map", "1", *X264, folder / "two_videos.mkv")
    return folder / "two_videos.mkv"


def _telemetry(folder: Path) -> Path:
    run(*numbered(1), *X264, folder / "plain.mp4")
    with av.open(str(folder / "plain.mp4")) as plain, av.open(str(folder / "telemetry.mp4"), "w") as output:
        video = output.add_stream_from_template(plain.streams.video[0])
        data = output.add_data_stream("bin_data")
        data.time_base = Fraction(1, 1000)
        for packet in plain.demux(video=0):
            if packet.size:
                packet.stream = video
                output.mux(packet)
        for number in range(4):
            packet = av.Packet(bytes([number]) * 40)
            packet.stream, packet.time_base, packet.duration = data, data.time_base, 250
            packet.pts = packet.dts = number * 250
            output.mux(packet)
    return folder / "telemetry.mp4"


def _transparent(folder: Path) -> Path:
    clear = "format=yuva444p10le,geq=lum='p(X,Y)':cb='cb(X,Y)':cr='cr(X,Y)':a='1023*X/W'"
    codec = ("-c:v", "prores_ks", "-profile:v", "4444")
    run("-f", "lavfi", "-i", f"testsrc2=s=64x48:r=25:d=0.2,{clear}", *codec, folder / "clear.mov")
    return folder / "clear.mov"


def _interlaced(folder: Path) -> Path:
    fields = "tinterlace=interleave_top,fieldorder=tff"
    codec = ("-c:v", "mpeg2video", "-flags", "+ildct+ilme", "-q:v", "2")
    run("-f", "lavfi", "-i", "testsrc2=s=96x64:r=50:d=1", "-vf", fields, *codec, folder / "fields.mpg")
    return folder / "fields.mpg"


_SDR = "setparams=colorspace=smpte170m:color_primaries=smpte170m:color_trc=smpte170m:range=pc"
_HDR10 = f":hdr10=1:master-display={MASTERING}:max-cll=1000,400"

FEATURES = (
    Feature("constant rate: times exact", _constant, ("kept", "kept", "kept", "kept")),
    Feature("variable rate: times within 1 ms", _variable, ("kept", "kept", "kept", "kept")),
    Feature("picture that starts after the sound", _late_start, ("kept", "kept", "kept", "-> opus")),
    Feature("edit list", _edit_list, ("kept", "kept", "kept", "kept")),
    Feature("interlaced picture", _interlaced, ("made progressive",) * 4),
    Feature("rotation", _turned, ("kept", "kept", "kept", "kept")),
    Feature("pixel shape", _video("sar.mp4", "-vf", "setsar=4/3"), ("kept", "kept", "kept", "kept")),
    Feature("colour tags and range", _video("tags.mp4", "-vf", _SDR), ("kept", "kept", "kept", "kept")),
    Feature("HDR10: mastering display, light levels", _hdr("smpte2084", _HDR10), ("kept", "kept", "kept", "kept")),
    Feature("HLG", _hdr("arib-std-b67", ""), ("kept", "kept", "kept", "kept")),
    Feature("transparency", _transparent, ("left out", "kept", "kept", "kept")),
    Feature("AAC sound", _sound("aac.mp4", "-c:a", "aac"), ("kept", "kept", "kept", "-> opus")),
    Feature("Opus sound", _sound("opus.webm", "-c:v", "libvpx-vp9", "-deadline", "realtime", "-c:a", "libopus"),
            ("kept", "kept", "-> aac", "kept")),
    Feature("AC-3 sound", _sound("ac3.mkv", "-c:a", "ac3"), ("kept", "kept", "kept", "-> opus")),
    Feature("FLAC sound", _sound("flac.mkv", "-c:a", "flac"), ("kept", "kept", "-> aac", "-> opus")),
    Feature("PCM sound", _sound("pcm.mov", "-c:a", "pcm_s16le"), ("kept", "kept", "kept", "-> opus")),
    Feature("languages and default flags", _languages, ("kept", "kept", "-> aac", "kept")),
    Feature("SubRip subtitles", _subtitles("srt", "srt.mkv"), ("-> mov_text", "kept", "-> mov_text", "-> webvtt")),
    Feature("ASS subtitles", _subtitles("ass", "ass.mkv"), ("-> mov_text", "kept", "-> mov_text", "-> webvtt")),
    Feature("mov_text subtitles", _subtitles("mov_text", "text.mp4"), ("kept", "-> subrip", "kept", "-> webvtt")),
    Feature("PGS subtitles (Blu-ray)", _bitmap_subtitles("copy"), ("left out", "kept", "left out", "left out")),
    Feature("DVD subtitles", _bitmap_subtitles("dvdsub"), ("kept", "kept", "left out", "left out")),
    Feature("DVB subtitles", _bitmap_subtitles("dvbsub"), ("left out", "kept", "left out", "left out")),
    Feature("chapters and titles", _chapters, ("kept", "kept", "kept", "kept")),
    Feature("attached fonts", _font, ("left out", "kept", "left out", "left out")),
    Feature("cover art", _cover, ("kept", "kept", "left out", "left out")),
    Feature("timecode", _video("timecode.mov", "-timecode", "01:02:03:04"), ("kept", "kept", "kept", "kept")),
    Feature("camera telemetry (gpmd)", _telemetry, ("kept", "left out", "kept", "left out")),
    Feature("second video stream", _second_video, ("left out", "left out", "left out", "left out")),
)  # fmt: skip


def table() -> str:
    """The table of docs/media.md."""
    rows = ["| | " + " | ".join(CONTAINERS) + " |", "| --- |" + " --- |" * len(CONTAINERS)]
    rows += [f"| {feature.name} | " + " | ".join(feature.cells) + " |" for feature in FEATURES]
    return "\n".join(rows)
