"""How a job is computed in the memory there is: chosen when it is planned, and left later where it does not fit."""

import logging
import os
from dataclasses import dataclass, replace
from typing import Any

import psutil
import torch

from flashvsr_core.config import ComputeParams, UpscaleParams
from flashvsr_core.errors import OutOfMemory, UserError
from flashvsr_core.geometry import Geometry
from flashvsr_core.ladder import Rung, after, choose, ladder
from flashvsr_core.memory import DeviceType, coefficients, estimate
from flashvsr_core.quantities import parse_bytes
from flashvsr_core.registry import ModelSpec, model_spec
from flashvsr_core.relief import Placement
from tasks.media.codecs import has_alpha
from tasks.media.encode import EncodeParams
from tasks.storage import urls
from tasks.storage.jobs import Job

log = logging.getLogger(__name__)

# What an allocator loses between its blocks, and what other programs may take, of a whole device.
_USABLE = 0.95
_ALLOCATOR = {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"}


@dataclass(frozen=True)
class MemoryPlan:
    """The way that was chosen, and what it was expected to take; recorded in plan.json, never hashed."""

    limit_bytes: int
    device_bytes: int
    host_bytes: int
    slowdown: float
    """Time of a step against that of the whole picture with everything on the device."""
    placement: Placement


def kind_of(device: torch.device) -> DeviceType:
    return "cuda" if device.type == "cuda" else "cpu"


def limit_bytes(compute: ComputeParams, device: torch.device) -> int:
    """Memory to plan for: the named limit, else what the device has in all, so that every run plans alike."""
    if compute.memory_limit is not None:
        return parse_bytes(compute.memory_limit)
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        return int((total - coefficients("cuda")["context_bytes"]) * _USABLE)
    return int(psutil.virtual_memory().total * _USABLE)


def streams_of(encode: EncodeParams) -> int:
    """Transparency goes through the model as a picture of its own."""
    return 2 if has_alpha(encode.pix_fmt) else 1


def plan_memory(
    spec: ModelSpec,
    params: UpscaleParams,
    compute: ComputeParams,
    geometry: Geometry,
    device: torch.device,
    streams: int,
) -> tuple[UpscaleParams, MemoryPlan]:
    """Resolved `params` with the tiles that were chosen, and the rest of the choice. UserError where nothing fits."""
    kind, limit = kind_of(device), limit_bytes(compute, device)
    rung = choose(spec, params, compute, geometry, kind, limit, psutil.virtual_memory().total, streams)
    plain = replace(params, tiled_dit="off", tile_size="auto", tile_overlap="auto")
    untouched = estimate(spec, plain, geometry, kind, Placement(), None, 0).step_seconds
    found = rung.estimate
    slowdown = found.step_seconds / untouched
    return rung.params, MemoryPlan(limit, found.device_bytes, found.host_bytes, slowdown, rung.placement)


@dataclass
class Way:
    """How one segment is being computed on this device."""

    job: Job
    planned: UpscaleParams
    compute: ComputeParams
    geometry: Geometry
    device: torch.device
    streams: int
    rung: Rung

    @classmethod
    def of(
        cls,
        job: Job,
        params: UpscaleParams,
        geometry: Geometry,
        compute: ComputeParams,
        device: torch.device,
        streams: int,
    ) -> "Way":
        """The plan's tiles, or those with which an earlier segment got through, and what this device then needs."""
        worked = _read(job) if compute.on_oom == "retry" else None
        if worked is not None:
            params_now = replace(params, tiled_dit="on", **worked)
        else:
            params_now = params
        spec, kind = model_spec(params.model), kind_of(device)
        try:
            host = psutil.virtual_memory().total
            rung = choose(spec, params_now, compute, geometry, kind, limit_bytes(compute, device), host, streams)
        except UserError as error:
            # Planned for a larger device. What the estimate says is not certain: it is tried with least on the device.
            log.warning("%s", error)
            ways = ladder(spec, params_now, compute, geometry, kind, streams)
            rung = min(ways, key=lambda way: way.bytes(kind))
        return cls(job, params, compute, geometry, device, streams, rung)

    @property
    def changes_pixels(self) -> bool:
        return self.rung.params != self.planned

    @property
    def fallback(self) -> str:
        """For the segment's record, where its pixels are not those of the plan."""
        params = self.rung.params
        return (
            f"computed in tiles of {params.tile_size} overlapping by {params.tile_overlap} for want of memory: its "
            "pixels differ from the plan's"
        )

    def next(self, error: OutOfMemory) -> "Way":
        """The next rung, in smaller tiles. Raises UserError where that is forbidden, `error` where there is none."""
        if self.compute.on_oom == "fail":
            raise UserError(
                f"{error}; going on in tiles changes pixels, which --on-oom fail forbids: use --on-oom retry or a "
                "lower --memory-limit, which plans in tiles from the start"
            ) from error
        kind = kind_of(self.device)
        params = replace(self.rung.params, tiled_dit="auto", tile_size="auto", tile_overlap="auto")
        ways = ladder(model_spec(params.model), params, self.compute, self.geometry, kind, self.streams)
        found = after(ways, self.rung, kind)
        if found is None:
            raise error
        log.warning("%s: the segment is made anew in %s", error.reason, found.tiles)
        return replace(self, rung=found)

    def remember(self) -> None:
        """This way got through: later segments of the job, whoever computes them, start with it."""
        if self.changes_pixels:
            params = self.rung.params
            urls.write_json(self.job.rung_url, {"tile_size": params.tile_size, "tile_overlap": params.tile_overlap})


def _read(job: Job) -> dict[str, Any] | None:
    try:
        found = urls.read_json(job.rung_url)
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def enforce_limit(compute: ComputeParams, device: torch.device) -> None:
    """Let this process take no more of a GPU than `--memory-limit` names."""
    if device.type != "cuda":
        return
    if device.index is None:  # limits are set by number
        device = torch.device("cuda", torch.cuda.current_device())
    total = torch.cuda.get_device_properties(device).total_memory
    named = limit_bytes(compute, device) if compute.memory_limit is not None else total
    torch.cuda.set_per_process_memory_fraction(min(1.0, named / total), device)


def grow_blocks(rung: Rung, device: torch.device) -> None:
    """Where a way was chosen for want of memory, let the allocator's blocks grow: between those of fixed size 1.4 GiB
    of 12 were lost on an H100 (tests/bench/memory.md). What the environment says of it stays."""
    tight = rung.params.tiled_dit == "on" or rung.placement.offload != "none"
    if device.type == "cuda" and tight and not _ALLOCATOR.intersection(os.environ):
        torch._C._accelerator_setAllocatorSettings("expandable_segments:True")
