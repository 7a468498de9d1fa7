"""Runs the command and SIGKILLs its own process at a named stage: python -m tests.system.kill_at STAGE ARGS...

Each stage wraps one function of the real pipeline; nothing is replaced.
"""

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from flows.cli import run as run_command
from flows.cli.main import main

Guard = Callable[..., None]  # called with the arguments of the wrapped function


def kill(stage: str) -> None:
    print(f"KILLED AT {stage}", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(number: int, stage: str) -> Guard:
    """Kills at the `number`-th call."""
    calls = 0

    def guard(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            kill(stage)

    return guard


def at_target(pattern: str, stage: str, number: int = 1) -> Guard:
    """Kills at the `number`-th call that has an argument whose end matches."""
    count = at_call(number, stage)

    def guard(*args: Any) -> None:
        if any(re.search(f"{pattern}$", str(arg)) for arg in args):
            count()

    return guard


def before(module: Any, name: str, guard: Guard) -> None:
    real = getattr(module, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        guard(*args)
        return real(*args, **kwargs)

    setattr(module, name, wrapped)


def behind(module: Any, name: str, guard: Guard) -> None:
    real = getattr(module, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        result = real(*args, **kwargs)
        guard(*args)
        return result

    setattr(module, name, wrapped)


def within(module: Any, name: str, guard: Guard) -> None:
    """For functions that yield: the guard runs at every item."""
    real = getattr(module, name)

    def wrapped(*args: Any, **kwargs: Any) -> Iterator[Any]:
        for item in real(*args, **kwargs):
            guard()
            yield item

    setattr(module, name, wrapped)


def arrange(stage: str) -> None:
    """Have this process killed at `stage`; mostly in the second segment to be made."""
    from flashvsr_core import run
    from flows import upscale_video
    from tasks import assemble, upscale, verify
    from tasks.media import encode
    from tasks.storage import jobs, local, urls

    stages: dict[str, Callable[[], None]] = {
        "decoding": lambda: within(upscale, "read_frames", at_call(9, stage)),
        "model": lambda: before(run.Run, "_step", at_call(4, stage)),
        "encoding": lambda: before(encode, "video_frame", at_call(20, stage)),
        # The segment's data are written, but under a temporary name.
        "storing": lambda: before(local, "settle", at_target(r"segments/\d+\.mp4", stage, number=2)),
        # The data have their name, the record is not written.
        "recording": lambda: before(urls, "write_json", at_target(r"segments/\d+\.json", stage, number=2)),
        "recorded": lambda: behind(jobs.Job, "record_segment", at_call(2, stage)),
        "merging": lambda: before(assemble, "merge", at_call(1, stage)),
        "merged": lambda: behind(assemble, "merge", at_call(1, stage)),
        "verifying": lambda: before(verify.check, "decode_ranges", at_call(1, stage)),
        "announcing": lambda: before(upscale_video, "announce_output", at_call(1, stage)),
        # The output is written, but under a temporary name.
        "publishing": lambda: before(local, "settle", at_target(r"/out\.mp4", stage)),
        "published": lambda: before(upscale_video, "make_report", at_call(1, stage)),
        "reporting": lambda: before(urls, "write_json", at_target(r"/out\.report\.json", stage)),
        "cleaning": lambda: before(jobs.Job, "remove_segments", at_call(1, stage)),
    }
    stages[stage]()


if __name__ == "__main__":
    stage = sys.argv.pop(1)
    api = run_command.prefect_api

    @contextmanager
    def armed() -> Iterator[None]:
        # Only now: the pipeline's modules import Prefect, which must find its server.
        with api():
            arrange(stage)
            yield

    run_command.prefect_api = armed
    main()
