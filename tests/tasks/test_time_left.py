"""The time left is right within 20 % after the first tenth: on runs as they were recorded, of several shapes."""

import logging
from collections.abc import Collection

import pytest

from tasks.forecast import Costs, steps_of
from tasks.progress import RunProgress
from tests.tasks.recorded import Recorded, load, replay

RUNS = load()
RIGHT = 0.2
LOOKS = 200  # at a run
LOADING = 2.0  # seconds
END = 0.05  # of a run that is left out: there a second is many per cent


def looks(
    run: Recorded,
    workers: int,
    reused: Collection[int],
    known: Costs,
    loading: float = 0.0,
    scouted: bool = True,
    beat: float = 0.0,
) -> list[float]:
    """Relative errors of the time left, from a tenth of what is to be computed on."""
    now = [0.0]
    progress = RunProgress(clock=lambda: 100 + now[0])
    told, end = replay(run, workers, reused, known, loading, scouted, beat)
    waiting = iter([*told, (end, None)])
    at, event = next(waiting)
    errors = []
    for look in range(LOOKS):
        moment = end * look / LOOKS
        while at <= moment and event is not None:
            now[0] = at
            record = logging.LogRecord("tasks.events", logging.DEBUG, "", 0, "", (), None)
            record.event = event
            progress.emit(record)
            at, event = next(waiting)
        now[0] = moment
        seen = progress.snapshot()
        computed = seen.frames_done - seen.frames_reused
        if computed >= 0.1 * (run.frames - seen.frames_reused) and end - moment > max(END * end, 2 * beat):
            assert seen.left is not None
            errors.append(abs(seen.left - (end - moment)) / (end - moment))
    return errors


SHAPES = {
    "one segment": ("192 frames, x2, segments of 512", 1, ()),
    "one long segment": ("480 frames, x2, segments of 512", 1, ()),
    "three segments with cuts": ("96 frames, x4, segments of 32", 1, ()),
    "eight segments": ("480 frames, x2, segments of 64", 1, ()),
    "twelve segments": ("384 frames, x2, segments of 32", 1, ()),
    "twelve segments, half of them done": ("384 frames, x2, segments of 32", 1, range(6)),
    "twelve segments, every other done": ("384 frames, x2, segments of 32", 1, range(0, 12, 2)),
    "twelve segments, two workers": ("384 frames, x2, segments of 32", 2, ()),
    # Without a cut all of the pre-roll is streamed: steps that emit nothing before a segment's first frames.
    "three segments of one scene": ("96 frames, x2, segments of 32, one scene", 1, ()),
    "three segments of one scene, first done": ("96 frames, x2, segments of 32, one scene", 1, (0,)),
    "three segments of one scene, two workers": ("96 frames, x2, segments of 32, one scene", 2, ()),
    "four longer segments of one scene": ("192 frames, x2, segments of 48, one scene", 1, ()),
    "four longer segments of one scene, half of them done": ("192 frames, x2, segments of 48, one scene", 1, (0, 1)),
    "four longer segments of one scene, two workers": ("192 frames, x2, segments of 48, one scene", 2, ()),
    "three large segments of one scene": ("96 frames, x4, segments of 32, one scene", 1, ()),
    "three large segments of one scene, first done": ("96 frames, x4, segments of 32, one scene", 1, (0,)),
    "three large segments of one scene, two workers": ("96 frames, x4, segments of 32, one scene", 2, ()),
    "eight segments, three workers": ("480 frames, x2, segments of 64", 3, ()),
}


@pytest.mark.parametrize("remembered", [None, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_time_left_is_right(shape: str, remembered: float | None) -> None:
    """`remembered`: steps of earlier runs took so many times as long, as other work on the machine makes them."""
    name, workers, reused = SHAPES[shape]
    run = RUNS[name]
    known, loading = Costs(tail=run.tail), 0.0
    if remembered is not None:
        loading = LOADING
        known = Costs(remembered * seconds_a_latent(run), remembered * loading, run.tail)
    errors = looks(run, workers, reused, known, loading)
    assert len(errors) > LOOKS / 3
    wrong = [f"{error:.0%}" for error in errors if error > RIGHT]
    assert not wrong


@pytest.mark.parametrize("name", RUNS)
def test_the_steps_of_every_segment_are_foretold(name: str) -> None:
    """What came in the recorded runs is what the known cuts say."""
    run = RUNS[name]
    for segment in run.segments:
        ends, made = [], []
        before = 0
        for cost, end in steps_of(segment.start, segment.stop, run.preroll, run.cuts):
            before += cost
            if end > segment.start:
                ends.append(end)
                made.append(before)
                before = 0
        frames = [b - a for a, b in zip([segment.start, *ends], ends)]
        assert frames == [step[1] for step in segment.steps]
        assert made[1:] == [step[2] for step in segment.steps[1:]]


def test_without_a_scout_the_rate_of_cuts_is_guessed() -> None:
    """Cuts that nobody knew make it wrong now and then, by less than half."""
    run = RUNS["480 frames, x2, segments of 512"]
    errors = looks(run, 1, (), Costs(tail=run.tail), scouted=False)
    assert max(errors) < 0.5


def seconds_a_latent(run: Recorded) -> float:
    """Seconds a latent frame, the first of each segment left out."""
    took = sum(segment.steps[-1][0] - segment.steps[0][0] for segment in run.segments)
    return took / sum(step[2] for segment in run.segments for step in segment.steps)


def test_what_is_told_seldom_does_not_count_as_slow() -> None:
    """Other processes are seen through the store every few seconds, in which they make many steps."""
    run = RUNS["480 frames, x2, segments of 512"]
    errors = looks(run, 1, (), Costs(tail=run.tail), beat=5.0)
    assert sum(error <= RIGHT for error in errors) > 0.85 * len(errors)
    assert max(errors) < 0.5
