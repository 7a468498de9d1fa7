"""What runs the segment tasks: threads, worker processes, or a Dask or Ray cluster."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, get_current_settings, temporary_settings
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from flashvsr_core.config import CLUSTERS, ComputeParams
from flashvsr_core.errors import UserError
from tasks.gpu import devices_of, pins

# On each device one segment computes (its lock sees to that) while the one before it is checked and stored.
_TASKS_PER_DEVICE = 2


def settled(compute: ComputeParams) -> ComputeParams:
    """`compute` with its runner decided: processes where several GPUs are named, else threads."""
    if compute.runner != "auto":
        return compute
    return replace(compute, runner="processes" if len(devices_of(compute)) > 1 else "threads")


def task_runner(compute: ComputeParams) -> TaskRunner[Any]:
    """The Prefect task runner for a settled `compute`."""
    if compute.runner == "dask":
        return _dask(compute)
    if compute.runner == "ray":
        return _ray(compute)
    if compute.runner == "processes":
        # The tasks stay here, in threads that wait: each hands its segment to a worker process (tasks/workers).
        return ThreadPoolTaskRunner(max_workers=_TASKS_PER_DEVICE * len(pins(compute)))
    default = _TASKS_PER_DEVICE * len(devices_of(compute))
    return ThreadPoolTaskRunner(max_workers=default if compute.workers == "auto" else compute.workers)


@contextmanager
def one_gpu_each(compute: ComputeParams) -> Iterator[None]:
    """Tasks submitted within ask a cluster for one GPU each, if the job needs GPUs, and reuse its processes."""
    gpus = _gpus(compute)
    if compute.runner == "dask" and gpus:
        import dask

        with dask.annotate(resources={"GPU": 1}):
            yield
    elif compute.runner == "ray":
        from prefect_ray.context import remote_options

        # max_calls=0: with GPUs Ray would otherwise start a process per task, and load the model in each.
        with remote_options(num_gpus=1 if gpus else 0, max_calls=0):
            yield
    else:
        yield


@contextmanager
def shared_api(compute: ComputeParams) -> Iterator[None]:
    """Cluster workers use the Prefect server of this process; without one named, each would start its own."""
    if compute.runner not in CLUSTERS or get_current_settings().api.url:
        yield
        return
    if compute.cluster is not None:
        raise UserError(
            f"workers of the cluster {compute.cluster} cannot reach the Prefect server inside of this process; start "
            "one (prefect server start) and set PREFECT_API_URL to an address that they reach"
        )
    with get_client(sync_client=True) as client:
        url = str(client.api_url).rstrip("/")
    with temporary_settings({PREFECT_API_URL: url}):
        yield


def _gpus(compute: ComputeParams) -> int:
    return sum(device.type == "cuda" for device in devices_of(compute))


def _dask(compute: ComputeParams) -> TaskRunner[Any]:
    try:
        from prefect_dask import DaskTaskRunner
    except ImportError as error:
        raise _missing("dask", error) from error
    if compute.cluster is not None:
        return DaskTaskRunner(address=compute.cluster)
    logging.getLogger("distributed").setLevel(logging.ERROR)  # it tells of every connection
    gpus = _gpus(compute)
    cluster = {
        "n_workers": _local_workers(compute),
        "threads_per_worker": 1,
        "resources": {"GPU": 1} if gpus else {},
        "dashboard_address": None,
        "silence_logs": "ERROR",
    }
    return DaskTaskRunner(cluster_kwargs=cluster)


def _ray(compute: ComputeParams) -> TaskRunner[Any]:
    try:
        from prefect_ray import RayTaskRunner
    except ImportError as error:
        raise _missing("ray", error) from error
    if compute.cluster is not None:
        return RayTaskRunner(address=compute.cluster)
    settings = {
        "num_cpus": _local_workers(compute),
        "num_gpus": _gpus(compute),
        "include_dashboard": False,
        "log_to_driver": False,
        "logging_level": "ERROR",
    }
    return RayTaskRunner(init_kwargs=settings)


def _missing(extra: str, error: ImportError) -> UserError:
    return UserError(f"--runner {extra} needs a package that is missing ({error}); pip install 'flashvsr[{extra}]'")


def _local_workers(compute: ComputeParams) -> int:
    return len(devices_of(compute)) if compute.workers == "auto" else compute.workers
