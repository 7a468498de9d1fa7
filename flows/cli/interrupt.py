"""Ctrl-C that always ends a run: once finishes the segments that run, twice gives them up, thrice asks nobody."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from tasks import stop
from tasks.events import RunEnded

INTERRUPTED = 130  # exit status


class _Reminder(logging.Handler):
    """Raises an interrupt again at the next event of the main thread.

    Prefect swallows a KeyboardInterrupt that comes while it closes a flow run whose code has ended (for a second, as
    heartbeats are joined); the run would go on as if nobody had asked it to stop.
    """

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.interrupts = 0

    def interrupt(self, _number: int, _frame: FrameType | None) -> None:
        self.interrupts += 1
        if self.interrupts == 1:
            stop.ask("soon")
            raise KeyboardInterrupt
        if self.interrupts == 2:
            # The first one is on its way through Prefect, which waits for what runs; that ends now.
            stop.ask("now")
        else:
            os._exit(INTERRUPTED)  # workers and server end with us, the next run sweeps what is left

    def emit(self, record: logging.LogRecord) -> None:
        ended = isinstance(getattr(record, "event", None), RunEnded)  # nothing is left to stop, and all shall hear it
        if self.interrupts and not ended and threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt


@contextmanager
def heeding_interrupts() -> Iterator[None]:
    """For the duration of a `with` block, SIGINT raises KeyboardInterrupt and cannot get lost."""
    reminder = _Reminder()
    events = logging.getLogger("tasks.events")
    before = signal.signal(signal.SIGINT, reminder.interrupt)
    events.addHandler(reminder)
    try:
        yield
    finally:
        events.removeHandler(reminder)
        signal.signal(signal.SIGINT, before)
