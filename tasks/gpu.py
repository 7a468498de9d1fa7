"""The process's one loaded Upscaler, and whose turn it is on a device."""

import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch

from flashvsr_core.config import ComputeParams, UpscaleParams
from flashvsr_core.errors import UserError
from flashvsr_core.upscaler import Upscaler
from tasks import weights
from tasks.storage.local import locked

_loading = threading.Lock()
_loaded: tuple[object, Upscaler] | None = None
_cpu_turn = threading.Lock()


def models_dir(compute: ComputeParams) -> Path | None:
    return Path(compute.models_dir) if compute.models_dir else None


def first_device(compute: ComputeParams) -> torch.device:
    """The device a single worker uses: `auto` takes the first GPU, else the CPU."""
    if compute.devices == "cpu" or (compute.devices == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError(f"devices {compute.devices!r} asks for a GPU, but PyTorch finds none; use --devices cpu")
    number = 0 if compute.devices in ("auto", "all") else int(compute.devices.split(",")[0])
    if number >= torch.cuda.device_count():
        raise UserError(f"GPU {number} does not exist; this machine has 0 to {torch.cuda.device_count() - 1}")
    return torch.device("cuda", number)


def loaded_upscaler(params: UpscaleParams, digests: dict[str, str], compute: ComputeParams) -> Upscaler:
    """The model for `params` on this worker's device, loaded once per process and kept until another is asked for."""
    global _loaded
    device = first_device(compute)
    key = (params, tuple(sorted(digests.items())), str(device))
    with _loading:
        if _loaded is None or _loaded[0] != key:
            _loaded = None  # free the old model's memory first
            found = weights.locate(params.model, params.mode, models_dir(compute), params.unknown_weights)
            if dict(found.digests) != digests:
                raise UserError(
                    f"the weights of {params.model} on this machine are not those the job was planned with "
                    f"({found.digests} instead of {digests}); fetch the same files or run with --fresh"
                )
            _loaded = key, Upscaler.load(weights.load(found), params, device)
        return _loaded[1]


@contextmanager
def turn_on(device: torch.device) -> Iterator[None]:
    """Have a device to oneself: every runner and every process of this machine takes this lock and waits for it."""
    if device.type == "cpu":
        with _cpu_turn:
            yield
        return
    uuid = torch.cuda.get_device_properties(device).uuid
    with locked(str(Path(tempfile.gettempdir()) / f"flashvsr-gpu-{uuid}.lock")):
        yield


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
