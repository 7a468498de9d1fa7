"""Segments made elsewhere: their beats and records become events here; those made here are told once."""

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tasks import events
from tasks.beat import beating, beats, forget_beat, read_beat, this_worker
from tasks.events import FramesDone, SegmentComputed, SegmentStarted
from tasks.storage import urls
from tasks.storage.jobs import Job
from tasks.watch import Watch, _Known, watching
from tests.tasks.conftest import Made

JobIn = Callable[..., Job]

OTHER = """
import sys
from tasks.beat import beating, this_worker
from tasks.storage.jobs import Job
with beating(Job.of(sys.argv[1], "mp4"), 1, 16, "GPU", this_worker("cuda:1")) as heart:
    heart.count(8, 1 << 30)
    heart.write()
    print("there", flush=True)
    sys.stdin.read()
"""


class Heard(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.events: list[object] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.events.append(record.event)  # type: ignore[attr-defined]


def test_attempts_are_counted_over_processes(job_in: JobIn, store: str) -> None:
    job = job_in(store, (1,))
    for attempt in (1, 2, 3):
        with beating(job, 1, 16, "cpu", this_worker("cpu")) as heart:
            assert heart.beat.attempt == attempt
            heart.count(8, 100)
    found = read_beat(job, 1)
    assert found is not None
    assert (found.attempt, found.done, found.worker) == (3, 0, this_worker("cpu"))
    forget_beat(job, 1)
    assert beats(job) == ()


def test_a_damaged_beat_is_no_beat(job_in: JobIn, store: str) -> None:
    job = job_in(store)
    urls.write_bytes(f"{job.live_url}/00001.json", b"{")
    assert beats(job) == ()


def test_segments_of_another_process_are_told_here(job_in: JobIn, made: Made, tmp_path: Path) -> None:
    job = job_in(str(tmp_path), (1, 2))
    heard = Heard()
    logging.getLogger("tasks.events").addHandler(heard)
    logging.getLogger("tasks.events").setLevel(logging.DEBUG)
    known = _Known()
    known.finished.add(0)
    events.log.addHandler(known)
    watch = Watch(job, known)
    try:
        command = [sys.executable, "-c", OTHER, job.url]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdout is not None
            assert other.stdin is not None
            assert other.stdout.readline() == "there\n"
            watch.look()
            watch.look()
            other.stdin.close()
        assert [type(event) for event in heard.events] == [SegmentStarted, FramesDone]
        started, frames = heard.events
        assert isinstance(started, SegmentStarted)
        assert isinstance(frames, FramesDone)
        assert (started.segment, started.device, started.attempt) == (1, "GPU", 1)
        assert started.worker.endswith("/cuda:1")
        assert (frames.frames, frames.memory_bytes) == (8, 1 << 30)
        for url in (made.job.segment_url(1), made.job.record_url(1)):
            urls.publish(Path(url), url.replace(made.job.url, job.url), overwrite=True)
        watch.look()
        watch.look()
        assert [type(event) for event in heard.events[2:]] == [FramesDone, SegmentComputed]
        assert sum(event.frames for event in heard.events if isinstance(event, FramesDone)) == 16
    finally:
        events.log.removeHandler(known)
        logging.getLogger("tasks.events").removeHandler(heard)


def test_own_segments_are_told_once(job_in: JobIn, tmp_path: Path) -> None:
    job = job_in(str(tmp_path))
    heard = Heard()
    logging.getLogger("tasks.events").setLevel(logging.DEBUG)
    with watching(job, frozenset({0})):
        events.tell(SegmentStarted(1, 16))
        events.tell(SegmentComputed(1, 16, 1.0))
        events.tell(SegmentStarted(2, 8))
        logging.getLogger("tasks.events").addHandler(heard)
    logging.getLogger("tasks.events").removeHandler(heard)
    assert heard.events == []
