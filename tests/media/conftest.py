from pathlib import Path

import pytest

from tests.media.clips import OPEN_GOP, numbered, run

X264 = ("-c:v", "libx264", "-preset", "veryfast", "-crf", "18")


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of short clips of every kind of timing (see the names)."""
    folder = tmp_path_factory.mktemp("clips")
    sine = ("-f", "lavfi", "-i", "sine=d=4")
    run(*numbered(4, "24000/1001"), *sine, *X264, "-bf", "3", "-g", "48", "-c:a", "aac", folder / "cfr.mp4")
    run(*numbered(8, "30"), *X264, "-x264-params", OPEN_GOP, folder / "open.mp4")
    run("-i", folder / "open.mp4", "-c", "copy", "-output_ts_offset", "7.3", folder / "start7.mkv")
    run("-i", folder / "open.mp4", "-c", "copy", folder / "open.ts")
    run("-ss", "1.5", "-i", folder / "cfr.mp4", "-c", "copy", folder / "edit_list.mp4")
    vary = "select='gt(random(1),0.4)+eq(n,0)'"
    run(
        *numbered(3, "60", first=vary), *X264, "-bf", "3", "-fps_mode", "vfr", "-video_track_timescale", "90000",
        folder / "vfr.mp4",
    )  # fmt: skip
    run("-i", folder / "vfr.mp4", "-c", "copy", folder / "vfr.mkv")
    run("-i", folder / "cfr.mp4", "-c", "copy", folder / "cfr.mkv")
    run("-i", folder / "cfr.mp4", "-c", "copy", folder / "cfr.ts")
    run("-i", folder / "cfr.mp4", "-c", "copy", folder / "cfr.avi")
    run("-i", folder / "cfr.mp4", "-c", "copy", "-movflags", "+faststart", folder / "faststart.mp4")
    run("-i", folder / "cfr.mp4", "-c", "copy", "-movflags", "frag_keyframe+empty_moov", folder / "fragments.mp4")
    x265 = ("-c:v", "libx265", "-x265-params", "log-level=error:open-gop=1:keyint=30:bframes=4", "-preset", "veryfast")
    run(*numbered(4, "50"), *x265, "-pix_fmt", "yuv420p10le", folder / "h265_10bit.mkv")
    run(*numbered(3, "25"), "-c:v", "mpeg2video", "-bf", "2", "-g", "12", folder / "mpeg2.mpg")
    run(*numbered(3, "25"), "-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", folder / "vp9.webm")
    run(*numbered(3, "25"), "-c:v", "libvpx", "-auto-alt-ref", "1", "-lag-in-frames", "16", folder / "vp8.webm")
    return folder


@pytest.fixture(scope="session")
def programme(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Matroska: sound in two languages, subtitles, chapters, a font, titles; the picture starts 0.5 s late."""
    folder = tmp_path_factory.mktemp("programme")
    hello = "1\n00:00:01,000 --> 00:00:02,000\nHello\n\n"
    (folder / "en.srt").write_text(hello + "2\n00:00:03,000 --> 00:00:03,500\nBye\n")
    (folder / "de.srt").write_text("1\n00:00:01,000 --> 00:00:02,000\nHallo\n")
    (folder / "font.ttf").write_bytes(b"no real font")
    chapters = "".join(
        f"[CHAPTER]\nTIMEBASE=1/1000\nSTART={start}\nEND={start + 2000}\ntitle=Part {start}\n" for start in (0, 2000)
    )
    (folder / "meta.txt").write_text(
        f";FFMETADATA1\ntitle=A film; of = sorts\nartist=Nobody\n{chapters}".replace("; of =", "\\; of \\=")
    )
    run(
        "-itsoffset", "0.5", *numbered(4, "24000/1001"),
        "-f", "lavfi", "-i", "sine=d=4.5", "-f", "lavfi", "-i", "sine=f=880:d=4.5",
        "-i", folder / "en.srt", "-i", folder / "de.srt", "-i", folder / "meta.txt",
        "-map", "0:v", "-map", "1:a", "-map", "2:a", "-map", "3:s", "-map", "4:s",
        "-map_metadata", "5", "-map_chapters", "5", *X264, "-c:a", "aac", "-c:s:0", "srt", "-c:s:1", "ass",
        "-metadata:s:v:0", "language=fre", "-metadata:s:v:0", "title=Main picture",
        "-metadata:s:a:0", "language=eng", "-metadata:s:a:1", "language=ger", "-metadata:s:a:1", "title=Kommentar",
        "-metadata:s:s:0", "language=eng", "-metadata:s:s:1", "language=ger",
        "-disposition:a:0", "default", "-disposition:a:1", "0",
        "-attach", folder / "font.ttf", "-metadata:s:t", "mimetype=application/x-truetype-font",
        folder / "programme.mkv",
    )  # fmt: skip
    return folder / "programme.mkv"
