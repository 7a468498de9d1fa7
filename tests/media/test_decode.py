import os
import random

import numpy as np
import pytest

from flashvsr_core.errors import BadInput, FlashvsrError
from tasks.media.decode import read_frames
from tasks.media.probe import probe
from tests.media.clips import numbers, run

EVERY_CLIP = [
    "cfr.mp4", "cfr.mkv", "cfr.ts", "cfr.avi", "faststart.mp4", "fragments.mp4", "open.mp4", "open.ts", "start7.mkv",
    "vfr.mp4", "vfr.mkv", "h265_10bit.mkv", "mpeg2.mpg", "vp9.webm", "vp8.webm",
]  # fmt: skip


@pytest.mark.parametrize("name", EVERY_CLIP)
def test_every_range_is_exact(clips, name):
    info = probe(clips / name)
    choose = random.Random(name)
    starts = {0, 1, info.frames - 1, *choose.sample(range(info.frames), 20)}
    for start in starts:
        stop = min(info.frames, start + choose.choice([1, 2, 9]))
        assert numbers(read_frames(clips / name, info, start, stop)) == list(range(start, stop)), (name, start)
    assert numbers(read_frames(clips / name, info, 0, info.frames)) == list(range(info.frames))


def test_edit_list_shows_what_a_player_shows(clips):
    info = probe(clips / "edit_list.mp4")
    shown = numbers(read_frames(clips / "edit_list.mp4", info, 0, info.frames))
    assert shown == list(range(36, 96))
    for start in (0, 1, 11, 12, 13, 40, 59):
        assert numbers(read_frames(clips / "edit_list.mp4", info, start, start + 1)) == [start + 36]


def test_seek_equals_reading_through(clips):
    """To the bit, also where groups are open."""
    for name in ("open.mp4", "start7.mkv", "h265_10bit.mkv"):
        info = probe(clips / name)
        whole = np.concatenate(list(read_frames(clips / name, info, 0, info.frames)))
        for start in range(3, info.frames - 3, 23):
            part = np.concatenate(list(read_frames(clips / name, info, start, start + 3)))
            assert np.array_equal(part, whole[start : start + 3])


def test_chunks(clips):
    info = probe(clips / "cfr.mp4")
    chunks = list(read_frames(clips / "cfr.mp4", info, 5, 26))
    assert [chunk.shape for chunk in chunks] == [(8, 64, 160, 3), (8, 64, 160, 3), (5, 64, 160, 3)]
    assert {chunk.dtype for chunk in chunks} == {np.dtype("u1")}
    assert list(read_frames(clips / "cfr.mp4", info, 7, 7)) == []


def test_closing_early_leaves_no_file_open(clips):
    info = probe(clips / "cfr.mp4")
    chunks = read_frames(clips / "cfr.mp4", info, 30, 90)
    next(chunks)
    is_open = [os.path.realpath(f"/proc/self/fd/{n}") == str(clips / "cfr.mp4") for n in os.listdir("/proc/self/fd")]
    assert any(is_open)
    chunks.close()
    is_open = [os.path.realpath(f"/proc/self/fd/{n}") == str(clips / "cfr.mp4") for n in os.listdir("/proc/self/fd")]
    assert not any(is_open)


def test_range_outside_the_video(clips):
    info = probe(clips / "cfr.mp4")
    for start, stop in ((-1, 4), (90, 97), (5, 4)):
        with pytest.raises(FlashvsrError, match="outside the 96 frames"):
            next(read_frames(clips / "cfr.mp4", info, start, stop))


def test_another_file_under_the_same_name_is_noticed(clips):
    info = probe(clips / "open.mp4")
    with pytest.raises(BadInput, match=r"frame 10 of 240 is missing"):
        list(read_frames(clips / "cfr.mp4", info, 10, 20))


def test_missing_frames_are_named(clips):
    info = probe(clips / "vfr.mkv")
    with pytest.raises(BadInput, match=r"frame \d+ of \d+ is missing"):
        list(read_frames(clips / "cfr.mkv", info, 0, info.frames))


# Kr, Kb of the standards; written out here, so that the test does not lean on the code under test.
LUMA = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}
TAGS = {"bt601": "smpte170m", "bt709": "bt709", "bt2020": "bt2020nc"}
COLOURS = [(200, 60, 80), (30, 150, 200), (255, 255, 255), (0, 0, 0), (255, 0, 0), (10, 240, 15), (0, 0, 255)]


def coded(colour, matrix, full, depth):
    """Y, U, V code values of an 8-bit RGB colour."""
    red, green, blue = (level / 255 for level in colour)
    kr, kb = LUMA[matrix]
    luma = kr * red + (1 - kr - kb) * green + kb * blue
    u, v = (blue - luma) / (2 * (1 - kb)), (red - luma) / (2 * (1 - kr))
    unit, peak = 2 ** (depth - 8), 2**depth - 1
    if full:
        levels = luma * peak, u * peak + 128 * unit, v * peak + 128 * unit
    else:
        levels = (16 + 219 * luma) * unit, (128 + 224 * u) * unit, (128 + 224 * v) * unit
    return [min(round(level), peak) for level in levels]


@pytest.mark.parametrize(
    ("matrix", "size", "full", "tagged"),
    [
        ("bt601", "64x48", False, False),
        ("bt601", "64x48", False, True),
        ("bt601", "1280x64", False, True),
        ("bt601", "64x48", True, True),
        ("bt709", "1280x64", False, False),
        ("bt709", "64x48", False, True),
        ("bt709", "64x48", True, True),
        ("bt2020", "64x48", False, True),
    ],
)
@pytest.mark.parametrize("depth", [8, 10])
def test_colours_come_back(tmp_path, matrix, size, full, tagged, depth):
    pixels = "yuv420p10le" if depth == 10 else "yuv420p"
    pick = ["", "", ""]
    for number, colour in enumerate(COLOURS):
        for plane, level in enumerate(coded(colour, matrix, full, depth)):
            pick[plane] += f"+eq(N,{number})*{level}"
    geq = f"geq=lum='{pick[0]}':cb='{pick[1]}':cr='{pick[2]}'"
    span = "pc" if full else "tv"
    tags = f"colorspace={TAGS[matrix]}:range={span}" if tagged else "colorspace=unknown:range=unknown"
    source = ["-f", "lavfi", "-i", f"color=black:s={size}:r=25:d={len(COLOURS) / 25},format={pixels},{geq}"]
    run(*source, "-vf", f"setparams={tags}", "-c:v", "libx264", "-qp", "0", "-g", "1", tmp_path / "a.mkv")
    info = probe(tmp_path / "a.mkv")
    assert (info.matrix, info.full_range, info.frames) == (matrix, full, len(COLOURS))
    frames = next(read_frames(tmp_path / "a.mkv", info, 0, len(COLOURS)))
    assert frames.dtype == (np.uint16 if depth == 10 else np.uint8)
    levels = frames.astype(float) / (257 if depth == 10 else 1)
    for number, colour in enumerate(COLOURS):
        assert np.abs(levels[number] - colour).max() <= (0.75 if depth == 10 else 2), colour


@pytest.mark.parametrize(
    "pixels", ["yuv422p10le", "yuv444p12le", "gbrp10le", "gray10le", "rgb24", "yuyv422", "gbrp16le"]
)
def test_other_pixel_formats_reach_white_and_black(tmp_path, pixels):
    # (ffmpeg's own conversion to deep RGB gives 1020 for a 10-bit white: a wider margin there.)
    for colour, value in (("white", 1.0), ("black", 0.0)):
        source = ["-f", "lavfi", "-i", f"color={colour}:s=64x48:r=25:d=0.04"]
        codec = "rawvideo" if pixels == "yuyv422" else "ffv1"
        container = "nut"
        run(*source, "-vf", f"format=gbrp,format={pixels}", "-c:v", codec, tmp_path / f"a.{container}")
        info = probe(tmp_path / f"a.{container}")
        frames = next(read_frames(tmp_path / f"a.{container}", info, 0, 1))
        assert np.abs(frames / np.iinfo(frames.dtype).max - value).max() < (
            0.005 if "rgb" in pixels or "gbr" in pixels else 0.002
        )
        assert frames.dtype == (np.uint16 if info.bit_depth > 8 else np.uint8)
