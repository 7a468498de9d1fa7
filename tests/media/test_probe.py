import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from pydantic import TypeAdapter

from tasks.media.probe import VideoInfo, probe
from tasks.media.timestamps import Timestamps, constant_rate
from tests.media.clips import numbered, run

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("name", "frames", "rate", "constant"),
    [
        ("cfr.mp4", 96, (24000, 1001), True),
        ("cfr.mkv", 96, (24000, 1001), True),
        ("cfr.ts", 96, (24000, 1001), True),
        ("cfr.avi", 96, (24000, 1001), True),
        ("faststart.mp4", 96, (24000, 1001), True),
        ("fragments.mp4", 96, (24000, 1001), True),
        ("open.mp4", 240, (30, 1), True),
        ("open.ts", 240, (30, 1), True),
        ("start7.mkv", 240, (30, 1), True),
        ("h265_10bit.mkv", 200, (50, 1), True),
        ("mpeg2.mpg", 75, (25, 1), True),
        ("vp9.webm", 75, (25, 1), True),
        ("vp8.webm", 75, (25, 1), True),
    ],
)
def test_counts_and_rates(clips, name, frames, rate, constant):
    info = probe(clips / name)
    assert (info.frames, info.frame_rate, info.constant_rate) == (frames, rate, constant)
    assert info.timestamps.count == frames
    assert info.duration == pytest.approx(frames * rate[1] / rate[0], abs=0.003)
    assert (info.truncated, info.damage) == (False, None)


@pytest.mark.parametrize(
    "name", ["cfr.mp4", "vfr.mp4", "vfr.mkv", "edit_list.mp4", "start7.mkv", "open.ts", "h265_10bit.mkv"]
)
def test_timestamps_are_those_of_the_decoded_frames(clips, name):
    with av.open(str(clips / name)) as container:
        decoded = [frame.pts for frame in container.decode(video=0)]
    info = probe(clips / name)
    assert [info.timestamps.pts(i) for i in range(info.frames)] == decoded


def test_variable_rate_is_seen_and_averaged(clips):
    info = probe(clips / "vfr.mp4")
    assert not info.constant_rate
    assert float(Fraction(*info.frame_rate)) == pytest.approx((info.frames - 1) / info.duration, rel=0.05)


def test_edit_list_hides_frames(clips):
    whole, cut = probe(clips / "cfr.mp4"), probe(clips / "edit_list.mp4")
    assert cut.frames == whole.frames - 36  # 1.5 s at 23.976
    assert cut.timestamps.pts(0) == 0


def test_demo_clip():
    info = probe(REPOSITORY / "assets" / "bbb.mp4")
    assert (info.width, info.height, info.frames, info.frame_rate) == (192, 108, 96, (24, 1))
    assert (info.matrix, info.full_range, info.bit_depth) == ("bt709", False, 8)
    assert [stream.codec for stream in info.streams] == ["h264", "aac"]


def test_streams_of_a_programme(programme):
    info = probe(programme)
    kinds = [(stream.kind, stream.codec, stream.language, stream.title) for stream in info.streams]
    assert kinds[:5] == [
        ("video", "h264", "fre", "Main picture"),
        ("audio", "aac", "eng", None),
        ("audio", "aac", "ger", "Kommentar"),
        ("subtitle", "subrip", "eng", None),
        ("subtitle", "ass", "ger", None),
    ]
    assert kinds[5][0] == "attachment"
    assert (info.streams[1].default, info.streams[2].default) == (True, False)
    assert info.chapters == 2
    assert info.start_time - info.audio_start == pytest.approx(0.5, abs=0.03)


def test_cover_art_is_not_the_video(clips, tmp_path):
    run("-f", "lavfi", "-i", "color=red:s=32x32:d=1", "-frames:v", "1", tmp_path / "cover.png")
    arguments = ("-map", "1", "-map", "0", "-c", "copy", "-c:v:0", "png", "-disposition:v:0", "attached_pic")
    run("-i", clips / "cfr.mp4", "-i", tmp_path / "cover.png", *arguments, tmp_path / "covered.mp4")
    info = probe(tmp_path / "covered.mp4")
    assert (info.width, info.frames) == (160, 96)
    assert [stream.cover for stream in info.streams].count(True) == 1


@pytest.mark.parametrize(
    ("size", "tags", "matrix", "full"),
    [
        ("64x36", [], "bt601", False),
        ("1280x720", [], "bt709", False),
        ("64x720", [], "bt709", False),
        ("64x36", ["-colorspace", "bt709", "-color_range", "pc"], "bt709", True),
        ("1280x720", ["-colorspace", "smpte170m", "-color_range", "tv"], "bt601", False),
        (
            "64x36",
            ["-vf", "setparams=colorspace=bt2020nc:color_primaries=bt2020:color_trc=smpte2084:range=tv"],
            "bt2020",
            False,
        ),
    ],
)
def test_matrix_and_range(tmp_path, size, tags, matrix, full):
    source = ["-f", "lavfi", "-i", f"color=gray:s={size}:d=0.1"]
    run(*source, "-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p", *tags, tmp_path / "a.mp4")
    info = probe(tmp_path / "a.mp4")
    assert (info.matrix, info.full_range) == (matrix, full)
    if matrix == "bt2020":
        assert (info.colorspace, info.color_primaries, info.color_trc) == ("bt2020nc", "bt2020", "smpte2084")


def test_rotation_and_pixel_shape(clips, tmp_path):
    run("-display_rotation", "90", "-i", clips / "cfr.mp4", "-c", "copy", tmp_path / "turned.mp4")
    info = probe(tmp_path / "turned.mp4")
    assert (info.width, info.height, info.rotation) == (160, 64, 90)
    assert info.display_matrix is not None
    run(*numbered(0.2), "-vf", "setsar=4/3", "-c:v", "libx264", tmp_path / "wide.mp4")
    assert probe(tmp_path / "wide.mp4").sample_aspect_ratio == (4, 3)


@pytest.mark.parametrize("name", ["cfr.mp4", "vfr.mkv", "start7.mkv"])
def test_json_round_trip(clips, name):
    info = probe(clips / name)
    adapter = TypeAdapter(VideoInfo)
    assert adapter.validate_python(json.loads(adapter.dump_json(info))) == info


def test_two_hours_stay_small_in_json(clips):
    info = probe(clips / "cfr.mp4")
    frames = 2 * 3600 * 24
    milliseconds = np.round(np.arange(frames) * 1001 / 24).astype(np.int64)
    jitter = np.cumsum(3000 + np.random.default_rng(0).integers(-60, 60, frames))
    for pts, limit in ((milliseconds, 50_000), (jitter, 600_000)):
        stamps = Timestamps.of(pts)
        assert np.array_equal(stamps.array, pts)
        assert len(TypeAdapter(VideoInfo).dump_json(replace(info, timestamps=stamps))) < limit


@pytest.mark.parametrize(("dropped", "constant"), [(None, True), (40, False)])
def test_a_dropped_frame_makes_the_rate_variable(dropped, constant):
    pts = np.delete(np.arange(100) * 512, [] if dropped is None else [dropped])
    assert (constant_rate(pts, Fraction(1, 12800), [Fraction(25)]) is not None) == constant
    ticks = np.delete(np.arange(100), [] if dropped is None else [dropped])
    assert (constant_rate(ticks, Fraction(1, 25), [Fraction(25)]) is not None) == constant
