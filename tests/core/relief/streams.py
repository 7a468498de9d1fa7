"""What tests of relief share: a small model's parameters, a stream's frames, memory that runs out."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from flashvsr_core import run
from flashvsr_core.config import UpscaleParams
from flashvsr_core.upscaler import Upscaler

PARAMS = UpscaleParams(scale=4, color_fix="adain", preroll=0, local_range=3, scenes="off")
TILED = replace(PARAMS, tiled_dit="on", tile_size="256", tile_overlap=128)
FRAMES = 29  # two steps


def stream(upscaler: Upscaler, frames: np.ndarray, told: list[str] | None = None) -> np.ndarray:
    note = None if told is None else told.append
    return np.concatenate([np.asarray(c) for c in upscaler.stream(iter([frames]), on_fallback=note)])


@contextmanager
def failing(upscaler: Upscaler, stage: str, calls: tuple[int, ...]) -> Iterator[None]:
    """Out of memory in the middle of these calls of a part of a step, after it has changed the stream's state."""
    count = 0

    def broken(function: Callable[..., Any]) -> Callable[..., Any]:
        def work(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            result = function(*args, **kwargs)
            if count in calls:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return result

        return work

    net = upscaler.net
    owner, name = {
        "enlarge": (run, "enlarged"),
        "noise": (run.NoiseAhead, "take"),
        "lq": (net.lq_proj, "forward"),
        "dit": (net.dit.blocks[1].cross_attn, "forward"),
        "decoder": (net.decode, "forward"),
        "color": (run.CORRECTIONS, "adain"),
        "send": (run, "send"),
    }[stage]
    patch = pytest.MonkeyPatch()
    if isinstance(owner, dict):
        patch.setitem(owner, name, broken(owner[name]))
    else:
        patch.setattr(owner, name, broken(getattr(owner, name)))
    yield
    patch.undo()
    assert count >= max(calls), f"{stage} was called {count} times only"
