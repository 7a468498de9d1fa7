"""Encoders compute beside everything else of the machine, never before it.

SVT-AV1 makes its threads, and for good the one that opens it, real-time threads of the highest priority (SCHED_FIFO,
99) wherever it may: as root, so in most containers. What that thread starts later inherits it. Two such threads that
compute, whatever they compute, leave nothing of two cores to anybody: servers stop answering for minutes (seen).
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_THREADS = Path("/proc/self/task")  # Linux's; elsewhere SVT-AV1 leaves threads alone


@contextmanager
def ordinary_scheduling() -> Iterator[None]:
    """Threads of this process that become real-time ones in a `with` block are ordinary ones again after it."""
    before = real_time_threads()
    try:
        yield
    finally:
        for thread in real_time_threads() - before:
            with suppress(ProcessLookupError):  # it has just ended
                os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))


def real_time_threads() -> frozenset[int]:
    """Ids of this process's threads with a real-time policy."""
    return frozenset(thread for thread in _threads() if _policy(thread) in (os.SCHED_FIFO, os.SCHED_RR))


def _threads() -> list[int]:
    return [int(entry.name) for entry in _THREADS.iterdir()] if _THREADS.is_dir() else []


def _policy(thread: int) -> int:
    try:
        return os.sched_getscheduler(thread)
    except ProcessLookupError:
        return os.SCHED_OTHER
