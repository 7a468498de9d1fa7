"""The process's loaded Upscaler, one per device, and whose turn it is on a device."""

import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch
from filelock import FileLock, Timeout

from flashvsr_core.config import ComputeParams, UpscaleParams
from flashvsr_core.errors import UserError
from flashvsr_core.upscaler import Upscaler
from tasks import stop, weights

_POLL = 0.2  # seconds between looks for a free GPU

_loading = threading.Lock()
_loaded: dict[torch.device, tuple[object, Upscaler]] = {}
_cpu_turn = threading.Lock()


def models_dir(compute: ComputeParams) -> Path | None:
    return Path(compute.models_dir) if compute.models_dir else None


def devices_of(compute: ComputeParams) -> tuple[torch.device, ...]:
    """The devices `compute` names: `auto` is the first GPU, else the CPU."""
    present = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if compute.devices == "cpu" or (compute.devices == "auto" and not present):
        return (torch.device("cpu"),)
    if not present:
        raise UserError(f"devices {compute.devices!r} asks for a GPU, but PyTorch finds none; use --devices cpu")
    if compute.devices == "auto":
        return (torch.device("cuda", 0),)
    numbers = range(present) if compute.devices == "all" else sorted({int(n) for n in compute.devices.split(",")})
    if missing := [number for number in numbers if number >= present]:
        raise UserError(f"GPU {missing[0]} does not exist; this machine has GPUs 0 to {present - 1}")
    return tuple(torch.device("cuda", number) for number in numbers)


def pins(compute: ComputeParams) -> tuple[str | None, ...]:
    """CUDA_VISIBLE_DEVICES of each worker process: one GPU each; on the CPU, as many Nones as workers are wanted."""
    devices = devices_of(compute)
    if devices[0].type == "cpu":
        return (None,) * (1 if compute.workers == "auto" else compute.workers)
    if compute.workers != "auto" and compute.workers > len(devices):
        raise UserError(
            f"workers {compute.workers} are more than the {len(devices)} GPUs named, and a GPU computes one segment at "
            "a time; use --devices all or fewer workers"
        )
    wanted = len(devices) if compute.workers == "auto" else compute.workers
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]
    return tuple(visible[device.index].strip() for device in devices[:wanted])


def loaded_upscaler(
    params: UpscaleParams, digests: dict[str, str], compute: ComputeParams, device: torch.device
) -> Upscaler:
    """The model for `params` on `device`, loaded once per process and kept until another is asked for."""
    key = (params, tuple(sorted(digests.items())))
    with _loading:
        if device not in _loaded or _loaded[device][0] != key:
            _loaded.pop(device, None)  # free the old model's memory first
            found = weights.locate(params.model, params.mode, models_dir(compute), params.unknown_weights)
            if dict(found.digests) != digests:
                raise UserError(
                    f"the weights of {params.model} on this machine are not those the job was planned with "
                    f"({found.digests} instead of {digests}); fetch the same files or run with --fresh"
                )
            _loaded[device] = key, Upscaler.load(weights.load(found), params, device)
        return _loaded[device][1]


@contextmanager
def turn_on_a_device(compute: ComputeParams) -> Iterator[torch.device]:
    """Have one of the devices to oneself, waiting for the first that is free; those with a loaded model come first.

    GPUs are locked by a file, which every thread, runner and process of this machine takes; the CPU within a process,
    so that several worker processes compute on it at once.
    """
    devices = devices_of(compute)
    if devices[0].type == "cpu":
        with _cpu_turn:
            stop.before_segment()
            yield devices[0]
        return
    locks = {device: _gpu_lock(device) for device in devices}
    while True:
        stop.before_segment()
        for device, lock in sorted(locks.items(), key=lambda item: item[0] not in _loaded):
            try:
                turn = lock.acquire(blocking=False)
            except Timeout:
                continue
            with turn:
                yield device
            return
        time.sleep(_POLL)


def _gpu_lock(device: torch.device) -> FileLock:
    uuid = torch.cuda.get_device_properties(device).uuid
    # Not a singleton: threads of one process exclude each other too.
    # Open to all: another user's process takes the same lock.
    return FileLock(Path(tempfile.gettempdir()) / f"flashvsr-gpu-{uuid}.lock", mode=0o666, thread_local=False)


def keep_compiled(cache_dir: Path) -> None:
    """Have Triton keep compiled kernels in the work folder, so that a size that was met before starts at once.

    Dask and Ray start their own processes, so this is said in each, before its first kernel. Who has set
    TRITON_CACHE_DIR for the machine is obeyed.
    """
    os.environ.setdefault("TRITON_CACHE_DIR", str(cache_dir.absolute() / "triton"))


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


class PeakMemory:
    """Highest memory use while a segment runs: the device's on a GPU, this process's resident set on the CPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.bytes = 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def look(self) -> None:
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self.device)
        else:
            self.bytes = max(self.bytes, psutil.Process().memory_info().rss)
