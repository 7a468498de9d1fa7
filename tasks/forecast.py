"""How long a run will still take: the model's steps are counted, what a step costs is learned as they are made.

Steps cost alike whatever they emit, so work is counted in latent frames: a stream begins with 6 of them for 21 frames
and goes on with 2 for 8. A scene cut begins another stream. Cuts are seen from where emitted frames end; how many more
there will be is guessed from those seen.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from flashvsr_core.segments import FIRST_EMIT, GRID, STEP

FIRST_LATENTS, STEP_LATENTS = 6, 2  # of a stream's first step and of every later one
CUT_LATENTS = 2.5  # a cut's mean cost: a first step that emits less, half a step lost at either side of it
USUAL_CUTS, USUAL_FRAMES = 0.3, 30  # what is assumed of every film, as if it had been seen
TRUST = 6  # latent frames that weigh as much as what was remembered from earlier runs


@dataclass(frozen=True)
class Costs:
    """Seconds at one job's size of picture, remembered or learned."""

    latent: float | None = None  # one latent frame; None: nothing is known
    start: float | None = None  # what a worker's first segment takes beyond its work: loading, compiling
    tail: float = 0.0  # from the last frame to the end: closing, merging, verifying, looking, publishing, the report


NOTHING_KNOWN = Costs()


class Segment(Protocol):
    """What is read of a segment; times are on one clock, 0 where it was not reached."""

    @property
    def start(self) -> int: ...
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


@dataclass(frozen=True)
class Learned:
    """What a run has shown so far."""

    latent: float  # seconds a latent frame
    start: float  # seconds of loading and compiling
    cuts: float  # a frame
    begin: float  # how much dearer beginnings of later segments were than expected, as a factor
    preroll: int

    def beginning(self, segment: Segment) -> float:
        """Seconds until its first frames come, the worker being warm. A cut in the pre-roll makes it shorter."""
        return self.begin * self.latent * _expected(segment, self.preroll, self.cuts)

    def steps(self, frames: int) -> float:
        """Seconds for `frames` frames of a stream that runs."""
        return self.latent * (STEP_LATENTS * -(-frames // STEP) + CUT_LATENTS * self.cuts * frames)

    def whole(self, segment: Segment) -> float:
        return self.beginning(segment) + self.steps(segment.frames - _first_frames(segment, self.preroll))


def learn(segments: Sequence[Segment], preroll: int, known: Costs) -> Learned | None:
    """What is known of a run: `known` from earlier ones counts for a first step, what this one shows for the rest."""
    begun = sorted((s for s in segments if s.first), key=lambda s: s.began)
    opening = {s.worker: s for s in reversed(begun)}.values()  # the first of every worker
    later = [s for s in begun if all(s is not o for o in opening)]
    cuts = (USUAL_CUTS + sum(s.cuts for s in begun)) / (USUAL_FRAMES + sum(s.done for s in begun))
    seconds, work = sum(s.last - s.first for s in begun), float(sum(s.latents for s in begun))
    first = [(s.first - s.began, _expected_seen(s, preroll, cuts)) for s in opening]
    if known.start is not None or not work:  # else nobody knows how much of a beginning was loading
        seconds += sum(max(0.0, took - (known.start or 0.0)) for took, _ in first)
        work += sum(made for _, made in first)
    if known.latent is not None:
        seconds, work = seconds + TRUST * known.latent, work + TRUST
    if not work:
        return None
    latent = seconds / work
    expected = sum(_expected_seen(s, preroll, cuts) for s in later)
    begin = (sum(s.first - s.began for s in later) / latent + FIRST_LATENTS) / (expected + FIRST_LATENTS)
    loading = [max(0.0, took - made * latent) for took, made in first]
    start = sum(loading) / len(loading) if loading else known.start or 0.0
    return Learned(latent, start, cuts, begin, preroll)


def measured(segments: Sequence[Segment], preroll: int) -> Costs | None:
    """What this run alone tells of steps and beginnings; None where the two cannot be told apart."""
    found = learn(segments, preroll, NOTHING_KNOWN) if any(s.latents for s in segments) else None
    return None if found is None else Costs(found.latent, found.start)


def computing_left(segments: Sequence[Segment], preroll: int, devices: int, known: Costs, now: float) -> float | None:
    """Seconds until the last frame comes; None before anything tells."""
    found = learn(segments, preroll, known)
    if found is None:
        return None
    warm = {s.worker for s in segments if s.first}
    queues = []
    for s in segments:
        if s.state == "running" and s.done < s.frames:  # one that is only being closed keeps no device
            cost = found.steps(s.frames - s.done) if s.first else found.whole(s)
            cost += 0.0 if s.worker in warm else found.start
            queues.append(max(0.0, cost - (now - (s.last if s.first else s.began))))
    queues += [0.0 if warm else found.start] * (devices - len(queues))
    heapq.heapify(queues)
    between = _between(segments, devices, now)
    for s in segments:
        if s.state in ("waiting", "failed"):  # the device that is free first takes it
            heapq.heapreplace(queues, queues[0] + found.whole(s) + between)
    return max(queues)


def _first_frames(segment: Segment, preroll: int) -> int:
    """Frames that come first where no scene is cut: a step's that are not pre-roll."""
    lead = min(segment.start, preroll)
    first = FIRST_EMIT - lead if lead < FIRST_EMIT else STEP - (lead - FIRST_EMIT) % STEP
    return min(segment.frames, first)


def _expected(segment: Segment, preroll: int, cuts: float) -> float:
    """Latent frames until the first frames of a segment come: its stream starts at the last cut in the pre-roll."""
    lead = min(segment.start, preroll)
    streamed = (1 - math.exp(-cuts * lead)) / cuts
    ahead = latents(segment.start, _first_frames(segment, preroll), preroll) - FIRST_LATENTS
    return FIRST_LATENTS + (ahead * streamed / lead if lead else 0.0)


def _expected_seen(segment: Segment, preroll: int, cuts: float) -> float:
    """The same for frames that were told of: by the store, many steps' at once."""
    more = max(0, segment.first_frames - _first_frames(segment, preroll))
    return _expected(segment, preroll, cuts) + STEP_LATENTS * (more // STEP)


def _between(segments: Sequence[Segment], devices: int, now: float) -> float:
    """Seconds that pass between two segments of a device: the encoder's end, Prefect's bookkeeping."""
    begun = [s for s in segments if s.began]
    if len(begun) <= devices:
        return 0.0
    spent = sum((now if s.state == "running" and s.done < s.frames else s.last) - s.began for s in begun)
    idle = devices * (now - min(s.began for s in begun)) - spent
    return max(0.0, idle / (len(begun) - devices))
