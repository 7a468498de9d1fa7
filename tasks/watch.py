"""Events of segments that other processes compute: read from the job's directory and told again in this one.

Thread runners tell their events themselves. Child processes, Dask and Ray workers and other machines cannot; what
they leave in the store (beats and records) becomes the same events, a few seconds later. Nobody listens twice: what
this process computed is passed over.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from flashvsr_core.errors import FlashvsrError
from tasks import events
from tasks.beat import beats, process_prefix
from tasks.beside import beside
from tasks.events import FramesDone, SegmentComputed, SegmentReused, SegmentStarted, tell
from tasks.storage import urls
from tasks.storage.jobs import RECORD_NAME, Job

log = logging.getLogger(__name__)

LOCAL_SECONDS, REMOTE_SECONDS = 2.0, 10.0  # between two looks: a listing costs nothing here, a request there


class _Known(logging.Handler):
    """Notes which segments this process has told of itself."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.own: set[int] = set()
        self.finished: set[int] = set()
        self.telling = threading.local()

    def emit(self, record: logging.LogRecord) -> None:
        event = getattr(record, "event", None)
        if getattr(self.telling, "active", False):
            return
        if isinstance(event, SegmentStarted):
            self.own.add(event.segment)
        elif isinstance(event, SegmentComputed | SegmentReused):
            self.finished.add(event.segment)


class Watch:
    """One look after another at what others have done for `job`."""

    def __init__(self, job: Job, known: _Known) -> None:
        self.job = job
        self.known = known
        self.seen: dict[int, tuple[int, int, int, int]] = {}  # segment: attempt; frames, latents and cuts told

    def look(self) -> None:
        """Tell what is new in the job's directory. Faults of the store are passed over until the next look."""
        try:
            self._records()
            self._beats()
        except (FlashvsrError, OSError) as error:
            log.debug("could not look at %s: %s", self.job.url, error)

    def _beats(self) -> None:
        mine = process_prefix()
        for beat in beats(self.job):
            if beat.worker.startswith(mine) or beat.segment in self.known.finished:
                continue
            attempt, told, latents, cuts = self.seen.get(beat.segment, (0, 0, 0, 0))
            if beat.attempt != attempt:
                self._tell(SegmentStarted(beat.segment, beat.frames, beat.device, beat.worker, beat.attempt))
                told = latents = cuts = 0
            if beat.done > told:
                steps = (beat.latents - latents, beat.cuts - cuts) if told else (0, beat.cuts)
                self._tell(FramesDone(beat.segment, beat.done - told, beat.memory_bytes, *steps))
            self.seen[beat.segment] = beat.attempt, beat.done, beat.latents, beat.cuts

    def _records(self) -> None:
        names = map(RECORD_NAME.fullmatch, urls.list_names(self.job.segments_url))
        for index in sorted(int(match[1]) for match in names if match):
            if index in self.known.finished or index in self.known.own:
                continue
            result = self.job.result(index)
            if result is None:
                continue
            self.known.finished.add(index)
            attempt, told, *_ = self.seen.get(index, (0, 0))
            if not attempt:
                self._tell(SegmentStarted(index, result.frames, result.device, result.worker, result.attempts))
            if result.frames > told:
                self._tell(FramesDone(index, result.frames - told, result.peak_memory_bytes))
            self._tell(
                SegmentComputed(
                    index,
                    result.frames,
                    result.seconds,
                    result.peak_memory_bytes,
                    result.device,
                    result.fallbacks,
                ),
                f"segment {index} [{result.start}, {result.stop}) computed in {result.seconds:.1f} s, {result.worker}",
            )

    def _tell(self, event: events.Event, message: str = "") -> None:
        self.known.telling.active = True
        try:
            tell(event, message)
        finally:
            self.known.telling.active = False


@contextmanager
def watching(job: Job, finished: frozenset[int] = frozenset()) -> Iterator[None]:
    """Tell of other processes' segments for the duration of a `with` block; `finished` are known already."""
    known = _Known()
    known.finished |= finished
    watch = Watch(job, known)
    seconds = LOCAL_SECONDS if urls.is_local(job.url) else REMOTE_SECONDS

    def keep_on(over: threading.Event) -> None:
        while not over.wait(seconds):
            watch.look()
        watch.look()

    events.log.addHandler(known)
    try:
        with beside("watch", keep_on):
            yield
    finally:
        events.log.removeHandler(known)
