"""Store a segment in a child process that kills itself at its n-th executed line of tasks/storage, for every n.

Run as `python crash_driver.py STORE STEP [again]` (again: replacing an older segment of the same size). Prints one
JSON line per child: the line it died at, or null where it ended by itself, which ends the campaign. Children are
forked from this small process, which has no threads.
"""

import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import tasks.storage.jobs as jobs
from tasks.storage import local

DATA = bytes(range(256)) * 12  # several blocks of the size below
OLDER = DATA[::-1]
STORAGE = str(Path(jobs.__file__).parent)


def main(store: str, step: int, again: bool) -> None:
    local.CHUNK = 1000
    n = 1
    while True:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            store_one(f"{store}/{n}", n, writer, again)
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            line = pipe.read()
        _, status = os.waitpid(child, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        if not killed and status:
            sys.exit(f"the child for line {n} failed: {status}")
        print(json.dumps({"n": n, "died_at": line if killed else None}), flush=True)
        if not killed:
            return
        n += step


def store_one(store: str, n: int, writer: int, again: bool) -> None:
    seen = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal seen
        if not frame.f_code.co_filename.startswith(STORAGE):
            return None
        if event == "line":
            seen += 1
            if seen == n:
                os.write(writer, f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}".encode())
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    made = Path(f"{os.environ['SCRATCH']}/{n}")
    job = jobs.Job.at(store, "a.mp4", "0" * 16, "mp4")
    for data in (OLDER, DATA) if again else (DATA,):
        made.write_bytes(data)
        sys.settrace(trace if data == DATA else None)
        job.record_segment(0, 0, 8, made, frames=8, seconds=1.0, peak_memory_bytes=1, device="cpu")
        sys.settrace(None)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:] == ["again"])
