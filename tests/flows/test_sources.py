"""Whole runs from and into images, and of a part of a source: content, resume, what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flashvsr_core.errors import UserError
from flows.preview import make_preview
from flows.upscale_video import upscale_video
from tasks.media.decode import read_frames
from tasks.media.guard import describe
from tasks.media.trim import Trim
from tasks.plan import Request
from tasks.report import RunReport
from tests.flows.clips import make_clip
from tests.flows.test_upscale_video import FAST, PARAMS, Runner
from tests.media.clips import run as ffmpeg

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def run(cache_dir: Path, caplog: pytest.LogCaptureFixture) -> Runner:
    return Runner(cache_dir, caplog)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", 40)


@pytest.fixture
def frames(clip: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "frames"
    folder.mkdir()
    # 4:4:4 of the clip to RGB of 16 bits; numbers begin at 100
    ffmpeg("-i", clip, "-frames:v", "20", "-start_number", "100", "-pix_fmt", "rgb24", folder / "in.%03d.png")
    return folder


def pixels(path: Path) -> np.ndarray:
    info = describe(path)
    return np.concatenate(list(read_frames(path, info, 0, info.frames)))


def test_images_in_images_out(run: Runner, frames: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = run(frames, out / "big_%d.png", fps="23.976")
    assert (report.frames, report.frame_rate, report.segments_computed) == (20, (24000, 1001), 2)
    assert report.output.url == str(out / "big.manifest.json")
    manifest = json.loads((out / "big.manifest.json").read_text())
    assert [image["name"] for image in manifest["images"]] == [f"big_{n}.png" for n in range(100, 120)]
    assert {path.name for path in out.iterdir()} == {
        ".flashvsr", "big.manifest.json", "big.report.html", "big.report.json",
        *(f"big_{n}.png" for n in range(100, 120)),
    }  # fmt: skip
    info = describe(out)
    assert (info.width, info.height, info.frames, info.pix_fmt) == (96, 64, 20, "rgb24")
    assert run(frames, out / "big_%d.png", fps="23.976").status == "already done"
    before = pixels(out)
    (out / "big_107.png").unlink()
    assert run(frames, out / "big_%d.png", fps="23.976").status == "done"
    assert np.array_equal(pixels(out), before)


def test_only_a_damaged_segment_of_images_is_redone(run: Runner, frames: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "%04d.tiff"
    report = run(frames, output, keep_segments=True)
    before = pixels(output.parent)
    segment = Path(report.results[1].url)
    content = bytearray(segment.read_bytes())
    content[len(content) // 2] ^= 0xFF
    segment.write_bytes(content)
    (output.parent / "images.manifest.json").unlink()
    assert run(frames, output, keep_segments=True).segments_reused == 1
    assert run.computed == [1]
    assert np.array_equal(pixels(output.parent), before)


def test_a_run_killed_while_publishing_goes_on(
    run: Runner,
    frames: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tasks import images

    real, calls = images.urls.publish, []

    def publish(file, url, **options):  # type: ignore[no-untyped-def]
        calls.append(url)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(file, url, **options)

    output = tmp_path / "out" / "%04d.png"
    # Segments are published through the same function, by another name; only images count here.
    monkeypatch.setattr(images, "urls", type("Urls", (), {**vars(images.urls), "publish": staticmethod(publish)}))
    with pytest.raises(KeyboardInterrupt):
        run(frames, output)
    assert len(list(output.parent.glob("*.png"))) == 4
    assert not list(output.parent.glob("*manifest*"))
    monkeypatch.undo()
    report = run(frames, output)
    assert report.segments_reused == 2
    assert len(list(output.parent.glob("*.png"))) == 20


def test_images_of_others_are_not_replaced(run: Runner, frames: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "000105.png").write_bytes(b"somebody else's")
    encode = replace(FAST, container="png")  # a folder as OUTPUT
    with pytest.raises(UserError, match=r"000105.png exists.*--force"):
        run(frames, out, encode=encode)
    assert (out / "000105.png").read_bytes() == b"somebody else's"
    assert run(frames, out, encode=encode, force=True).frames == 20
    assert describe(out).frames == 20


def test_a_changed_image_is_another_job(run: Runner, frames: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    first = run(frames, output, keep_segments=True)
    assert describe(output).frames == 20
    assert any("--fps" in note for note in first.notes)
    one, two = frames / "in.104.png", frames / "in.105.png"
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)
    second = run(frames, output, force=True)
    assert second.key != first.key
    assert run.computed == [0, 1]


def test_a_still_stays_a_still(run: Runner, frames: Path) -> None:
    output = Request(str(frames / "in.100.png"), params=PARAMS).output_url
    assert output == str(frames / "in.100_2x.png")
    run(frames / "in.100.png", Path(output))
    info = describe(Path(output))
    assert (info.width, info.height, info.frames, info.container) == (96, 64, 1, "image")


@pytest.mark.parametrize(("suffix", "depth"), [("exr", 16), ("dpx", 10), ("tiff", 16), ("png", 8)])
def test_images_of_every_kind_hold_the_same_picture(
    run: Runner,
    clip: Path,
    tmp_path: Path,
    suffix: str,
    depth: int,
) -> None:
    trim = Trim(frames=3)
    run(clip, tmp_path / suffix / f"%d.{suffix}", trim=trim)
    run(clip, tmp_path / "reference" / "%d.png", trim=trim, encode=replace(FAST, pix_fmt="rgb48be"))
    assert describe(tmp_path / suffix).bit_depth == depth
    found, wanted = (pixels(tmp_path / name) for name in (suffix, "reference"))
    found = found.astype(float) * (257 if found.dtype == np.uint8 else 1)
    assert np.abs(found - wanted).max() <= 65535 / (2**depth - 1) / 2 + 24  # half has 11 bits near white


def test_a_part_is_the_part_cut_out_before(run: Runner, clip: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole.mp4"
    part: RunReport = run(clip, tmp_path / "part.mp4", trim=Trim(start="8f", end="20f"), keep_segments=True)
    assert (part.frames, part.segments_computed) == (12, 1)
    ffmpeg(
        "-i", clip, "-vf", "trim=start_frame=8:end_frame=20,setpts=PTS-STARTPTS", "-c:v", "libx264", "-qp", "0", whole
    )
    run(whole, tmp_path / "again.mp4")
    assert np.array_equal(pixels(tmp_path / "part.mp4"), pixels(tmp_path / "again.mp4"))
    assert run(clip, tmp_path / "part.mp4", trim=Trim(start="8f", end="21f"), force=True).key != part.key


def test_given_scenes_are_frames_of_the_source(run: Runner, clip: Path, tmp_path: Path) -> None:
    scenes = replace(PARAMS, scenes=(4, 14, 30))
    report = run(clip, tmp_path / "out.mp4", params=scenes, trim=Trim(start="8f", end="24f"))
    assert report.plan["params"]["scenes"] == [6]
    with pytest.raises(UserError, match="frame 40 lies beyond"):
        run(clip, tmp_path / "x.mp4", params=replace(PARAMS, scenes=(40,)))


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("out.png", "has 40 frames.*_%06d.png"),
        ("a_%d_%d.png", "more than one place"),
        ("folder", "--container png"),
        ("out.avi", "must end in"),
    ],
)
def test_names_that_do_not_fit(run: Runner, clip: Path, tmp_path: Path, output: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        run(clip, tmp_path / output)
    assert list(tmp_path.iterdir()) == []


def test_scenes_from_a_file(run: Runner, clip: Path, tmp_path: Path) -> None:
    scenes = tmp_path / "cuts.txt"
    scenes.write_text("4\n0:00:00.584  # frame 14\n30\n")
    output = tmp_path / "out.mp4"
    report = run(clip, output, params=replace(PARAMS, scenes=str(scenes)))
    assert report.plan["params"]["scenes"] == [4, 14, 30]
    listed = run(clip, output, params=replace(PARAMS, scenes=(4, 14, 30)))
    assert (listed.key, listed.status) == (report.key, "already done")
    with pytest.raises(UserError, match=r"neither auto nor off.*--scenes"):
        run(clip, output, params=replace(PARAMS, scenes=str(tmp_path / "missing.txt")))
    scenes.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is no text"):
        run(clip, output, params=replace(PARAMS, scenes=str(scenes)))


def test_preview(run: Runner, clip: Path, tmp_path: Path, cache_dir: Path) -> None:
    request = Request(str(clip), str(tmp_path / "preview"), PARAMS, compute=run.compute)
    made = make_preview(upscale_video, request, cache_dir, excerpts=2, seconds=0.2)
    assert made.excerpts == ((7, 12), (27, 32))
    assert made.video is not None
    info = describe(Path(made.video))
    assert (info.width, info.height, info.frames) == (2 * 96, 64, 10)
    frames = pixels(Path(made.video))
    # The left half is the source enlarged, so the same shapes are in both; but they are not the same picture.
    left, right = frames[..., :96, :].astype(float), frames[..., 96:, :].astype(float)
    assert np.corrcoef(left[:, 24:].ravel(), right[:, 24:].ravel())[0, 1] > 0.8
    assert np.abs(left - right).mean() > 1
    assert (describe(Path(made.picture)).width, describe(Path(made.picture)).height) == (3 * 96, 2 * 64)
    with pytest.raises(UserError, match="--force"):
        make_preview(upscale_video, request, cache_dir, excerpts=2, seconds=0.2)
    split = make_preview(upscale_video, request, cache_dir, excerpts=1, seconds=0.1, layout="split", force=True)
    assert describe(Path(split.video or "")).width == 96
    assert not list((cache_dir / "work").glob("preview-*"))


@pytest.mark.parametrize("name", ["x" * 251 + ".mp4", "\u6f22" * 83 + ".mp4", "-i 100%d [a]\n'b\": #?*.mp4", "..mp4"])
def test_any_name_goes_the_whole_way(run: Runner, clip: Path, tmp_path: Path, name: str) -> None:
    source = tmp_path / name
    source.write_bytes(clip.read_bytes())
    output = Request(str(source), params=PARAMS).output_url
    report = run(source, Path(output), trim=Trim(frames=3))
    assert describe(Path(report.output.url)).frames == 3
    assert len(list(tmp_path.glob("*.report.json"))) == 1
    if len(name) < 100:
        images = run(source, tmp_path / "a %d 100% ünï.png", trim=Trim(frames=2))
        assert images.frames == 2
