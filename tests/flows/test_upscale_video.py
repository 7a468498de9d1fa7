"""The main flow on real clips: exact output, resume, refusal; with Prefect's own server and the embedded model."""

import logging
import re
import shutil
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flashvsr_core.config import ComputeParams, UpscaleParams
from flashvsr_core.errors import AlreadyRunning, UserError
from flashvsr_core.modelfiles import sha256_of
from flashvsr_core.weights import embedded_path
from flows.upscale_segments import SegmentsFailed
from flows.upscale_video import upscale_video
from tasks import scorers
from tasks.events import JobPlanned, LookBegan
from tasks.media.encode import EncodeParams
from tasks.media.probe import kinds, probe
from tasks.plan import Request, make_plan
from tasks.report import RunReport
from tasks.storage import urls
from tasks.storage.jobs import Job
from tasks.storage.lease import hold
from tests.flows.clips import digests, make_clip

pytestmark = pytest.mark.usefixtures("prefect_server")

FAST = EncodeParams(preset="ultrafast", threads=2)
PARAMS = UpscaleParams(scale=2, model="nano", preroll=8)


class Runner:
    """Runs the flow in one folder and counts, from the log, what was computed."""

    def __init__(self, cache_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
        self.compute = ComputeParams(devices="cpu", work_dir=str(cache_dir))
        self.caplog = caplog

    def __call__(self, source: Path, output: Path, **options: object) -> RunReport:
        self.caplog.clear()
        self.caplog.set_level(logging.INFO)
        given = {"params": PARAMS, "encode": FAST, "compute": self.compute, "segment_frames": 16} | options
        return upscale_video(str(source), str(output), **given)  # type: ignore[arg-type]

    @property
    def computed(self) -> list[int]:
        lines = (record.getMessage() for record in self.caplog.records)
        return sorted(int(match[1]) for match in map(re.compile(r"segment (\d+) \[.* computed").match, lines) if match)


@pytest.fixture
def run(cache_dir: Path, caplog: pytest.LogCaptureFixture) -> Runner:
    return Runner(cache_dir, caplog)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", 40)


def job_of(source: Path, output: Path, cache_dir: Path) -> Job:
    request = Request(str(source), str(output), PARAMS, FAST, ComputeParams(devices="cpu"), segment_frames=16)
    return make_plan(request, cache_dir)[0]


def test_output_report_and_sound(run: Runner, clip: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    report = run(clip, output)
    info = probe(output)
    assert (info.width, info.height, info.frames) == (96, 64, 40)
    assert len(kinds(info.streams, "audio")) == 1
    assert (report.status, report.frames, report.segments_computed) == ("done", 40, 3)
    assert report.plan["digests"] == {"nano": sha256_of(embedded_path())}
    assert run.computed == [0, 1, 2]
    assert (tmp_path / "out.report.json").exists()
    assert not list((tmp_path / ".flashvsr").glob("*/segments/*"))
    assert not list((tmp_path / ".flashvsr").glob("*/lease.json"))


class Slow:
    """A scorer that takes half a second, and is usually slower."""

    name = "slow"

    def ready(self) -> AbstractContextManager["Slow"]:
        return nullcontext(self)

    def usual_seconds(self, megapixels: float, frames: int, ahead: float) -> float:
        return 100.0

    def score(self, frames: Sequence[np.ndarray]) -> list[float]:
        time.sleep(0.5)
        return [1.0]


def test_the_time_left_counts_scores_and_a_reference(
    run: Runner, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.mp4"
    run(clip, output)
    planned = [tail_planned(run)]
    assert planned[0] < 100
    monkeypatch.setattr(scorers, "present", lambda: (Slow(),))
    for _ in range(2):
        report = run(clip, output, reference=str(output), fresh=True)
        assert report.quality is not None
        assert report.quality.scores == {"slow": 1.0}
        assert report.quality.reference["psnr"] > 0
        planned.append(tail_planned(run))
        events = [getattr(record, "event", None) for record in run.caplog.records]
        assert [event.name for event in events if isinstance(event, LookBegan)] == ["slow", "reference"]
    assert planned[1] > 100
    assert planned[2] < planned[1] - 50  # it was quicker than usual
    memory = urls.read_json(run.compute.work_dir + "/speeds.json")
    assert memory["tail slow"]["factor"] >= 0.005
    assert memory["tail reference"]["factor"] > 0


def tail_planned(run: Runner) -> float:
    (event,) = (e for r in run.caplog.records if isinstance(e := getattr(r, "event", None), JobPlanned))
    return event.costs.tail


def test_a_second_run_is_already_done_and_a_foreign_output_is_kept(run: Runner, clip: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    run(clip, output)
    assert run(clip, output).status == "already done"
    assert run.computed == []
    output.write_bytes(b"somebody else's")
    with pytest.raises(UserError, match="--force"):
        run(clip, output)
    assert output.read_bytes() == b"somebody else's"
    assert run(clip, output, force=True).status == "done"
    assert probe(output).frames == 40


def test_a_source_that_moved_is_read_where_it_is_now(run: Runner, clip: Path, tmp_path: Path, cache_dir: Path) -> None:
    """The same content is the same job, whose plan names the place of an earlier run."""
    first, second = tmp_path / "a" / "clip.mp4", tmp_path / "b" / "clip.mp4"
    for folder in (first.parent, second.parent):
        folder.mkdir()
    shutil.copy(clip, first)
    output = tmp_path / "out.mp4"
    run(first, output, keep_segments=True)
    Path(job_of(first, output, cache_dir).segment_url(1)).unlink()
    output.unlink()
    first.rename(second)
    assert run(second, output).plan["source"] == str(second)
    assert run.computed == [1]
    assert probe(output).frames == 40


def test_fresh_computes_everything_again(run: Runner, clip: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    run(clip, output, keep_segments=True)
    before = digests(output)
    run(clip, output, keep_segments=True, fresh=True)
    assert run.computed == [0, 1, 2]
    assert digests(output) == before


def test_only_a_damaged_segment_is_redone(run: Runner, clip: Path, tmp_path: Path, cache_dir: Path) -> None:
    output = tmp_path / "out.mp4"
    run(clip, output, keep_segments=True)
    before = digests(output)
    segment = Path(job_of(clip, output, cache_dir).segment_url(1))
    whole = segment.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 0xFF]) + whole[middle + 1 :]
    for damage in (None, whole[:-100], flipped):
        segment.unlink()
        if damage is not None:
            segment.write_bytes(damage)
        output.unlink()
        report = run(clip, output, keep_segments=True)
        assert run.computed == [1]
        assert report.segments_reused == 2
        assert digests(output) == before


def test_other_pixels_are_another_job(run: Runner, clip: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    run(clip, output, keep_segments=True)
    for change in ({"seed": 1}, {"color_fix": "wavelet"}, {"scale": 3}, {"preroll": 16}, {"kv_ratio": 2.0},
                   {"scenes": (20,)}):  # fmt: skip
        report = run(clip, output, keep_segments=True, params=replace(PARAMS, **change), force=True)  # type: ignore[arg-type]
        assert run.computed == [0, 1, 2], change
        assert report.segments_reused == 0, change


def test_new_content_under_the_same_name_reuses_nothing(run: Runner, tmp_path: Path) -> None:
    source, output = make_clip(tmp_path / "in.mp4", 24), tmp_path / "out.mp4"
    run(source, output, keep_segments=True)
    make_clip(source, 24, seed=2)
    run(source, output, keep_segments=True, force=True)
    assert run.computed == [0, 1]


def test_finished_segments_of_a_failed_run_are_kept(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source that turns out to be damaged while it is read: the error names the frame, nothing is published."""
    source, output = make_clip(tmp_path / "in.mp4", 40), tmp_path / "out.mp4"
    from tasks import upscale

    real = upscale.read_frames

    def damaged(path, info, start, stop, **options):  # type: ignore[no-untyped-def]
        if stop == info.frames and start > 0:
            raise UserError("frame 37 of in.mp4 is damaged")
        return real(path, info, start, stop, **options)

    monkeypatch.setattr(upscale, "read_frames", damaged)
    with pytest.raises(SegmentsFailed, match="frame 37") as caught:
        run(source, output)
    assert caught.value.exit_code == 2
    assert not output.exists()
    monkeypatch.undo()
    report = run(source, output)
    assert report.segments_reused >= 1
    assert len(run.computed) == report.segments_computed == 3 - report.segments_reused


def test_a_job_that_is_running_is_not_started_twice(run: Runner, clip: Path, tmp_path: Path, cache_dir: Path) -> None:
    output = tmp_path / "out.mp4"
    with hold(job_of(clip, output, cache_dir).lease_url, "another run"), pytest.raises(AlreadyRunning, match="already"):
        run(clip, output)
    assert run(clip, output).status == "done"


def test_segment_length_of_the_first_run_is_kept(run: Runner, clip: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    run(clip, output, keep_segments=True)
    output.unlink()
    report = run(clip, output, segment_frames=32)
    assert report.segments_reused == 3
    assert run.computed == []


@pytest.mark.parametrize(
    ("frames", "size", "rate", "out"),
    [
        (1, "48x32", "24", (96, 64)),
        (2, "48x32", "24", (96, 64)),
        (20, "31x33", "25", (62, 66)),
        (22, "48x32", "30000/1001", (96, 64)),
        (29, "32x48", "50", (64, 96)),
        (100, "48x32", "24", (96, 64)),
        (21, "177x143", "24000/1001", (354, 286)),
        (25, "32x48", "50", (64, 96)),
    ],
)
def test_exact_size_and_count(
    run: Runner, tmp_path: Path, frames: int, size: str, rate: str, out: tuple[int, int]
) -> None:
    source, output = make_clip(tmp_path / "in.mp4", frames, size, rate), tmp_path / "out.mp4"
    run(source, output)
    info, given = probe(output), probe(source)
    assert (info.width, info.height, info.frames) == (*out, frames)
    assert info.frame_rate == given.frame_rate


@pytest.mark.parametrize("codec", ["h264", "h265"])
@pytest.mark.parametrize("suffix", ["mkv", "mov"])
def test_codecs_and_containers(run: Runner, clip: Path, tmp_path: Path, codec: str, suffix: str) -> None:
    output = tmp_path / f"out.{suffix}"
    run(clip, output, encode=replace(FAST, codec=codec, pix_fmt="yuv420p10le"))  # type: ignore[arg-type]
    info = probe(output)
    assert (info.frames, info.bit_depth) == (40, 10)
    assert info.codec in (codec, {"h264": "h264", "h265": "hevc"}[codec])


def test_a_full_disk_is_foreseen(run: Runner, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urls, "free_bytes", lambda url: 1000)
    with pytest.raises(UserError, match=r"free.*needed.*--store"):
        run(clip, tmp_path / "out.mp4")
    assert list(tmp_path.iterdir()) == []


def test_memory_store(run: Runner, clip: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    report = run(clip, output, store="memory://jobs", keep_segments=True)
    assert report.job.startswith("memory://jobs/clip-")
    assert probe(output).frames == 40
    output.unlink()
    assert run(clip, output, store="memory://jobs").segments_reused == 3
