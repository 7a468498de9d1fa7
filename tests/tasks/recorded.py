"""Runs as they were recorded: what every step took. Replayed on a clock of their own, they test the time left.

`recorded_runs.json` is written by `python -m tests.bench.seeing --record`, on the process's own clock, which other
work on the machine does not hold up.
"""

import heapq
import itertools
import json
import math
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tasks.events import (
    CutsFound,
    Event,
    FramesDone,
    JobPlanned,
    SegmentComputed,
    SegmentReused,
    SegmentStarted,
    StageEntered,
)
from tasks.forecast import NOTHING_KNOWN, Costs

FILE = Path(__file__).parent / "recorded_runs.json"


@dataclass(frozen=True)
class Made:
    """One segment: seconds since it began, frames, latent frames and cuts of every step; seconds until stored."""

    start: int
    stop: int
    steps: tuple[tuple[float, int, int, int], ...]
    stored: float


@dataclass(frozen=True)
class Recorded:
    """One run; `segments` in the order in which they were begun."""

    name: str
    preroll: int
    planning: float  # seconds until the segments were begun
    between: float  # seconds from one segment's last frame to the next one's beginning, the median
    tail: float  # seconds from the last frame to the end
    cuts: tuple[int, ...]
    segments: tuple[Made, ...]

    @property
    def frames(self) -> int:
        return max(segment.stop for segment in self.segments)


def record(name: str, events: Sequence[tuple[float, Event]], end: float) -> Recorded:
    """What a run's events (seconds, event) say; `end`: when it was over."""
    planned = next(event for _, event in events if isinstance(event, JobPlanned))
    found = next(event for _, event in events if isinstance(event, CutsFound))
    begun = {event.segment: at for at, event in events if isinstance(event, SegmentStarted)}
    steps: dict[int, list[tuple[float, int, int, int]]] = {index: [] for index in begun}
    stored = {event.segment: at for at, event in events if isinstance(event, SegmentComputed)}
    for at, event in events:
        if isinstance(event, FramesDone):
            steps[event.segment].append((at - begun[event.segment], event.frames, event.latents, event.cuts))
    last = {index: begun[index] + made[-1][0] for index, made in steps.items()}
    order = sorted(begun, key=begun.__getitem__)
    gaps = sorted(begun[b] - last[a] for a, b in itertools.pairwise(order))
    segments = tuple(
        Made(
            *planned.ranges[index],
            tuple(_rounded(step) for step in steps[index]),
            round(stored[index] - begun[index], 3),
        )
        for index in order
    )
    entered = next(at for at, event in events if isinstance(event, StageEntered) and event.stage == "segments")
    return Recorded(
        name,
        planned.preroll,
        round(entered - events[0][0], 3),
        round(gaps[len(gaps) // 2], 3) if gaps else 0.0,
        round(end - max(last.values()), 3),
        found.cuts,
        segments,
    )


def _rounded(step: tuple[float, int, int, int]) -> tuple[float, int, int, int]:
    return (round(step[0], 3), *step[1:])


def save(runs: Sequence[Recorded]) -> None:
    lines = ",\n".join(json.dumps(asdict(run)) for run in runs)
    FILE.write_text(f"[\n{lines}\n]\n")


def load() -> dict[str, Recorded]:
    found = {}
    for run in json.loads(FILE.read_text()):
        segments = tuple(
            Made(s["start"], s["stop"], tuple(map(tuple, s["steps"])), s["stored"]) for s in run["segments"]
        )
        found[run["name"]] = Recorded(**{**run, "cuts": tuple(run["cuts"]), "segments": segments})
    return found


def replay(
    run: Recorded,
    workers: int = 1,
    reused: Collection[int] = (),
    known: Costs = NOTHING_KNOWN,
    loading: float = 0.0,
    scouted: bool = True,
    beat: float = 0.0,
) -> tuple[list[tuple[float, Event]], float]:
    """The events of such a run and its end, by its own durations, on so many workers; segments `reused` were there.

    `loading`: seconds that the first segment of every worker takes more: the recorded ones had their model loaded.
    `beat`: seconds between what is told of a segment, as where it is seen through the store.
    """
    ordered = sorted(run.segments, key=lambda s: s.start)
    ranges = tuple((s.start, s.stop) for s in ordered)
    planned = JobPlanned("/job", run.frames, len(ranges), len(reused), ranges, run.preroll, known, "/in", "/out")
    missing = [s for s in run.segments if ordered.index(s) not in reused]
    told: list[tuple[float, Event]] = [(0.0, StageEntered("plan")), (run.planning, planned)]
    told += [(run.planning, SegmentReused(i, ordered[i].stop - ordered[i].start)) for i in reused]
    told.append((run.planning, StageEntered("segments")))
    if scouted:
        told.append((run.planning + 0.3, CutsFound(0, run.frames, run.cuts)))
    free = [(run.planning, number) for number in range(workers)]
    for number, segment in enumerate(missing):
        at, worker = heapq.heappop(free)
        index = ordered.index(segment)
        told.append((at, SegmentStarted(index, segment.stop - segment.start, "CPU", f"host/1/{worker}")))
        at += loading if number < workers else 0.0
        steps = _beaten(segment.steps, beat) if beat else segment.steps
        told += [(at + took, FramesDone(index, frames, 0, *made)) for took, frames, *made in steps]
        told.append((at + segment.stored, SegmentComputed(index, segment.stop - segment.start, segment.stored)))
        heapq.heappush(free, (at + segment.steps[-1][0] + run.between, worker))
    told.sort(key=lambda one: one[0])
    last = max(at for at, event in told if isinstance(event, FramesDone))
    return told, last + run.tail


def _beaten(steps: Sequence[tuple[float, int, int, int]], beat: float) -> list[tuple[float, int, int, int]]:
    """The same, told at every beat; of the first ones the latent frames are not told."""
    found: list[tuple[float, int, int, int]] = []
    for at, group in itertools.groupby(steps, lambda step: min(steps[-1][0], math.ceil(step[0] / beat) * beat)):
        frames, made, cuts = (sum(each) for each in zip(*(step[1:] for step in group)))
        found.append((at, frames, made if found else 0, cuts))
    return found
