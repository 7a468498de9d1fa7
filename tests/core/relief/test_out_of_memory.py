"""What is done when the device runs out of memory: the picture stays the same."""

from typing import Any

import numpy as np
import pytest
import torch

from flashvsr_core import memory
from flashvsr_core.errors import OutOfMemory
from flashvsr_core.offload import Offload
from flashvsr_core.picture import Group
from flashvsr_core.relief import Placement
from flashvsr_core.upscaler import Upscaler
from flashvsr_core.weights import Weights
from tests.core.formula import moving_clip
from tests.core.relief.streams import FRAMES, PARAMS, TILED, failing, stream


@pytest.mark.parametrize("level", ["none", "weights"])
def test_parts_that_are_decoded_become_smaller_where_memory_still_runs_out(weights: Weights, level: Offload) -> None:
    """In a later step: what is remembered of the picture, in parts on the device or the host, is cut anew."""
    upscaler, frames = Upscaler.load(weights, PARAMS), moving_clip(FRAMES + 8, 64, 160)
    whole = stream(upscaler, frames)
    upscaler.place(Placement(level, decoder_tile=384))
    told: list[str] = []
    front = upscaler.net.decode.front  # type: ignore[attr-defined]
    count = 0

    def broken(*args: Any) -> Any:
        nonlocal count
        count += 1
        if count in ((2,) if level == "weights" else (2, 3, 4, 5)):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return front(*args)

    upscaler.net.decode.front = broken  # type: ignore[attr-defined]
    assert np.abs(stream(upscaler, frames, told).astype(int) - whole).max() <= 1
    assert told[-1] == "out of memory in decoder: frames are decoded in parts of 256 pixels (no pixel changes)"
    assert upscaler.placement == Placement("weights", decoder_tile=256)


@pytest.mark.parametrize("calls", [(2,), (1, 2)])
def test_what_stayed_goes_too_where_memory_runs_out(deep: Weights, clip: np.ndarray, calls: tuple[int, ...]) -> None:
    upscaler = Upscaler.load(deep, PARAMS)
    whole = stream(upscaler, clip)
    upscaler.place(Placement("kv", resident=3))
    told: list[str] = []
    with failing(upscaler, "dit", calls):
        assert np.array_equal(stream(upscaler, clip, told), whole)
    assert "the last keys and values" in told[0]
    assert (upscaler.placement.offload, upscaler.placement.resident) == ("kv" if len(calls) == 1 else "weights", 0)


@pytest.mark.parametrize("stage", ["enlarge", "noise", "lq", "dit", "decoder", "color", "send"])
@pytest.mark.parametrize("calls", [(1,), (2, 3)])
def test_out_of_memory_in_any_part_of_any_step_costs_no_pixel(
    weights: Weights, clip: np.ndarray, expected: dict[str, np.ndarray], stage: str, calls: tuple[int, ...]
) -> None:
    upscaler = Upscaler.load(weights, PARAMS)
    told: list[str] = []
    with failing(upscaler, stage, calls):
        out = stream(upscaler, clip, told)
    assert np.abs(out.astype(int) - expected["auto"]).max() <= 1
    assert len(told) == len(calls)
    assert all("no pixel changes" in text for text in told)


@pytest.mark.parametrize("stage", ["lq", "dit", "decoder"])
def test_out_of_memory_with_tiles_at_once(
    weights: Weights, clip: np.ndarray, expected: dict[str, np.ndarray], stage: str
) -> None:
    upscaler = Upscaler.load(weights, TILED)
    upscaler.place(Placement(batch=2))
    told: list[str] = []
    with failing(upscaler, stage, (2,)):
        out = stream(upscaler, clip, told)
    assert np.abs(out.astype(int) - expected["on"]).max() <= 1
    assert ("1 tiles at once instead of 2" in told[0]) == (stage != "decoder")
    assert upscaler.placement.batch == (2 if stage == "decoder" else 1)


def test_later_streams_begin_with_what_worked(weights: Weights, clip: np.ndarray) -> None:
    upscaler = Upscaler.load(weights, PARAMS)
    asked = Placement()
    upscaler.begin(asked)
    with failing(upscaler, "dit", (1,)):
        stream(upscaler, clip[:1])
    assert upscaler.placement == Placement("kv")
    upscaler.begin(asked)
    assert upscaler.placement == Placement("kv")


def test_of_two_streams_side_by_side_one_does_not_undo_what_the_other_did(
    weights: Weights, clip: np.ndarray, expected: dict[str, np.ndarray]
) -> None:
    """As a picture and its transparency: memory runs out in the first, then in the second, which goes on from there."""
    upscaler = Upscaler.load(weights, PARAMS)
    told: list[str] = []
    one, other = (upscaler.stream(iter([clip]), on_fallback=told.append) for _ in range(2))
    with failing(upscaler, "dit", (1,)):
        first = [next(one)]
    with failing(upscaler, "decoder", (1,)):
        second = [next(other)]
    assert upscaler.offloader.level == "kv" == upscaler.placement.offload
    assert "parts of 256 pixels" in told[1]
    for chunks, rest in ((first, one), (second, other)):
        found = np.concatenate([np.asarray(chunk) for chunk in (*chunks, *rest)])
        assert np.abs(found.astype(int) - expected["auto"]).max() <= 1


def test_where_nothing_is_left_the_error_says_so(weights: Weights, clip: np.ndarray) -> None:
    upscaler = Upscaler.load(weights, PARAMS)
    with (
        failing(upscaler, "dit", (1, 2, 3)),
        pytest.raises(OutOfMemory, match=r"out of memory in dit .*--tile-size"),
    ):
        stream(upscaler, clip[:1])


@pytest.mark.parametrize("level", ["none", "kv"])
def test_tiles_at_once_follow_the_memory_that_others_leave(
    weights: Weights, monkeypatch: pytest.MonkeyPatch, level: Offload
) -> None:
    """All is free before the first step, nothing before the second, all again before the third and the next stream.
    What lies on the host is not joined again."""
    upscaler, frames = Upscaler.load(weights, TILED), moving_clip(FRAMES + 8, 32, 96)
    whole = stream(upscaler, frames)
    upscaler.place(Placement(level, batch=2))
    batches: list[int] = []
    upscaler.net.lq_proj.register_forward_pre_hook(lambda _, args: batches.append(len(args[0])))
    free = iter([2**40, 0, 2**40, 2**40])
    monkeypatch.setattr(memory, "available_bytes", lambda _: next(free))
    assert np.abs(stream(upscaler, frames).astype(int) - whole).max() <= 1
    stream(upscaler, frames[:1])
    assert batches == ([2, 1, 1, 2, 2] if level == "none" else [2, 1, 1, 1, 1, 2])


def test_memory_that_is_gone_again_while_tiles_are_joined_costs_nothing(
    weights: Weights, clip: np.ndarray, expected: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    upscaler = Upscaler.load(weights, TILED)
    upscaler.place(Placement(batch=2))
    free = iter([0, 2**40])
    monkeypatch.setattr(memory, "available_bytes", lambda _: next(free))

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(Group, "joined", full)
    assert np.abs(stream(upscaler, clip).astype(int) - expected["on"]).max() <= 1
