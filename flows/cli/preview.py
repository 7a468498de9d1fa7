"""`flashvsr preview`: a few short excerpts and stills beside the enlarged source, before the whole is computed."""

import json
from dataclasses import asdict
from typing import Annotated, Literal

from cyclopts import Parameter
from rich.console import Console

from flashvsr_core.config import ComputeParams, UpscaleParams
from flows import settings
from flows.cli import options
from flows.cli.run import pipeline
from tasks.media.limits import Limits


def preview(
    source: options.Source,
    output: Annotated[str | None, Parameter(help="Folder; default NAME_4x_preview beside SOURCE.")] = None,
    /,
    *,
    excerpts: Annotated[int, Parameter(help="How many, evenly spread.")] = 3,
    seconds: Annotated[float, Parameter(help="Length of each.")] = 1.0,
    layout: Annotated[
        Literal["side", "split"], Parameter(help="side: both pictures beside each other; split: half of each.")
    ] = "side",
    params: options.Pixels = UpscaleParams(),
    compute: options.Compute = ComputeParams(),
    allow_truncated: options.AllowTruncated = False,
    fps: options.Fps = None,
    limits: options.Bounds = Limits(),
    force: Annotated[bool, Parameter(help="Replace comparisons that exist.")] = False,
    as_json: options.AsJson = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Upscale short excerpts of SOURCE and compare: comparison.mp4 and comparison.png in the folder OUTPUT."""
    console = Console(stderr=True)
    compute = settings.with_environment(compute)
    with pipeline(console, options.loudness(verbose, quiet)) as upscale_video:
        # Imported late: these import Prefect, which must find its server.
        from flows.preview import make_preview
        from tasks.plan import Request

        request = Request(
            source, output, params, compute=compute, allow_truncated=allow_truncated, fps=fps, limits=limits
        )
        made = make_preview(upscale_video, request, options.cache_dir(compute), excerpts, seconds, layout, force)
    for name, place in (("picture", made.picture), ("video", made.video)):
        if place is not None:
            console.print(f"{name}: {place}", soft_wrap=True, markup=False, highlight=False)
    if as_json:
        print(json.dumps(asdict(made)))
