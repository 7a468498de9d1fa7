"""Transparency: read from every kind of source, taken through as a picture of its own, kept where it can be."""

from pathlib import Path

import numpy as np
import pytest

from tasks.media.decode import read_frames
from tasks.media.encode import EncodeParams
from tasks.media.probe import probe
from tests.media.clips import run
from tests.media.reader import picture, times
from tests.tasks.enlarging import enlarged

WIDTH, HEIGHT = 64, 48
CLEAR = "geq=lum='p(X,Y)':cb='cb(X,Y)':cr='cr(X,Y)':a='{peak}*X/63'"
CLEAR_RGB = "geq=r='r(X,Y)':g='g(X,Y)':b='b(X,Y)':a='{peak}*X/63'"
SOURCES = {
    "prores.mov": ("yuva444p10le", 1023, ("-c:v", "prores_ks", "-profile:v", "4444")),
    "ffv1.mkv": ("yuva420p", 255, ("-c:v", "ffv1")),
    "png.mov": ("yuva444p", 255, ("-c:v", "png", "-pix_fmt", "rgba")),
    "deep_png.mov": ("gbrap16le", 65535, ("-c:v", "png", "-pix_fmt", "rgba64be")),
    "vp9.webm": ("yuva420p", 255, ("-c:v", "libvpx-vp9", "-auto-alt-ref", "0", "-crf", "4", "-b:v", "0")),
    "vp8.webm": ("yuva420p", 255, ("-c:v", "libvpx", "-auto-alt-ref", "0", "-crf", "4", "-b:v", "2M")),
}
OUTPUTS = [("prores4444", "mov"), ("prores4444", "mkv"), ("ffv1", "mkv"), ("vp9", "webm"), ("vp9", "mkv")]


def transparent(folder: Path, name: str) -> Path:
    """Clear at the left edge, opaque at the right."""
    pix_fmt, peak, codec = SOURCES[name]
    clear = (CLEAR if pix_fmt.startswith("yuv") else CLEAR_RGB).format(peak=peak)
    run("-f", "lavfi", "-i", f"testsrc2=s=64x48:r=25:d=0.6,format={pix_fmt},{clear}", *codec, folder / name)
    return folder / name


def read_alpha(path: Path, start: int = 0, stop: int | None = None) -> np.ndarray:
    """T H W in 0..1."""
    info = probe(path)
    frames = np.concatenate(list(read_frames(path, info, start, stop or info.frames, channel="alpha")))
    assert (frames[..., 0] == frames[..., 2]).all()
    return frames[..., 0] / np.iinfo(frames.dtype).max


@pytest.mark.parametrize("name", SOURCES)
def test_every_kind_of_source_is_read(tmp_path: Path, name: str) -> None:
    path = transparent(tmp_path, name)
    assert probe(path).has_alpha
    found = read_alpha(path)
    assert found.shape == (15, HEIGHT, WIDTH)
    assert np.abs(found - np.arange(WIDTH) / 63).max() < (0.05 if "vp" in name else 0.006)
    assert np.array_equal(read_alpha(path, 7, 11), found[7:11])


def test_opaque_sources_have_none(clips: Path) -> None:
    assert not probe(clips / "cfr.mp4").has_alpha
    assert not probe(clips / "vp9.webm").has_alpha


@pytest.mark.parametrize(("codec", "container"), OUTPUTS)
def test_kept_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str, container: str) -> None:
    source, output = transparent(tmp_path, "prores.mov"), tmp_path / f"out.{container}"
    encode = EncodeParams(codec=codec, crf=10 if codec == "vp9" else None)  # type: ignore[arg-type]
    plan, notes = enlarged(monkeypatch, source, output, encode, segment_frames=8)
    assert len(plan.segments) == 2
    assert plan.encode.pix_fmt.startswith("yuva")
    assert not any("transparency" in note for note in notes)
    # Not by our own reading: ffmpeg's decoders, libvpx where libavcodec's own drops it.
    decoder = ("-c:v", "libvpx-vp9") if codec == "vp9" else ()
    run(*decoder, "-i", output, "-vf", "alphaextract,format=gray", "-f", "rawvideo", tmp_path / "raw")
    found = np.fromfile(tmp_path / "raw", np.uint8).reshape(15, 2 * HEIGHT, 2 * WIDTH) / 255
    wanted = (np.arange(2 * WIDTH) - 0.5) / 2 / 63
    assert np.abs(found - wanted)[..., 4:-4].max() < (0.06 if codec == "vp9" else 0.01)
    assert np.abs(found - read_alpha(output)).max() < (0.06 if codec == "vp9" else 0.01)


def test_variable_rate_and_transparency_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, output = tmp_path / "in.mkv", tmp_path / "out.webm"
    vary = "testsrc2=s=64x48:r=60:d=1,select='gt(random(1),0.4)+eq(n,0)',format=yuva420p"
    chain = f"{vary},{CLEAR.format(peak=255)}"
    run("-f", "lavfi", "-i", chain, "-fps_mode", "vfr", "-c:v", "ffv1", source)
    assert not probe(source).constant_rate
    enlarged(monkeypatch, source, output, EncodeParams(codec="vp9", preset="ultrafast"), segment_frames=16)
    ours, theirs = np.array(times(output)), np.array(times(source))
    assert np.abs((ours - ours[0]) - (theirs - theirs[0])).max() <= 0.001
    assert probe(output).has_alpha
    assert np.abs(read_alpha(output)[:, 24, 2:-2] - (np.arange(128) - 0.5)[2:-2] / 126).max() < 0.1


def test_left_out_with_the_codecs_that_hold_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "out.mp4"
    _, notes = enlarged(monkeypatch, transparent(tmp_path, "png.mov"), output)
    assert [note for note in notes if "transparency of the source was left out" in note and "prores4444" in note]
    assert (picture(output)["pix_fmt"], picture(output)["color_range"]) == ("yuv420p", "tv")
