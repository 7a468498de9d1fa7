"""How fast this machine is, remembered from segments it has finished, or measured on a small picture."""

import time
from pathlib import Path

import numpy as np

from flashvsr_core.config import ComputeParams
from flashvsr_core.segments import FIRST_EMIT, FIRST_READ, STEP
from tasks.gpu import device_name, devices_of, loaded_upscaler
from tasks.plan import JobPlan
from tasks.storage import urls

_TAIL = "tail"
_FIXED_TAIL = 2.0  # seconds: what starting the ends of a run takes however short it is
_TAIL_SPEED = 400.0  # megapixels per second, where this machine has finished nothing yet
_SMALL = 64  # sides of the input picture that is measured on, pixels


def estimate_seconds(plan: JobPlan, compute: ComputeParams, cache_dir: Path) -> tuple[float, str]:
    """Expected seconds of computing for the whole video, and what that rests on."""
    remembered = _read(cache_dir).get(_key(plan, compute))
    if remembered:
        speed, basis = float(remembered), "segments finished on this machine before"
    else:
        speed, basis = _measure(plan, compute), "one step on a small picture, just now"
    return padded_megapixels(plan) * plan.info.frames / speed * _slowdown(plan), basis


def remember_speed(plan: JobPlan, compute: ComputeParams, frames: int, seconds: float, cache_dir: Path) -> None:
    """Note the speed of a finished segment: padded megapixels of output per second."""
    speeds = _read(cache_dir) | {_key(plan, compute): padded_megapixels(plan) * frames / seconds * _slowdown(plan)}
    urls.write_json(_place(cache_dir), speeds)


def expected_tail(plan: JobPlan, cache_dir: Path) -> float:
    """Seconds expected from the last segment to the end of the run: merging, verifying, publishing, the report."""
    work = padded_megapixels(plan) * plan.info.frames
    remembered = _read(cache_dir).get(_TAIL)
    return _FIXED_TAIL + work / float(remembered) if remembered else _FIXED_TAIL + work / _TAIL_SPEED


def remember_tail(plan: JobPlan, seconds: float, cache_dir: Path) -> None:
    """Note how long that took: padded megapixels of output per second beyond the fixed part."""
    variable = max(seconds - _FIXED_TAIL, 0.05)
    speeds = _read(cache_dir) | {_TAIL: padded_megapixels(plan) * plan.info.frames / variable}
    urls.write_json(_place(cache_dir), speeds)


def _slowdown(plan: JobPlan) -> float:
    """Speeds are remembered as those of whole pictures; tiles and offloading take longer."""
    return plan.memory.slowdown if plan.memory is not None else 1.0


def padded_megapixels(plan: JobPlan) -> float:
    return plan.geometry.padded_width * plan.geometry.padded_height / 1e6


def _measure(plan: JobPlan, compute: ComputeParams) -> float:
    device = devices_of(compute)[0]
    upscaler = loaded_upscaler(plan.params, plan.digests, compute, device)
    frames = np.random.default_rng(0).integers(0, 255, (FIRST_READ + 2 * STEP, _SMALL, _SMALL, 3), dtype=np.uint8)
    marks = [time.monotonic() for _ in upscaler.stream(iter([frames]), emit=(0, FIRST_EMIT + 2 * STEP))]
    side = _SMALL * plan.params.scale
    return side * side / 1e6 * STEP / (marks[-1] - marks[-2])


def _key(plan: JobPlan, compute: ComputeParams) -> str:
    params = plan.params
    return " ".join(
        (params.model, params.mode, params.precision, params.attention, device_name(devices_of(compute)[0]))
    )


def _place(cache_dir: Path) -> str:
    return str(cache_dir / "speeds.json")


def _read(cache_dir: Path) -> dict[str, float]:
    try:
        found = urls.read_json(_place(cache_dir))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
