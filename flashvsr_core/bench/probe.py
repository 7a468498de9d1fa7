"""How a loaded model is looked at while it runs: times of its stages, and the blocks that it selects."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flashvsr_core.config import UpscaleParams
from flashvsr_core.errors import FlashvsrError
from flashvsr_core.geometry import Geometry
from flashvsr_core.kernels.block_attention import BlockList, Blocks, as_list
from flashvsr_core.kernels.block_mask import select_blocks
from flashvsr_core.models.attention import Sparsity
from flashvsr_core.upscaler import Upscaler

PARTS = ("fetch", "noise", "enlarge", "model", "color", "send")  # of a step, one after the other
FIRST_STAGE = PARTS[0]


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

    def __init__(
        self,
        upscaler: Upscaler,
        clock: Clock | None,
        change: Callable[[Sparsity], Sparsity],
        params: UpscaleParams | None = None,
    ) -> None:
        super().__init__(upscaler.net, upscaler.spec, params or upscaler.params, upscaler.device)
        self.probed, self.clock, self.change = upscaler, clock, change
        # Weights may have been moved: one offloader knows where to.
        self.offloader, self.placement = upscaler.offloader, upscaler.placement

    def sparsity(self, geometry: Geometry) -> Sparsity:
        return self.change(self.probed.sparsity(geometry))

    def stage(self, name: str) -> AbstractContextManager[object]:
        return self.clock(name) if self.clock else super().stage(name)


def run(upscaler: Upscaler, frames: np.ndarray) -> np.ndarray:
    return np.concatenate([np.asarray(chunk) for chunk in upscaler.stream(iter([frames]))])


def recording(sparsity: Sparsity, recorded: list[BlockList], uneven: list[int]) -> Sparsity:
    """Keep what is selected, and compare how much with the reference on the same input.

    `uneven`: for each selection, blocks more or less than the reference's. Ties at a threshold, of which rounding
    decides, may make one by head and slice; any more raises FlashvsrError.
    """
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
