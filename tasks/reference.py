"""Full-reference numbers: a result against the true video, by ffmpeg's filters."""

import json
import math
import re
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

import ffmpeg
import numpy as np

from flashvsr_core.errors import UserError
from tasks.media.ffmpeg import find_ffmpeg, run_ffmpeg
from tasks.media.probe import probe

LOSSLESS_DB = 100.0  # PSNR that stands for equal frames
# Megapixels a second of two cores: PSNR and SSIM together, with decoding twice two videos; VMAF alike.
COMPARED, VMAF = 18.0, 21.0


def check_reference(reference: Path, width: int, height: int, frames: int) -> None:
    """Raise UserError unless `reference` can be compared frame by frame with a result of this size."""
    info = probe(reference)
    if (info.width, info.height, info.frames) != (width, height, frames):
        raise UserError(
            f"reference {reference} is {info.width}x{info.height} with {info.frames} frames, the result "
            f"{width}x{height} with {frames}; give the true video in the result's size, or leave --reference out"
        )


def compare(result: Path, reference: Path) -> dict[str, float]:
    """Means over all frames: `psnr` (dB, over all planes), `ssim`, and `vmaf` where the ffmpeg build has libvmaf."""
    with tempfile.TemporaryDirectory(prefix="flashvsr-compare-") as name:
        folder = Path(name)
        _run(result, reference, "psnr", stats_file=str(folder / "psnr.txt"))
        _run(result, reference, "ssim", stats_file=str(folder / "ssim.txt"))
        found = {
            "psnr": _mean(folder / "psnr.txt", r"psnr_avg:(\S+)"),
            "ssim": _mean(folder / "ssim.txt", r"All:(\S+)"),
        }
        if has_vmaf():
            _run(result, reference, "libvmaf", log_fmt="json", log_path=str(folder / "vmaf.json"), n_threads=2)
            pooled = json.loads((folder / "vmaf.json").read_text())["pooled_metrics"]
            found["vmaf"] = round(float(pooled["vmaf"]["mean"]), 3)
        return found


def usual_seconds(width: int, height: int, frames: int) -> float:
    """What comparing videos of this size usually takes."""
    return width * height / 1e6 * frames * (1 / COMPARED + has_vmaf() / VMAF)


@lru_cache
def has_vmaf() -> bool:
    """Whether the ffmpeg program can compute VMAF."""
    command = [find_ffmpeg(), "-hide_banner", "-filters"]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=True)
    return re.search(r"\slibvmaf\s", done.stdout) is not None


def _run(result: Path, reference: Path, name: str, **options: str | int) -> None:
    # By number, not by time: containers round times differently. Written in two ways, because ffmpeg-python takes equal
    # streams for one.
    streams = [
        ffmpeg.input(str(path)).video.filter("settb", base).filter("setpts", "N/25/TB").filter("format", "yuv420p")
        for path, base in ((result, "AVTB"), (reference, "AVTB*1"))
    ]
    run_ffmpeg(ffmpeg.output(ffmpeg.filter(streams, name, **options), "-", format="null"))


def _mean(path: Path, pattern: str) -> float:
    values = [float(value) for value in re.findall(pattern, path.read_text())]
    return round(float(np.mean([LOSSLESS_DB if math.isinf(value) else value for value in values])), 4)
