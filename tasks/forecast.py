"""How long a run will still take: the model's steps are counted, what a step costs is learned as they are made.

Steps cost alike whatever they emit, so work is counted in latent frames: a stream begins with 6 of them for 21 frames
and goes on with 2 for 8. A scene cut begins another stream. As far as cuts are known beforehand (tasks/scout) steps are
counted exactly; behind that their number is guessed from those seen.
"""

import heapq
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from flashvsr_core.segments import FIRST_EMIT, GRID, STEP

FIRST_LATENTS, STEP_LATENTS = 6, 2  # of a stream's first step and of every later one
CUT_LATENTS = 2.5  # a cut's mean cost: a first step that emits less, half a step lost at either side of it
USUAL_CUTS, USUAL_FRAMES = 0.3, 30  # what is assumed of every film, as if it had been seen
TRUST = 1  # latent frame that weighs more than what was remembered from earlier runs, made at another load
RECENT = 1 / 3  # of the work so far that weighs most: a machine's load changes
RECENT_TIMES = 8  # ... but no less than what came in so many times
# Seconds that a segment's beginning takes beyond its work, before any has shown it: opening source and encoder, memory
# that is new, the last segment that is still being checked. Recorded runs at x2 have medians of 0.1 to 0.7; at x4 it is
# lost in what steps vary by.
BEGINNING = 0.4


@dataclass(frozen=True)
class Costs:
    """Seconds at one job's size of picture, remembered or learned."""

    latent: float | None = None  # one latent frame; None: nothing is known
    start: float | None = None  # what a worker's first segment takes beyond what every segment does: loading, compiling
    tail: float = 0.0  # from the last frame to the end: closing, merging, verifying, looking, publishing, the report
    looks: tuple[tuple[str, float], ...] = ()  # last parts of it, in order: what scorers and a reference take, by name


NOTHING_KNOWN = Costs()


@dataclass(frozen=True)
class Shots:
    """The scene cuts (first frames of scenes) of frames [start, stop), all of them known."""

    start: int = 0
    stop: int = 0
    cuts: tuple[int, ...] = ()

    def reach(self, segment: "Segment", preroll: int) -> int:
        """Up to which frame a segment's steps are known; its start where nothing is."""
        covered = self.start <= max(0, segment.start - preroll) and segment.start < self.stop
        return min(segment.stop, self.stop) if covered else segment.start


UNSEEN = Shots()


class Segment(Protocol):
    """What is read of a segment; times are on one clock, 0 where it was not reached."""

    @property
    def start(self) -> int: ...
    @property
    def stop(self) -> int: ...
    @property
    def frames(self) -> int: ...
    @property
    def state(self) -> str: ...
    @property
    def worker(self) -> str: ...
    @property
    def done(self) -> int: ...
    @property
    def latents(self) -> int:
        """Latent frames computed since its first frames came."""
        ...

    @property
    def cuts(self) -> int: ...
    @property
    def began(self) -> float: ...
    @property
    def first(self) -> float:
        """When its first frames came."""
        ...

    @property
    def first_frames(self) -> int: ...
    @property
    def last(self) -> float:
        """When its latest frames came."""
        ...


class Steps:
    """Follows what a stream emits, step by step: latent frames that this took, and scene cuts.

    Within a scene emitted frames end 21 + 8 k after a multiple of 8. Where they end elsewhere, or more come than one
    step makes, the scene was cut.
    """

    def __init__(self, start: int, stop: int, in_chunks: bool = True) -> None:
        """`in_chunks`: a step's frames come together; else cuts cannot be seen."""
        self.at, self.stop = start, stop
        self.in_chunks = in_chunks
        self.begun = False
        self.fresh = False  # the next step is the first of a stream

    def add(self, frames: int) -> tuple[int, int]:
        """Latent frames and cuts that `frames` more frames tell of; the first ones tell nothing, pre-roll hides it."""
        if not self.in_chunks:
            before, self.at = self.at, self.at + frames
            made = STEP_LATENTS * ((self.at - FIRST_EMIT) // STEP - (before - FIRST_EMIT) // STEP)
            self.begun, made = True, made if self.begun else 0
            return made, 0
        fresh = self.fresh or frames > STEP
        cut = int(self.begun and frames > STEP and not self.fresh)
        self.at += frames
        self.fresh = self.at < self.stop and (self.at - FIRST_EMIT) % GRID != 0
        made = (FIRST_LATENTS if fresh else STEP_LATENTS) if self.begun else 0
        self.begun = True
        return made, cut + int(self.fresh)


def latents(start: int, frames: int, preroll: int) -> int:
    """Latent frames of a stream that emits `frames` frames from `start` on, `preroll` frames streamed before them."""
    if frames <= 0:
        return 0
    streamed = frames + min(start, preroll)
    return FIRST_LATENTS + STEP_LATENTS * max(0, -(-(streamed - FIRST_EMIT) // STEP))


def steps_of(start: int, stop: int, preroll: int, cuts: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Every step that makes frames [start, stop): its latent frames, and where what it emits ends.

    A stream begins `preroll` frames before, or at the last cut in there, which is then all that is streamed.
    """
    base = max(0, start - preroll)
    opening = max((cut for cut in cuts if base <= cut <= start), default=base)
    shots = [opening, *(cut for cut in cuts if opening < cut < stop), stop]
    for first, end in itertools.pairwise(shots):
        position = first // GRID * GRID
        cost, emits = FIRST_LATENTS, FIRST_EMIT
        while position < end:
            position += emits
            yield cost, min(position, end)
            cost, emits = STEP_LATENTS, STEP


@dataclass(frozen=True)
class Work:
    """What a run's segments take, in latent frames, as far as can be known."""

    preroll: int
    cuts: float  # a frame, where they are not known
    shots: Shots = UNSEEN

    def beginning(self, segment: Segment, frames: int = 0) -> float:
        """Until its first frames come: the first step that emits any, or `frames` of them."""
        reach = self.shots.reach(segment, self.preroll)
        if reach <= segment.start:
            return self._guessed(segment, frames)
        made = 0
        for cost, end in self._steps(segment, reach):
            made += cost
            if end >= segment.start + max(1, frames):
                break
        return made

    def left(self, segment: Segment) -> float:
        """What follows the frames that are done; where none is, its beginning included."""
        reach = self.shots.reach(segment, self.preroll)
        at = segment.start + segment.done
        # Before any frame came the steps that make only pre-roll are still to come, too.
        steps = self._steps(segment, reach) if reach > at else ()
        known = sum(cost for cost, end in steps if end > at or not segment.done)
        if known or segment.first:
            return known + self._guessed_steps(segment.stop - max(at, reach))
        rest = segment.frames - _first_frames(segment, self.preroll)
        return self._guessed(segment, 0) + self._guessed_steps(rest)

    def next(self, segment: Segment) -> int:
        """The step that is being made; the longer kind where cuts are not known."""
        at = segment.start + segment.done
        steps = self._steps(segment, self.shots.reach(segment, self.preroll))
        return next((cost for cost, end in steps if end > at), FIRST_LATENTS) if at < segment.stop else 0

    def _steps(self, segment: Segment, reach: int) -> Iterator[tuple[int, int]]:
        return steps_of(segment.start, reach, self.preroll, self.shots.cuts)

    def _guessed_steps(self, frames: int) -> float:
        return STEP_LATENTS * -(-frames // STEP) + CUT_LATENTS * self.cuts * frames

    def _guessed(self, segment: Segment, frames: int) -> float:
        """A beginning where cuts are not known: its stream starts at the last one in the pre-roll.

        Frames that were told of by the store are many steps' at once.
        """
        lead, usual = min(segment.start, self.preroll), _first_frames(segment, self.preroll)
        streamed = (1 - math.exp(-self.cuts * lead)) / self.cuts
        ahead = latents(segment.start, usual, self.preroll) - FIRST_LATENTS
        more = STEP_LATENTS * (max(0, frames - usual) // STEP)
        return FIRST_LATENTS + (ahead * streamed / lead if lead else 0.0) + more


@dataclass(frozen=True)
class Learned:
    """What a run has shown so far."""

    latent: float  # seconds a latent frame
    start: float  # seconds of loading and compiling
    begin: float  # seconds that every segment's beginning takes beyond its work
    work: Work

    def slowed(self, segments: Sequence[Segment], now: float, longest: float) -> "Learned":
        """The same, dearer where nothing has come for more than `longest`, the longest wait so far.

        Less says nothing: of other processes the store tells every few seconds only, in which they make many steps.
        """
        waited = [(now - s.last, self.work.next(s)) for s in segments if s.state == "running" and s.first]
        usual = [(took, cost, max(longest, cost * self.latent)) for took, cost in waited]
        beyond = sum(max(0.0, took - wait) for took, _, wait in usual)
        late = sum(cost for took, cost, wait in usual if took > wait)
        return replace(self, latent=self.latent + beyond / (late + RECENT_TIMES * STEP_LATENTS)) if late else self

    def left(self, segment: Segment) -> float:
        """Seconds for what is left of a segment on a warm worker."""
        return max(0.0, self.latent * self.work.left(segment) + (0.0 if segment.first else self.begin))

    def running(self, segment: Segment, now: float, warm: bool) -> float:
        """Seconds for what is left of a segment that has been begun; `warm`: its worker has made frames before."""
        if segment.first:
            return max(0.0, self.left(segment) - (now - segment.last))
        beginning = self.latent * self.work.beginning(segment) + self.begin + (0.0 if warm else self.start)
        rest = self.latent * max(0.0, self.work.left(segment) - self.work.beginning(segment))
        # A beginning that takes longer than expected puts off what follows.
        return rest + max(0.0, beginning - (now - segment.began))


def learn(
    segments: Sequence[Segment],
    preroll: int,
    known: Costs,
    shots: Shots = UNSEEN,
    paces: Sequence[tuple[float, int]] = (),
) -> Learned | None:
    """What is known of a run: `known` from earlier ones counts for a first step, what this one shows for the rest.

    `paces`: seconds and latent frames of its steps, in the order they came; without them all weigh the same.
    """
    begun = sorted((s for s in segments if s.first), key=lambda s: s.began)
    opening = {s.worker: s for s in reversed(begun)}.values()  # the first of every worker
    later = [s for s in begun if all(s is not o for o in opening)]
    work = Work(preroll, _usual_cuts(begun, shots), shots)
    first = [(s.first - s.began, work.beginning(s, s.first_frames)) for s in opening]
    latent = _seconds_a_latent(first, begun, known, paces)
    if latent is None:
        return None
    beyond = [max(0.0, took - made * latent) for took, made in first]
    opening_beyond = sum(beyond) / len(beyond) if beyond else BEGINNING + (known.start or 0.0)
    later_beyond = [s.first - s.began - latent * work.beginning(s, s.first_frames) for s in later]
    # What first beginnings took beyond the loading that is remembered may come again, but no more than usual.
    usual = min(BEGINNING, max(0.0, opening_beyond - (known.start or 0.0)))
    begin = (usual + sum(later_beyond)) / (1 + len(later_beyond))
    start = max(0.0, opening_beyond - begin)
    return Learned(latent, start, begin, work)


def measured(segments: Sequence[Segment], preroll: int, shots: Shots = UNSEEN) -> Costs | None:
    """What this run alone tells of steps and beginnings; None where the two cannot be told apart."""
    found = learn(segments, preroll, NOTHING_KNOWN, shots) if any(s.latents for s in segments) else None
    return None if found is None else Costs(found.latent, found.start)


def computing_left(
    segments: Sequence[Segment],
    preroll: int,
    devices: int,
    known: Costs,
    now: float,
    shots: Shots = UNSEEN,
    paces: Sequence[tuple[float, int]] = (),
) -> float | None:
    """Seconds until the last frame comes; None before anything tells."""
    found = learn(segments, preroll, known, shots, paces)
    if found is None:
        return None
    if paces:
        found = found.slowed(segments, now, max(took for took, _ in paces))
    warm = {s.worker for s in segments if s.first}
    queues = []
    for s in segments:
        if s.state == "running" and s.done < s.frames:  # one that is only being closed keeps no device
            queues.append(found.running(s, now, s.worker in warm))
    queues += [0.0 if warm else found.start] * (devices - len(queues))
    heapq.heapify(queues)
    between = _between(segments, devices, now)
    for s in segments:
        if s.state in ("waiting", "failed"):  # the device that is free first takes it
            heapq.heapreplace(queues, queues[0] + found.left(s) + between)
    return max(queues)


def _seconds_a_latent(
    first: Sequence[tuple[float, float]],
    begun: Sequence[Segment],
    known: Costs,
    paces: Sequence[tuple[float, int]],
) -> float | None:
    """Seconds a latent frame, None where nothing tells; `first`: seconds and latent frames of every worker's first
    beginning."""
    seconds, work = _recent(paces) if paces else (sum(s.last - s.first for s in begun), sum(s.latents for s in begun))
    if first and (known.latent is not None or not work):
        took, made = sum(took for took, _ in first), sum(made for _, made in first)
        share = _share_of_work(took / len(first), made / len(first), known)
        weight = made * share  # the more of it was loading, the less it tells
        seconds, work = seconds + weight * took * share / made, work + weight
    if known.latent is not None:
        weight = TRUST / (1 + work)
        seconds, work = seconds + weight * known.latent, work + weight
    # Steps of other processes may all be told of at one moment.
    return seconds / work if work and seconds > 0 else None


def _share_of_work(took: float, made: float, known: Costs) -> float:
    """Which share of a worker's first beginning, `took` seconds for `made` latent frames, went into these."""
    if known.latent is None:
        return max(0.5, 1 - BEGINNING / took) if took > 0 else 1.0
    # What loading took is known from earlier runs at best; other work slows that down as well.
    return made / (made + ((known.start or 0.0) + BEGINNING) / known.latent)


def _recent(paces: Sequence[tuple[float, int]]) -> tuple[float, float]:
    """Seconds and latent frames, the latest weighing most."""
    horizon = sum(made for _, made in paces) * max(RECENT, RECENT_TIMES / len(paces))
    seconds = work = 0.0
    for took, made in paces:
        keep = math.exp(-made / horizon)
        seconds, work = seconds * keep + took, work * keep + made
    return seconds, work


def _usual_cuts(begun: Sequence[Segment], shots: Shots) -> float:
    """Cuts a frame, from those known beforehand or those met, whichever are of more frames."""
    met = sum(s.cuts for s in begun), sum(s.done for s in begun)
    known = len(shots.cuts), shots.stop - shots.start
    cuts, frames = max(met, known, key=lambda found: found[1])
    return (USUAL_CUTS + cuts) / (USUAL_FRAMES + frames)


def _first_frames(segment: Segment, preroll: int) -> int:
    """Frames that come first where no scene is cut: a step's that are not pre-roll."""
    lead = min(segment.start, preroll)
    first = FIRST_EMIT - lead if lead < FIRST_EMIT else STEP - (lead - FIRST_EMIT) % STEP
    return min(segment.frames, first)


def _between(segments: Sequence[Segment], devices: int, now: float) -> float:
    """Seconds that pass between two segments of a device: the encoder's end, Prefect's bookkeeping."""
    begun = [s for s in segments if s.began]
    if len(begun) <= devices:
        return 0.0
    spent = sum((now if s.state == "running" and s.done < s.frames else s.last) - s.began for s in begun)
    idle = devices * (now - min(s.began for s in begun)) - spent
    return max(0.0, idle / (len(begun) - devices))
