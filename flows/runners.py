"""What runs the segment tasks."""

from typing import Any

from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from flashvsr_core.config import ComputeParams
from tasks.gpu import devices_of

# On each device one segment computes (its lock sees to that) while the one before it is checked and stored.
_THREADS_PER_DEVICE = 2


def task_runner(compute: ComputeParams) -> TaskRunner[Any]:
    """The Prefect task runner for `compute`."""
    return ThreadPoolTaskRunner(max_workers=_THREADS_PER_DEVICE * len(devices_of(compute)))
