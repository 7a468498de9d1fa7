"""Which process wrote something, in a form that another process can judge: does that one still run?"""

import hashlib
import os
import platform
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import psutil

SAME_START = 2.0  # seconds; psutil derives start times from the boot time, which moves a little when the clock is set


@dataclass(frozen=True)
class ProcessId:
    """One process: where it lives (see `host_id`), its pid, and when it started, since pids are used again."""

    host: str
    pid: int
    started: float

    @property
    def is_gone(self) -> bool:
        """Whether the process has certainly ended; False whenever this host cannot know."""
        if self.host != host_id():
            return False
        if not psutil.pid_exists(self.pid):
            return True
        try:
            process = psutil.Process(self.pid)
            # A zombie has ended: its parent has only not asked for its exit status yet.
            return process.status() == psutil.STATUS_ZOMBIE or abs(process.create_time() - self.started) > SAME_START
        except psutil.NoSuchProcess:
            # Also raised for a process of another user that /proc hides (hidepid), which must not count as gone.
            return not psutil.pid_exists(self.pid)


def this_process() -> ProcessId:
    return ProcessId(host_id(), os.getpid(), round(psutil.Process().create_time(), 2))


@lru_cache
def host_id() -> str:
    """One boot of one kernel and one pid namespace: only there a pid means the same process.

    A host name does not do: many machines are called `localhost`, and containers share names but not pids.
    """
    if sys.platform == "linux":
        place = Path("/proc/sys/kernel/random/boot_id").read_text() + os.readlink("/proc/self/ns/pid")
    else:
        place = f"{platform.node()} {psutil.boot_time():.0f}"
    return hashlib.sha256(place.encode()).hexdigest()[:16]
