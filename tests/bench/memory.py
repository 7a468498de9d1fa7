"""Memory foreseen and measured, and speed on cards of several sizes; appends to tests/bench/memory.md.

python -m tests.bench.memory [--minutes 9]          on a GPU: every case that the table has not yet, as far as time goes
python -m tests.bench.memory --device cpu           small cases with `nano`, resident memory of a process each
python -m tests.bench.memory --table                predictions of a GPU's rows made anew, and how far they are off

Each case runs in a process of its own. "Cards" are the process's limit: `choose` plans for it, the allocator keeps it
(torch.cuda.set_per_process_memory_fraction); the CUDA context is not counted, its size is in the table's last column.
"""

import argparse
import json
import re
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import torch

from flashvsr_core.bench.inputs import random_clip, random_weights
from flashvsr_core.bench.speed import step_spans
from flashvsr_core.config import ComputeParams, Profile, UpscaleParams
from flashvsr_core.errors import OutOfMemory
from flashvsr_core.geometry import Geometry
from flashvsr_core.ladder import Rung, after, choose, ladder
from flashvsr_core.memory import GIB, DeviceType, Estimate, estimate
from flashvsr_core.offload import Offload
from flashvsr_core.registry import ModelSpec, model_spec
from flashvsr_core.relief import Placement
from flashvsr_core.segments import FIRST_READ, STEP
from flashvsr_core.tiling import tiles_of
from flashvsr_core.upscaler import Upscaler, resolve_params
from flashvsr_core.weights import Weights
from tasks.memory import enforce_limit, grow_blocks

TABLE = Path(__file__).with_suffix(".md")
HEAD = f"""# Memory and speed

{__doc__}
Random weights, scenes off, adain; fps of steady steps. A `limit` says that the way was chosen for it and the allocator
kept it; without one the way is the row's own. `error` is the prediction against the measured peak; `relief` counts
steps that ran out of memory and were made again, and streams begun anew in tiles, as a job does it. Steps are not
recorded (CUDA graphs), which is 1 to 3 % slower.

| case | device | way | predicted GiB | measured GiB | error % | fps | relief | rest of the process GiB |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""


@dataclass(frozen=True)
class Case:
    """One row. Width and height are the input's."""

    model: str
    mode: str
    width: int
    height: int
    scale: int
    limit_gib: float | None = None
    tile: str | None = None
    overlap: int = 256
    offload: Offload = "none"
    decoder_tile: int | None = None
    batch: int = 1
    resident: int = 0
    steps: int = 8
    profile: Profile = "exact"
    strips: int = 1

    @property
    def name(self) -> str:
        profile = "" if self.profile == "exact" else f" {self.profile}"
        size = f"{self.model} {self.mode}{profile} {self.width}x{self.height} x{self.scale}"
        if self.limit_gib is not None:
            return f"{size}, limit {self.limit_gib:g}"
        return f"{size}, tile {self.tile or 'none'}/{self.overlap if self.tile else 0} at once {self.batch}, " + (
            f"offload {self.offload}{f' but for {self.resident}' if self.resident else ''}, "
            f"decode {self.decoder_tile or 'whole'}{f', {self.strips} strips' if self.strips > 1 else ''}"
        )

    @property
    def params(self) -> UpscaleParams:
        tiled = {"tiled_dit": "on", "tile_size": self.tile, "tile_overlap": self.overlap} if self.tile else {}
        return UpscaleParams(
            model=self.model, mode=self.mode, scale=self.scale, profile=self.profile,  # type: ignore[arg-type]
            scenes="off", preroll=0, color_fix="adain", **tiled,  # type: ignore[arg-type]
        )  # fmt: skip


def gpu_cases() -> list[Case]:
    """The cards of the issue, then sizes, modes, tilings and levels for the prediction."""
    small, uhd = ("v1.1", "tiny", 352, 192, 4), ("v1.1", "tiny", 1920, 1080, 2)
    cards = [Case(*small, limit_gib=gib) for gib in (80, 16, 12, 8)]
    cards += [Case(*uhd, limit_gib=gib, steps=5) for gib in (78, 24, 16, 12, 8)]
    plain = [Case("v1.1", "tiny", *size) for size in ((128, 128, 4), (352, 192, 4), (480, 270, 4), (640, 384, 4))]
    plain += [Case("v1.1", "full", *size) for size in ((128, 128, 4), (352, 192, 4), (480, 270, 4))]
    plain += [Case("v1.0", "tiny", 352, 192, 4), Case("nano", "tiny", 352, 192, 4), Case("nano", "tiny", 640, 384, 4)]
    levels = [Case(*small, offload=level) for level in ("dit", "kv", "weights")]
    levels += [Case("v1.1", "full", 352, 192, 4, offload="weights", decoder_tile=512)]
    levels += [Case(*small, offload="kv", resident=15), Case("v1.1", "tiny", 640, 384, 4, offload="kv", resident=10)]
    tiles = [Case("v1.1", "tiny", 480, 270, 4, tile=t, overlap=o, batch=n)
             for t, o, n in (("1024", 256, 1), ("1152x1152", 256, 2), ("512", 128, 1), ("512", 128, 8))]  # fmt: skip
    tiles += [Case("v1.1", "tiny", 640, 384, 4, tile="1536x1408", offload="kv", decoder_tile=d) for d in (512, 1024)]
    fast = [Case("v1.1", "tiny", *size, profile="fast") for size in ((128, 128, 4), (352, 192, 4), (640, 384, 4))]
    fast += [Case("v1.1", "full", 352, 192, 4, profile="fast")]
    fast += [Case(*small, offload=level, profile="fast") for level in ("dit", "kv", "weights")]
    fast += [Case("v1.1", "tiny", 480, 270, 4, tile="1024", profile="fast")]
    cut = [Case(*small, offload=level, strips=n) for level, n in (("none", 4), ("weights", 2), ("weights", 8))]
    cut += [Case("v1.1", "tiny", 640, 384, 4, offload=o, decoder_tile=512, strips=4) for o in ("kv", "weights")]
    cut += [Case("v1.1", "tiny", 640, 384, 4, offload="weights", decoder_tile=256, strips=8, profile="fast")]
    cut += [Case(*uhd, offload="weights", decoder_tile=384, strips=2, steps=5)]
    return cards + plain + levels + tiles + fast + cut


def cpu_cases() -> list[Case]:
    nano = ("nano", "tiny")
    cases = [Case(*nano, w, h, 4, steps=1) for w, h in ((64, 64), (192, 108), (320, 192))]
    cases += [Case(*nano, 320, 192, 4, decoder_tile=256, steps=1)]
    cases += [Case(*nano, 480, 270, 4, strips=n, steps=1) for n in (1, 4)]
    return [*cases, Case(*nano, 320, 192, 4, tile="512", overlap=128, decoder_tile=256, steps=1)]


def measure(case: Case, kind: DeviceType) -> str:
    """Run one case here and return its row."""
    device = torch.device(kind, 0) if kind == "cuda" else torch.device(kind)  # limits are set by number
    spec = model_spec(case.model)
    params, geometry = resolve_params(case.params, spec, device), Geometry(case.width, case.height, case.scale)
    weights = _weights(spec, case.mode, kind)
    asked = replace(params, tiled_dit="auto")
    if case.limit_gib is None:
        placement = Placement(case.offload, case.decoder_tile, case.batch, case.resident, case.strips)
        rung = Rung(params, placement, estimate(spec, params, geometry, kind, placement, *tiles_of(params)))
    else:
        rung = choose(spec, asked, ComputeParams(), geometry, kind, int(case.limit_gib * GIB))
        enforce_limit(ComputeParams(memory_limit=f"{case.limit_gib}GiB"), device)
    clip = random_clip(FIRST_READ + STEP * (1 + case.steps), case.height, case.width)
    told: list[str] = []
    while True:
        try:
            fps, placement = _stream(weights, rung, device, clip, told)
            break
        except OutOfMemory as error:  # as a job goes on
            following = after(ladder(spec, asked, ComputeParams(), geometry, kind), rung, kind)
            if case.limit_gib is None or following is None:
                raise
            told.append(error.reason)
            rung = following
    peak, rest = _peak(kind, device)
    predicted = _predicted(rung.estimate, kind)
    way = f"{'tiles ' + rung.params.tile_size if rung.params.tiled_dit == 'on' else 'untiled'}, {placement}"
    name = torch.cuda.get_device_name(device) if kind == "cuda" else "cpu"
    return (
        f"| {case.name} | {name} | {way} | {predicted / GIB:.2f} | {peak / GIB:.2f} | "
        f"{100 * (predicted / peak - 1):+.1f} | {fps:.2f} | {len(told)} | {rest / GIB:.2f} |"
    )


def _stream(
    weights: Weights, rung: Rung, device: torch.device, clip: np.ndarray, told: list[str]
) -> tuple[float, Placement]:
    """Frames a second of steady steps in one way, and the placement at their end; `told` takes what was left for want
    of memory."""
    grow_blocks(rung, device)
    upscaler = Upscaler.load(weights, rung.params, device)
    upscaler.recorder = None  # made in the stream's first steps, which are the ones measured here
    upscaler.place(rung.placement)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    marks = [(time.perf_counter(), len(chunk)) for chunk in upscaler.stream(_singles(clip), on_fallback=told.append)]
    # The stream's first steps compile and choose, and frames of steps queued meanwhile come early after that.
    spans = step_spans(marks)
    return STEP / median(spans[len(spans) // 3 :]), upscaler.placement


def _weights(spec: ModelSpec, mode: str, kind: DeviceType) -> Weights:
    """On the host, in the model's type; drawn on the device, which takes a second there and half a minute here."""
    device = torch.device(kind)
    drawn = random_weights(spec, mode, device)
    if kind == "cpu":
        return drawn
    hosted = {
        name: {key: value.bfloat16().cpu() for key, value in part.items()}
        for name in ("dit", "lq_proj", "tcdecoder", "vae")
        if (part := getattr(drawn, name)) is not None
    }
    found = replace(drawn, prompt=drawn.prompt.cpu(), **hosted)  # type: ignore[arg-type]
    del drawn
    torch.cuda.empty_cache()
    return found


def _singles(clip: np.ndarray):  # type: ignore[no-untyped-def]
    yield from (clip[i : i + 1] for i in range(len(clip)))


def _peak(kind: DeviceType, device: torch.device) -> tuple[int, int]:
    """Bytes at the peak, and what else the process takes of the device: its context."""
    if kind == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, 0
    free, total = torch.cuda.mem_get_info(device)
    return torch.cuda.max_memory_allocated(device), total - free - torch.cuda.memory_reserved(device)


def _predicted(found: Estimate, kind: DeviceType) -> int:
    return found.device_bytes + (found.host_bytes if kind == "cpu" else 0)


def foreseen(case: Case, way: str) -> int:
    """Bytes that today's coefficients foresee for a row of a GPU: what was placed how is read from its column `way`."""
    spec, device = model_spec(case.model), torch.device("cpu")
    params = replace(resolve_params(case.params, spec, device), precision="bf16")
    geometry = Geometry(case.width, case.height, case.scale)
    if (tile := re.search(r"tiles (\w+)", way)) is not None:
        params = replace(params, tiled_dit="on", tile_size=tile[1], tile_overlap=case.overlap)
    found = re.search(r"offload='(\w+)', decoder_tile=(\w+), batch=(\d+)(?:, resident=(\d+))?(?:, strips=(\d+))?", way)
    assert found is not None, way
    level, side, *counts, strips = found.groups()
    batch, resident = (int(count or 0) for count in counts)
    placement = Placement(level, None if side == "None" else int(side), batch, resident, int(strips or 1))  # type: ignore[arg-type]
    return estimate(spec, params, geometry, "cuda", placement, *tiles_of(params)).device_bytes


def foresee_anew(table: str) -> str:
    """The table with predictions by today's coefficients, which were fitted to its rows. Rows in which memory ran out
    stay: they were made in two ways."""
    cases = {case.name: case for case in gpu_cases()}
    lines = []
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) > 8 and cells[1] in cases and not cells[2].startswith("failed") and cells[8] == "0":
            predicted, peak = foreseen(cases[cells[1]], cells[3]) / GIB, float(cells[5])
            cells[4], cells[6] = f"{predicted:.2f}", f"{100 * (predicted / peak - 1):+.1f}"
            line = " | ".join(cells).strip()
        lines.append(line)
    return "\n".join(lines) + "\n"


def errors(table: str) -> list[float]:
    """Column `error %` of all rows that were made in one way."""
    rows = (row.split("|") for row in table.splitlines() if re.match(r"\| (v1|nano)", row))
    return [float(row[6]) for row in rows if not row[2].startswith(" failed") and row[8].strip() == "0"]


def run_all(kind: DeviceType, minutes: float, table: Path) -> None:
    until = time.monotonic() + 60 * minutes
    if not table.exists():
        table.write_text(HEAD)
    for case in gpu_cases() if kind == "cuda" else cpu_cases():
        if f"| {case.name} |" in table.read_text():
            continue
        left = until - time.monotonic()
        if left < 20:
            print("time is up; call again for the rest")
            return
        command = [sys.executable, "-m", "tests.bench.memory", "--device", kind, "--case", json.dumps(asdict(case))]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=left)
        except subprocess.TimeoutExpired:
            print(f"{case.name}: not finished in the time left; call again")
            return
        last = done.stderr.strip().splitlines()[-1:] or [""]
        row = done.stdout.strip() or f"| {case.name} | failed: {last[0][:200]} | | | | | | | |"
        print(row)
        with table.open("a") as file:
            file.write(row + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--output", type=Path, default=TABLE)
    parser.add_argument("--case", help="one case as JSON: measure it here and print its row")
    parser.add_argument("--table", action="store_true", help="how far the prediction is off")
    chosen = parser.parse_args()
    if chosen.case:
        print(measure(Case(**json.loads(chosen.case)), chosen.device))
    elif chosen.table:
        chosen.output.write_text(foresee_anew(chosen.output.read_text()))
        found = errors(chosen.output.read_text())
        print(f"{len(found)} rows, error {min(found):+.1f} to {max(found):+.1f} %")
    else:
        run_all(chosen.device, chosen.minutes, chosen.output)


if __name__ == "__main__":
    main()
