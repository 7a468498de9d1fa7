"""Every kind of source that is promised: frames, times and content come out of each."""

import subprocess
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from flashvsr_core.errors import BadInput
from tasks.media.decode import read_frames
from tasks.media.ffmpeg import find_ffmpeg
from tasks.media.guard import describe, describe_guarded
from tasks.media.probe import VideoInfo
from tests.media.clips import numbered, numbers, run

VIDEOS = {
    "h264.mp4": ("-c:v", "libx264", "-bf", "2"),
    "h264.mkv": ("-c:v", "libx264", "-bf", "2"),
    "h264.mov": ("-c:v", "libx264", "-bf", "2"),
    "h264.ts": ("-c:v", "libx264", "-bf", "2"),
    "h264.flv": ("-c:v", "libx264", "-bf", "2"),
    "h265.mp4": ("-c:v", "libx265", "-x265-params", "log-level=error"),
    "h265.mkv": ("-c:v", "libx265", "-x265-params", "log-level=error"),
    "av1.mp4": ("-c:v", "libsvtav1", "-preset", "12"),
    "av1.webm": ("-c:v", "libsvtav1", "-preset", "12"),
    "vp9.webm": ("-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8"),
    "vp9.mp4": ("-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8"),
    "prores.mov": ("-c:v", "prores_ks", "-profile:v", "hq"),
    "prores4444.mov": ("-c:v", "prores_ks", "-profile:v", "4444"),
    "dnxhr.mxf": ("-c:v", "dnxhd", "-profile:v", "dnxhr_hq", "-pix_fmt", "yuv422p"),
    "dnxhr.mov": ("-c:v", "dnxhd", "-profile:v", "dnxhr_hqx", "-pix_fmt", "yuv422p10le"),
    "ffv1.mkv": ("-c:v", "ffv1", "-level", "3"),
    "ffv1.avi": ("-c:v", "ffv1"),
    "mpeg2.ts": ("-c:v", "mpeg2video", "-bf", "2", "-q:v", "2"),
    "mpeg2.mpg": ("-c:v", "mpeg2video", "-bf", "2", "-q:v", "2"),
    "mpeg2.mxf": ("-c:v", "mpeg2video", "-bf", "2", "-q:v", "2"),
    "mpeg4.avi": ("-c:v", "mpeg4", "-q:v", "2"),
    "mjpeg.avi": ("-c:v", "mjpeg", "-q:v", "2"),
    "numbers.gif": (),
}
# What images of each kind are written with, and how many bits they come out with.
IMAGES = {
    "png": (("-pix_fmt", "rgb24"), 8),
    "png 16": (("-pix_fmt", "rgb48be"), 16),
    "jpg": (("-q:v", "2"), 8),
    "tiff": (("-pix_fmt", "rgb24"), 8),
    "tif 16": (("-pix_fmt", "rgb48le"), 16),
    "exr": (("-pix_fmt", "gbrpf32le", "-format", "half"), 16),
    "exr float": (("-pix_fmt", "gbrpf32le", "-format", "float"), 16),
    "dpx": (("-pix_fmt", "gbrp10be"), 10),
    "webp": (("-c:v", "libwebp", "-lossless", "1"), 8),
    "bmp": ((), 8),
}
SIZE = "256x128"  # DNxHR's least width


def read(path: Path, info: VideoInfo, start: int, stop: int) -> list[int]:
    return numbers(read_frames(path, info, start, stop))


@pytest.mark.parametrize("name", VIDEOS)
def test_video_formats(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    run(*numbered(0.8, "25", SIZE), *VIDEOS[name], path)
    info = describe(path)
    assert (info.frames, info.width, info.height) == (20, 256, 128)
    assert info.frame_rate == (25, 1)
    assert info.constant_rate
    assert read(path, info, 0, 20) == list(range(20))
    assert read(path, info, 13, 17) == [13, 14, 15, 16]


def image_sequence(folder: Path, kind: str, frames: int = 12, first: int = 1, pattern: str = "shot_%04d") -> Path:
    folder.mkdir(parents=True)
    arguments, suffix = IMAGES[kind][0], kind.split()[0]
    run(
        *numbered(frames / 25, "25"), *arguments, "-start_number", str(first), "-frames:v", str(frames),
        folder / f"{pattern}.{suffix}",
    )  # fmt: skip
    return folder


@pytest.mark.parametrize("kind", IMAGES)
def test_image_formats(tmp_path: Path, kind: str) -> None:
    folder = image_sequence(tmp_path / "frames", kind)
    info = describe(folder, fps=Fraction(24000, 1001))
    assert (info.container, info.frames, info.bit_depth) == ("images", 12, IMAGES[kind][1])
    assert info.frame_rate == (24000, 1001)
    assert info.duration == pytest.approx(12 * 1001 / 24000)
    assert read(folder, info, 0, 12) == list(range(12))
    assert read(folder, info, 9, 11) == [9, 10]
    still = next(path for path in sorted(folder.iterdir()) if "0004" in path.name)
    info = describe(still)
    assert (info.container, info.frames) == ("image", 1)
    assert read(still, info, 0, 1) == [3]


@pytest.mark.parametrize("kind", ["png", "png 16", "exr", "dpx", "tif 16"])
def test_image_values_are_those_written(tmp_path: Path, kind: str) -> None:
    """A grey ramp: what ffmpeg wrote comes back within a level of 8 bits (EXR: with the sRGB curve on linear light)."""
    suffix = kind.split()[0]
    ramp = "format=gbrp16le,geq=r='X*256':g='X*256':b='X*256'"
    if suffix == "exr":
        ramp = "format=gbrpf32le,geq=r='X/255':g='X/255':b='X/255'"
    path = tmp_path / f"ramp.{suffix}"
    run("-f", "lavfi", "-i", f"color=s=256x16:d=0.04,{ramp}", *IMAGES[kind][0], "-frames:v", "1", path)
    frame = next(read_frames(path, describe(path), 0, 1))[0]
    found = frame[8, :, 1].astype(float) / (255 if frame.dtype == np.uint8 else 65535)
    wanted = np.arange(256) / 256 * (256 / 255.996)
    if suffix == "exr":
        linear = np.arange(256) / 255
        wanted = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    assert np.abs(found - wanted).max() < 1.1 / 255


def test_animated_webp_keeps_its_times(tmp_path: Path) -> None:
    path = tmp_path / "a.webp"
    vary = "setpts='(N+floor(N/3))/25/TB'"  # every third frame stays for two
    run(*numbered(0.4, "25"), "-vf", vary, "-fps_mode", "vfr", "-c:v", "libwebp_anim", "-lossless", "1", path)
    info = describe(path)
    assert (info.container, info.frames, info.constant_rate) == ("webp", 10, False)
    assert (info.timestamps.array - info.timestamps.pts(0)).tolist() == [(n + n // 3) * 40 for n in range(10)]
    assert read(path, info, 0, 10) == list(range(10))
    assert read(path, info, 4, 6) == [4, 5]


def test_order_is_that_of_the_numbers(tmp_path: Path) -> None:
    folder = image_sequence(tmp_path / "frames", "png", frames=12, first=8, pattern="%d")
    (folder / "notes.txt").write_text("not a frame")
    (folder / ".hidden.png").write_bytes(b"")
    info = describe(folder)
    assert sorted(path.name for path in folder.glob("[0-9]*.png"))[0] == "10.png"
    assert read(folder, info, 0, 12) == list(range(12))


def test_a_pattern_chooses_one_of_two_sequences(tmp_path: Path) -> None:
    folder = image_sequence(tmp_path / "frames", "png", pattern="a_%03d")
    run(*numbered(0.2, "25"), folder / "b_%03d.png")
    with pytest.raises(BadInput, match=r"more than one sequence.*a_001.*b_001.*pattern"):
        describe(folder)
    info = describe(folder / "a_*.png")
    assert info.frames == 12
    assert read(folder / "a_*.png", info, 3, 5) == [3, 4]


def refused(path: Path, *words: str, fps: Fraction | None = None) -> None:
    with pytest.raises(BadInput) as caught:
        describe(path, fps=fps)
    for word in words:
        assert word in str(caught.value)


def test_sequences_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    folder = image_sequence(tmp_path / "frames", "png", pattern="x%d")
    (folder / "x5.png").rename(tmp_path / "kept.png")
    refused(folder, "gap", "number 5 is missing", "'x4.png'", "'x6.png'")
    (folder / "x6.png").unlink()
    refused(folder, "gap", "numbers 5 to 6 are missing")
    (folder / "x06.png").write_bytes((folder / "x7.png").read_bytes())
    (folder / "x007.png").write_bytes((folder / "x7.png").read_bytes())
    refused(folder, "number 7 twice")
    (folder / "cover.png").write_bytes((tmp_path / "kept.png").read_bytes())
    refused(folder, "'cover.png'", "no number")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "has no images")
    refused(tmp_path / "frames" / "y*.png", "no images with such names")
    refused(tmp_path / "nowhere" / "y*.png", "does not exist")


def test_images_of_mixed_sizes_and_depths_are_refused(tmp_path: Path) -> None:
    folder = image_sequence(tmp_path / "frames", "png", frames=4, pattern="x%d")
    run(*numbered(0.04, "25", "320x64"), "-frames:v", "1", folder / "x3.png")
    refused(folder, "x3.png", "320x64", "160x64", "one size")
    run(*numbered(0.04, "25"), "-pix_fmt", "rgb48be", "-frames:v", "1", folder / "x3.png")
    refused(folder, "x3.png", "16 bits", "one depth")


@pytest.mark.parametrize("kind", ["png", "jpg", "tiff", "dpx", "webp", "bmp", "exr", "exr float"])
def test_a_cut_image_is_named(tmp_path: Path, kind: str) -> None:
    folder = image_sequence(tmp_path / "frames", kind, frames=3)
    path = sorted(folder.iterdir())[0]
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    refused(folder, path.name, "copy it again")


def test_a_webp_of_a_few_bytes(tmp_path: Path) -> None:
    """Found by fuzzing."""
    (tmp_path / "a.webp").write_bytes(b"RIFF\x20\0\0\0WEBPVP8X")
    refused(tmp_path / "a.webp", "copy it again")


def test_damage_in_the_middle_is_found_where_it_is_read(tmp_path: Path) -> None:
    folder = image_sequence(tmp_path / "frames", "png", frames=10, pattern="x%02d")
    path = folder / "x07.png"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    info = describe(folder)
    with pytest.raises(BadInput, match=r"x07\.png.*cop"):
        list(read_frames(folder, info, 0, 10))


def test_fps_is_for_sequences(clips: Path, tmp_path: Path) -> None:
    refused(clips / "cfr.mp4", "--fps is for sequences", fps=Fraction(24))
    run(*numbered(0.04), "-frames:v", "1", tmp_path / "a.png")
    refused(tmp_path / "a.png", "--fps is for sequences", fps=Fraction(24))


def test_the_child_says_the_same(clips: Path, tmp_path: Path) -> None:
    assert describe_guarded(clips / "vfr.mp4") == describe(clips / "vfr.mp4")
    folder = image_sequence(tmp_path / "frames", "png")
    assert describe_guarded(folder, fps=Fraction(24)) == describe(folder, fps=Fraction(24))
    for path in (tmp_path / "missing.mp4", Path(__file__)):
        with pytest.raises(BadInput) as caught:
            describe_guarded(path)
        with pytest.raises(BadInput) as direct:
            describe(path)
        assert str(direct.value) == str(caught.value)


def test_ffmpeg_reads_no_pattern_from_names(tmp_path: Path) -> None:
    """A file called x%02d.png is that file, also where x01.png lies beside it."""
    folder = image_sequence(tmp_path / "frames", "png", frames=3, pattern="x%02d")
    run(*numbered(0.4, "25"), "-vf", "select=eq(n\\,7)", "-frames:v", "1", "-update", "1", tmp_path / "seven.png")
    odd = folder / "x%02d.png"
    (tmp_path / "seven.png").rename(odd)
    info = describe(odd)
    assert info.frames == 1
    assert read(odd, info, 0, 1) == [7]


def test_ffmpeg_is_the_one_with_these_encoders() -> None:
    listed = subprocess.run([find_ffmpeg(), "-v", "error", "-encoders"], capture_output=True, text=True, check=True)
    for name in ("libsvtav1", "dnxhd", "prores_ks", "ffv1", "libwebp_anim"):
        assert name in listed.stdout
