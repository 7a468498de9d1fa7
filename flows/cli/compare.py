"""`flashvsr compare`: a finished output against the true video."""

import json
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from flashvsr_core.config import ComputeParams
from flows import settings
from flows.cli import options
from flows.cli.facts import facts


def compare(
    output: Annotated[str, Parameter(help="A finished video (path or fsspec URL).")],
    /,
    *,
    reference: Annotated[str, Parameter(help="The true video, of OUTPUT's size and number of frames.")],
    work_dir: options.WorkDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Score OUTPUT against a ground truth: PSNR, SSIM, VMAF. The report beside OUTPUT takes the numbers up."""
    from tasks.compare import compare_output
    from tasks.report import page_beside

    compute = settings.with_environment(ComputeParams(work_dir=work_dir))
    found = compare_output(output, reference, options.cache_dir(compute))
    if as_json:
        print(json.dumps(found.to_json()))
        return
    rows = [(name.upper(), f"{value:.4g}{' dB' if name == 'psnr' else ''}") for name, value in found.numbers.items()]
    rows.append(("frames", str(found.frames)))
    rows.append(("report", page_beside(found.output) if found.report else f"not changed: {found.note}"))
    Console().print(facts(rows))
