"""Recovery: whole, in part, without the source; nothing is published that is not verified."""

import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from flashvsr_core.errors import AlreadyRunning, UserError
from tasks.media.encode import SEGMENT_SUFFIX, EncodeParams
from tasks.media.probe import kinds, probe
from tasks.recover import recover
from tasks.storage import urls
from tasks.storage.jobs import Job
from tasks.storage.lease import hold
from tests.flows.clips import digests
from tests.media.clips import run
from tests.tasks.conftest import Made
from tests.tasks.enlarging import enlarged
from tests.tasks.test_images import made as made_of_images

JobIn = Callable[..., Job]


def segment_digests(made: Made, *indices: int) -> list[str]:
    return [d for index in indices for d in digests(Path(made.job.segment_url(index)))]


def test_whole_with_sound_from_every_store(store: str, job_in: JobIn, made: Made, tmp_path: Path) -> None:
    job, output = job_in(store), tmp_path / "out.mp4"
    found = recover(job, str(output), made.cache_dir, verify="full")
    assert (found.whole, found.video_only, found.frames, found.gaps) == (True, False, 40, ())
    assert digests(output) == segment_digests(made, 0, 1, 2)
    assert len(kinds(probe(output).streams, "audio")) == 1
    report = urls.read_json(str(tmp_path / "out.report.json"))
    assert (report["status"], report["segments_computed"], report["segments_reused"]) == ("done", 0, 3)
    assert not urls.exists(job.lease_url)
    assert list((made.cache_dir / "work").iterdir()) == []


def test_an_incomplete_job_is_refused_without_partial(store: str, job_in: JobIn, made: Made, tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    with pytest.raises(UserError, match=r"lacks segments 0, 2 of 3.*--partial") as caught:
        recover(job_in(store, (0, 2)), str(output), made.cache_dir)
    assert caught.value.exit_code == 2
    assert list(tmp_path.glob("out*")) == []


@pytest.mark.parametrize(
    ("missing", "kept", "gaps", "left_out"),
    [((0,), (1, 2), ((0, 16),), ()), ((1,), (0,), ((16, 32),), ((32, 40),)), ((1, 2), (0,), ((16, 40),), ())],
)
def test_the_longest_range(
    job_in: JobIn,
    made: Made,
    tmp_path: Path,
    missing: tuple[int, ...],
    kept: tuple[int, ...],
    gaps: tuple[tuple[int, int], ...],
    left_out: tuple[tuple[int, int], ...],
) -> None:
    job, output = job_in(str(tmp_path / "store"), missing), tmp_path / "part.mkv"
    found = recover(job, str(output), made.cache_dir, partial=True)
    assert (found.segments, found.gaps, found.left_out, found.whole) == (kept, gaps, left_out, False)
    assert digests(output) == segment_digests(made, *kept)
    assert kinds(probe(output).streams, "audio") == ()
    assert found.video_only
    assert any("VIDEO ONLY" in note and "part" in note for note in found.notes)
    assert urls.read_json(str(tmp_path / "part.recovery.json"))["gaps"] == [list(gap) for gap in gaps]
    assert not urls.exists(job.report_url), "the job is not finished"


@pytest.mark.parametrize("fate", ["gone", "changed"])
def test_without_its_source(job_in: JobIn, made: Made, tmp_path: Path, fate: str) -> None:
    job, output = job_in(str(tmp_path / "store")), tmp_path / "out.mp4"
    source = tmp_path / "other.mp4"
    if fate == "changed":
        source.write_bytes(b"something else")
    urls.write_json(job.plan_url, made.plan.to_json() | {"source": str(source)})
    found = recover(job, str(output), made.cache_dir)
    assert (found.whole, found.video_only) == (True, True)
    assert any(str(source) in note for note in found.notes)
    assert digests(output) == segment_digests(made, 0, 1, 2)
    assert not urls.exists(job.report_url)


def test_a_damaged_segment_counts_as_missing(job_in: JobIn, made: Made, tmp_path: Path) -> None:
    job, output = job_in(str(tmp_path / "store")), tmp_path / "out.mp4"
    segment = Path(job.segment_url(0))
    content = bytearray(segment.read_bytes())
    content[len(content) // 2] ^= 0xFF
    segment.write_bytes(content)
    with pytest.raises(UserError, match="lacks segments 0 of 3"):
        recover(job, str(output), made.cache_dir)
    assert recover(job, str(output), made.cache_dir, partial=True).segments == (1, 2)


def test_what_is_refused(job_in: JobIn, made: Made, tmp_path: Path) -> None:
    job, output = job_in(str(tmp_path / "store")), tmp_path / "out.mp4"
    output.write_bytes(b"mine")
    with pytest.raises(UserError, match="--force"):
        recover(job, str(output), made.cache_dir)
    with pytest.raises(UserError, match="source itself"):
        recover(job, str(made.source), made.cache_dir, force=True)
    with pytest.raises(UserError, match=r"\.mp4"):
        recover(job, str(tmp_path / "out.avi"), made.cache_dir)
    with hold(job.lease_url, owner="somebody"), pytest.raises(AlreadyRunning):
        recover(job, str(output), made.cache_dir, force=True)
    assert output.read_bytes() == b"mine"
    with pytest.raises(UserError, match="no finished segment"):
        recover(job_in(str(tmp_path / "empty"), (0, 1, 2)), str(tmp_path / "x.mp4"), made.cache_dir, partial=True)
    found = recover(job, str(output), made.cache_dir, force=True)
    assert asdict(found)["output"]["bytes"] == output.stat().st_size


def test_without_a_plan_the_source_is_named(made: Made, job_in: JobIn, store: str, tmp_path: Path) -> None:
    job = job_in(store)
    urls.remove(job.plan_url)
    found = recover(job, str(tmp_path / "out.mp4"), made.cache_dir, source=str(made.source))
    assert (found.whole, found.video_only, found.frames, found.source_frames) == (True, False, 40, 40)
    assert "plan.json is gone" in " ".join(found.notes)
    info = probe(tmp_path / "out.mp4")
    assert (info.frames, len(kinds(info.streams, "audio"))) == (40, 1)
    assert (tmp_path / "out.recovery.json").exists()
    assert not (tmp_path / "out.report.json").exists()


def test_without_a_plan_and_source_the_picture_is_recovered(made: Made, job_in: JobIn, tmp_path: Path) -> None:
    job = job_in(str(tmp_path / "store"))
    urls.remove(job.plan_url)
    found = recover(job, str(tmp_path / "out.mp4"), made.cache_dir)  # the last segment is short, so it is the last
    assert (found.whole, found.video_only, found.frames) == (True, True, 40)
    assert digests(tmp_path / "out.mp4") == [d for i in range(3) for d in digests(Path(job.segment_url(i)))]


def test_without_a_plan_an_unknown_end_is_not_passed_over(made: Made, job_in: JobIn, tmp_path: Path) -> None:
    job = job_in(str(tmp_path / "store"), (2,))
    urls.remove(job.plan_url)
    with pytest.raises(UserError, match=r"after frame 31.*--source.*--partial"):
        recover(job, str(tmp_path / "out.mp4"), made.cache_dir)
    assert recover(job, str(tmp_path / "out.mp4"), made.cache_dir, partial=True).frames == 32
    with pytest.raises(UserError, match=r"lacks segments 2 of 3"):
        recover(job, str(tmp_path / "two.mp4"), made.cache_dir, source=str(made.source))
    with pytest.raises(UserError, match="not their source"):
        recover(job, str(tmp_path / "two.mp4"), made.cache_dir, source=job.segment_url(0))
    empty = job_in(str(tmp_path / "empty"), (0, 1, 2))
    urls.remove(empty.plan_url)
    with pytest.raises(UserError, match="neither a plan nor finished segments"):
        recover(empty, str(tmp_path / "two.mp4"), made.cache_dir)


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "container"),
    [
        ("h264", "yuv420p", "mp4"),
        ("h265", "yuv420p10le", "mkv"),
        ("av1", "yuv420p", "webm"),
        ("vp9", "yuva420p", "webm"),
        ("prores", "yuv422p10le", "mov"),
        ("prores4444", "yuva444p10le", "mov"),
        ("ffv1", "yuva444p", "mkv"),
    ],
)
def test_segments_of_every_codec_are_merged_without_a_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str, pix_fmt: str, container: str
) -> None:
    clear = "format=yuva444p,geq=lum='p(X,Y)':cb='cb(X,Y)':cr='cr(X,Y)':a='4*X'"
    source = tmp_path / "in.mkv"
    run("-f", "lavfi", "-i", f"testsrc2=s=64x48:r=25:d=0.8,{clear}", "-c:v", "ffv1", "-timecode", "01:00:00:00", source)
    encode = EncodeParams(codec=codec, pix_fmt=pix_fmt)  # type: ignore[arg-type]
    enlarged(monkeypatch, source, tmp_path / f"made.{container}", encode)
    store = tmp_path / f"made.{container}.work" / "store"
    job = Job.of(str(next(store.iterdir())), SEGMENT_SUFFIX)
    urls.remove(job.plan_url)
    output = tmp_path / f"out.{container}"
    recover(job, str(output), tmp_path / "cache", source=str(source))
    assert digests(output) == digests(tmp_path / f"made.{container}")
    assert probe(output).has_alpha == pix_fmt.startswith("yuva")


def test_a_container_that_does_not_hold_the_codec_is_refused(made: Made, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"webm does not hold h264; choose an output ending in .mp4, .mkv, .mov"):
        recover(made.job, str(tmp_path / "out.webm"), made.cache_dir)


def image_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Job, list[Path]]:
    """A job of 20 PNG images, numbered from 100, in segments of 8 that are all finished; and what it would publish."""
    folder = tmp_path / "frames"
    folder.mkdir()
    run("-f", "lavfi", "-i", "testsrc2=s=64x48:r=25:d=0.8", "-start_number", "100", folder / "x%d.png")
    _, files = made_of_images(monkeypatch, folder, tmp_path / "made" / "y_%d.png")
    return Job.of(str(next((tmp_path / "made" / "work" / "store").iterdir())), SEGMENT_SUFFIX), files


def test_images_are_recovered_under_their_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, wanted = image_job(monkeypatch, tmp_path)
    with pytest.raises(UserError, match=r"hold png images.*do not become mp4.*x_%06d.png"):
        recover(job, str(tmp_path / "out.mp4"), tmp_path / "cache")
    with pytest.raises(UserError, match=r"is one image and the source has 20 frames"):
        recover(job, str(tmp_path / "out.png"), tmp_path / "cache")
    found = recover(job, str(tmp_path / "out" / "z_%04d.png"), tmp_path / "cache", verify="full")
    assert (found.whole, found.video_only, found.frames, found.gaps) == (True, False, 20, ())
    assert found.output.url == str(tmp_path / "out" / "z.manifest.json")
    assert [p.read_bytes() for p in sorted((tmp_path / "out").glob("*.png"))] == [p.read_bytes() for p in wanted]
    assert urls.read_json(str(tmp_path / "out" / "z.report.json"))["frames"] == 20
    with pytest.raises(UserError, match=r"z.manifest.json exists.*--force"):
        recover(job, str(tmp_path / "out" / "z_%04d.png"), tmp_path / "cache")
    (tmp_path / "out" / "z.manifest.json").unlink()
    with pytest.raises(UserError, match=r"z_0100.png exists.*--force"):
        recover(job, str(tmp_path / "out" / "z_%04d.png"), tmp_path / "cache")


def test_a_part_of_images_keeps_their_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, wanted = image_job(monkeypatch, tmp_path)
    urls.remove(job.record_url(0))
    shutil.rmtree(tmp_path / "frames")  # images carry nothing of their source
    found = recover(job, str(tmp_path / "out"), tmp_path / "cache", partial=True)  # a folder
    assert (found.whole, found.segments, found.gaps, found.video_only) == (False, (1, 2), ((0, 8),), False)
    names = [f"{number:06d}.png" for number in range(108, 120)]
    assert [p.name for p in sorted((tmp_path / "out").glob("*.png"))] == names
    assert [(tmp_path / "out" / name).read_bytes() for name in names] == [p.read_bytes() for p in wanted[8:]]
    manifest = urls.read_json(str(tmp_path / "out" / "images.manifest.json"))
    assert [(image["frame"], image["time"]) for image in manifest["images"]][:2] == [(8, 0.32), (9, 0.36)]
    assert urls.read_json(str(tmp_path / "out" / "images.recovery.json"))["frames"] == 12
    assert not (tmp_path / "out" / "images.report.json").exists()


def test_images_are_recovered_without_their_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, wanted = image_job(monkeypatch, tmp_path)
    urls.remove(job.plan_url)
    found = recover(job, str(tmp_path / "out" / "%d.png"), tmp_path / "cache", source=str(tmp_path / "frames"))
    assert (found.whole, found.frames) == (True, 20)
    assert [(tmp_path / "out" / f"{n}.png").read_bytes() for n in range(100, 120)] == [p.read_bytes() for p in wanted]
