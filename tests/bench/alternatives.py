"""What each piece of a step brings: today's, and without it, on the same card:

    python3 -m tests.bench.alternatives RESULT.json        # a part of `python3 -m tests.bench.speed all`

Every alternative is one row: frames per second, memory, and how far its frames are from today's. They are measured in
a process of their own, which is started again without the one that ended it; results are written after each.
"""

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from flashvsr_core.bench import fidelity as near
from flashvsr_core.bench.inputs import input_size, random_clip, random_weights
from flashvsr_core.bench.speed import step_spans
from flashvsr_core.config import UpscaleParams
from flashvsr_core.kernels.backends import kernels
from flashvsr_core.models.dit import Block
from flashvsr_core.models.tcdecoder import TcDecoder
from flashvsr_core.registry import model_spec
from flashvsr_core.segments import FIRST_READ, STEP
from flashvsr_core.upscaler import Upscaler
from flashvsr_core.weights import Weights

LARGE = (1536, 2560)
WARM = 6  # steps before those that count: a ring of 4 slots is recorded in the third to the sixth
Change = Callable[[Upscaler], None]


def launched(upscaler: Upscaler) -> None:
    """Kernel by kernel instead of recordings."""
    upscaler.recorder = None


def joined(upscaler: Upscaler) -> None:
    """The decoder concatenates past and present."""
    assert isinstance(upscaler.net.decode, TcDecoder)
    upscaler.net.decode.fuse(kernels(upscaler.params.attention).repeat_pixels)


def repeated(upscaler: Upscaler) -> None:
    """Enlarged pixels are stored before the decoder's convolutions."""
    assert isinstance(upscaler.net.decode, TcDecoder)
    fused = kernels(upscaler.params.attention)
    upscaler.net.decode.fuse_in_place(fused.repeat_pixels, fused.finish_frames)


def decoder_bf16(upscaler: Upscaler) -> None:
    """All of the decoder in bf16."""
    from flashvsr_core.kernels.last_layers_triton import TRITON

    assert isinstance(upscaler.net.decode, TcDecoder)
    upscaler.net.decode.fuse_phases(TRITON)


def norms_bf16(upscaler: Upscaler) -> None:
    """Norms give bf16, which a pass of its own rounds to fp8."""
    for block in cast(list[Block], list(upscaler.net.dit.blocks)):
        block.rounding = None


def lq_bf16(upscaler: Upscaler) -> None:
    """LQ projection in bf16."""
    upscaler.net.lq_proj.fp8.clear()


@dataclass(frozen=True)
class Alternative:
    """What is changed of a profile; no change is today's."""

    profile: str
    changes: tuple[Change, ...] = ()
    attention: str = "auto"
    size: tuple[int, int] | None = None  # None: the bench's
    steps: int = 12

    @property
    def name(self) -> str:
        size = f" {self.size[0]}x{self.size[1]}" if self.size else ""
        attention = [] if self.attention == "auto" else [self.attention]
        return f"{self.profile}{size}: {' + '.join([*attention, *(c.__name__ for c in self.changes)]) or 'today'}"


ALTERNATIVES = (  # what matters most first: the time may not suffice for all
    Alternative("exact"),
    Alternative("exact", attention="triton"),
    Alternative("exact", (launched,)),
    Alternative("fast"),
    Alternative("fast", (decoder_bf16,)),
    Alternative("fast", (repeated,)),
    Alternative("fast", (launched,)),
    Alternative("fast", (lq_bf16,)),
    Alternative("fast", (norms_bf16,)),
    Alternative("exact", (launched, joined)),
    Alternative("fast", attention="int8"),
    Alternative("exact", size=LARGE, steps=6),
    Alternative("exact", (launched,), size=LARGE, steps=6),
    Alternative("fast", size=LARGE, steps=6),
)


@dataclass
class Row:
    """What was found of one alternative. The frames of exact are compared with today's byte by byte, those of fast with
    exact under the same blocks, as `fidelity` does."""

    fps: float
    step_ms: float
    fastest_ms: float
    slowest_ms: float
    allocated_gib: float
    reserved_gib: float
    seconds: float
    replayed: int = 0  # steps that were replayed from recordings
    not_recorded: str | None = None  # why
    differing: float | None = None  # share of bytes that are not today's
    largest_difference: int | None = None
    fidelity: dict[str, Any] = field(default_factory=dict)


class Measurer:
    """Measures alternatives of one model on one device."""

    def __init__(self, model: str, size: tuple[int, int], device: torch.device) -> None:
        self.model, self.size, self.device = model, size, device
        self.weights: Weights = random_weights(model_spec(model), "tiny", device)
        self.todays: dict[str, np.ndarray] = {}

    def load(self, alternative: Alternative) -> Upscaler:
        chosen = {"profile": alternative.profile, "attention": alternative.attention}
        params = UpscaleParams(model=self.model, scenes="off", preroll=0, **chosen)  # type: ignore[arg-type]
        upscaler = Upscaler.load(self.weights, params, self.device)
        for change in alternative.changes:
            change(upscaler)
        return upscaler

    def measure(self, alternative: Alternative) -> Row:
        begun = time.monotonic()
        upscaler = self.load(alternative)
        size = alternative.size or self.size
        frames = random_clip(FIRST_READ + STEP * (WARM + alternative.steps), *input_size(upscaler.params, *size))
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
        marks, kept = [], []
        for chunk in upscaler.stream(iter([frames])):
            marks.append((time.perf_counter(), len(chunk)))
            kept.append(np.asarray(chunk))
        spans = [1e3 * seconds for seconds in step_spans(marks)[WARM:]]
        step = statistics.mean(spans)  # frames come in pairs of steps where the host runs ahead
        peaks = (
            [f(self.device) / 2**30 for f in (torch.cuda.max_memory_allocated, torch.cuda.max_memory_reserved)]
            if on_gpu
            else [0.0, 0.0]
        )
        row = Row(STEP / step * 1e3, step, min(spans), max(spans), *peaks, 0.0)
        if upscaler._steady is not None:
            row.replayed, row.not_recorded = upscaler._steady[1].replayed, upscaler._steady[1].failed
        if alternative.profile == "exact":
            self._compare(alternative, size, kept, row)
        elif alternative.size is None:
            reference = near.exact(self.weights, upscaler.params, self.device)
            upscaler.recorder = None
            row.fidelity = asdict(near.fidelity(upscaler, reference, *size))
        row.seconds = time.monotonic() - begun
        return row

    def _compare(self, alternative: Alternative, size: tuple[int, int], kept: list[np.ndarray], row: Row) -> None:
        # The first and some later steps: all of them would be gigabytes.
        part = np.concatenate([kept[i] for i in (0, 1, WARM, WARM + 2)])
        key = f"{size}"
        if not alternative.changes and alternative.attention == "auto":
            self.todays[key] = part
        if key in self.todays:
            difference = part != self.todays[key]
            row.differing = float(difference.mean())
            row.largest_difference = int(np.abs(part.astype(np.int16) - self.todays[key].astype(np.int16)).max())


def measure_all(model: str, size: tuple[int, int], device: torch.device, target: Path, limit: float) -> None:
    """Measure what `target` (JSON, name: row) does not have yet, and write it there after each. Ends the process where
    the device is lost."""
    ends = time.monotonic() + limit
    found: dict[str, Any] = json.loads(target.read_text()) if target.exists() else {}
    measurer = Measurer(model, size, device)
    for alternative in ALTERNATIVES:
        name = alternative.name
        if name in found or (device.type != "cuda" and alternative.size):
            continue
        if time.monotonic() > ends:
            found[name] = {"left out": f"{limit:.0f} s are over"}
        else:
            found[name] = {"failed": "ended its process"}  # until it is known better
            target.write_text(json.dumps(found, indent=1))
            try:
                found[name] = asdict(measurer.measure(alternative))
            except Exception as error:  # noqa: BLE001  the other rows are worth having all the same
                found[name] = {"failed": f"{type(error).__name__}: {error}"[:400]}
        target.write_text(json.dumps(found, indent=1))
        print(name, json.dumps(found[name])[:200], flush=True)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # raises where a kernel has spoilt the process: the next one goes on
            torch.cuda.empty_cache()


def in_processes(model: str, size: tuple[int, int], target: Path, limit: float) -> dict[str, Any]:
    """`measure_all` in a process of its own, and in another one if that ends too early."""
    ends = time.monotonic() + limit
    target.unlink(missing_ok=True)
    command = [sys.executable, "-m", "tests.bench.alternatives", str(target), "--model", model, "--size"]
    seen = -1
    while (left := ends - time.monotonic()) > 10:
        arguments = [*command, "x".join(map(str, size)), "--limit", str(left)]
        try:
            done = subprocess.run(arguments, capture_output=True, text=True, timeout=left + 30)
            code, why = done.returncode, done.stderr[-300:]
        except subprocess.TimeoutExpired:
            code, why = 1, "ran past its time"
        found: dict[str, Any] = json.loads(target.read_text()) if target.exists() else {}
        if code == 0 or len(found) <= seen:
            return found | ({"ended": why} if code else {})
        seen = len(found)
        print(f"alternatives: process ended with {code} after {seen} rows: {why}", flush=True)
    return json.loads(target.read_text()) if target.exists() else {}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path)
    parser.add_argument("--model", default="v1.1")
    parser.add_argument("--size", default="768x1408")
    parser.add_argument("--limit", type=float, default=300.0)
    given = parser.parse_args(arguments)
    height, width = map(int, given.size.split("x"))
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    measure_all(given.model, (height, width), device, given.target, given.limit)


if __name__ == "__main__":
    main(sys.argv[1:])
