"""The whole table of the issue on speed, on one GPU, within 9 minutes:

    python3 -m tests.bench.speed all RESULT.json        # writes RESULT.md too

Needs PyTorch, Triton, einops and safetensors; SageAttention, PyAV and Prefect where they are there (what needs them is
left out otherwise, and the result says so). Weights are seeded random numbers of v1.1. Sections come by importance; one
that would start too late is left out by name. `--model nano --size 256x256` runs the sections that a CPU can.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flashvsr_core.bench import fidelity as near
from flashvsr_core.bench import speed
from flashvsr_core.bench.attention import compare_attention
from flashvsr_core.bench.inputs import input_size, random_clip, random_weights
from flashvsr_core.config import UpscaleParams
from flashvsr_core.geometry import Geometry
from flashvsr_core.registry import model_spec
from flashvsr_core.segments import FIRST_READ
from flashvsr_core.upscaler import DTYPES, Upscaler
from flashvsr_core.weights import Weights
from tests.bench import alternatives
from tests.bench.alternatives import LARGE

LIMIT = 540.0  # seconds for all
ALTERNATIVES_S = 80.0  # seconds after which no further alternative is begun
OURS = ("hopper", "triton")  # attention in 16 bits
SMALL = (384, 512)
SEGMENT = 512  # frames, as by default
QUERY = "name,driver_version,clocks.sm,clocks.mem,temperature.gpu,power.draw"


@dataclass(frozen=True)
class Bench:
    """What all sections share."""

    model: str
    size: tuple[int, int]
    device: torch.device

    def params(self, **choices: Any) -> UpscaleParams:
        return UpscaleParams(model=self.model, scenes="off", preroll=0, **choices)  # type: ignore[arg-type]

    def weights(self) -> Weights:
        return random_weights(model_spec(self.model), "tiny", self.device)

    def exact(self) -> dict[str, Any]:
        return self._profile("exact", near.float32, steps=12)

    def fast(self) -> dict[str, Any]:
        return self._profile("fast", near.exact, steps=12)

    def large(self) -> dict[str, Any]:
        return self._alone("_large")  # beside what other sections leave it would not fit

    def _large(self) -> dict[str, Any]:
        upscaler = Upscaler.load(self.weights(), self.params(), self.device)
        return asdict(speed.measure(upscaler, *LARGE, 6))

    def attention(self) -> list[dict[str, Any]]:
        side = input_size(self.params(), *self.size)
        geometry = Geometry(side[1], side[0], 4)
        return [asdict(way) for way in compare_attention(self._spec.dit, self.params(), geometry, self.device)]

    def alternatives(self) -> dict[str, Any]:
        """Every way to compute a step that is still to be chosen from; see `tests.bench.alternatives`."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        with tempfile.TemporaryDirectory() as folder:
            return alternatives.in_processes(self.model, self.size, Path(folder) / "rows.json", ALTERNATIVES_S)

    def tiles(self) -> dict[str, Any]:
        return self._alone("_tiles")

    def pieces(self) -> dict[str, Any]:
        return self._alone("_pieces")

    def _alone(self, name: str) -> dict[str, Any]:
        """What the method `name` finds in a process of its own: a kernel that was never run may end it."""
        size = "x".join(map(str, self.size))
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "found.json"
            done = subprocess.run(
                [sys.executable, "-m", "tests.bench.speed", name, str(target), "--model", self.model, "--size", size],
                capture_output=True, text=True, timeout=120,
            )  # fmt: skip
            if not target.exists():
                raise RuntimeError(done.stderr[-500:])
            found: dict[str, Any] = json.loads(target.read_text())
            return found

    def _tiles(self) -> dict[str, Any]:
        from tests.bench import kernels

        return kernels.attention_tiles(self._spec.dit, self.device)

    def _pieces(self) -> dict[str, Any]:
        from tests.bench import kernels

        found = kernels.selection(self._spec.dit, self.device, self.size, LARGE)
        return {"selection": found, "layers": kernels.layers(self._spec.dit, self.device),
                "last layers": kernels.last_layers(self.device)}  # fmt: skip

    def cold(self) -> dict[str, float]:
        """Seconds from the start of a process to its first frames, without and with Triton's cache on disk."""
        found = {}
        with tempfile.TemporaryDirectory() as folder:
            for name in ("empty compile cache", "warm compile cache"):
                size = "x".join(map(str, self.size))
                begun = time.time()
                done = subprocess.run(
                    [sys.executable, "-m", "tests.bench.speed", "first", "--model", self.model, "--size", size],
                    env=os.environ | {"TRITON_CACHE_DIR": folder}, capture_output=True, text=True, timeout=180,
                )  # fmt: skip
                if done.returncode:
                    raise RuntimeError(done.stderr[-500:])
                found[name] = float(done.stdout.split()[-1]) - begun
        return found

    def end_to_end(self) -> dict[str, Any]:
        """File in, encoded segment out (x264 veryfast), by the segment task itself: frames per second streamed."""
        from tests.bench.full_size import write_model
        from tests.bench.segment_task import case, write_clip

        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "models").mkdir()
            write_model(folder / "models")
            gc.collect()
            torch.cuda.empty_cache()
            clip = folder / f"{'x'.join(map(str, self.size))}.mp4"
            write_clip(clip, random_clip(2 * SEGMENT, *input_size(self.params(), *self.size)))
            return case(folder, folder / "models", clip, "tiny", SEGMENT)

    @property
    def _spec(self) -> Any:
        return model_spec(self.model)

    def _profile(self, profile: str, reference: Callable[..., Upscaler], steps: int) -> dict[str, Any]:
        upscaler = Upscaler.load(self.weights(), self.params(profile=profile), self.device)
        found: dict[str, Any] = {"roof_tflops": speed.roof_tflops(self.device, DTYPES[upscaler.params.precision])}
        found |= asdict(speed.measure(upscaler, *self.size, steps))
        size = self.size if profile == "fast" else SMALL  # plain attention takes minutes at the whole size
        found["fidelity"] = asdict(
            near.fidelity(upscaler, reference(self.weights(), upscaler.params, self.device), *size)
        )
        return found


# Name, the seconds it takes at most on an H100, and whether a CPU can.
SECTIONS = (
    ("exact", 90, True), ("fast", 60, False), ("attention", 40, False), ("large", 50, False), ("cold", 60, True),
    ("end_to_end", 90, False), ("alternatives", ALTERNATIVES_S + 20, True), ("pieces", 40, False), ("tiles", 60, False),
)  # fmt: skip


def measure(bench: Bench, target: Path, limit: float) -> None:
    begun = time.monotonic()
    result: dict[str, Any] = {
        "model": bench.model,
        "size": "x".join(map(str, bench.size)),
        "device": _device(bench.device),
        "torch": torch.__version__,
        "limit_s": limit,
        "took_s": {},
    }
    for name, expected, anywhere in SECTIONS:
        spent = time.monotonic() - begun
        if bench.device.type != "cuda" and not anywhere:
            result[name] = {"left out": "needs a GPU"}
        elif spent + expected > limit:
            result[name] = {"left out": f"{limit - spent:.0f} s are left, it takes up to {expected}"}
        else:
            result[name] = _section(getattr(bench, name))
        result["took_s"][name] = time.monotonic() - begun - spent
        print(f"{name}: {result['took_s'][name]:.1f} s {json.dumps(result[name])[:300]}", flush=True)
        target.write_text(json.dumps(result, indent=1))
        target.with_suffix(".md").write_text(table(result))
    result["device_after"] = _device(bench.device)
    target.write_text(json.dumps(result, indent=1))
    target.with_suffix(".md").write_text(table(result))


def _section(function: Callable[[], Any]) -> Any:
    try:
        return function()
    except Exception as error:  # noqa: BLE001  the other sections are worth having all the same
        return {"failed": f"{type(error).__name__}: {error}"[:600]}
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def table(result: dict[str, Any]) -> str:
    """The issue's table with what was reached, and every other number below it."""
    what = f"{result['model']} at {result['size']} where no size is named; PyTorch {result['torch']}"
    lines = [what, f"before: {result['device']}; after: {result.get('device_after', 'not ended')}", "",
             "| | must | aim | reached |", "| --- | --- | --- | --- |"]  # fmt: skip
    lines += [f"| {name} | {must} | {aim} | {_reached(result, find)} |" for name, must, aim, find in ROWS]
    for name, *_ in SECTIONS:
        lines += ["", f"## {name}", "", "| | |", "| --- | --- |", *_flat(result.get(name, "not reached"))]
    return "\n".join(lines) + "\n"


def _speed_of(name: str) -> Callable[[dict[str, Any]], str]:
    return lambda r: f"{r[name]['fps']:.1f} fps, {r[name]['peak_gib']:.1f} GiB"


def _best_of(prefix: str) -> Callable[[dict[str, Any]], str]:
    def find(r: dict[str, Any]) -> str:
        rows = {name: row for name, row in r["alternatives"].items() if name.startswith(prefix) and "fps" in row}
        name = max(rows, key=lambda name: rows[name]["fps"], default="")
        return f"{rows[name]['fps']:.1f} fps, {rows[name]['reserved_gib']:.1f} GiB reserved ({name})"

    return find


def _distance_of(name: str) -> Callable[[dict[str, Any]], str]:
    def find(r: dict[str, Any]) -> str:
        found = r[name]["fidelity"]
        return f"{found['psnr_db']:.1f} dB at {found['size']}; {found['flipped']} of {found['blocks']} blocks flipped"

    return find


def _attention(r: dict[str, Any]) -> str:
    rates = {way["name"]: way["tflops"] for way in r["attention"]}
    name = max(OURS, key=lambda name: rates.get(name, 0.0))
    ratio = rates[name] / rates["FlexAttention"]
    return f"{rates[name]:.0f} TFLOP/s ({name}), {ratio:.2f}x FlexAttention; dense cuDNN {rates['dense cuDNN']:.0f}"


def _end_to_end(r: dict[str, Any]) -> str:
    streamed = r["end_to_end"]["segments"][-1]["streamed_fps"]
    return f"{streamed:.1f} fps, {100 * streamed / r['exact']['fps']:.0f} % of the loop"


ROWS: tuple[tuple[str, str, str, Callable[[dict[str, Any]], str]], ...] = (
    ("exact", "60 fps, 14 GiB", "75 fps", _speed_of("exact")),
    ("exact, best alternative", "60 fps", "75 fps", _best_of("exact: ")),
    ("fast", "80 fps", "100 fps", _speed_of("fast")),
    ("fast, best alternative", "80 fps", "100 fps", _best_of("fast: ")),
    ("exact, 1536x2560", "17 fps, 46 GiB", "22 fps", _speed_of("large")),
    ("exact, 1536x2560, best alternative", "17 fps", "22 fps", _best_of("exact 1536x2560: ")),
    ("attention, bf16", "430 TFLOP/s, 1.15x FlexAttention", "550 TFLOP/s", _attention),
    ("exact against float32", "45 dB", "50 dB", _distance_of("exact")),
    ("fast against exact", "38 dB", "42 dB", _distance_of("fast")),
    ("file to file against the loop", "85 %", "95 %", _end_to_end),
    ("first frame, warm compile cache", "20 s", "8 s", lambda r: f"{r['cold']['warm compile cache']:.1f} s"),
)


def _reached(result: dict[str, Any], find: Callable[[dict[str, Any]], str]) -> str:
    try:
        return find(result)
    except (KeyError, TypeError, IndexError):
        return "not measured"


def _flat(value: Any, path: str = "") -> list[str]:
    if isinstance(value, dict):
        return [line for key, part in value.items() for line in _flat(part, f"{path} {key}".strip())]
    if isinstance(value, list):
        return [line for i, part in enumerate(value) for line in _flat(part, f"{path} {i + 1}".strip())]
    return [f"| {path} | {f'{value:.4g}' if isinstance(value, float) else value} |"]


def first(bench: Bench) -> None:
    """Load and emit the first frames, then print the time of day."""
    upscaler = Upscaler.load(bench.weights(), bench.params(), bench.device)
    frames = random_clip(FIRST_READ, *input_size(bench.params(), *bench.size))
    np.asarray(next(iter(upscaler.stream(iter([frames])))))
    print(time.time())


def _device(device: torch.device) -> str:
    if device.type != "cuda":
        return f"CPU, {torch.get_num_threads()} threads"
    done = subprocess.run(
        ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"], capture_output=True, text=True, timeout=10
    )
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 else torch.cuda.get_device_name(device)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("all", "first", "_large", "_tiles", "_pieces"))
    parser.add_argument("target", nargs="?", type=Path, default=Path("speed.json"))
    parser.add_argument("--model", default="v1.1")
    parser.add_argument("--size", default="768x1408")
    parser.add_argument("--limit", type=float, default=LIMIT)
    given = parser.parse_args(arguments)
    height, width = map(int, given.size.split("x"))
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    bench = Bench(given.model, (height, width), device)
    if given.what == "all":
        measure(bench, given.target, given.limit)
    elif given.what == "first":
        first(bench)
    else:
        given.target.write_text(json.dumps(getattr(bench, given.what)()))


if __name__ == "__main__":
    main(sys.argv[1:])
