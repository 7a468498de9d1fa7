"""`flashvsr doctor`: what this machine can do and what is missing, each with its remedy."""

import importlib.util
import json
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import platformdirs
import psutil
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flashvsr_core.config import ComputeParams
from flashvsr_core.errors import FlashvsrError
from flows import settings
from flows.cli import options

State = Literal["ok", "note", "missing"]


@dataclass(frozen=True)
class Finding:
    what: str
    state: State  # `missing` means that the main job cannot run
    found: str
    remedy: str = ""


def doctor(*, as_json: options.AsJson = False) -> int:
    """Check this machine. Exit status 0 when the main job can run, 2 when something must be changed first."""
    findings = [check() for check in _CHECKS]
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings]))
    else:
        Console().print(_table(findings))
    return 2 if any(finding.state == "missing" for finding in findings) else 0


def _python() -> Finding:
    return Finding("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _system() -> Finding:
    if sys.platform == "linux":
        return Finding("system", "ok", platform.platform())
    remedy = "the pipeline runs on the CPU; Triton kernels, GPU locks and the kill tests are Linux only"
    return Finding("system", "note", platform.platform(), remedy)


def _torch() -> Finding:
    import torch

    return Finding("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} CPU threads")


def _gpu() -> Finding:
    import torch

    from flashvsr_core.profiles import TRITON_CAPABILITY

    if not torch.cuda.is_available():
        return Finding("gpu", "note", "none found", "runs on the CPU; for speed use a CUDA build of PyTorch and a GPU")
    names = []
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        names.append(f"{number}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB")
        if (properties.major, properties.minor) < TRITON_CAPABILITY:
            return Finding("gpu", "note", names[-1], "too old for the Triton kernels; use --devices cpu or a newer GPU")
    return Finding("gpu", "ok", "; ".join(names))


def _triton() -> Finding:
    if importlib.util.find_spec("triton"):
        return Finding("triton", "ok", version("triton"))
    return Finding("triton", "note", "not installed", "needed on GPUs only: pip install 'flashvsr[gpu]'")


def _ffmpeg() -> Finding:
    from tasks.media import ffmpeg

    try:
        program = ffmpeg.find_ffmpeg()
        return Finding("ffmpeg", "ok", f"{ffmpeg.ffmpeg_version(program)} at {program}")
    except FlashvsrError as error:
        return Finding("ffmpeg", "missing", str(error), "pip install imageio-ffmpeg")


def _encoders() -> Finding:
    import av
    from av.codec import Codec

    from tasks.media.codecs import SOFTWARE

    missing = []
    for name in sorted({spec.encoder for spec in SOFTWARE.values()}):
        try:
            Codec(name, "w")
        except ValueError:
            missing.append(name)
    if missing:
        return Finding("encoders", "missing", f"PyAV {av.__version__} lacks {', '.join(missing)}", "pip install av")
    return Finding("encoders", "ok", f"{', '.join(SOFTWARE)} in PyAV {av.__version__}")


def _nvenc() -> Finding:
    from tasks.media.codecs import NVENC
    from tasks.media.encoder import probe_encoder

    works, reason = [], ""
    for codec, spec in NVENC.items():
        try:
            probe_encoder(spec.encoder)
            works.append(codec)
        except FlashvsrError as error:
            reason = str(error)
    if not works:
        return Finding("nvenc", "note", "none works", f"needed for --encoder nvenc only: {reason}")
    return Finding("nvenc", "ok", f"{', '.join(works)} (a test encode worked)")


def _prefect() -> Finding:
    fastapi = version("fastapi")
    if tuple(int(part) for part in fastapi.split(".")[:2]) >= (0, 151):
        return Finding("prefect", "missing", f"fastapi {fastapi} breaks Prefect", 'pip install "fastapi<0.151"')
    return Finding("prefect", "ok", f"{version('prefect')} with fastapi {fastapi}")


def _weights() -> Finding:
    from tasks import weights

    folder = settings.with_environment(ComputeParams()).models_dir
    try:
        found = weights.locate(weights.PREFERRED, "tiny", Path(folder) if folder else None)
    except FlashvsrError:
        return Finding(
            "weights",
            "note",
            f"no {weights.PREFERRED}; the embedded {weights.EMBEDDED} is used",
            f"flashvsr models fetch {weights.PREFERRED}",
        )
    return Finding("weights", "ok", f"{found.spec.name} and the embedded {weights.EMBEDDED}")


def _s3() -> Finding:
    try:
        return Finding("s3", "ok", f"s3fs {version('s3fs')}")
    except PackageNotFoundError:
        return Finding("s3", "note", "not installed", "for s3:// places: pip install 'flashvsr[s3]'")


def _scores() -> Finding:
    from tasks.scorers import hub, present

    if scorers := present():
        return Finding("scores", "ok", f"{', '.join(scorer.name for scorer in scorers)} with weights in {hub()}")
    remedy = "for MUSIQ and CLIPIQA in reports: docs/report.md says how to get pyiqa and its weights"
    return Finding("scores", "note", f"none; no pyiqa, or no weights in {hub()}", remedy)


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    found = f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free"
    if memory.available < 2 * 2**30:
        return Finding("memory", "note", found, "the embedded model needs about 2 GiB; close something")
    return Finding("memory", "ok", found)


def _disk() -> Finding:
    place = platformdirs.user_cache_path("flashvsr")
    place.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(place).free
    state: State = "ok" if free > 5 * 2**30 else "note"
    remedy = "" if state == "ok" else "choose another place for work files with --work-dir"
    return Finding("work files", state, f"{free / 2**30:.1f} GiB free in {place}", remedy)


_CHECKS: tuple[Callable[[], Finding], ...] = (
    _python, _system, _torch, _gpu, _triton, _ffmpeg, _encoders, _nvenc, _prefect, _weights, _s3, _scores, _memory,
    _disk,
)  # fmt: skip


def _table(findings: list[Finding]) -> Table:
    table = Table(box=None)
    for heading in ("", "what", "found", "remedy"):
        table.add_column(heading, overflow="fold")
    marks = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "missing": "[red]missing[/]"}
    for finding in findings:
        table.add_row(marks[finding.state], finding.what, escape(finding.found), escape(finding.remedy))
    return table
