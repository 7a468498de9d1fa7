import hashlib
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from flashvsr_core.errors import FlashvsrError
from tasks.media.check import check_against, decode_all, decode_ranges, inspect, joins
from tasks.media.decode import read_frames
from tasks.media.encode import EncodeParams
from tasks.media.mux import holds, merge
from tasks.media.probe import kinds, probe
from tests.media.clips import copy_through, numbered, numbers, run

FAST = EncodeParams(preset="ultrafast", crf=12)


def packets(path, kind, number=0):
    """Digests of the packets of one stream: equal where it was copied."""
    with av.open(str(path)) as container:
        stream = getattr(container.streams, kind)[number]
        return [hashlib.md5(bytes(packet)).hexdigest() for packet in container.demux(stream) if packet.size]


def chapters(path):
    """Titles and times (seconds) of chapters."""
    with av.open(str(path)) as container:
        return [
            (
                chapter["metadata"]["title"],
                float(chapter["start"] * chapter["time_base"]),
                float(chapter["end"] * chapter["time_base"]),
            )
            for chapter in container.chapters()
        ]


def subtitles(path, number):
    """Time (seconds) and text of every subtitle."""
    with av.open(str(path)) as container:
        stream = container.streams.subtitles[number]
        found = []
        for packet in container.demux(stream):
            text = bytes(packet).decode(errors="replace")
            if packet.size > 2:
                found.append((round(float(packet.pts * packet.time_base), 2), text))
        return found


@pytest.mark.parametrize("parts", [1, 2, 13])
@pytest.mark.parametrize("codec", ["h264", "h265"])
@pytest.mark.parametrize("container", ["mp4", "mkv", "mov"])
def test_every_frame_at_its_time(clips, tmp_path, codec, container, parts):
    source = clips / "cfr.mp4"
    output = tmp_path / f"out.{container}"
    info, notes = copy_through(source, output, replace(FAST, codec=codec, container=container), parts, tmp_path)
    facts = check_against(output, info, info.width, info.height)
    assert notes == ()
    assert (facts.frames, facts.audio_streams) == (96, 1)
    assert numbers(read_frames(output, facts.info, 0, 96)) == list(range(96))
    assert packets(output, "audio") == packets(source, "audio")
    assert facts.info.frame_rate == (24000, 1001)
    if container != "mkv":  # exact; Matroska rounds to its milliseconds
        step = facts.info.timestamps.pts(1)
        assert facts.info.timestamps.array.tolist() == [i * step for i in range(96)]
        assert Fraction(step * facts.info.time_base[0], facts.info.time_base[1]) == Fraction(1001, 24000)


@pytest.mark.parametrize("codec", ["h264", "h265"])
def test_merging_changes_no_pixel(clips, tmp_path, codec):
    output = tmp_path / "out.mp4"
    info, _ = copy_through(clips / "cfr.mp4", output, replace(FAST, codec=codec), 3, tmp_path)
    merged = np.concatenate(list(read_frames(output, probe(output), 0, info.frames)))
    parts = [tmp_path / f"part {number}.mp4" for number in range(3)]
    alone = [chunk for part in parts for chunk in read_frames(part, probe(part), 0, probe(part).frames)]
    assert np.array_equal(merged, np.concatenate(alone))


def test_many_segments_do_not_drift(clips, tmp_path):
    """An end off by up to half a millisecond per join would be 20 ms here."""
    source = clips / "cfr.mkv"
    info, _ = copy_through(source, tmp_path / "out.mp4", FAST, 40, tmp_path)
    made = check_against(tmp_path / "out.mp4", info, info.width, info.height).info
    seconds = Fraction(made.timestamps.pts(95) * made.time_base[0], made.time_base[1])
    assert seconds == Fraction(95 * 1001, 24000)


@pytest.mark.parametrize("name", ["vfr.mp4", "vfr.mkv"])
@pytest.mark.parametrize("codec", ["h264", "h265"])
@pytest.mark.parametrize("container", ["mp4", "mkv"])
def test_variable_rate_keeps_its_times(clips, tmp_path, name, codec, container):
    output = tmp_path / f"out.{container}"
    params = EncodeParams(codec=codec, container=container, preset="veryfast", crf=12)  # with B-frames
    info, _ = copy_through(clips / name, output, params, 3, tmp_path)
    made = check_against(output, info, info.width, info.height).info
    assert not made.constant_rate
    ours = made.timestamps.array * float(Fraction(*made.time_base))
    theirs = info.timestamps.array * float(Fraction(*info.time_base))
    assert np.abs((ours - ours[0]) - (theirs - theirs[0])).max() <= 0.001
    assert numbers(read_frames(output, made, 0, made.frames)) == list(range(info.frames))


@pytest.mark.parametrize("name", ["start7.mkv", "open.ts", "edit_list.mp4", "fragments.mp4", "cfr.avi", "cfr.ts"])
@pytest.mark.parametrize("container", ["mp4", "mkv"])
def test_sources_of_every_timing(clips, tmp_path, name, container):
    output = tmp_path / f"out.{container}"
    info, notes = copy_through(clips / name, output, replace(FAST, container=container), 2, tmp_path)
    facts = check_against(output, info, info.width, info.height)
    assert notes == ()
    first = 36 if name == "edit_list.mp4" else 0
    assert numbers(read_frames(output, facts.info, 0, info.frames)) == list(range(first, first + info.frames))


@pytest.mark.parametrize(("rate", "expected"), [("50", (50, 1)), ("24000/1001", (24000, 1001)), ("15", (15, 1))])
def test_rates(tmp_path, rate, expected):
    run(*numbered(1, rate), "-c:v", "libx264", tmp_path / "in.mp4")
    info, _ = copy_through(tmp_path / "in.mp4", tmp_path / "out.mp4", FAST, 3, tmp_path)
    facts = check_against(tmp_path / "out.mp4", info, info.width, info.height)
    assert facts.info.frame_rate == expected


@pytest.mark.parametrize("size", ["161x63", "64x160"])
def test_odd_and_portrait_sizes(tmp_path, size):
    run(*numbered(0.4, size=size), "-pix_fmt", "yuv444p", "-c:v", "libx264", tmp_path / "in.mp4")
    info, _ = copy_through(tmp_path / "in.mp4", tmp_path / "out.mp4", FAST, 2, tmp_path)
    assert f"{info.width}x{info.height}" == size
    check_against(tmp_path / "out.mp4", info, info.width, info.height)


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_the_shortest_videos(tmp_path, frames):
    run(*numbered(1), "-frames:v", str(frames), "-c:v", "libx264", tmp_path / "in.mp4")
    for codec in ("h264", "h265"):
        info, _ = copy_through(tmp_path / "in.mp4", tmp_path / "out.mp4", replace(FAST, codec=codec), frames, tmp_path)
        assert check_against(tmp_path / "out.mp4", info, info.width, info.height).frames == frames


@pytest.mark.parametrize("container", ["mkv", "mp4", "mov"])
def test_a_whole_programme(programme, tmp_path, container):
    output = tmp_path / f"out.{container}"
    info, notes = copy_through(programme, output, replace(FAST, container=container), 3, tmp_path)
    facts = check_against(output, info, info.width, info.height)
    assert (facts.audio_streams, facts.subtitle_streams, facts.chapters) == (2, 2, 2)
    assert facts.video_start - facts.audio_start == pytest.approx(0.5, abs=0.025)
    assert numbers(read_frames(output, facts.info, 0, 96)) == list(range(96))
    for number in (0, 1):
        assert packets(output, "audio", number) == packets(programme, "audio", number)
    wanted = {"mkv": "ger"}.get(container, "deu")  # mp4 has 639-2/T codes
    sound = kinds(facts.info.streams, "audio")
    assert [stream.language for stream in sound] in (["eng", "ger"], ["eng", wanted])
    assert [stream.default for stream in sound] == [True, False]
    assert [stream.language for stream in kinds(facts.info.streams, "subtitle")] in (["eng", "ger"], ["eng", wanted])
    assert kinds(facts.info.streams, "video")[0].language in ("fre", "fra")
    assert kinds(facts.info.streams, "video")[0].default or container == "mkv"
    titles = [(title, start, end) for title, start, end in chapters(output)]
    assert titles == [("Part 0", 0, 2), ("Part 2000", 2, 4)]
    texts = subtitles(output, 0)
    assert [round(time, 1) for time, _ in texts] == [1.0, 3.0]
    assert "Hello" in texts[0][1]
    assert "Hallo" in subtitles(output, 1)[0][1]
    with av.open(str(output)) as made:
        assert made.metadata["title"] == "A film; of = sorts"
    if container == "mkv":
        assert notes == ()
        assert sound[1].title == "Kommentar"
        assert kinds(facts.info.streams, "video")[0].title == "Main picture"
        assert [stream.codec for stream in kinds(facts.info.streams, "subtitle")] == ["subrip", "ass"]
        assert len(kinds(facts.info.streams, "attachment")) == 1
    else:
        assert [stream.codec for stream in kinds(facts.info.streams, "subtitle")] == ["mov_text", "mov_text"]
        assert [note.split(" was ")[0] for note in notes] == [
            "subtitle stream 3 (subrip, eng)",
            "subtitle stream 4 (ass, ger)",
            f"attachment stream 5 ({info.streams[5].codec})",
        ]
        assert "without its styling" in notes[1]
        assert "mkv can" in notes[2]


def test_subtitles_of_mp4_in_matroska(programme, tmp_path):
    run("-i", programme, "-map", "0:v", "-map", "0:s:0", "-c", "copy", "-c:s", "mov_text", tmp_path / "in.mp4")
    _, notes = copy_through(tmp_path / "in.mp4", tmp_path / "out.mkv", replace(FAST, container="mkv"), 2, tmp_path)
    assert kinds(probe(tmp_path / "out.mkv").streams, "subtitle")[0].codec == "subrip"
    assert "was converted to subrip" in notes[0]
    assert "Hello" in subtitles(tmp_path / "out.mkv", 0)[0][1]


def test_sound_that_a_container_cannot_hold_is_converted(clips, tmp_path):
    run("-i", clips / "cfr.mp4", "-map", "0", "-c:v", "copy", "-c:a", "wmav2", tmp_path / "in.mkv")
    info, notes = copy_through(tmp_path / "in.mkv", tmp_path / "out.mp4", FAST, 2, tmp_path)
    assert notes == ("audio stream 1 (wmav2) was converted to aac: mp4 cannot hold it; mkv can",)
    facts = check_against(tmp_path / "out.mp4", info, info.width, info.height)
    assert kinds(facts.info.streams, "audio")[0].codec == "aac"


def test_cover_art_is_kept_and_a_second_video_is_named(clips, tmp_path):
    run("-f", "lavfi", "-i", "color=red:s=32x32", "-frames:v", "1", tmp_path / "cover.png")
    inputs = ("-i", clips / "cfr.mp4", "-i", clips / "open.mp4", "-i", tmp_path / "cover.png")
    arguments = ("-map", "0", "-map", "1", "-map", "2", "-c", "copy", "-disposition:v:2", "attached_pic")
    run(*inputs, *arguments, tmp_path / "in.mp4")
    info, notes = copy_through(tmp_path / "in.mp4", tmp_path / "out.mp4", FAST, 2, tmp_path)
    made = check_against(tmp_path / "out.mp4", info, info.width, info.height).info
    assert [stream.cover for stream in made.streams if stream.kind == "video"] == [False, True]
    assert len(notes) == 1
    assert "video stream 2 (h264) was left out" in notes[0]


@pytest.mark.parametrize("container", ["mp4", "mov", "mkv"])
@pytest.mark.parametrize("codec", ["h264", "h265"])
def test_rotation_shape_and_tags_survive(clips, tmp_path, codec, container):
    tags = "setsar=4/3,setparams=colorspace=smpte170m:color_primaries=smpte170m:color_trc=smpte170m:range=tv"
    run(*numbered(0.4), "-vf", tags, "-c:v", "libx264", tmp_path / "straight.mp4")
    run("-display_rotation", "90", "-i", tmp_path / "straight.mp4", "-c", "copy", tmp_path / "in.mp4")
    output = tmp_path / f"out.{container}"
    info, _ = copy_through(tmp_path / "in.mp4", output, replace(FAST, codec=codec, container=container), 2, tmp_path)
    made = check_against(output, info, 160, 64).info
    assert info.rotation == 90
    for field in ("rotation", "sample_aspect_ratio", "colorspace", "color_primaries", "color_trc", "color_range"):
        assert getattr(made, field) == getattr(info, field), field


def test_strange_names(clips, tmp_path):
    folder = tmp_path / "a 'b' \"c\"\n%d:-é"
    folder.mkdir()
    info, _ = copy_through(clips / "cfr.mp4", folder / "-o'u t%d.mp4", FAST, 2, folder)
    check_against(folder / "-o'u t%d.mp4", info, info.width, info.height)
    assert sorted(path.name for path in folder.iterdir()) == ["-o'u t%d.mp4", "part 0.mp4", "part 1.mp4"]


def test_metadata_stays_data(clips, tmp_path):
    """What a file says of itself reaches no shell, filter or option."""
    evil = "-y; $(touch pwned) 'x' \"y\"\n[0:v]=,:"
    run(
        "-i",
        clips / "cfr.mp4",
        "-c",
        "copy",
        "-metadata",
        f"title={evil}",
        "-metadata:s:v:0",
        f"title={evil}",
        tmp_path / "in.mkv",
    )
    copy_through(tmp_path / "in.mkv", tmp_path / "out.mkv", replace(FAST, container="mkv"), 2, tmp_path)
    with av.open(str(tmp_path / "out.mkv")) as made:
        assert made.metadata["title"] == evil
        assert made.streams.video[0].metadata["title"] == evil


def test_missing_segments_are_refused(clips, tmp_path):
    info = probe(clips / "cfr.mp4")
    with pytest.raises(FlashvsrError, match="have 95 frames, the video 96"):
        merge([(tmp_path / "a.mp4", 95)], clips / "cfr.mp4", info, FAST, tmp_path / "out.mp4")


def test_what_containers_hold():
    assert {"aac", "opus", "mov_text"} <= holds("mp4")
    assert {"subrip", "ass", "hdmv_pgs_subtitle", "dts", "wmav2"} - holds("mkv") <= {"wmav2"}
    assert "truehd" not in holds("mp4")


@pytest.fixture(scope="module")
def pair(clips: Path, tmp_path_factory: pytest.TempPathFactory):
    """A source's VideoInfo and a good result."""
    folder = tmp_path_factory.mktemp("check")
    info, _ = copy_through(clips / "cfr.mp4", folder / "good.mp4", FAST, 4, folder)
    return info, folder / "good.mp4"


class TestCheck:
    """The verification notices what it is there for."""

    def test_inspect(self, pair):
        facts = inspect(pair[1])
        assert (facts.frames, facts.width, facts.height, facts.audio_streams) == (96, 160, 64, 1)
        assert facts.duration == pytest.approx(4.004, abs=0.001)

    def test_decoding(self, pair):
        assert joins([24, 24, 24, 24]) == ((20, 28), (44, 52), (68, 76))
        assert joins([2, 96]) == ((0, 6),)
        assert decode_ranges(pair[1], joins([24, 24, 24, 24])) == 24
        assert decode_all(pair[1]) == 96

    def test_count_and_size(self, pair):
        info, good = pair
        with pytest.raises(FlashvsrError, match="has 96 frames, expected 97"):
            check_against(good, replace(info, frames=97), 160, 64)
        with pytest.raises(FlashvsrError, match="is 160x64, expected 320x128"):
            check_against(good, info, 320, 128)

    def test_times(self, pair, clips):
        info, good = pair
        other = replace(info, timestamps=replace(info.timestamps), frame_rate=(25, 1), time_base=(1, 25000))
        with pytest.raises(FlashvsrError, match="off its time"):
            check_against(good, other, 160, 64)

    def test_lost_and_shifted_sound(self, pair, tmp_path):
        info, good = pair
        run("-i", good, "-an", "-c", "copy", tmp_path / "silent.mp4")
        with pytest.raises(FlashvsrError, match="has no sound, its source has it"):
            check_against(tmp_path / "silent.mp4", info, 160, 64)
        shifted = ("-itsoffset", "0.2", "-i", good, "-map", "0:v", "-map", "1:a", "-c", "copy")
        run("-i", good, *shifted, tmp_path / "shifted.mp4")
        with pytest.raises(
            FlashvsrError, match=r"the picture starts -0\.\d+ s after the sound, in its source \+0\.000"
        ):
            check_against(tmp_path / "shifted.mp4", info, 160, 64)

    def test_damage(self, pair, tmp_path):
        data = bytearray(pair[1].read_bytes())
        start = data.index(b"mdat") + 4
        middle = start + (len(data) - start) // 2
        data[middle : middle + 6000] = bytes(6000)
        (tmp_path / "bad.mp4").write_bytes(data)
        with pytest.raises(FlashvsrError, match=r"frame \d+ of 96"):
            decode_all(tmp_path / "bad.mp4")
