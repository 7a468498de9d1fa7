"""How fast a model is on this device, where the time goes, and how far the result is from float32.

The bare loop is measured: uint8 frames on the host in, uint8 frames on the host out, no files.
"""

import math
import resource
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from flashvsr_core.config import UpscaleParams
from flashvsr_core.errors import FlashvsrError
from flashvsr_core.geometry import Geometry
from flashvsr_core.kernels.block_attention import BlockList, Blocks, as_list
from flashvsr_core.kernels.block_mask import select_blocks
from flashvsr_core.models.dit import WINDOW_TOKENS, Dit, Sparsity
from flashvsr_core.models.lq_proj import LqProj
from flashvsr_core.models.tcdecoder import TcDecoder
from flashvsr_core.models.wan_vae import WanVaeDecoder
from flashvsr_core.registry import ModelSpec
from flashvsr_core.segments import FIRST_READ, STEP
from flashvsr_core.upscaler import Upscaler
from flashvsr_core.weights import Weights

_PARTS = ("enlarge", "noise", "model", "color", "send")  # of a step, one after the other
FIRST_STAGE = _PARTS[0]


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
    tflop: float  # arithmetic of a step
    tflops: float


@dataclass(frozen=True)
class Fidelity:
    """Distance from float32 under the same block masks, on random input; flipped blocks apart."""

    psnr_db: float  # peak: range of the float32 result
    blocks: int
    flipped: int  # blocks that float32 would have chosen otherwise
    selections: int  # steps x layers; in each the number of blocks was compared with the reference's
    ties: int  # blocks more or less than the reference, by ties at a threshold


def random_weights(spec: ModelSpec, mode: str, device: torch.device, seed: int = 0) -> Weights:
    """Seeded random weights of a model's shapes, scaled so that every layer matters; they cost what real ones do."""
    generator = torch.Generator(device).manual_seed(seed)
    with torch.device("meta"):
        modules: dict[str, nn.Module] = {"dit": Dit(spec.dit), "lq_proj": LqProj(spec.lq, spec.dit.dim)}
        if mode == "full" and spec.vae is not None:
            modules["vae"] = WanVaeDecoder(spec.vae)
        else:
            modules["tcdecoder"] = TcDecoder(spec.tcdecoder)
    parts: dict[str, Any] = {
        name: {key: _random(key, tuple(v.shape), generator, device) for key, v in module.state_dict().items()}
        for name, module in modules.items()
    }
    prompt = torch.randn(1, spec.prompt_tokens, spec.dit.text_dim, generator=generator, device=device)
    return Weights(spec, **({"tcdecoder": {}} | parts), prompt=prompt, digests={"random": str(seed)})


def _random(key: str, shape: tuple[int, ...], generator: torch.Generator, device: torch.device) -> Tensor:
    drawn = torch.randn(shape, generator=generator, device=device)
    owner, _, last = key.rpartition(".")
    if last == "gamma" or (last == "weight" and "norm" in owner):
        return 1 + 0.1 * drawn
    if last == "bias":
        return 0.1 * drawn
    return drawn / (shape[-1] if last == "modulation" else max(1, drawn[0].numel())) ** 0.5


def random_clip(frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Moving smooth shapes with noise, T H W 3 uint8: neighbouring frames are alike, as in a video."""
    rng = np.random.default_rng(seed)
    t, y, x, c = np.ogrid[:frames, :height, :width, :3]
    wave = np.sin(0.2 * x + 0.3 * t + c) + np.cos(0.15 * y * (1 + 0.1 * c) - 0.2 * t)
    grain = rng.normal(0, 6, (1, height, width, 3))
    return (127 + 50 * wave + grain).clip(0, 255).astype(np.uint8)


def input_size(params: UpscaleParams, height: int, width: int) -> tuple[int, int]:
    """The input whose output is at least height x width."""
    return -(-height // params.scale), -(-width // params.scale)


class Clock:
    """Milliseconds of named stages of each step: device time by CUDA events (on the CPU wall time), and host time."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.steps: list[list[tuple[str, Any, Any, float]]] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        if name == FIRST_STAGE:
            if self.device.type == "cuda":
                # Host times are those of launching: with work still queued they would be those of waiting.
                torch.cuda.synchronize(self.device)
            self.steps.append([])
        begun, host = self._now(), time.perf_counter()
        yield
        self.steps[-1].append((name, begun, self._now(), time.perf_counter() - host))

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:
            with self(name):
                return function(*args)

        return timed

    @contextmanager
    def hooked(self, modules: dict[str, Any]) -> Iterator[None]:
        """Within, the calls of these modules are stages too."""
        hooks, open_stages = [], []
        for name, module in modules.items():

            def enter(*_: object, name: str = name) -> None:
                open_stages.append(self(name))
                open_stages[-1].__enter__()

            def leave(*_: object) -> None:
                open_stages.pop().__exit__(None, None, None)

            hooks += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
        yield
        for hook in hooks:
            hook.remove()

    def steady_ms(self) -> tuple[dict[str, float], dict[str, float]]:
        """Device and host time of each stage per step, without the stream's first step."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        device: dict[str, float] = defaultdict(float)
        host: dict[str, float] = defaultdict(float)
        steady = self.steps[1:]
        for name, begun, ended, seconds in (span for step in steady for span in step):
            ms = begun.elapsed_time(ended) if self.device.type == "cuda" else (ended - begun) * 1e3
            device[name] += ms / len(steady)
            host[name] += seconds * 1e3 / len(steady)
        return dict(device), dict(host)

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class Probe(Upscaler):
    """The same loaded model; its stages are timed by `clock`, its choice of blocks goes through `change`."""

    def __init__(self, upscaler: Upscaler, clock: Clock | None, change: Callable[[Sparsity], Sparsity]) -> None:
        super().__init__(upscaler.net, upscaler.spec, upscaler.params, upscaler.device)
        self.clock, self.change = clock, change

    def sparsity(self, geometry: Geometry) -> Sparsity:
        return self.change(super().sparsity(geometry))

    def stage(self, name: str) -> AbstractContextManager[object]:
        return self.clock(name) if self.clock else super().stage(name)


def measure(upscaler: Upscaler, height: int, width: int, steps: int = 8, warmup: int = 2) -> Speed:
    """Stream a clip whose output is about height x width; the stream's first step and `warmup` more do not count."""
    device = upscaler.device
    frames = random_clip(FIRST_READ + STEP * (warmup + steps), *input_size(upscaler.params, height, width))
    run(upscaler, frames[: FIRST_READ + 2 * STEP])  # compiles, chooses algorithms
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    begun = time.perf_counter()
    marks, emitted = [], 0
    for chunk in upscaler.stream(iter([frames])):
        marks.append(time.perf_counter())
        emitted += len(chunk)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _resident_bytes()
    # The last two emissions come together where copies are awaited a step later.
    spans = [b - a for a, b in zip(marks[warmup:-1], marks[warmup + 1 : -1])]
    step = statistics.median(spans)
    stages, launch, blocks = _stages(upscaler, frames[: FIRST_READ + STEP * 4])
    tflop = step_tflop(upscaler, height, width, blocks)
    return Speed(
        emitted, warmup, len(spans), STEP / step, step * 1e3, min(spans) * 1e3, max(spans) * 1e3, marks[0] - begun,
        launch, peak / 2**30, stages, blocks, tflop, tflop / step,
    )  # fmt: skip


def run(upscaler: Upscaler, frames: np.ndarray) -> np.ndarray:
    return np.concatenate([np.asarray(chunk) for chunk in upscaler.stream(iter([frames]))])


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
    launch = sum(host[name] for name in _PARTS)
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


def fidelity(upscaler: Upscaler, weights: Weights, height: int, width: int, steps: int = 2) -> Fidelity:
    """Compare with the same weights in float32, plain PyTorch kernels, on the blocks that `upscaler` chose.

    Raises FlashvsrError where, on the same scores, the reference selects another number of blocks in some layer;
    entries that tie with the threshold, of which rounding decides, may make a difference of one by head and slice.
    """
    params = replace(upscaler.params, scenes="off", color_fix="none")
    frames = random_clip(FIRST_READ + STEP * (steps - 1), *input_size(params, height, width))
    recorded: list[BlockList] = []
    uneven: list[int] = []
    exact = Upscaler(upscaler.net, upscaler.spec, params, upscaler.device)
    ours = _unclamped(Probe(exact, None, lambda sparsity: _recording(sparsity, recorded, uneven)), frames)
    flipped: list[int] = []
    replay = iter(recorded)

    def change(sparsity: Sparsity) -> Sparsity:
        def select(q: Tensor, k: Tensor, local: Tensor, topk: int) -> Tensor:
            mask, own = next(replay).mask(), select_blocks(q, k, local, topk)
            flipped.append(int((own & ~mask).sum()))
            return mask

        return replace(sparsity, kernels=replace(sparsity.kernels, select=select))

    precise = Upscaler.load(weights, replace(params, precision="fp32", attention="torch"), upscaler.device)
    reference = _unclamped(Probe(precise, None, change), frames)
    peak = float(reference.max() - reference.min())
    error = float((ours - reference).square().mean())
    blocks = sum(int(found.counts.sum()) for found in recorded)
    psnr = 10 * math.log10(peak**2 / error) if error else math.inf
    return Fidelity(psnr, blocks, sum(flipped), len(recorded), sum(uneven))


def _recording(sparsity: Sparsity, recorded: list[BlockList], uneven: list[int]) -> Sparsity:
    """Keep what is selected, and compare how much with the reference on the same input."""
    chosen, n = sparsity.kernels.select, sparsity.local.shape[0]

    def select(q: Tensor, k: Tensor, local: Tensor, topk: int) -> Blocks:
        found = chosen(q, k, local, topk)
        listed = found if isinstance(found, BlockList) else as_list(found)
        expected = select_blocks(q, k, local, topk).sum(-1)
        difference = (listed.counts - expected).unflatten(-1, (-1, n)).sum(-1).abs()
        if int(difference.max()) > 1:
            raise FlashvsrError(
                f"selection {len(recorded)} computes {int(listed.counts.sum())} blocks, the reference "
                f"{int(expected.sum())}; this is a bug in the block selection"
            )
        uneven.append(int(difference.sum()))
        recorded.append(listed)
        return found

    return replace(sparsity, kernels=replace(sparsity.kernels, select=select))


def _unclamped(probe: Probe, frames: np.ndarray) -> Tensor:
    """Decoded frames of a stream before colour correction and quantisation, float32 on the host."""
    found: list[Tensor] = []
    decoder: Any = probe.net.decode
    hook = decoder.register_forward_hook(lambda _m, _i, out: found.append(out[0].float().cpu()))
    run(probe, frames)
    hook.remove()
    return torch.cat(found, dim=2)


def _resident_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
