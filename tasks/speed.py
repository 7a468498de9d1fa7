"""How fast this machine is, remembered from runs it has finished, or measured on a small picture."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
from pydantic import TypeAdapter, ValidationError

from flashvsr_core.config import ComputeParams
from flashvsr_core.segments import FIRST_EMIT, FIRST_READ, STEP, SegmentPlan
from tasks.forecast import STEP_LATENTS, Costs, latents
from tasks.gpu import device_name, devices_of, loaded_upscaler
from tasks.plan import JobPlan
from tasks.quality import MARGIN, sample_places
from tasks.report import LEAST_LOOK
from tasks.storage import urls

_SMALL = 64  # sides of the input picture that is measured on, pixels
_NEWEST = 0.5  # weight of the newest run in what is remembered
# What the end of a run took counts for so many times what was expected, at most: a disk or a server that hung for a
# minute once must not be expected by the runs that follow. What takes longer every time is learned in a few runs.
_MOST_LONGER = 3.0
# The end of a run where nothing is remembered: starting its parts (0.25 to 0.3 s on two cores); megapixels a second of
# frames that are verified around joins, that are looked at (measured on two cores with clips of 640x360 to 1920x1080:
# 12 to 16, since source and result are read from key frames on), and that are only copied. What is remembered is a
# factor on all of it.
_FIXED_TAIL, _VERIFIED, _LOOKED, _COPIED = 0.3, 80.0, 15.0, 2000.0

NOTHING: Mapping[str, float] = MappingProxyType({})

_memory: TypeAdapter[dict[str, dict[str, float]]] = TypeAdapter(dict[str, dict[str, float]])


def estimate_seconds(
    plan: JobPlan, segments: Sequence[SegmentPlan], compute: ComputeParams, cache_dir: Path
) -> tuple[float, str]:
    """Expected seconds of computing for some segments of a plan, and what that rests on."""
    latent, basis = expected_costs(plan, compute, cache_dir).latent, "runs finished on this machine before"
    if latent is None:
        latent, basis = _measure(plan, compute) * _size(plan), "one step on a small picture, just now"
    return latent * sum(latents(s.start, s.frames, _preroll(plan)) for s in segments), basis


def expected_costs(
    plan: JobPlan, compute: ComputeParams, cache_dir: Path, looks: Mapping[str, float] = NOTHING
) -> Costs:
    """What steps, beginnings and the end of a run like this cost here before; of the end there is always a guess.

    The end is that of our own work: what Prefect takes to close its flows is not in it. `looks`: seconds that scorers
    and the like usually take at the end, by name.
    """
    memory = _read(cache_dir)
    known = memory.get(_key(plan, compute), {})
    latent = known.get("latent")
    ends = {key: seconds * memory.get(key, {}).get("factor", 1.0) for key, seconds in _ends(plan, looks).items()}
    return Costs(
        None if latent is None else latent * _size(plan),
        known.get("start"),
        sum(ends.values()),
        tuple((name, ends[_look_key(name)]) for name in looks),
    )


def remember_costs(
    plan: JobPlan,
    compute: ComputeParams,
    costs: Costs,
    cache_dir: Path,
    looks: Mapping[str, float] = NOTHING,
    took: Mapping[str, float] = NOTHING,
) -> None:
    """Note what a finished run has cost; a latent frame of None and a tail of 0 say nothing.

    `looks` as for `expected_costs`; `took`: what the same took, in seconds of the tail.
    """
    memory = _read(cache_dir)
    new = {"start": costs.start, "latent": costs.latent and costs.latent / _size(plan)}
    _mix(memory, _key(plan, compute), {name: value for name, value in new.items() if value is not None})
    usual = _ends(plan, looks)
    rest = costs.tail - sum(took.values())
    spent = {"tail": rest} | {_look_key(name): seconds for name, seconds in took.items()}
    for key, seconds in spent.items():
        if seconds > 0 and usual.get(key):
            most = _MOST_LONGER * memory.get(key, {}).get("factor", 1.0)
            _mix(memory, key, {"factor": min(most, seconds / usual[key])})
    urls.write_json(_place(cache_dir), memory)


def _size(plan: JobPlan) -> float:
    """Megapixels that cost as much as the picture: costs are remembered as those of whole pictures, while tiles and
    offloading take longer."""
    return padded_megapixels(plan) * (plan.memory.slowdown if plan.memory is not None else 1.0)


def padded_megapixels(plan: JobPlan) -> float:
    return plan.geometry.padded_width * plan.geometry.padded_height / 1e6


def _usual_tail(plan: JobPlan) -> float:
    joins = [segment.start for segment in plan.segments[1:]]
    place = padded_megapixels(plan) * (2 * MARGIN + 1)
    # Looking ends with the place at which its time is over; a long run gives it more, but a hundredth of its own.
    looking = min(len(sample_places(joins, plan.info.frames)) * place / _LOOKED, LEAST_LOOK + place / _LOOKED)
    copying = padded_megapixels(plan) * plan.info.frames / _COPIED
    return _FIXED_TAIL + len(joins) * place / _VERIFIED + looking + copying


def _ends(plan: JobPlan, looks: Mapping[str, float]) -> dict[str, float]:
    """The usual seconds of each part of a run's end, by its key in the memory."""
    return {"tail": _usual_tail(plan)} | {_look_key(name): seconds for name, seconds in looks.items()}


def _look_key(name: str) -> str:
    return f"tail {name}"


def _mix(memory: dict[str, dict[str, float]], key: str, new: dict[str, float]) -> None:
    old = memory.get(key, {})
    mixed = {name: _NEWEST * value + (1 - _NEWEST) * old.get(name, value) for name, value in new.items()}
    memory[key] = old | mixed


def _measure(plan: JobPlan, compute: ComputeParams) -> float:
    """Seconds a latent frame of one megapixel."""
    device = devices_of(compute)[0]
    upscaler = loaded_upscaler(plan.params, plan.digests, compute, device)
    frames = np.random.default_rng(0).integers(0, 255, (FIRST_READ + 2 * STEP, _SMALL, _SMALL, 3), dtype=np.uint8)
    marks = [time.monotonic() for _ in upscaler.stream(iter([frames]), emit=(0, FIRST_EMIT + 2 * STEP))]
    side = _SMALL * plan.params.scale
    return (marks[-1] - marks[-2]) / STEP_LATENTS / (side * side / 1e6)


def _preroll(plan: JobPlan) -> int:
    return int(plan.params.preroll)


def _key(plan: JobPlan, compute: ComputeParams) -> str:
    params = plan.params
    return " ".join(
        (
            params.model,
            params.mode,
            params.profile,
            params.precision,
            params.attention,
            device_name(devices_of(compute)[0]),
        )
    )


def _place(cache_dir: Path) -> str:
    return str(cache_dir / "speeds.json")


def _read(cache_dir: Path) -> dict[str, dict[str, float]]:
    """What is remembered; nothing where the file is of another version."""
    try:
        return _memory.validate_python(urls.read_json(_place(cache_dir)))
    except (FileNotFoundError, ValueError, ValidationError):
        return {}
