"""Progress counted from events; time left on runs whose end is known."""

import itertools
import logging

import pytest

from flashvsr_core.segments import FIRST_EMIT
from tasks.events import (
    CutsFound,
    Event,
    FramesDone,
    JobPlanned,
    LookBegan,
    RunEnded,
    SegmentComputed,
    SegmentFailed,
    SegmentReused,
    SegmentStarted,
    StageEntered,
)
from tasks.forecast import BEGINNING, NOTHING_KNOWN, Costs, Steps, latents
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

    def plan(self, segments: int, frames: int = 32, costs: Costs = NOTHING_KNOWN, preroll: int = 24) -> None:
        ranges = tuple((i * frames, (i + 1) * frames) for i in range(segments))
        self.tell(StageEntered("plan"))
        self.tell(
            JobPlanned("/store/job", segments * frames, segments, 0, ranges, preroll, costs, "/in.mp4", "/out.mp4")
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


LATENT = 0.5  # seconds


def stream(start: int, stop: int, preroll: int, cuts: tuple[int, ...] = ()) -> list[tuple[float, int]]:
    """What the model's stream emits of [start, stop): seconds since it began, and frames."""
    shots = [max(0, start - preroll), *cuts, stop + 4]
    shots = [cut for cut in shots if cut >= max((c for c in shots if c <= start), default=0)]
    made, took = [], 0.0
    for opening, end in itertools.pairwise(shots):
        position = low = opening // 8 * 8
        low = max(start, opening)
        while position < min(end, stop):
            first = position == opening // 8 * 8
            took += LATENT * (6 if first else 2)
            position += 21 if first else 8
            high = min(position, end, stop)
            if high > low:
                made.append((took, high - low))
                low = high
    return made


def play(run: Run, segments: int, frames: int, preroll: int, devices: int = 1, load: float = 0.0,
         cuts: tuple[int, ...] = (), tail: float = 10.0) -> list[tuple[float, Snapshot]]:  # fmt: skip
    """A whole run; returns after every event how long it then really took to the end, and what was seen."""
    happenings: list[tuple[float, Event]] = []
    free = [100.0] * devices
    for index in range(segments):
        device = free.index(min(free))
        at = free[device]
        start, stop = index * frames, (index + 1) * frames
        happenings.append((at, SegmentStarted(index, frames, "GPU", f"host/1/cuda:{device}")))
        at += load if index < devices else 0.0
        steps = Steps(start, stop)
        for took, count in stream(start, stop, preroll, cuts):
            happenings.append((at + took, FramesDone(index, count, 0, *steps.add(count))))
        free[device] = happenings[-1][0]
        # The next segment begins while this one is being closed.
        happenings.append((free[device] + 0.3, SegmentComputed(index, frames, free[device] - at)))
    end = max(free) + tail
    seen = []
    for at, event in sorted(happenings, key=lambda h: h[0]):
        run.tell(event, at=at)
        seen.append((end - at, run.see()))
    return seen


def assert_right(seen: list[tuple[float, Snapshot]], least: int) -> None:
    checked = [(left, now.left) for left, now in seen if now.share >= 0.1 and left > 5]
    assert len(checked) >= least
    for left, said in checked:
        assert said == pytest.approx(left, rel=0.2)


@pytest.mark.parametrize("devices", [1, 2, 3])
@pytest.mark.parametrize("load", [0.0, 40.0])
def test_time_left_after_the_first_tenth(devices: int, load: float) -> None:
    run = Run()
    run.plan(24, 128, costs=Costs(tail=10.0), preroll=24)
    assert_right(play(run, 24, 128, 24, devices, load), least=300)


def test_time_left_where_the_last_step_of_a_segment_is_short() -> None:
    """Pre-roll of 8: 16 frames come as 13 and 3, and three frames of the last step cost as much as eight."""
    run = Run()
    run.plan(40, 16, costs=Costs(tail=1.0), preroll=8)
    assert_right(play(run, 40, 16, 8, tail=1.0), least=60)


def test_time_left_of_one_segment_whose_scenes_are_short() -> None:
    """Every cut begins another stream, whose first step takes three times as long."""
    run = Run()
    run.plan(1, 384, costs=Costs(tail=1.0), preroll=32)
    assert_right(play(run, 1, 384, 32, load=5.0, cuts=tuple(range(28, 384, 36)), tail=1.0), least=30)


def test_time_left_while_the_last_segment_is_closed() -> None:
    run = Run()
    run.plan(1, 45, costs=Costs(tail=8.0))
    run.tell(SegmentStarted(0, 45, "GPU", "host/1/cuda:0"))
    run.tell(FramesDone(0, 45), at=110.0)
    run.now = 112.0
    assert run.see().left == pytest.approx(6.0)
    run.tell(SegmentComputed(0, 45, 12.0), at=113.0)
    run.tell(StageEntered("merge"), at=114.0)
    assert (run.see().left, run.see().tail) == (pytest.approx(4.0), pytest.approx(4.0))


def test_scores_that_take_longer_put_off_what_follows_them() -> None:
    """Of a tail of 30 s they are expected to take 10 and the reference 5; merging takes 10 more than expected."""
    run = Run()
    run.plan(1, 45, costs=Costs(tail=30.0, looks=(("musiq", 6.0), ("clipiqa", 4.0), ("reference", 5.0))))
    run.tell(SegmentStarted(0, 45, "GPU", "host/1/cuda:0"))
    run.tell(FramesDone(0, 45), at=110.0)
    run.tell(SegmentComputed(0, 45, 12.0), at=110.0)
    run.tell(StageEntered("look"), at=120.0)
    assert run.see().left == pytest.approx(20.0)
    run.now = 135.0
    assert run.see().left == pytest.approx(15.0)  # none of them has begun
    run.tell(LookBegan("musiq"), at=136.0)
    assert run.see().left == pytest.approx(15.0)
    run.now = 144.0
    assert run.see().left == pytest.approx(9.0)
    run.tell(LookBegan("clipiqa"), at=145.0)
    run.tell(LookBegan("reference"), at=146.0)  # sooner than expected
    run.now = 148.0
    assert run.see().left == pytest.approx(3.0)


def test_what_earlier_runs_cost_is_told_from_the_start() -> None:
    run = Run()
    run.plan(2, 45, costs=Costs(LATENT, 7.0, 3.0), preroll=0)
    work = 2 * latents(0, 45, 0) * LATENT
    assert run.see().left == pytest.approx(work + 7.0 + 3.0, rel=0.1)
    for _, now in play(run, 2, 45, 0, load=7.0, tail=3.0):
        assert now.measured is None or now.measured.latent == pytest.approx(LATENT)
        assert now.measured is None or now.measured.start == pytest.approx(7.0, abs=0.5)


def test_steps_that_make_only_pre_roll_are_counted_of_segments_that_wait() -> None:
    """Where the scout found no cut, all of the pre-roll is streamed. Such steps were once left out."""
    run = Run()
    run.plan(2, 64, costs=Costs(LATENT), preroll=32)
    run.tell(CutsFound(0, 128, ()))
    waiting = BEGINNING + latents(64, 64, 32) * LATENT
    assert run.see().left == pytest.approx(BEGINNING + latents(0, 64, 32) * LATENT + waiting)
    run.tell(SegmentStarted(0, 64, worker="one"))
    for took, count in stream(0, 64, 32):
        made = 2 if run.progress.segments[0].first else 0
        run.tell(FramesDone(0, count, latents=made), at=100.0 + BEGINNING + took)
    assert run.see().left == pytest.approx(waiting)
    run.tell(SegmentStarted(1, 64, worker="one"))
    assert run.see().left == pytest.approx(waiting)


def test_what_a_first_beginning_takes_beyond_its_work_is_not_taken_for_steps() -> None:
    """Where nothing is remembered, all of it once made steps dearer until one had come by itself."""
    run = Run()
    run.plan(2, 64, preroll=32)
    run.tell(CutsFound(0, 128, ()))
    run.tell(SegmentStarted(0, 64, worker="one"))
    made = latents(0, FIRST_EMIT, 32)
    run.tell(FramesDone(0, FIRST_EMIT), at=run.now + BEGINNING + made * LATENT)
    left = latents(0, 64, 32) - made + latents(64, 64, 32)
    assert run.see().left == pytest.approx(left * LATENT + BEGINNING)


def test_a_beginning_that_takes_longer_puts_off_the_steps_behind_it() -> None:
    """Its time above what was expected was once taken off them."""
    run = Run()
    run.plan(1, 64, costs=Costs(LATENT), preroll=32)
    run.tell(CutsFound(0, 64, ()))
    run.tell(SegmentStarted(0, 64, worker="one"))
    beginning, whole = BEGINNING + latents(0, FIRST_EMIT, 32) * LATENT, BEGINNING + latents(0, 64, 32) * LATENT
    run.now += beginning / 2
    assert run.see().left == pytest.approx(whole - beginning / 2)
    run.now += beginning
    assert run.see().left == pytest.approx(whole - beginning)


@pytest.mark.parametrize("cuts", [(), (30,), (28, 64, 66), (29,), (45,)])
def test_steps_and_cuts_are_known_from_what_comes(cuts: tuple[int, ...]) -> None:
    steps, made, found = Steps(0, 96), 0, 0
    emitted = stream(0, 96, 0, cuts)
    for _, count in emitted:
        latent, cut = steps.add(count)
        made, found = made + latent, found + cut
    assert (made * LATENT, found) == (pytest.approx(emitted[-1][0] - 6 * LATENT), len(cuts))


def test_no_time_left_before_anything_was_computed() -> None:
    run = Run()
    run.plan(4)
    assert run.see().left is None


def test_steps_that_come_at_one_moment_tell_nothing_of_their_cost() -> None:
    """As those of other processes may, whose steps the store tells of; a run once failed so at its very end."""
    run = Run()
    run.plan(2)
    for segment in range(2):
        run.tell(SegmentStarted(segment, 32, worker="one"), at=100.0)
        run.tell(FramesDone(segment, 21), at=101.0)
        run.tell(FramesDone(segment, 8, latents=2), at=101.0)
    seen = run.see()
    assert seen.frames_done == 58
    assert seen.measured is None
    assert seen.left is None or seen.left >= 0.0


def test_two_listeners_of_one_logger_both_hear() -> None:
    logger = logging.getLogger("tasks.test_two_listeners")
    both = RunProgress(), RunProgress()
    for progress in both:
        logger.addHandler(progress)
    logger.warning("loud")
    for progress in both:
        logger.removeHandler(progress)
    assert [progress.snapshot().warnings for progress in both] == [("loud",), ("loud",)]
