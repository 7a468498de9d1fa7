"""How far a run is, counted from its events: for the terminal, Prefect's UI and metrics alike."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

from tasks.events import (
    CutsFound,
    FramesDone,
    JobPlanned,
    LookBegan,
    RunEnded,
    SegmentComputed,
    SegmentFailed,
    SegmentReused,
    SegmentStarted,
    Stage,
    StageEntered,
)
from tasks.forecast import UNSEEN, Costs, Shots, computing_left, measured

WINDOW = 30.0  # seconds that "now" means
PACES = 512  # steps whose speed is remembered
STAGES: tuple[Stage, ...] = get_args(Stage)

State = Literal["waiting", "running", "done", "reused", "failed"]


@dataclass
class SegmentProgress:
    """One segment as far as it is known; `began`, `first` and `last` are on the clock of the progress."""

    index: int
    start: int
    stop: int
    state: State = "waiting"
    done: int = 0
    device: str = ""
    worker: str = ""
    attempts: int = 0
    seconds: float = 0.0
    memory_bytes: int = 0
    error: str = ""
    began: float = 0.0
    first: float = 0.0  # when its first frames came
    first_frames: int = 0  # how many these were
    latents: int = 0  # latent frames computed since then
    cuts: int = 0  # scene cuts met
    last: float = 0.0  # when its latest frames came

    @property
    def frames(self) -> int:
        return self.stop - self.start

    @property
    def fps(self) -> float | None:
        """Frames a second: of the whole segment when it is done, else so far."""
        seconds = self.seconds or self.last - self.began
        return self.done / seconds if self.done and seconds > 0 and self.state != "reused" else None


@dataclass(frozen=True)
class Snapshot:
    """A run at one moment; `left` is None as long as nothing was computed."""

    stage: Stage
    job: str
    source: str
    output: str
    parameters: tuple[tuple[str, str], ...]
    extension: str  # of the segments' files
    frames: int
    frames_done: int
    frames_reused: int
    segments: tuple[SegmentProgress, ...]
    elapsed: float
    fps_now: float | None
    fps_average: float | None
    left: float | None
    tail: float  # seconds since the last frame came, once all segments are finished
    measured: Costs | None  # what this run's steps and beginnings cost
    memory_bytes: int
    fallbacks: tuple[str, ...]
    warnings: tuple[str, ...]
    status: str  # "" while it runs

    def count(self, *states: State) -> int:
        return sum(segment.state in states for segment in self.segments)

    @property
    def running(self) -> tuple[SegmentProgress, ...]:
        return tuple(segment for segment in self.segments if segment.state == "running")

    @property
    def share(self) -> float:
        return self.frames_done / self.frames if self.frames else 0.0


@dataclass(eq=False)  # a logger takes equal handlers for one
class RunProgress(logging.Handler):
    """Follows one run after another by their events; `snapshot` may be asked at any time, from any thread."""

    clock: Callable[[], float] = time.monotonic
    segments: dict[int, SegmentProgress] = field(default_factory=dict)

    def __post_init__(self) -> None:
        logging.Handler.__init__(self, logging.DEBUG)
        self.guard = threading.Lock()
        self.changed = 0  # counts events, so that a reader knows whether anything is new
        self._clear(JobPlanned("", 0, 0, 0))
        self.stage: Stage = "plan"

    def _clear(self, plan: JobPlanned) -> None:
        self.plan = plan
        self.segments = {index: SegmentProgress(index, start, stop) for index, (start, stop) in enumerate(plan.ranges)}
        self.begun = self.clock()
        self.computing: float | None = None
        self.tail_begun: float | None = None
        self.look: tuple[str, float] | None = None  # what looks at the result, and since when
        self.recent: deque[tuple[float, int]] = deque()
        self.shots = UNSEEN
        self.paces: deque[tuple[float, int]] = deque(maxlen=PACES)  # seconds and latent frames of steps
        self.devices_at_once = 1
        self.fallbacks: list[str] = []
        self.warnings: list[str] = []
        self.status = ""

    def emit(self, record: logging.LogRecord) -> None:
        event = getattr(record, "event", None)
        with self.guard:
            if event is not None:
                self.changed += 1
                self._count(event)
            elif record.levelno >= logging.WARNING:
                self.changed += 1
                self.warnings.append(record.getMessage())

    def _count(self, event: object) -> None:
        now = self.clock()
        if isinstance(event, StageEntered):
            if event.stage == "plan":
                self._clear(JobPlanned("", 0, 0, 0))
            elif event.stage == "segments":
                self.computing, self.tail_begun = self.computing or now, None
            elif self.tail_begun is None:
                self.tail_begun = now
            self.stage = event.stage
        elif isinstance(event, LookBegan):
            self.look = event.name, now
        elif isinstance(event, JobPlanned):
            begun, warnings = self.begun, self.warnings
            self._clear(event)
            self.begun, self.warnings = begun, warnings
        elif isinstance(event, CutsFound):
            self.shots = Shots(event.start, event.stop, event.cuts)
        elif isinstance(event, RunEnded):
            self.status = event.status
        elif (
            isinstance(event, SegmentStarted | FramesDone | SegmentComputed | SegmentReused | SegmentFailed)
            and (segment := self.segments.get(event.segment)) is not None
        ):
            self._count_segment(segment, event, now)

    def _count_segment(
        self,
        segment: SegmentProgress,
        event: SegmentStarted | FramesDone | SegmentComputed | SegmentReused | SegmentFailed,
        now: float,
    ) -> None:
        if isinstance(event, SegmentStarted):
            segment.state, segment.done, segment.began, segment.first = "running", 0, now, 0.0
            segment.latents = segment.cuts = 0
            segment.device, segment.worker, segment.error = event.device, event.worker, ""
            segment.attempts = max(event.attempt, segment.attempts)
            # One whose frames are all made is only being closed, while the next computes on its device.
            at_work = {s.worker for s in self.segments.values() if s.state == "running" and s.done < s.frames}
            self.devices_at_once = max(self.devices_at_once, len(at_work))
        elif isinstance(event, FramesDone):
            if not segment.first:
                segment.first, segment.first_frames = now, event.frames
            elif event.latents:
                self.paces.append((now - segment.last, event.latents))
            segment.done += event.frames
            segment.latents += event.latents
            segment.cuts += event.cuts
            segment.last = now
            segment.memory_bytes = max(segment.memory_bytes, event.memory_bytes)
            self.recent.append((now, event.frames))
        elif isinstance(event, SegmentComputed):
            segment.state, segment.done, segment.seconds = "done", segment.frames, event.seconds
            segment.memory_bytes = max(segment.memory_bytes, event.memory_bytes)
            self.fallbacks += [text for text in event.fallbacks if text not in self.fallbacks]
        elif isinstance(event, SegmentReused):
            segment.state, segment.done = "reused", segment.frames
        else:
            segment.state, segment.error, segment.done = "failed", event.error, 0

    def warned(self) -> tuple[str, ...]:
        """What was said at WARNING or above since the run began."""
        with self.guard:
            return tuple(self.warnings)

    def snapshot(self) -> Snapshot:
        with self.guard:
            now = self.clock()
            segments = tuple(SegmentProgress(**vars(segment)) for segment in self.segments.values())
            computed = sum(s.done for s in segments if s.state != "reused")
            reused = sum(s.done for s in segments if s.state == "reused")
            busy = (self.tail_begun or now) - self.computing if self.computing else 0.0
            return Snapshot(
                stage=self.stage,
                job=self.plan.job,
                source=self.plan.source,
                output=self.plan.output,
                parameters=self.plan.parameters,
                extension=self.plan.extension,
                frames=self.plan.frames,
                frames_done=computed + reused,
                frames_reused=reused,
                segments=segments,
                elapsed=now - self.begun,
                fps_now=self._fps_now(now),
                fps_average=computed / busy if computed and busy > 0 else None,
                left=self._left(segments, now),
                tail=now - self._tail_since(segments, now) if self.tail_begun is not None else 0.0,
                measured=measured(segments, self.plan.preroll, self.shots),
                memory_bytes=max((s.memory_bytes for s in segments), default=0),
                fallbacks=tuple(self.fallbacks),
                warnings=tuple(self.warnings),
                status=self.status,
            )

    def _fps_now(self, now: float) -> float | None:
        while self.recent and self.recent[0][0] < now - WINDOW:
            self.recent.popleft()
        if self.stage != "segments" or len(self.recent) < 2:
            return None
        # The first frames mark the beginning; how long they took is not known.
        seconds = now - self.recent[0][0]
        return sum(frames for _, frames in list(self.recent)[1:]) / seconds if seconds > 0 else None

    def _left(self, segments: tuple[SegmentProgress, ...], now: float) -> float | None:
        """Seconds to the end of the run; None as long as nothing tells."""
        if self.status:
            return 0.0
        if self.stage == "plan":
            return None
        if self.tail_begun is not None or (segments and all(s.done == s.frames for s in segments)):
            return self._tail_left(now, now - self._tail_since(segments, now))
        plan = self.plan
        computing = computing_left(
            segments, plan.preroll, self.devices_at_once, plan.costs, now, self.shots, self.paces
        )
        return None if computing is None else computing + plan.costs.tail

    def _tail_left(self, now: float, spent: float) -> float:
        """Seconds to the end, `spent` after the last frame. What takes longer than expected puts off what follows."""
        costs, following = self.plan.costs, 0.0
        for name, seconds in reversed(costs.looks):
            if self.look is not None and self.look[0] == name:
                return following + max(0.0, seconds - (now - self.look[1]))
            following += seconds
        return max(following if self.look is None else 0.0, costs.tail - spent)

    def _tail_since(self, segments: tuple[SegmentProgress, ...], now: float) -> float:
        """When the last frame came; where all were there before, when merging began."""
        return max((s.last for s in segments if s.state != "reused"), default=0.0) or self.tail_begun or now
