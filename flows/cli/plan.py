"""`flashvsr plan`: what would be done, without doing it."""

import json
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from flashvsr_core.config import ComputeParams, UpscaleParams
from flows import settings
from flows.cli import options
from flows.cli.facts import facts
from tasks.media.encode import EncodeParams, encoder_text
from tasks.media.limits import Limits
from tasks.media.trim import Trim

if TYPE_CHECKING:
    from tasks.plan import JobPlan, Request


def plan(
    source: options.Source,
    output: options.Output = None,
    /,
    *,
    params: options.Pixels = UpscaleParams(),
    encode: options.Encoder = EncodeParams(),
    compute: options.Compute = ComputeParams(),
    store: options.Store = None,
    segment_frames: options.SegmentFrames = 512,
    allow_truncated: options.AllowTruncated = False,
    trim: options.Part = Trim(),
    fps: options.Fps = None,
    limits: options.Bounds = Limits(),
    as_json: options.AsJson = False,
) -> None:
    """Show geometry, segments, what is finished and a time estimate. Writes nothing beside SOURCE or OUTPUT."""
    from tasks.plan import Request

    compute = settings.with_environment(compute)
    found = describe(
        Request(source, output, params, encode, compute, store, segment_frames, allow_truncated, trim, fps, limits)
    )
    if as_json:
        print(json.dumps(found))
        return
    Console().print(_table(found))


def describe(request: "Request") -> dict[str, Any]:
    """Everything `plan` shows, as plain JSON values."""
    from tasks.plan import bytes_needed, make_plan, settle_plan
    from tasks.speed import estimate_seconds

    compute = request.compute
    cache_dir = options.cache_dir(compute)
    job, planned = make_plan(request, cache_dir)
    plan = settle_plan(job, planned)
    finished = job.finished()
    missing = [segment for segment in plan.segments if segment.index not in finished]
    seconds, basis = estimate_seconds(plan, missing, compute, cache_dir)
    geometry = plan.geometry
    return {
        "source": plan.source,
        "output": request.outputs.pattern or request.output_url,
        "job": job.url,
        "key": job.key,
        "frames": plan.info.frames,
        "frame_rate": list(plan.info.frame_rate),
        "input_size": [geometry.width, geometry.height],
        "output_size": [geometry.out_width, geometry.out_height],
        "padded_size": [geometry.padded_width, geometry.padded_height],
        "segments": [[segment.start, segment.stop] for segment in plan.segments],
        "finished": sorted(finished),
        "estimate_seconds": seconds,
        "estimate_basis": basis,
        "memory": _memory(plan),
        "disk_bytes": bytes_needed(plan),
        "plan": plan.to_json(),
    }


def _table(found: dict[str, Any]) -> Table:
    params, encode = found["plan"]["params"], found["plan"]["encode"]
    segments = found["segments"]
    longest = max(stop - start for start, stop in segments)
    rows = [
        ("input", f"{found['source']}  {_size(found['input_size'])}, {found['frames']} frames at {_rate(found)} fps"),
        ("output", f"{found['output']}  {_size(found['output_size'])} (computed as {_size(found['padded_size'])})"),
        ("model", f"{params['model']} {params['mode']}, {params['precision']}, attention {params['attention']}"),
        ("encoder", encoder_text(encode)),
        ("segments", f"{len(segments)} of up to {longest} frames, {len(found['finished'])} finished"),
        ("estimate", f"{found['estimate_seconds']:.0f} s of computing left (from {found['estimate_basis']})"),
        *_memory_rows(found["memory"]),
        ("disk", f"about {found['disk_bytes'] / 1e6:.0f} MB while it runs"),
        ("job", found["job"]),
    ]
    rows += [("note", note) for note in found["plan"]["notes"]]
    return facts(rows)


def _memory(plan: "JobPlan") -> dict[str, Any]:
    """What was chosen to fit into memory, and what it is expected to take."""
    memory = plan.memory
    assert memory is not None, "a plan that was just made has it"
    placement, params = memory.placement, plan.params
    return {
        "limit_bytes": memory.limit_bytes,
        "device_bytes": memory.device_bytes,
        "host_bytes": memory.host_bytes,
        "slowdown": memory.slowdown,
        "tile_size": params.tile_size if params.tiled_dit == "on" else None,
        "tile_overlap": params.tile_overlap if params.tiled_dit == "on" else None,
        "tiles_at_once": placement.batch,
        "decoder_tile": placement.decoder_tile,
        "offload": placement.offload,
        "resident": placement.resident,
        "strips": placement.strips,
        "device_is_host": plan.device_type == "cpu",
    }


def _memory_rows(memory: dict[str, Any]) -> list[tuple[str, str]]:
    tiles = (
        f"tiles of {memory['tile_size']} overlapping by {memory['tile_overlap']}" if memory["tile_size"] else "untiled"
    )
    if memory["strips"] > 1:
        tiles += f", in {memory['strips']} strips that see each other"
    parts = f"decoded in parts of {memory['decoder_tile']}" if memory["decoder_tile"] else "decoded whole"
    offload = memory["offload"] + (f" but for {memory['resident']} blocks" if memory["resident"] else "")
    way = f"{tiles}, {parts}, offload {offload}, {memory['slowdown']:.2f} x the time of the untiled picture"
    device, host = (memory[name] / 2**30 for name in ("device_bytes", "host_bytes"))
    peak = (
        f"{device + host:.2f} GiB"
        if memory["device_is_host"]
        else f"{device:.2f} GiB on the device, {host:.1f} GiB here"
    )
    return [("memory", f"{peak} expected at the peak, limit {memory['limit_bytes'] / 2**30:.2f} GiB"), ("way", way)]


def _size(size: list[int]) -> str:
    return f"{size[0]}x{size[1]}"


def _rate(found: dict[str, Any]) -> str:
    return f"{found['frame_rate'][0] / found['frame_rate'][1]:.3f}".rstrip("0").rstrip(".")
