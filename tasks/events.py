"""What happens during a job, as log records with an `event`: progress is drawn from them, tests count them."""

import logging
from dataclasses import dataclass
from typing import Literal

log = logging.getLogger("tasks.events")

Stage = Literal["plan", "segments", "merge", "verify", "publish", "report"]


@dataclass(frozen=True)
class JobPlanned:
    job: str
    frames: int
    segments: int
    reused: int


@dataclass(frozen=True)
class StageEntered:
    stage: Stage


@dataclass(frozen=True)
class SegmentStarted:
    segment: int
    frames: int


@dataclass(frozen=True)
class FramesDone:
    segment: int
    frames: int  # more than at the last such event


@dataclass(frozen=True)
class SegmentComputed:
    segment: int
    frames: int
    seconds: float


@dataclass(frozen=True)
class SegmentReused:
    segment: int
    frames: int


Event = JobPlanned | StageEntered | SegmentStarted | FramesDone | SegmentComputed | SegmentReused


def tell(event: Event, message: str = "") -> None:
    """Log an event: with a message for people at INFO, without one at DEBUG."""
    level = logging.INFO if message else logging.DEBUG
    log.log(level, "%s", message or event, extra={"event": event})
