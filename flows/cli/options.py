"""Options that commands share: mostly the fields of the parameter dataclasses, so that there is no second list."""

from pathlib import Path
from typing import Annotated, Literal

import platformdirs
from cyclopts import Parameter

from flashvsr_core.config import ComputeParams, UpscaleParams
from flashvsr_core.errors import UserError
from flows.settings import MODELS
from tasks.media.encode import EncodeParams
from tasks.media.limits import Limits
from tasks.media.trim import Trim

Source = Annotated[
    str,
    Parameter(help="A video or image (path or fsspec URL), or a folder or pattern ('shot_*.png') of numbered images."),
]
Output = Annotated[
    str | None,
    Parameter(
        help="Result: .mp4, .mkv, .mov, .webm; .png, .tiff, .dpx or .exr with %06d in its name, or a folder with "
        "--container; default NAME_4x.mp4 (or 2x, 3x; or as --delivery has it) beside SOURCE."
    ),
]
Pixels = Annotated[UpscaleParams, Parameter(name="*", group="What changes pixels")]
Encoder = Annotated[EncodeParams, Parameter(name="*", group="Encoder")]
Compute = Annotated[ComputeParams, Parameter(name="*", group="Where and with what")]
Store = Annotated[str | None, Parameter(help="Where segments are kept; default .flashvsr/ beside OUTPUT.")]
SegmentFrames = Annotated[int, Parameter(help="Frames of one segment, a multiple of 8.")]
AllowTruncated = Annotated[bool, Parameter(help="Upscale what can be read of a truncated SOURCE.")]
Part = Annotated[Trim, Parameter(name="*", group="Part of the source")]
Fps = Annotated[str | None, Parameter(help="Frames per second of a sequence of images; default 25.")]
Bounds = Annotated[Limits, Parameter(name="*", group="Limits of the source")]
AsJson = Annotated[bool, Parameter(name="--json", help="Print the result as JSON on the last line.")]
Verbose = Annotated[bool, Parameter(name=["--verbose", "-v"], help="Log every event.")]
Reference = Annotated[
    str | None, Parameter(help="The true video in the output's size: PSNR, SSIM and VMAF go into the report.")
]
Quiet = Annotated[bool, Parameter(name=["--quiet", "-q"], help="Show errors only.")]
WorkDir = Annotated[str | None, Parameter(name="--work-dir", help="Folder for fetched sources and work files.")]
ModelsDir = Annotated[
    Path | None, Parameter(name="--dir", env_var=MODELS, help="Folder with weights; default: user cache.")
]


def loudness(verbose: bool, quiet: bool) -> Literal["quiet", "normal", "verbose"]:
    if verbose and quiet:
        raise UserError("--verbose and --quiet contradict each other; give one of them")
    return "verbose" if verbose else "quiet" if quiet else "normal"


def cache_dir(compute: ComputeParams) -> Path:
    return Path(compute.work_dir) if compute.work_dir else platformdirs.user_cache_path("flashvsr")
