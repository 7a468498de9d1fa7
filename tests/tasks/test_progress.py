"""Progress counted from events; time left on runs whose end is known."""

import logging

import pytest

from tasks.events import (
    Event,
    FramesDone,
    JobPlanned,
    RunEnded,
    SegmentComputed,
    SegmentFailed,
    SegmentReused,
    SegmentStarted,
    StageEntered,
)
from tasks.progress import RunProgress, Snapshot


class Run:
    """A run on a clock of its own."""

    def __init__(self) -> None:
        self.now = 100.0
        self.progress = RunProgress(clock=lambda: self.now)

    def tell(self, event: Event, at: float | None = None) -> None:
        self.now = self.now if at is None else at
        record = logging.LogRecord("tasks.events", logging.DEBUG, "", 0, "", (), None)
        record.event = event
        self.progress.emit(record)

    def plan(self, segments: int, frames: int = 32, tail: float = 0.0, preroll: int = 24) -> None:
        ranges = tuple((i * frames, (i + 1) * frames) for i in range(segments))
        self.tell(StageEntered("plan"))
        self.tell(
            JobPlanned("/store/job", segments * frames, segments, 0, ranges, preroll, tail, "/in.mp4", "/out.mp4")
        )
        self.tell(StageEntered("segments"))

    def see(self) -> Snapshot:
        return self.progress.snapshot()


def test_counts_states_and_devices() -> None:
    run = Run()
    run.plan(4)
    run.tell(SegmentReused(0, 32))
    run.tell(SegmentStarted(1, 32, "GPU", "host/1/cuda:0", 2))
    run.tell(FramesDone(1, 21, 5 << 30), at=110.0)
    seen = run.see()
    assert (seen.frames_done, seen.frames_reused, seen.count("waiting")) == (53, 32, 2)
    assert (seen.running[0].attempts, seen.running[0].worker, seen.memory_bytes) == (2, "host/1/cuda:0", 5 << 30)
    run.tell(SegmentComputed(1, 32, 12.0, 6 << 30, "GPU", ("tiles",)), at=112.0)
    run.tell(SegmentFailed(2, "no memory"))
    seen = run.see()
    assert (seen.frames_done, seen.fallbacks, seen.count("done", "failed")) == (64, ("tiles",), 2)
    assert seen.segments[1].fps == pytest.approx(32 / 12)
    run.tell(RunEnded("failed", 20.0))
    assert (run.see().status, run.see().left) == ("failed", 0.0)


def test_an_attempt_that_is_begun_again_starts_from_nothing() -> None:
    run = Run()
    run.plan(1)
    run.tell(SegmentStarted(0, 32))
    run.tell(FramesDone(0, 21))
    run.tell(SegmentStarted(0, 32, attempt=2))
    assert (run.see().frames_done, run.see().segments[0].attempts) == (0, 2)


def test_warnings_are_kept() -> None:
    run = Run()
    run.progress.emit(logging.LogRecord("tasks", logging.WARNING, "", 0, "slow %s", ("disk",), None))
    assert run.see().warnings == ("slow disk",)


@pytest.mark.parametrize("devices", [1, 2, 3])
@pytest.mark.parametrize("load", [0.0, 40.0])
def test_time_left_after_the_first_tenth(devices: int, load: float) -> None:
    """Segments of 128 frames, 1 s a step of 8, 4 s of pre-roll each; the first of each device loads the model."""
    run = Run()
    run.plan(24, 128, tail=10.0, preroll=24)
    happenings: list[tuple[float, Event]] = []
    free = [100.0] * devices
    for index in range(24):
        device = free.index(min(free))
        at = free[device]
        happenings.append((at, SegmentStarted(index, 128)))
        at += 4.0 + (load if index < devices else 0.0)
        for _ in range(16):
            at += 1.0
            happenings.append((at, FramesDone(index, 8)))
        happenings.append((at, SegmentComputed(index, 128, at)))
        free[device] = at
    end = max(free) + 10.0
    checked = 0
    for at, event in sorted(happenings, key=lambda h: h[0]):
        run.tell(event, at=at)
        seen = run.see()
        if seen.share >= 0.1 and end - at > 15:
            assert seen.left == pytest.approx(end - at, rel=0.2)
            checked += 1
    assert checked > 50


def test_time_left_where_the_last_step_of_a_segment_is_short() -> None:
    """16 frames come as 13 after 2 s and 3 after 1 s more: three frames of the last step cost as much as eight."""
    run = Run()
    run.plan(40, 16, tail=1.0, preroll=8)
    end = 100.0 + 40 * 3.0 + 1.0
    for index in range(40):
        at = 100.0 + 3.0 * index
        run.tell(SegmentStarted(index, 16), at=at)
        run.tell(FramesDone(index, 13), at=at + 2.0)
        run.tell(FramesDone(index, 3), at=at + 3.0)
        run.tell(SegmentComputed(index, 16, 3.0))
        if 0.1 <= run.see().share < 0.9:
            assert run.see().left == pytest.approx(end - run.now, rel=0.2)


def test_no_time_left_before_anything_was_computed() -> None:
    run = Run()
    run.plan(4)
    assert run.see().left is None


def test_two_listeners_of_one_logger_both_hear() -> None:
    logger = logging.getLogger("tasks.test_two_listeners")
    both = RunProgress(), RunProgress()
    for progress in both:
        logger.addHandler(progress)
    logger.warning("loud")
    for progress in both:
        logger.removeHandler(progress)
    assert [progress.snapshot().warnings for progress in both] == [("loud",), ("loud",)]
