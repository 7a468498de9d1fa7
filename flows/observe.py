"""Everything that watches a run: its logs, progress, artifacts and metrics, around a flow's function."""

import functools
import time
from collections.abc import Callable
from contextlib import ExitStack
from contextvars import ContextVar
from dataclasses import replace
from typing import ParamSpec, TypeVar

from prefect.settings import get_current_settings

from flashvsr_core.errors import AlreadyRunning
from flows import settings
from flows.artifacts import run_artifacts
from flows.logs import RunLog, listening
from flows.metrics import counted
from tasks.events import RunEnded, tell
from tasks.forecast import Costs
from tasks.progress import RunProgress

P = ParamSpec("P")
R = TypeVar("R")

_progress: ContextVar[RunProgress | None] = ContextVar("progress", default=None)

# Seconds at the end of a flow: until Prefect has got the last logs and knows that it is over; and until the thread that
# sends heartbeats, which Prefect waits for, wakes from its second of sleep (none to one; half of it is expected).
_LAST_WORD, _HEARTBEAT = 0.05, 0.5


def warnings_so_far() -> tuple[str, ...]:
    """What was said at WARNING or above since the run around us began."""
    progress = _progress.get()
    return progress.warned() if progress else ()


def costs_so_far() -> Costs:
    """What steps and beginnings of the run around us cost, and what it takes from its last frame to its end, which is
    near, without Prefect's farewell."""
    progress = _progress.get()
    if progress is None:
        return Costs()
    now = progress.snapshot()
    computed = any(segment.state == "done" for segment in now.segments)  # else there was less to end
    return replace(now.measured or Costs(), tail=max(0.0, now.tail - _heartbeat()) if computed else 0.0)


def farewell() -> float:
    """Seconds that Prefect, and nothing of ours, takes after a run's last frame: at the end of its segments' flow, and
    after the run's last word."""
    return _LAST_WORD + 2 * _heartbeat()


def _heartbeat() -> float:
    return _HEARTBEAT if get_current_settings().flows.heartbeat_frequency is not None else 0.0


def observed(function: Callable[P, R]) -> Callable[P, R]:
    """A flow's function whose runs are seen: in Prefect's UI, in the metrics, by whoever listens to events."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        begun = time.monotonic()
        progress = RunProgress()
        token = _progress.set(progress)
        with ExitStack() as stack:
            stack.callback(_progress.reset, token)
            run_log = RunLog()
            # Prefect sends logs in batches; a server that ends with the command must have got the last one.
            stack.callback(run_log.flush)
            stack.enter_context(listening(progress, run_log, echo=True))
            stack.enter_context(counted(settings.metrics()))
            stack.enter_context(run_artifacts(progress))
            status = "failed"
            try:
                result = function(*args, **kwargs)
                status = str(getattr(result, "status", "done"))
                return result
            except AlreadyRunning:
                status = "busy"
                raise
            finally:
                tell(RunEnded(status, time.monotonic() - begun))

    return run
