"""What the tests have worker processes do; they find it by name."""

import logging
import os
import signal
import time
from pathlib import Path

from flashvsr_core.errors import UserError
from tasks import stop
from tasks.events import FramesDone, tell
from tasks.workers import Released


def who(_released: Released) -> tuple[int, str | None]:
    return os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES")


def meet(folder: Path, me: str, other: str, released: Released) -> int:
    """Returns once `other` is here too: only two at once ever do."""
    (folder / me).touch()
    while not (folder / other).exists():
        time.sleep(0.02)
    return os.getpid()


def let_go_and_wait(folder: Path, released: Released) -> int:
    released()
    while not (folder / "go").exists():
        time.sleep(0.02)
    return os.getpid()


def complain(released: Released) -> None:
    raise UserError("choose another")


def complain_strangely(released: Released) -> None:
    class Strange(Exception):
        pass

    raise Strange("cannot be sent")


def talk(released: Released) -> None:
    tell(FramesDone(3, 8))
    logging.getLogger("tasks.test").info("said %s", "there")


def die(released: Released) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def note(file: Path, name: str, go: Path, released: Released) -> None:
    while not go.exists():
        time.sleep(0.02)
    with file.open("a") as lines:
        lines.write(f"{name}\n")


def run_until_stopped(folder: Path, released: Released) -> None:
    (folder / f"pid-{os.getpid()}").touch()
    while True:
        stop.within_segment()
        time.sleep(0.02)


def work_for_ever(folder: Path, count: int) -> None:
    """For a process that will be killed: keeps `count` workers busy."""
    from concurrent.futures import ThreadPoolExecutor

    from tasks.workers import workers

    with ThreadPoolExecutor(count) as threads:
        for _ in range(count):
            threads.submit(workers((None,) * count).call, run_until_stopped, folder)
