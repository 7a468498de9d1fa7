"""What runs the segment tasks."""

from typing import Any

from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from flashvsr_core.config import ComputeParams

# One segment computes (the device's lock sees to that) while the one before it is checked and stored.
_THREADS = 2


def task_runner(compute: ComputeParams) -> TaskRunner[Any]:
    """The Prefect task runner for `compute`."""
    return ThreadPoolTaskRunner(max_workers=_THREADS)
