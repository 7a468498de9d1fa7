"""The segment task's own decisions: what is tried again, and under which key Prefect caches a result."""

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from prefect.states import Failed

from flashvsr_core.config import ComputeParams
from flashvsr_core.errors import AlreadyRunning, BadInput, FlashvsrError, TransientError, UserError
from flashvsr_core.segments import SegmentPlan
from tasks import halt, upscale
from tasks.plan import Request, make_plan
from tasks.stop import Stopped
from tasks.storage.jobs import Job
from tasks.upscale import SegmentKey, is_transient, upscale_segment
from tests.media.clips import run
from tests.tasks.conftest import Made
from tests.tasks.enlarging import PARAMS, Enlarger, enlarged


@pytest.mark.parametrize("error", [TransientError("x"), AlreadyRunning("x"), ConnectionError("x"), TimeoutError("x")])
def test_passing_faults_are_tried_again(error: Exception) -> None:
    assert is_transient(None, None, Failed(data=error))


@pytest.mark.parametrize(
    "error", [BadInput("x"), UserError("x"), FlashvsrError("x"), MemoryError(), AssertionError(), ValueError("x")]
)
def test_bad_input_and_our_own_mistakes_are_not(error: Exception) -> None:
    assert not is_transient(None, None, Failed(data=error))


def test_the_task_is_tagged_and_its_retries_are_conditional() -> None:
    assert "gpu" in upscale_segment.tags
    assert upscale_segment.retries == 2
    assert upscale_segment.retry_condition_fn is is_transient


def test_the_cache_key_is_that_of_the_job_and_the_frames() -> None:
    context = SimpleNamespace(task=SimpleNamespace(name="upscale-segment"))

    def key(job_key: str, segment: SegmentPlan) -> str | None:
        job = Job.at("memory://store", "clip.mp4", job_key, "mp4")
        return SegmentKey().compute_key(context, {"job": job, "segment": segment}, {})  # type: ignore[arg-type]

    base = key("a" * 16, SegmentPlan(0, 0, 16))
    assert base == key("a" * 16, SegmentPlan(0, 0, 16))
    assert base != key("b" * 16, SegmentPlan(0, 0, 16))
    assert base != key("a" * 16, SegmentPlan(0, 0, 24))
    assert "/" not in str(base)


def test_a_decoder_that_stands_still_is_a_fault_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for_ever = threading.Event()
    real = upscale.read_frames

    def stuck(*arguments: Any, **options: Any) -> Iterator[np.ndarray]:
        yield next(real(*arguments, **options))
        for_ever.wait(60)

    monkeypatch.setattr(upscale, "read_frames", stuck)
    monkeypatch.setattr(upscale, "_PATIENCE", 2.0)
    run("-f", "lavfi", "-i", "testsrc2=s=64x48:r=25:d=1", "-c:v", "libx264", tmp_path / "in.mp4")
    with pytest.raises(BadInput, match=r"in\.mp4 cannot be decoded in time.*within 2 s.*copy it again"):
        enlarged(monkeypatch, tmp_path / "in.mp4", tmp_path / "out.mp4")
    for_ever.set()


@pytest.mark.parametrize("own", [None, "/operators/choice"])
def test_compiled_kernels_are_kept_in_the_work_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, made: Made, own: str | None
) -> None:
    """Where Triton looks, asked of Triton itself, after a segment was asked for."""
    knobs = pytest.importorskip("triton").knobs
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    if own is not None:
        monkeypatch.setenv("TRITON_CACHE_DIR", own)
    upscale_segment.fn(made.job, made.plan.segments[0], ComputeParams(devices="cpu"), tmp_path)
    assert knobs.cache.dir == (own or str(tmp_path / "triton"))


def test_a_cluster_begins_no_segment_after_it_was_asked_to_stop(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, made: Made
) -> None:
    monkeypatch.setattr(upscale, "loaded_upscaler", lambda params, *_: Enlarger(params.scale))
    compute = ComputeParams(devices="cpu", runner="dask")
    request = Request(str(made.source), str(tmp_path / "out.mp4"), PARAMS, made.plan.encode, compute, segment_frames=16)
    job, plan = make_plan(request, tmp_path / "cache")
    job.write_plan(plan.to_json())
    halt.ask(job)
    with pytest.raises(Stopped, match="before this segment was begun"):
        upscale_segment.fn(job, plan.segments[0], compute, tmp_path / "cache")
    assert not job.finished()
    halt.forget(job)
    upscale_segment.fn(job, plan.segments[0], compute, tmp_path / "cache")
    assert set(job.finished()) == {0}
