"""Interlaced sources: found, made progressive, and the same pictures wherever segments begin."""

import logging
from pathlib import Path

import av
import numpy as np
import pytest

from tasks.media.decode import deinterlaced, read_frames
from tasks.media.probe import probe
from tests.media.clips import run

FIELDS = {"tff": "tinterlace=interleave_top,fieldorder=tff", "bff": "tinterlace=interleave_bottom,fieldorder=bff"}
MPEG2 = ("-c:v", "mpeg2video", "-pix_fmt", "yuv420p", "-flags", "+ildct+ilme", "-q:v", "2", "-bf", "2")
CODECS = {
    "mpeg2.mpg": MPEG2,
    "h264.mp4": ("-c:v", "libx264", "-pix_fmt", "yuv420p", "-flags", "+ildct+ilme", "-preset", "veryfast"),
    "prores.mov": ("-c:v", "prores_ks", "-profile:v", "3", "-flags", "+ildct"),
    "ten.mkv": ("-c:v", "libx264", "-flags", "+ildct+ilme", "-pix_fmt", "yuv422p10le", "-preset", "veryfast"),
}


def moving(folder: Path, name: str, order: str = "tff", seconds: float = 1) -> Path:
    """A picture that moves from field to field, 25 frames a second."""
    path = folder / f"{order}_{name}"
    source = f"testsrc2=s=96x64:r=50:d={seconds}"
    run("-f", "lavfi", "-i", source, "-vf", FIELDS[order], *CODECS[name], path)
    return path


def mixed(folder: Path, *parts: str) -> Path:
    """A second of fields and a second of whole frames, in this order."""
    made = {"fields": FIELDS["tff"], "whole": "fps=25"}
    for part in parts:
        flags = ("-flags", "+ildct+ilme") if part == "fields" else ()
        source = ("-f", "lavfi", "-i", "testsrc2=s=96x64:r=50:d=1", "-vf", made[part])
        run(*source, *CODECS["h264.mp4"][:4], *flags, "-bf", "0", folder / f"{part}.h264")
    (folder / "both.h264").write_bytes(b"".join((folder / f"{part}.h264").read_bytes() for part in parts))
    run("-fflags", "+genpts", "-r", "25", "-i", folder / "both.h264", "-c", "copy", folder / "mixed.mp4")
    return folder / "mixed.mp4"


def whole(path: Path, mode: str, **more: object) -> np.ndarray:
    info = probe(path)
    return np.concatenate(list(read_frames(path, info, 0, info.frames, deinterlace=mode, **more)))  # type: ignore[arg-type]


@pytest.mark.parametrize("order", FIELDS)
@pytest.mark.parametrize("name", CODECS)
def test_found_and_the_same_wherever_a_segment_begins(tmp_path: Path, name: str, order: str) -> None:
    path = moving(tmp_path, name, order)
    info = probe(path)
    assert info.interlaced
    pictures = whole(path, "auto")
    assert len(pictures) == info.frames
    assert not np.array_equal(pictures, whole(path, "off"))
    for start, stop in ((0, 1), (0, 8), (8, 16), (9, 10), (3, info.frames), (info.frames - 1, info.frames)):
        part = np.concatenate(list(read_frames(path, info, start, stop, deinterlace="auto")))
        assert np.array_equal(part, pictures[start:stop]), (start, stop)


def test_pictures_are_those_of_ffmpeg(tmp_path: Path) -> None:
    """To the bit, with the planes as decoded: our own context frames are the right ones."""
    path = moving(tmp_path, "h264.mp4")
    run(
        "-i",
        path,
        "-vf",
        "bwdif=mode=send_frame:deint=interlaced",
        "-fps_mode",
        "passthrough",
        "-f",
        "rawvideo",
        tmp_path / "raw",
    )
    theirs = np.fromfile(tmp_path / "raw", np.uint8).reshape(-1, 96 * 64 * 3 // 2)
    info = probe(path)
    ours = [frame.to_ndarray().reshape(-1) for frame in deinterlaced(path, info, 0, info.frames, flagged_only=True)]
    assert len(ours) == len(theirs)
    # Frame 0 has nothing before it, and ffmpeg 9 fills that in otherwise than PyAV's libavfilter.
    assert np.array_equal(np.stack(ours)[1:], theirs[1:])


def test_combs_are_gone(tmp_path: Path) -> None:
    """Upright bars that move: lines differ from the next only where fields do."""

    def combing(pictures: np.ndarray) -> float:
        lines = pictures.astype(float).mean(axis=3)
        return float(np.abs(np.diff(lines, axis=1)).mean())

    bars = "nullsrc=s=96x64:r=50:d=1,geq=lum='if(lt(mod(X+6*N,48),24),220,30)':cb=128:cr=128"
    path = tmp_path / "bars.mp4"
    run("-f", "lavfi", "-i", bars, "-vf", FIELDS["tff"], *CODECS["h264.mp4"], path)
    assert combing(whole(path, "auto")) < 0.5 * combing(whole(path, "off"))


def test_progressive_sources_are_left_alone(clips: Path, caplog: pytest.LogCaptureFixture) -> None:
    info = probe(clips / "cfr.mp4")
    assert not info.interlaced
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(whole(clips / "cfr.mp4", "auto"), whole(clips / "cfr.mp4", "off"))
    assert caplog.records == []


def test_progressive_frames_of_a_mixed_source_pass_as_they_are(tmp_path: Path) -> None:
    path = mixed(tmp_path, "fields", "whole")
    with av.open(str(path)) as container:
        flags = np.array([frame.interlaced_frame for frame in container.decode(video=0)])
    assert flags.any()
    assert not flags.all()
    plain, made = whole(path, "off"), whole(path, "auto")
    same = (plain == made).all(axis=(1, 2, 3))
    assert same[~flags].all()
    assert not same[flags][1:-1].any()


def test_fields_that_turn_up_later_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = mixed(tmp_path, "whole", "fields")
    info = probe(path)
    assert not info.interlaced
    with caplog.at_level(logging.WARNING):
        plain = whole(path, "auto")
    assert ["--deinterlace on" in record.getMessage() for record in caplog.records] == [True]
    made = whole(path, "on")
    assert len(made) == info.frames
    assert not np.array_equal(made[-5], plain[-5])
