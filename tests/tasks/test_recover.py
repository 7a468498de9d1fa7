"""Recovery: whole, in part, without the source; nothing is published that is not verified."""

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
