"""Blocks that work on strips of the picture, one after the other: the picture stays the same."""

from dataclasses import replace

import numpy as np
import pytest

from flashvsr_core import relief, run
from flashvsr_core.kernels.fp8_linear import ROUNDING, linear_torch
from flashvsr_core.offload import Offload
from flashvsr_core.relief import Placement
from flashvsr_core.upscaler import Upscaler
from flashvsr_core.weights import Weights
from tests.core.formula import moving_clip
from tests.core.relief.streams import FRAMES, PARAMS, TILED, failing, stream


@pytest.mark.parametrize("kv_ratio", [1, 3])
@pytest.mark.parametrize("placement", [Placement(strips=2), Placement("kv", strips=4), Placement("weights", strips=8)])
def test_strips_change_nothing(deep: Weights, placement: Placement, kv_ratio: int) -> None:
    """Two windows high, three wide; with kv_ratio 1 a stream's first step makes more than is remembered."""
    upscaler = Upscaler.load(deep, replace(PARAMS, kv_ratio=kv_ratio))
    frames = moving_clip(FRAMES + 8, 64, 96)
    whole = stream(upscaler, frames)
    upscaler.place(placement)
    windows: list[int] = []
    upscaler.net.dit.blocks[1].cross_attn.register_forward_hook(  # type: ignore[union-attr, operator]
        lambda _, args, __: windows.append(args[0].shape[1] // 128)
    )
    assert np.array_equal(stream(upscaler, frames), whole)
    assert sum(windows) == (3 + 1 + 1) * 6
    assert max(windows) == {2: 3, 4: 2, 8: 1}[placement.strips]


@pytest.mark.parametrize("level", ["none", "kv"])
def test_blocks_work_on_strips_where_memory_runs_out(
    deep: Weights, monkeypatch: pytest.MonkeyPatch, level: Offload
) -> None:
    """In the second step; frames are then made once more, after the DiT."""
    upscaler, frames = Upscaler.load(deep, PARAMS), moving_clip(FRAMES + 8, 64, 96)
    whole = stream(upscaler, frames)
    monkeypatch.setattr(relief, "LEAST_WINDOWS", 1)
    upscaler.place(Placement(level))
    told: list[str] = []
    with failing(upscaler, "dit", (2,)):
        assert np.array_equal(stream(upscaler, frames, told), whole)
    assert "work on 4 strips" in told[0]
    assert upscaler.placement == Placement(level, strips=4)
    made: list[int] = []
    enlarged = run.enlarged
    monkeypatch.setattr(run, "enlarged", lambda *args: made.append(len(args[0])) or enlarged(*args))
    assert np.array_equal(stream(upscaler, frames), whole)
    assert made == [25, 25, 8, 8, 8, 8]


def test_the_input_that_is_made_beside_strips_may_not_fit_either(
    weights: Weights, clip: np.ndarray, expected: dict[str, np.ndarray]
) -> None:
    upscaler = Upscaler.load(weights, PARAMS)
    upscaler.place(Placement("weights", strips=2))
    told: list[str] = []
    with failing(upscaler, "enlarge", (1, 4)):
        assert np.array_equal(stream(upscaler, clip, told), expected["auto"])
    assert len(told) == 2
    assert all("frames at once" in text for text in told)


def test_strips_of_several_tiles_at_once(deep: Weights) -> None:
    frames = moving_clip(FRAMES, 32, 128)
    upscaler = Upscaler.load(deep, TILED)
    upscaler.place(Placement(batch=2))
    whole = stream(upscaler, frames)
    upscaler.place(Placement(batch=2, strips=2))
    assert np.array_equal(stream(upscaler, frames), whole)


def test_strips_in_fp8(deep: Weights, clip: np.ndarray) -> None:
    upscaler = Upscaler.load(deep, PARAMS)
    upscaler.net.dit.quantise(linear_torch, ROUNDING)
    whole = stream(upscaler, clip)
    upscaler.place(Placement("kv", strips=2))
    assert np.array_equal(stream(upscaler, clip), whole)
