"""An interrupt that somebody swallows comes back at the next event."""

import concurrent.futures
import logging
import os
import signal
import threading
from pathlib import Path
from uuid import uuid4

import pytest
from prefect.futures import PrefectConcurrentFuture

from flows.cli.interrupt import heeding_interrupts
from flows.upscale_segments import _finish
from tasks import stop
from tasks.events import StageEntered, tell
from tasks.storage import urls
from tasks.storage.jobs import Job, SegmentResult


def test_a_swallowed_interrupt_comes_back(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "tasks.events")  # as the command sets it
    before = signal.getsignal(signal.SIGINT)
    with heeding_interrupts():
        with pytest.raises(KeyboardInterrupt):  # swallowed, as Prefect does while it closes a flow run
            os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            tell(StageEntered("merge"), "merging")
    assert signal.getsignal(signal.SIGINT) is before
    tell(StageEntered("merge"), "merging")


def test_nobody_waits_on_for_what_is_given_up(tmp_path: Path) -> None:
    """A thread that still waits for Ray's tasks while Ray is shut down ends the process with a segmentation fault."""
    job = Job.at(str(tmp_path), "clip.mp4", "0" * 16, "mp4")
    never = [PrefectConcurrentFuture[SegmentResult](uuid4(), concurrent.futures.Future()) for _ in range(2)]
    before = set(threading.enumerate())
    stop.ask("soon")
    second = threading.Timer(1.0, lambda: stop.ask("now"))
    second.start()
    try:
        _finish(job, never)
        assert stop.asked() == "now"
    finally:
        stop.forget()
    second.join()
    assert set(threading.enumerate()) <= before
    assert not urls.exists(job.halt_url)
