"""Speed of the embedded model on this CPU: python -m tests.bench.cpu writes tests/bench/cpu.md."""

import os
import platform
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from flashvsr_core.config import UpscaleParams
from flashvsr_core.segments import FIRST_READ, STEP
from flashvsr_core.upscaler import Upscaler
from flashvsr_core.weights import embedded_weights

SIDE = 128  # input; 512x512 comes out
WARMUP, STEPS = 2, 6
PRECISIONS = ("fp32", "bf16")


def frames_per_second(precision: str) -> float:
    """Median over later steps of 8 frames, enlargement and colour included."""
    params = UpscaleParams(scenes="off", precision=precision)  # type: ignore[arg-type]
    upscaler = Upscaler.load(embedded_weights(), params)
    count = FIRST_READ + STEP * (WARMUP + STEPS)
    frames = np.random.default_rng(0).integers(0, 255, (count, SIDE, SIDE, 3), dtype=np.uint8)
    marks = [time.perf_counter() for _ in upscaler.stream(iter([frames]))]
    steps = [later - earlier for earlier, later in zip(marks[WARMUP:], marks[WARMUP + 1 : WARMUP + STEPS + 1])]
    return STEP / statistics.median(steps)


def main() -> None:
    lines = [
        "# Embedded model on a CPU",
        "",
        f"512x512 output, {os.cpu_count()} cores ({platform.machine()}), PyTorch {torch.__version__};",
        f"median of {STEPS} steps.",
        "Command: `python -m tests.bench.cpu`",
        "",
        "| precision | output frames per second |",
        "| --- | --- |",
    ]
    lines += [f"| {precision} | {frames_per_second(precision):.2f} |" for precision in PRECISIONS]
    Path(__file__).with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
