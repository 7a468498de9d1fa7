"""`flashvsr bench`: how fast a model is on this machine, and how exact."""

import importlib.util
import json
import math
import platform
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from flashvsr_core.config import FAST_DB, ComputeParams, UpscaleParams
from flashvsr_core.errors import FlashvsrError, UserError
from flows import settings
from flows.cli import options

_LIMIT = 8192  # pixels a side


def bench(
    *,
    params: options.Pixels = UpscaleParams(model="nano"),
    compute: options.Compute = ComputeParams(),
    weights: Annotated[
        str | None, Parameter(help="random (seeded; speed does not depend on values), or a folder with weights.")
    ] = None,
    size: Annotated[str, Parameter(help="HEIGHTxWIDTH of the output.")] = "512x512",
    steps: Annotated[int, Parameter(help="Steps of 8 frames that are measured, after the warm-up.")] = 8,
    warmup: Annotated[int, Parameter(help="Steps that are not counted.")] = 6,
    fidelity: Annotated[
        bool,
        Parameter(help="Compare with float32 too (slow, needs its memory); profile fast: with exact, 38 dB are asked."),
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Measure the bare loop, frames in memory in and out: warm-up, then the steady state, stage by stage."""
    height, width = _size(size)
    if steps < 1 or warmup < 1:
        raise UserError(f"steps {steps} and warmup {warmup} must be at least 1")
    found = _measure(
        replace(params, scenes="off", preroll=0), compute, weights, (height, width), (steps, warmup), fidelity
    )
    Console(stderr=as_json).print(_table(found))
    if as_json:
        print(json.dumps(_strict(found)))
    gate(found)


def _strict(value: Any) -> Any:
    """Infinity (the distance of equal results) is no number in JSON: null."""
    if isinstance(value, dict):
        return {key: _strict(part) for key, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def gate(found: dict[str, Any]) -> None:
    """FlashvsrError where profile fast was compared with exact and is further from it than it may be."""
    if found["profile"] == "fast" and "fidelity" in found and found["fidelity"]["psnr_db"] < FAST_DB:
        raise FlashvsrError(
            f"profile 'fast' is {found['fidelity']['psnr_db']:.1f} dB from exact with these weights, {FAST_DB:.0f} dB "
            "are asked; use --profile exact with them"
        )


def _size(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdigit() and 1 <= int(part) <= _LIMIT for part in parts):
        raise UserError(f"size {text!r} is not HEIGHTxWIDTH with 1 to {_LIMIT} pixels a side, such as 768x1408")
    return int(parts[0]), int(parts[1])


def _measure(
    params: UpscaleParams,
    compute: ComputeParams,
    source: str | None,
    size: tuple[int, int],
    counts: tuple[int, int],
    fidelity: bool,
) -> dict[str, Any]:
    # PyTorch takes seconds to import, and a wrong option should not have to wait for it.
    import torch

    from flashvsr_core.bench import fidelity as near
    from flashvsr_core.bench import speed
    from flashvsr_core.bench.attention import compare_attention
    from flashvsr_core.bench.inputs import input_size, random_weights
    from flashvsr_core.geometry import Geometry
    from flashvsr_core.registry import model_spec
    from flashvsr_core.upscaler import DTYPES, Upscaler
    from tasks import weights as stored
    from tasks.gpu import device_name, devices_of, keep_compiled

    keep_compiled(options.cache_dir(settings.with_environment(compute)))
    device = devices_of(compute)[0]
    if source == "random":
        if params.model == "auto":
            raise UserError("random weights need the name of a model; add --model v1.1 or --model nano")
        loaded = random_weights(model_spec(params.model), params.mode, device, params.seed)
    else:
        folder = source or settings.with_environment(compute).models_dir
        place = Path(folder) if folder else None
        loaded = stored.load(stored.locate(params.model, params.mode, place, params.unknown_weights))
    upscaler = Upscaler.load(loaded, params, device)
    resolved = upscaler.params
    found: dict[str, Any] = {
        "device": device_name(device),
        "clocks": _clocks() if device.type == "cuda" else f"{torch.get_num_threads()} threads of {platform.machine()}",
        "versions": _versions(),
        "model": resolved.model,
        "mode": resolved.mode,
        "weights": source or "stored",
        "size": "x".join(map(str, size)),
        "profile": resolved.profile,
        "precision": resolved.precision,
        "attention": resolved.attention,
        "roof_tflops": speed.roof_tflops(device, DTYPES[resolved.precision]),
        **asdict(speed.measure(upscaler, *size, *counts)),
    }
    if device.type == "cuda" and resolved.attention != "torch":
        side = input_size(resolved, *size)
        geometry = Geometry(side[1], side[0], resolved.scale)
        ways = compare_attention(upscaler.spec.dit, resolved, geometry, device)
        found["attention_ways"] = [asdict(way) for way in ways]
    if fidelity:
        reference = near.exact if resolved.profile == "fast" else near.float32
        found["fidelity"] = asdict(near.fidelity(upscaler, reference(loaded, resolved, device), *size))
    if device.type == "cuda":
        found["clocks_after"] = _clocks()
    return found


def _versions() -> str:
    """Of what computes."""
    names = ("torch", "triton", "sageattention")
    return ", ".join(f"{name} {metadata.version(name)}" for name in names if importlib.util.find_spec(name))


def _clocks() -> str:
    """What nvidia-smi says of clocks, temperature and power; the bench changes none of them."""
    query = "clocks.sm,clocks.mem,temperature.gpu,power.draw"
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        return f"not known ({error})"
    return done.stdout.strip().splitlines()[0]


def _table(found: dict[str, Any]) -> Table:
    table = Table(box=None, show_header=False)
    for name, value in _rows(found):
        table.add_row(name, value)
    return table


def _rows(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name in (
        "device",
        "clocks",
        "clocks_after",
        "versions",
        "model",
        "mode",
        "weights",
        "size",
        "profile",
        "precision",
        "attention",
    ):
        if name in found:
            yield name, str(found[name])
    yield "speed", f"{found['fps']:.2f} fps, {found['step_ms']:.1f} ms for 8 frames (median of {found['steps']} steps"
    yield "", f"after {found['warmup_steps']}; {found['fastest_ms']:.1f} to {found['slowest_ms']:.1f} ms)"
    yield "first frame", f"{found['first_s']:.2f} s"
    yield "peak memory", f"{found['peak_gib']:.2f} GiB"
    yield "arithmetic", f"{found['tflops']:.3g} TFLOP/s; a large matrix product reaches {found['roof_tflops']:.3g}"
    yield "blocks", f"{found['blocks']} a step; {found['selections']} selections have the reference's number of blocks"
    yield "", f"({found['ties']} blocks differ by ties)"
    yield "launching a step", f"{found['launch_ms']:.1f} ms of host time"
    for name, ms in sorted(found["stages_ms"].items(), key=lambda item: -item[1]):
        yield f"  {name}", f"{ms:.2f} ms"
    for way in found.get("attention_ways", ()):
        yield f"attention, {way['name']}", f"{way['ms']:.3f} ms, {way['tflops']:.0f} TFLOP/s"
    if "fidelity" in found:
        exact = found["fidelity"]
        yield f"against {exact['against']}", f"{exact['psnr_db']:.1f} dB at {exact['size']} under the same blocks; "
        yield "", f"{exact['flipped']} of {exact['blocks']} blocks flipped"
