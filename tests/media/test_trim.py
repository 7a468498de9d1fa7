"""Trimmed videos: the frames asked for, with the sound, subtitles and chapters that belong to them, in sync."""

import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from flashvsr_core.errors import UserError
from tasks.media.check import check_against
from tasks.media.decode import read_frames
from tasks.media.encode import EncodeParams, encode_segment, resolve
from tasks.media.mux import merge
from tasks.media.probe import VideoInfo, probe
from tasks.media.timecode import later
from tasks.media.trim import Trim, frame_range, parse_seconds, trimmed
from tests.media import reader
from tests.media.clips import numbered, numbers, planes_of, run
from tests.media.features import pgs

FAST = EncodeParams(codec="h264", preset="ultrafast", threads=1)


def cut(source: Path, output: Path, trim: Trim, container: str = "mp4") -> tuple[VideoInfo, tuple[str, ...]]:
    whole = probe(source)
    info = trimmed(whole, *frame_range(trim, whole))
    encode = resolve(replace(FAST, container=container), info, info.width, info.height)  # type: ignore[arg-type]
    segment = output.with_suffix(".segment.mp4")
    chunks = planes_of(read_frames(source, info, 0, info.frames), info, encode)
    done = encode_segment(chunks, segment, info, encode, info.width, info.height)
    return info, merge([(segment, done.frames)], source, info, encode, output)


@pytest.mark.parametrize(
    ("trim", "expected"),
    [
        (Trim(), (0, 96)),
        (Trim(start="1"), (24, 96)),
        (Trim(start="0:01.001", frames=5), (24, 29)),
        (Trim(start="24f", end="30f"), (24, 30)),
        (Trim(end="00:00:02.002"), (0, 48)),
        (Trim(frames=500), (0, 96)),
        (Trim(start="95f"), (95, 96)),
        (Trim(start="3.962", end="100"), (95, 96)),
    ],
)
def test_ranges(clips: Path, trim: Trim, expected: tuple[int, int]) -> None:
    assert frame_range(trim, probe(clips / "cfr.mp4")) == expected


@pytest.mark.parametrize(
    ("trim", "words"),
    [
        ({"start": "4:00"}, "--start 4:00 is behind the end"),
        ({"start": "2", "end": "1.5"}, "--end 1.5 is not behind --start 2"),
        ({"end": "0"}, "--end 0 is not behind"),
        ({"start": "soon"}, "'soon' is no position"),
        ({"start": "-1"}, "'-1' is no position"),
        ({"frames": 0}, "frames 0 is too few"),
        ({"end": "2", "frames": 3}, "one of them"),
    ],
)
def test_what_makes_no_sense_is_refused(clips: Path, trim: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        frame_range(Trim(**trim), probe(clips / "cfr.mp4"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name",
    ["cfr.mp4", "open.mp4", "start7.mkv", "open.ts", "vfr.mp4", "vfr.mkv", "cfr.avi", "edit_list.mp4", "mpeg2.mpg"],
)
def test_frames_and_times_of_a_trimmed_source(clips: Path, name: str) -> None:
    whole = probe(clips / name)
    seen = numbers(read_frames(clips / name, whole, 0, whole.frames))
    info = trimmed(whole, 21, 50)
    assert (info.frames, info.skipped, info.start_time) == (29, 21, 0.0)
    assert numbers(read_frames(clips / name, info, 0, 29)) == seen[21:50]
    assert numbers(read_frames(clips / name, info, 17, 20)) == seen[38:41]
    assert info.timestamps.array.tolist() == whole.timestamps.array[21:50].tolist()


def test_trimming_what_is_trimmed(clips: Path) -> None:
    whole = probe(clips / "cfr.mp4")
    info = trimmed(trimmed(whole, 20, 60), 5, 10)
    assert numbers(read_frames(clips / "cfr.mp4", info, 0, 5)) == [25, 26, 27, 28, 29]


@pytest.mark.parametrize(
    ("timecode", "rate", "frames", "expected"),
    [
        ("01:00:00:00", "25", 26, "01:00:01:01"),
        ("01:00:00:00", "24000/1001", 24 * 60, "01:01:00:00"),
        ("00:00:59;29", "30000/1001", 1, "00:01:00;02"),
        ("00:09:59;29", "30000/1001", 1, "00:10:00;00"),
        ("00:00:00;00", "30000/1001", 17982, "00:10:00;00"),
        ("00:00:00;00", "30000/1001", 107892, "01:00:00;00"),
        ("00:00:59;59", "60000/1001", 1, "00:01:00;04"),
        ("23:59:59:24", "25", 1, "00:00:00:00"),
        ("soon", "25", 1, None),
    ],
)
def test_timecode_of_a_later_frame(timecode: str, rate: str, frames: int, expected: str | None) -> None:
    assert later(timecode, Fraction(rate), frames / Fraction(rate)) == expected


def test_a_trimmed_video_begins_with_the_timecode_of_its_first_frame(clips: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.mp4"
    run("-i", clips / "cfr.mp4", "-c", "copy", "-timecode", "01:02:03:04", source)
    for container in ("mp4", "mkv", "mov"):
        output = tmp_path / f"out.{container}"
        cut(source, output, Trim(start="30f", frames=10), container)
        assert probe(output).timecode == "01:02:04:10"


@pytest.mark.parametrize("container", ["mp4", "mkv"])
@pytest.mark.parametrize("sound", [True, False])
def test_cover_art_stays(tmp_path: Path, container: str, sound: bool) -> None:
    source, output, cover = tmp_path / "in.mp4", tmp_path / f"out.{container}", tmp_path / "cover.png"
    run(*numbered(0.04), "-frames:v", "1", cover)
    chapters = tmp_path / "meta.txt"
    chapters.write_text(";FFMETADATA1\ntitle=Whole\n[CHAPTER]\nTIMEBASE=1/1\nSTART=1\nEND=4\ntitle=Later\n")
    tone = ("-f", "lavfi", "-i", "sine=d=4", "-map", "3", "-c:a", "aac")
    run(
        *numbered(4, "25"), "-i", cover, "-i", chapters, *(tone[:4] if sound else ()), "-map", "0", "-map", "1",
        *(tone[4:] if sound else ()), "-map_metadata", "2", "-map_chapters", "2", "-c:v:0", "libx264", "-c:v:1", "copy",
        "-disposition:v:1", "attached_pic", source,
    )  # fmt: skip
    _, notes = cut(source, output, Trim(start="2", frames=10), container)
    assert notes == ()
    assert [stream["disposition"]["attached_pic"] for stream in reader.streams(output, "video")] == [0, 1]
    assert len(reader.streams(output, "audio")) == sound
    with av.open(str(output)) as found:
        assert found.metadata["title"] == "Whole"
        assert [float(c["start"] * c["time_base"]) for c in found.chapters()] == [0]
        assert found.streams.video[0].frames in (0, 10)
        pictures = [bytes(packet) for packet in found.demux(video=1) if packet.size]
    assert pictures == [cover.read_bytes()]


def clicks(path: Path) -> list[float]:
    """Moments, in seconds from the start of the picture, at which the sound begins to be loud."""
    with av.open(str(path)) as container:
        first = next(container.decode(video=0))
        begin = float(first.pts * first.time_base)
    with av.open(str(path)) as container:
        found, quiet = [], True
        for frame in container.decode(audio=0):
            samples = np.abs(frame.to_ndarray()).max(axis=0)
            samples = samples / (32768 if samples.dtype.kind == "i" else 1)
            at = float(frame.pts * frame.time_base)
            for index in range(0, len(samples), 48):
                loud = samples[index : index + 48].max() > 0.3
                if loud and quiet:
                    found.append(at + index / frame.sample_rate - begin)
                quiet = not loud
        return found


def flashes(path: Path) -> list[float]:
    """Moments at which the picture turns white."""
    info = probe(path)
    frames = np.concatenate(list(read_frames(path, info, 0, info.frames)))
    bright = frames.reshape(len(frames), -1).mean(axis=1) > 128
    starts = [i for i in range(len(bright)) if bright[i] and (i == 0 or not bright[i - 1])]
    times = (info.timestamps.array - info.timestamps.pts(0)) * float(Fraction(*info.time_base))
    return [float(times[i]) for i in starts]


@pytest.fixture(scope="module")
def beats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A flash and a click together at the start of every second, for 8 s; subtitles and chapters say which it is."""
    folder = tmp_path_factory.mktemp("beats")
    (folder / "s.srt").write_text(
        "".join(f"{n + 1}\n00:00:0{n},100 --> 00:00:0{n},900\nsecond {n}\n\n" for n in range(8))
    )
    chapters = "".join(f"[CHAPTER]\nTIMEBASE=1/1\nSTART={n}\nEND={n + 2}\ntitle=from {n}\n" for n in range(0, 8, 2))
    (folder / "m.txt").write_text(f";FFMETADATA1\ntitle=Beats\n{chapters}")
    picture = "color=black:s=64x48:r=25:d=8,geq=lum='if(lt(mod(T,1),0.2),235,16)':cb=128:cr=128"
    tone = "aevalsrc='0.9*sin(2*PI*1000*t)*lt(mod(t,1),0.1)':s=48000:d=8"
    run(
        "-f", "lavfi", "-i", picture, "-f", "lavfi", "-i", tone, "-i", folder / "s.srt", "-i", folder / "m.txt",
        "-map", "0", "-map", "1", "-map", "2", "-map_metadata", "3", "-map_chapters", "3", "-c:v", "libx264",
        "-g", "100", "-c:a", "aac", "-c:s", "srt", folder / "beats.mkv",
    )  # fmt: skip
    run("-i", folder / "beats.mkv", "-c", "copy", "-c:s", "mov_text", folder / "beats.mp4")
    return folder


@pytest.mark.parametrize("source", ["beats.mkv", "beats.mp4"])
@pytest.mark.parametrize("container", ["mp4", "mkv", "mov"])
@pytest.mark.parametrize("trim", [Trim(start="2.52", end="6.2"), Trim(start="3f", frames=60), Trim(start="5")], ids=str)
def test_sound_stays_with_the_picture(beats: Path, tmp_path: Path, source: str, container: str, trim: Trim) -> None:
    output = tmp_path / f"out.{container}"
    info, _ = cut(beats / source, output, trim, container)
    check_against(output, info, 64, 48)
    light, sound = flashes(output), clicks(output)
    assert info.excerpt is not None
    begin, end = info.excerpt[0], info.excerpt[1] or 8.0
    wanted = [n - begin for n in range(8) if begin < n < end]
    light, sound = [t for t in light if t > 0.05], [t for t in sound if 0.05 < t < end - begin - 0.05]
    assert light == pytest.approx(wanted, abs=0.001)
    assert sound == pytest.approx(wanted, abs=0.004)
    with av.open(str(output)) as container_:
        last = max(float((p.pts + p.duration) * p.time_base) for p in container_.demux(audio=0) if p.size)
    assert last == pytest.approx(end - begin, abs=0.1)


@pytest.mark.parametrize("source", ["beats.mkv", "beats.mp4"])
@pytest.mark.parametrize("container", ["mp4", "mkv"])
def test_subtitles_and_chapters_are_those_of_the_part(beats: Path, tmp_path: Path, source: str, container: str) -> None:
    output = tmp_path / f"out.{container}"
    cut(beats / source, output, Trim(start="2.52", end="6.2"), container)
    with av.open(str(output)) as found:
        assert found.metadata["title"] == "Beats"
        chapters = [
            (c["metadata"]["title"], float(c["start"] * c["time_base"]), float(c["end"] * c["time_base"]))
            for c in found.chapters()
        ]
        texts = {}
        for packet in found.demux(subtitles=0):
            text = bytes(packet).lstrip(b"\0").decode(errors="replace") if packet.size else ""
            if "second" in text:
                texts[int(text[text.index("second ") + 7])] = float(packet.pts * packet.time_base)
    names = [name for name, _, _ in chapters]
    assert names == ["from 2", "from 4", "from 6"]
    assert [start for _, start, _ in chapters] == pytest.approx([0, 1.48, 3.48], abs=0.002)
    assert chapters[-1][2] == pytest.approx(3.68, abs=0.002)
    assert {n: texts[n] for n in (3, 4, 5)} == pytest.approx({n: n + 0.1 - 2.52 for n in (3, 4, 5)}, abs=0.002)
    assert not set(texts) - {2, 3, 4, 5, 6}
    assert texts[2] == 0  # on screen from 2.1 to 2.9: shown from the start


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Subtitles that overlap, one of them for long; two languages; and Blu-ray's pictures."""
    folder = tmp_path_factory.mktemp("talk")
    (folder / "s.srt").write_text(
        "1\n00:00:00,500 --> 00:00:03,500\nlong\n\n2\n00:00:00,600 --> 00:00:01,000\nover\n\n"
        "3\n00:00:01,900 --> 00:00:02,100\nshort\n\n4\n00:00:04,000 --> 00:00:05,900\nlast\n"
    )
    pictures = pgs(folder / "a.sup", 3.0)
    run(
        *numbered(6), "-i", folder / "s.srt", "-i", folder / "s.srt", "-i", pictures, *("-map", "0", "-map", "1"),
        *("-map", "2", "-map", "3", "-c:v", "libx264", "-c:s:0", "srt", "-c:s:1", "ass", "-c:s:2", "copy"),
        *("-metadata:s:s:0", "language=eng", "-metadata:s:s:0", "title=Talk", "-metadata:s:s:1", "language=ger"),
        *("-disposition:s:0", "0", "-disposition:s:1", "default+forced"), folder / "talk.mkv",
    )  # fmt: skip
    # QuickTime has one text at a time.
    (folder / "one.srt").write_text(
        "1\n00:00:00,500 --> 00:00:03,500\nlong\n\n2\n00:00:04,000 --> 00:00:05,900\nlast\n"
    )
    text = ("-i", folder / "one.srt", "-map", "0:v", "-map", "1", "-c", "copy", "-c:s", "mov_text")
    run("-i", folder / "talk.mkv", *text, folder / "talk.mp4")
    return folder


def shown(path: Path, number: int) -> list[tuple[float, float, str]]:
    """From when to when (seconds) each text is on screen, as ffmpeg writes it down."""
    listing = path.with_suffix(f".{number}.srt")
    run("-i", path, "-map", f"0:s:{number}", listing)
    found = []
    for block in listing.read_text().strip().split("\n\n"):
        _, times, text = block.split("\n", 2)
        begin, end = (float(parse_seconds(time.replace(",", "."))) for time in times.split(" --> "))
        found.append((begin, end, re.sub("<[^>]*>|{[^}]*}", "", text)))
    return found


@pytest.mark.parametrize("source", ["talk.mkv", "talk.mp4"])
@pytest.mark.parametrize("container", ["mp4", "mkv", "mov"])
def test_what_is_on_screen_where_a_part_begins_stays(talk: Path, tmp_path: Path, source: str, container: str) -> None:
    output = tmp_path / f"out.{container}"
    cut(talk / source, output, Trim(start="2", end="5"), container)
    for number in range(2 if source == "talk.mkv" else 1):
        texts = sorted(shown(output, number))
        if source == "talk.mp4":
            assert texts == [(0, 1.5, "long"), (2, 3, "last")]
        elif container == "mkv":
            assert texts == [(0, 0.1, "short"), (0, 1.5, "long"), (2, 3, "last")]
        else:  # which have one text at a time
            assert (texts[0][0], texts[-1]) == (0, (2, 3, "last"))
    if source == "talk.mkv":
        first, second, *_ = reader.streams(output, "subtitle")
        assert [reader.tags(s)["language"] for s in (first, second)] == ["eng", "ger"]
        assert (first["disposition"]["default"], second["disposition"]["default"]) == (0, 1)
        assert second["disposition"]["forced"] == (container != "mov")  # which cannot say it
        if container == "mkv":
            assert reader.tags(first)["title"] == "Talk"
            assert reader.times(output, "s:2") == [0, 1]  # the picture, and that it goes
            assert reader.packet_hashes(output, "s:2") == reader.packet_hashes(talk / source, "s:2")
