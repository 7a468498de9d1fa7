"""What a worker says while it makes a segment: `live/00012.json` in the job's directory, removed when it is done.

So any process that reaches the store sees which segments are at work, how far, where, and how often they were begun,
whatever runner or machine computes them. A beat that cannot be written costs nothing but news.
"""

import logging
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from pydantic import TypeAdapter, ValidationError

from flashvsr_core.errors import FlashvsrError
from tasks.storage import urls
from tasks.storage.jobs import Job

log = logging.getLogger(__name__)

SECONDS = 5.0  # between two beats; a write of 300 bytes each
LIVE_NAME = re.compile(r"(\d{5,})\.json")


@dataclass(frozen=True)
class Beat:
    """One worker at one segment; times are seconds since 1970."""

    segment: int
    frames: int
    done: int  # frames made so far
    attempt: int
    device: str
    worker: str
    memory_bytes: int
    started: float
    at: float
    latents: int = 0  # computed since the first frames came
    cuts: int = 0  # met so far


_beats: TypeAdapter[Beat] = TypeAdapter(Beat)


def this_worker(device: str) -> str:
    """Host, process and device: who computes."""
    return f"{process_prefix()}{device}"


def process_prefix() -> str:
    """What the names of this process's workers begin with."""
    return f"{socket.gethostname()}/{os.getpid()}/"


class Heart:
    """Counts what a segment has done and writes it down now and then, from a thread of its own."""

    def __init__(self, job: Job, beat: Beat) -> None:
        self.url = live_url(job, beat.segment)
        self.beat = beat
        self.done = 0
        self.memory_bytes = 0
        self.latents = self.cuts = 0

    def count(self, frames: int, memory_bytes: int, latents: int = 0, cuts: int = 0) -> None:
        self.done += frames
        self.latents += latents
        self.cuts += cuts
        self.memory_bytes = memory_bytes

    def start_over(self) -> None:
        """The segment is made anew, within the same attempt."""
        self.done = 0

    def write(self) -> None:
        fields = asdict(self.beat) | {"done": self.done, "memory_bytes": self.memory_bytes, "at": time.time()}
        fields |= {"latents": self.latents, "cuts": self.cuts}
        try:
            urls.write_json(self.url, fields)
        except (FlashvsrError, OSError) as error:
            log.debug("beat of segment %d not written: %s", self.beat.segment, error)


@contextmanager
def beating(job: Job, segment: int, frames: int, device: str, worker: str) -> Iterator[Heart]:
    """Tell the store about a segment for the duration of a `with` block, which says one attempt has begun.

    Where the block fails, the last beat stays and tells the next attempt its number.
    """
    before = read_beat(job, segment)
    now = time.time()
    attempt = before.attempt + 1 if before else 1
    heart = Heart(job, Beat(segment, frames, 0, attempt, device, worker, 0, now, now))
    heart.write()
    over = threading.Event()

    def keep_on() -> None:
        while not over.wait(SECONDS):
            heart.write()

    thread = threading.Thread(target=keep_on, name=f"beat-{segment}", daemon=True)
    thread.start()
    try:
        yield heart
    finally:
        over.set()
        thread.join()


def forget_beat(job: Job, segment: int) -> None:
    """The segment is recorded; nobody need ask where it is."""
    try:
        urls.remove(live_url(job, segment), missing_ok=True)
    except FlashvsrError as error:
        log.debug("beat of segment %d not removed: %s", segment, error)


def live_url(job: Job, segment: int) -> str:
    return urls.join(job.live_url, f"{segment:05d}.json")


def read_beat(job: Job, segment: int) -> Beat | None:
    """The last beat of a segment; None where there is none that can be read."""
    try:
        return _beats.validate_python(urls.read_json(live_url(job, segment)))
    except (FileNotFoundError, ValueError, ValidationError, FlashvsrError):
        return None


def beats(job: Job) -> tuple[Beat, ...]:
    """The last beats of every segment that is (or was, when its worker died) being made."""
    found = [int(match[1]) for match in map(LIVE_NAME.fullmatch, urls.list_names(job.live_url)) if match]
    return tuple(beat for index in found if (beat := read_beat(job, index)) is not None)
