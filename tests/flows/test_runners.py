"""Runners: the same frames whatever computes them, and a dead worker costs its segment only."""

import logging
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flashvsr_core.config import ComputeParams, UpscaleParams
from flashvsr_core.errors import UserError
from flashvsr_core.segments import SegmentPlan
from flows import runners
from flows.upscale_segments import SegmentsFailed, longest_first
from flows.upscale_video import upscale_video
from tasks import gpu
from tasks.events import FramesDone
from tasks.media.encode import EncodeParams
from tasks.plan import Request, make_plan
from tasks.report import RunReport
from tests.flows.clips import digests, make_clip

FAST = EncodeParams(preset="ultrafast", threads=2)
PARAMS = UpscaleParams(scale=2, model="nano", preroll=8)
GPUS = tuple(torch.device("cuda", number) for number in range(4))


class Killer(logging.Handler):
    """Kills worker processes that have made frames, at most `times` of them."""

    def __init__(self, times: int) -> None:
        super().__init__(logging.DEBUG)
        self.times = times
        self.killed: list[int] = []

    def emit(self, record: logging.LogRecord) -> None:
        event, pid = getattr(record, "event", None), record.process
        if isinstance(event, FramesDone) and pid not in (None, os.getpid(), *self.killed) and self.times > 0:
            assert pid is not None
            self.times -= 1
            self.killed.append(pid)
            os.kill(pid, signal.SIGKILL)


@contextmanager
def killing(times: int) -> Iterator[Killer]:
    killer, log = Killer(times), logging.getLogger("tasks.events")
    log.addHandler(killer)
    try:
        yield killer
    finally:
        log.removeHandler(killer)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", 40)


def run(
    clip: Path, output: Path, work: Path, caplog: pytest.LogCaptureFixture, segment_frames: int = 16, **compute: object
) -> RunReport:
    caplog.clear()
    caplog.set_level(logging.DEBUG, "tasks")
    chosen = ComputeParams(devices="cpu", work_dir=str(work), **compute)  # type: ignore[arg-type]
    return upscale_video(str(clip), str(output), PARAMS, FAST, chosen, segment_frames=segment_frames)


@pytest.fixture(scope="module")
def plain(clip: Path, prefect_server: None, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    output = tmp_path_factory.mktemp("plain") / "out.mp4"
    one = ComputeParams("cpu", workers=1, work_dir=str(cache_dir))
    upscale_video(str(clip), str(output), PARAMS, FAST, one, segment_frames=16)
    return digests(output)


@contextmanager
def hearing() -> Iterator[list[logging.LogRecord]]:
    """Everything that tasks say, events too, which a run keeps from the root logger."""
    heard: list[logging.LogRecord] = []
    handler = logging.Handler(logging.DEBUG)
    handler.emit = heard.append  # type: ignore[method-assign]
    logging.getLogger("tasks").addHandler(handler)
    try:
        yield heard
    finally:
        logging.getLogger("tasks").removeHandler(handler)


def computed(caplog: pytest.LogCaptureFixture) -> list[int]:
    found = map(re.compile(r"segment (\d+) \[.* computed").match, caplog.messages)
    return sorted(int(match[1]) for match in found if match)


def test_threads_give_the_same_frames(clip: Path, plain: list[str], cache_dir: Path, tmp_path: Path, caplog) -> None:
    run(clip, tmp_path / "out.mp4", cache_dir, caplog, runner="threads", workers=5)
    assert digests(tmp_path / "out.mp4") == plain
    assert computed(caplog) == [0, 1, 2]


def test_processes_give_the_same_frames_and_survive_a_kill(
    prefect_server: None, cache_dir: Path, tmp_path: Path, caplog
) -> None:
    """Killed after a segment's first step, of two: after its last one the worker may be quick enough to store it."""
    clip = make_clip(tmp_path / "clip.mp4", 72)
    run(clip, tmp_path / "plain.mp4", cache_dir, caplog, segment_frames=32, workers=1)
    with killing(1) as killer, hearing() as heard:
        report = run(clip, tmp_path / "out.mp4", cache_dir, caplog, segment_frames=32, runner="processes", workers=2)
    assert len(killer.killed) == 1
    assert "killed by signal 9" in caplog.text
    assert digests(tmp_path / "out.mp4") == digests(tmp_path / "plain.mp4")
    # Each once: what other workers were at when one died is not made again.
    assert computed(caplog) == [0, 1, 2]
    assert report.segments_computed == 3
    makers = {record.process for record in heard if isinstance(getattr(record, "event", None), FramesDone)}
    assert os.getpid() not in makers
    assert len(makers) >= 2
    assert list((cache_dir / "work").iterdir()) == []


@pytest.mark.system
def test_a_segment_that_kills_every_worker_ends_the_run(
    prefect_server: None, cache_dir: Path, tmp_path: Path, caplog
) -> None:
    clip = make_clip(tmp_path / "clip.mp4", 9)
    with killing(1000) as killer, pytest.raises(SegmentsFailed, match="killed by signal 9") as caught:
        run(clip, tmp_path / "out.mp4", cache_dir, caplog, runner="processes")
    assert caught.value.exit_code == 1
    assert len(killer.killed) == 3  # one in each round
    assert not (tmp_path / "out.mp4").exists()


def test_the_plan_fixes_the_threads_of_the_cpu(clip: Path, tmp_path: Path) -> None:
    """Dask and Ray give their workers one thread, and sums of one round otherwise than sums of two."""
    threads = torch.get_num_threads()
    request = Request(str(clip), str(tmp_path / "out.mp4"), PARAMS, FAST, ComputeParams("cpu"))
    assert make_plan(request, tmp_path)[1].cpu_threads == threads


def test_longest_first() -> None:
    segments = [SegmentPlan(0, 0, 16), SegmentPlan(1, 16, 48), SegmentPlan(2, 48, 64), SegmentPlan(3, 64, 72)]
    assert [segment.index for segment in longest_first(segments)] == [1, 0, 2, 3]


def test_auto_is_processes_on_several_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    assert runners.settled(ComputeParams("cpu")).runner == "threads"
    monkeypatch.setattr(runners, "devices_of", lambda compute: GPUS)
    assert runners.settled(ComputeParams("all")).runner == "processes"
    assert runners.settled(ComputeParams("all", runner="threads")).runner == "threads"


def test_pins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpu.pins(ComputeParams("cpu")) == (None,)
    assert gpu.pins(ComputeParams("cpu", workers=3)) == (None, None, None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert gpu.pins(ComputeParams("all")) == ("0", "1", "2", "3")
    assert gpu.pins(ComputeParams("1,3")) == ("1", "3")
    assert gpu.pins(ComputeParams("all", workers=2)) == ("0", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a, GPU-b,5,6")
    assert gpu.pins(ComputeParams("1,2")) == ("GPU-b", "5")
    with pytest.raises(UserError, match="workers 3"):
        gpu.pins(ComputeParams("1,2", workers=3))


@pytest.mark.parametrize(("runner", "package"), [("dask", "prefect_dask"), ("ray", "prefect_ray")])
def test_missing_packages_are_named(runner: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(UserError, match=rf"flashvsr\[{runner}\]"):
        runners.task_runner(replace(ComputeParams("cpu"), runner=runner))  # type: ignore[arg-type]
