"""What happens during a job, as log records with an `event`: progress is drawn from them, tests count them."""

import logging
from dataclasses import dataclass
from typing import Literal

from tasks.forecast import NOTHING_KNOWN, Costs

log = logging.getLogger("tasks.events")

Stage = Literal["plan", "segments", "merge", "verify", "look", "publish", "report"]


@dataclass(frozen=True)
class JobPlanned:
    job: str
    frames: int
    segments: int
    reused: int
    ranges: tuple[tuple[int, int], ...] = ()  # frames [start, stop) of every segment
    preroll: int = 0  # frames that a segment streams before its own
    costs: Costs = NOTHING_KNOWN  # what this machine needed before, for pictures of this size
    source: str = ""
    output: str = ""
    parameters: tuple[tuple[str, str], ...] = ()
    extension: str = "mp4"  # of the segments' files


@dataclass(frozen=True)
class CutsFound:
    """All scene cuts of frames [start, stop), found before the work gets there."""

    start: int
    stop: int
    cuts: tuple[int, ...]


@dataclass(frozen=True)
class StageEntered:
    stage: Stage


@dataclass(frozen=True)
class LookBegan:
    """A scorer, or the comparison with a reference, has begun."""

    name: str


@dataclass(frozen=True)
class SegmentStarted:
    segment: int
    frames: int
    device: str = ""
    worker: str = ""  # host, process and device: who computes it
    attempt: int = 1


@dataclass(frozen=True)
class FramesDone:
    segment: int
    frames: int  # more than at the last such event
    memory_bytes: int = 0  # peak so far: the device's, on the CPU the process's
    latents: int = 0  # latent frames that these took, and scene cuts on the way; not said of a segment's first frames
    cuts: int = 0


@dataclass(frozen=True)
class SegmentComputed:
    segment: int
    frames: int
    seconds: float
    memory_bytes: int = 0
    device: str = ""
    fallbacks: tuple[str, ...] = ()


@dataclass(frozen=True)
class SegmentFailed:
    segment: int
    error: str


@dataclass(frozen=True)
class RunEnded:
    """The last event of a run: `status` is done, already done or failed."""

    status: str
    seconds: float


@dataclass(frozen=True)
class SegmentReused:
    segment: int
    frames: int


Event = (
    JobPlanned
    | CutsFound
    | StageEntered
    | LookBegan
    | SegmentStarted
    | FramesDone
    | SegmentComputed
    | SegmentReused
    | SegmentFailed
    | RunEnded
)


def tell(event: Event, message: str = "") -> None:
    """Log an event: with a message for people at INFO, without one at DEBUG."""
    level = logging.INFO if message else logging.DEBUG
    log.log(level, "%s", message or event, extra={"event": event})
