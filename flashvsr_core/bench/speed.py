"""How fast a model is on this device, and where the time goes.

The bare loop is measured: uint8 frames on the host in, uint8 frames on the host out, no files.
"""

import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from flashvsr_core.bench.inputs import input_size, random_clip
from flashvsr_core.bench.probe import FIRST_STAGE, PARTS, Clock, Probe, recording, run
from flashvsr_core.geometry import Geometry
from flashvsr_core.kernels.block_attention import BlockList, Blocks
from flashvsr_core.kernels.token_ops import WINDOW_TOKENS
from flashvsr_core.models.attention import Sparsity
from flashvsr_core.models.lq_proj import LqProj
from flashvsr_core.models.tcdecoder import TcDecoder
from flashvsr_core.segments import FIRST_EMIT, FIRST_READ, STEP
from flashvsr_core.upscaler import Upscaler


@dataclass(frozen=True)
class Speed:
    """What `measure` found. Times are per step of 8 frames, milliseconds; memory is GiB."""

    frames: int
    warmup_steps: int
    steps: int
    fps: float  # 8 frames by the median step
    step_ms: float
    fastest_ms: float
    slowest_ms: float
    first_s: float  # from the first frame in to the first frame out, warm
    launch_ms: float  # host time to launch a step; below step_ms the device never waits for it
    peak_gib: float
    stages_ms: dict[str, float]
    blocks: int  # of attention, computed in a step
    selections: int  # steps x layers; each chose as many blocks as the reference, or the bench would have failed
    ties: int  # blocks more or less than the reference, by ties at a threshold
    tflop: float  # arithmetic of a step
    tflops: float


def measure(upscaler: Upscaler, height: int, width: int, steps: int = 8, warmup: int = 6) -> Speed:
    """Stream a clip whose output is about height x width; the stream's first step and `warmup` more do not count, in
    which steady steps are recorded."""
    device = upscaler.device
    frames = random_clip(FIRST_READ + STEP * (warmup + steps), *input_size(upscaler.params, height, width))
    run(upscaler, frames[: FIRST_READ + 2 * STEP])  # compiles, chooses algorithms
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    begun = time.perf_counter()
    marks = [(time.perf_counter(), len(chunk)) for chunk in upscaler.stream(iter([frames]))]
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _resident_bytes()
    spans = step_spans(marks)[warmup:]
    step = statistics.median(spans)
    stages, launch, blocks = _stages(upscaler, frames[: FIRST_READ + STEP * 4])
    selections, ties = check_selections(upscaler, frames[: FIRST_READ + STEP])
    tflop = step_tflop(upscaler, height, width, blocks)
    return Speed(
        sum(count for _, count in marks), warmup, len(spans), STEP / step, step * 1e3, min(spans) * 1e3,
        max(spans) * 1e3, marks[0][0] - begun,
        launch, peak / 2**30, stages, blocks, selections, ties, tflop, tflop / step,
    )  # fmt: skip


def step_spans(marks: list[tuple[float, int]]) -> list[float]:
    """Seconds of each whole step of 8 frames after a stream's first step, but for what came last.

    marks: when a chunk came, and its frames. Large pictures come in several chunks a step. Where copies are awaited a
    step later the last two emissions come together.
    """
    ends, emitted = [], 0
    for moment, count in marks[:-1]:
        emitted += count
        if emitted >= FIRST_EMIT and (emitted - FIRST_EMIT) % STEP == 0:
            ends.append(moment)
    return [b - a for a, b in pairwise(ends)]


def check_selections(upscaler: Upscaler, frames: np.ndarray) -> tuple[int, int]:
    """Selections compared with the reference (steps x layers) and ties; FlashvsrError where one differs in size."""
    recorded: list[BlockList] = []
    uneven: list[int] = []
    run(Probe(upscaler, None, lambda sparsity: recording(sparsity, recorded, uneven)), frames)
    return len(recorded), sum(uneven)


def _stages(upscaler: Upscaler, frames: np.ndarray) -> tuple[dict[str, float], float, int]:
    """Milliseconds of each stage, host milliseconds to launch a step, and blocks computed, each per steady step.

    From a run of its own, since measuring costs time.
    """
    clock = Clock(upscaler.device)
    counted: list[Tensor] = []

    def change(sparsity: Sparsity) -> Sparsity:
        chosen = sparsity.kernels.select

        def select(*args: Any) -> Blocks:
            found = chosen(*args)
            counted.append(found.counts.sum() if isinstance(found, BlockList) else found.sum())
            return found

        timed = replace(sparsity.kernels, select=clock.around("mask", select))
        return replace(sparsity, attend=clock.around("attention", sparsity.attend), kernels=timed)

    net = upscaler.net
    with clock.hooked({"lq_proj": net.lq_proj, "dit": net.dit, "decoder": net.decode}):
        run(Probe(upscaler, clock, change), frames)
    device, host = clock.steady_ms()
    device["dit_rest"] = device.pop("dit") - device["mask"] - device["attention"]
    device.pop("model")
    launch = sum(host[name] for name in PARTS)
    layers = len(net.dit.blocks)
    steady = counted[layers:]
    return device, launch, int(sum(int(count) for count in steady) * layers / len(steady))


def step_tflop(upscaler: Upscaler, height: int, width: int, blocks: int) -> float:
    """Arithmetic of one steady step as the model is published: 2 per multiply-add, attention by computed blocks."""
    size = input_size(upscaler.params, height, width)
    geometry = Geometry(size[1], size[0], upscaler.params.scale)
    height, width = geometry.padded_height, geometry.padded_width
    spec = upscaler.spec
    dit, tokens = spec.dit, 2 * height * width // 256
    linear = 2 * tokens * dit.dim * (6 * dit.dim + 2 * dit.ffn_dim) * dit.num_layers
    cross = 4 * tokens * spec.prompt_tokens * dit.dim * dit.num_layers
    attention = 4 * blocks * WINDOW_TOKENS**2 * dit.head_dim
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        frames = torch.zeros(1, 3, STEP, height, width)
        latents = torch.zeros(1, dit.out_dim, 2, height // 8, width // 8)
        lq, decoder = LqProj(spec.lq, dit.dim), TcDecoder(spec.tcdecoder)
        past = [torch.zeros(1, n, 2, height // 16, width // 16) for n in (768, spec.lq.hidden[0])]
        lq(frames, (past[0], past[1]))
        decoder(latents, frames, None)
    return (linear + cross + attention + counter.get_total_flops()) / 1e12


def roof_tflops(device: torch.device, dtype: torch.dtype) -> float:
    """The best of some square matrix products in this type."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / milliseconds(lambda: a @ b, device) / 1e9


def milliseconds(function: Callable[[], Any], device: torch.device, warmup: int = 3, repeats: int = 10) -> float:
    """Median time of a call."""
    clock = Clock(device)
    for number in range(warmup + repeats):
        with clock(FIRST_STAGE):
            function()
        if number < warmup:
            clock.steps.clear()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return statistics.median(step[0][1].elapsed_time(step[0][2]) for step in clock.steps)
    return statistics.median(step[0][3] * 1e3 for step in clock.steps)


def _resident_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
