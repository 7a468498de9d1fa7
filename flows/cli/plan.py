"""`flashvsr plan`: what would be done, without doing it."""

import json
from pathlib import Path
from typing import Any

import platformdirs
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.cli import options


def plan(
    source: options.Source,
    output: options.Output = None,
    model: options.ModelOption = "auto",
    mode: options.ModeOption = "tiny",
    scale: options.ScaleOption = 4,
    sparse_ratio: options.SparseOption = 2.0,
    kv_ratio: options.KvOption = 3.0,
    local_range: options.LocalOption = 11,
    color_fix: options.ColorOption = "auto",
    seed: options.SeedOption = 0,
    precision: options.PrecisionOption = "auto",
    attention: options.AttentionOption = "auto",
    devices: options.DevicesOption = "auto",
    scenes: options.ScenesOption = "auto",
    segment_frames: options.SegmentOption = 512,
    preroll: options.PrerollOption = None,
    codec: options.CodecOption = "h264",
    crf: options.CrfOption = None,
    preset: options.PresetOption = "medium",
    pix_fmt: options.PixFmtOption = "auto",
    store: options.StoreOption = None,
    models_dir: options.ModelsDirOption = None,
    work_dir: options.WorkDirOption = None,
    allow_truncated: options.TruncatedOption = False,
    as_json: options.JsonOption = False,
) -> None:
    """Show geometry, segments, what is finished and a time estimate. Writes nothing beside SOURCE or OUTPUT."""
    from tasks.media.encode import EncodeParams
    from tasks.plan import Request

    request = Request(
        source,
        output,
        options.upscale_params(
            model,
            mode,
            scale,
            sparse_ratio,
            kv_ratio,
            local_range,
            color_fix,
            seed,
            precision,
            attention,
            scenes,
            preroll,
        ),
        EncodeParams(codec=codec, crf=crf, preset=preset, pix_fmt=pix_fmt),  # type: ignore[arg-type]
        options.compute_params(devices, models_dir, work_dir),
        store,
        segment_frames,
        allow_truncated,
    )
    found = describe(request)
    if as_json:
        print(json.dumps(found))
        return
    Console().print(_table(found))


def describe(request: Any) -> dict[str, Any]:
    """Everything `plan` shows, as plain JSON values."""
    from tasks.plan import bytes_needed, make_plan, settle_plan
    from tasks.speed import estimate_seconds

    compute = request.compute
    cache_dir = Path(compute.work_dir) if compute.work_dir else platformdirs.user_cache_path("flashvsr")
    job, planned = make_plan(request, cache_dir)
    plan = settle_plan(job, planned)
    finished = job.finished()
    frames_left = plan.info.frames - sum(result.frames for result in finished.values())
    seconds, basis = estimate_seconds(plan, compute, cache_dir)
    geometry = plan.geometry
    return {
        "source": plan.source,
        "output": request.output_url,
        "job": job.url,
        "key": job.key,
        "frames": plan.info.frames,
        "frame_rate": list(plan.info.frame_rate),
        "input_size": [geometry.width, geometry.height],
        "output_size": [geometry.out_width, geometry.out_height],
        "padded_size": [geometry.padded_width, geometry.padded_height],
        "segments": [[segment.start, segment.stop] for segment in plan.segments],
        "finished": sorted(finished),
        "estimate_seconds": seconds * frames_left / plan.info.frames,
        "estimate_basis": basis,
        "disk_bytes": bytes_needed(plan),
        "plan": plan.to_json(),
    }


def _table(found: dict[str, Any]) -> Table:
    params, encode = found["plan"]["params"], found["plan"]["encode"]
    table = Table(box=None, show_header=False)
    segments = found["segments"]
    longest = max(stop - start for start, stop in segments)
    rows = [
        ("input", f"{found['source']}  {_size(found['input_size'])}, {found['frames']} frames at {_rate(found)} fps"),
        ("output", f"{found['output']}  {_size(found['output_size'])} (computed as {_size(found['padded_size'])})"),
        ("model", f"{params['model']} {params['mode']}, {params['precision']}, attention {params['attention']}"),
        ("encoder", f"{encode['codec']} {encode['pix_fmt']}, crf {encode['crf']}, preset {encode['preset']}"),
        ("segments", f"{len(segments)} of up to {longest} frames, {len(found['finished'])} finished"),
        ("estimate", f"{found['estimate_seconds']:.0f} s of computing left (from {found['estimate_basis']})"),
        ("disk", f"about {found['disk_bytes'] / 1e6:.0f} MB while it runs"),
        ("job", found["job"]),
    ]
    rows += [("note", note) for note in found["plan"]["notes"]]
    for name, value in rows:
        table.add_row(name, escape(value))
    return table


def _size(size: list[int]) -> str:
    return f"{size[0]}x{size[1]}"


def _rate(found: dict[str, Any]) -> str:
    return f"{found['frame_rate'][0] / found['frame_rate'][1]:.3f}".rstrip("0").rstrip(".")
