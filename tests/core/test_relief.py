"""What is kept off the device, and what is done when it runs out of memory: the picture stays the same."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from flashvsr_core import memory, relief, run
from flashvsr_core.bench.inputs import random_clip, random_weights
from flashvsr_core.config import UpscaleParams
from flashvsr_core.errors import OutOfMemory
from flashvsr_core.kernels.fp8_linear import ROUNDING, Rounding, linear_torch
from flashvsr_core.offload import LEVELS, Offload
from flashvsr_core.picture import Group
from flashvsr_core.registry import model_spec
from flashvsr_core.relief import Placement
from flashvsr_core.upscaler import Upscaler
from flashvsr_core.weights import Weights
from tests.core.formula import LEAST, formula_weights, moving_clip

PARAMS = UpscaleParams(scale=4, color_fix="adain", preroll=0, local_range=3, scenes="off")
TILED = replace(PARAMS, tiled_dit="on", tile_size="256", tile_overlap=128)
FRAMES = 29  # two steps


@pytest.fixture(scope="module")
def weights() -> Weights:
    return formula_weights(LEAST)


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    return moving_clip(FRAMES, 32, 96)


@pytest.fixture(scope="module")
def expected(weights: Weights, clip: np.ndarray) -> dict[str, np.ndarray]:
    return {p.tiled_dit: stream(Upscaler.load(weights, p), clip) for p in (PARAMS, TILED)}


def stream(upscaler: Upscaler, frames: np.ndarray, told: list[str] | None = None) -> np.ndarray:
    note = None if told is None else told.append
    return np.concatenate([np.asarray(c) for c in upscaler.stream(iter([frames]), on_fallback=note)])


@pytest.mark.parametrize("level", LEVELS[1:])
def test_offloading_takes_weights_off_the_device_and_changes_nothing(
    weights: Weights, clip: np.ndarray, expected: dict[str, np.ndarray], level: Offload
) -> None:
    upscaler = Upscaler.load(weights, PARAMS)
    all_of_them = upscaler.offloader.weight_bytes
    seen: list[int] = []
    kept: list[bool] = []

    def look(_: object, args: tuple[Any, ...], __: object) -> None:
        seen.append(upscaler.offloader.weight_bytes)
        kept.append(args[6].host is not None)

    upscaler.net.dit.blocks[1].register_forward_hook(look)  # type: ignore[union-attr]
    while_decoding: list[int] = []
    upscaler.net.decode.register_forward_hook(  # type: ignore[attr-defined]
        lambda *_: while_decoding.append(upscaler.offloader.weight_bytes)
    )
    upscaler.place(Placement(level))
    assert np.array_equal(stream(upscaler, clip), expected["auto"])
    assert while_decoding == [0, 0]
    assert all(0 < size <= all_of_them for size in seen)
    assert kept == ([False, True] if level in ("kv", "weights") else [False, False])


@pytest.mark.parametrize("rounding", [None, ROUNDING])
@pytest.mark.parametrize("level", LEVELS[1:])
def test_layers_in_fp8_leave_the_device_too(
    weights: Weights, clip: np.ndarray, level: Offload, rounding: Rounding | None
) -> None:
    """And what they were rounded from is not there any more."""
    upscaler = Upscaler.load(weights, PARAMS)
    exact = upscaler.offloader.weight_bytes
    upscaler.net.dit.quantise(linear_torch, rounding)
    whole = stream(upscaler, clip)
    rounded = upscaler.offloader.weight_bytes
    assert rounded < 0.6 * exact  # of 4 bytes one is left, of the layers that are rounded
    while_decoding: list[int] = []
    upscaler.net.decode.register_forward_hook(  # type: ignore[attr-defined]
        lambda *_: while_decoding.append(upscaler.offloader.weight_bytes)
    )
    upscaler.place(Placement(level))
    assert np.array_equal(stream(upscaler, clip), whole)
    assert while_decoding == [0, 0]
    upscaler.place(Placement())
    assert np.array_equal(stream(upscaler, clip), whole)
    assert rounded <= upscaler.offloader.weight_bytes <= 1.2 * rounded  # tensors begin at whole 256 bytes


@pytest.fixture(scope="module")
def deep(weights: Weights) -> Weights:
    """Of a model with five blocks, so that two are few."""
    spec = replace(weights.spec, dit=replace(weights.spec.dit, num_layers=5))
    dit = {**weights.dit}
    for number in range(2, 5):
        dit |= {
            key.replace("blocks.0.", f"blocks.{number}."): value.clone()
            for key, value in weights.dit.items()
            if "blocks.0." in key
        }
    return replace(weights, spec=spec, dit=dit)


@pytest.mark.parametrize("resident", [0, 1, 2, 3, 5])
def test_keys_and_values_of_some_blocks_may_stay(deep: Weights, clip: np.ndarray, resident: int) -> None:
    upscaler = Upscaler.load(deep, PARAMS)
    whole = stream(upscaler, clip)
    upscaler.place(Placement("kv", resident=resident))
    stayed: dict[int, bool] = {}
    away_at_once: list[int] = []

    def look(number: int) -> Callable[..., None]:
        def after(_: object, args: tuple[Any, ...], __: object) -> None:
            stayed[number] = args[6].host is None
            away_at_once.append(len(upscaler.offloader._brought))

        return after

    for number, block in enumerate(upscaler.net.dit.blocks):
        block.register_forward_hook(look(number))
    assert np.array_equal(stream(upscaler, clip), whole)
    assert sum(stayed.values()) == resident
    assert not (stayed[0] and stayed[1]) or resident > 3  # evenly
    assert max(away_at_once) <= (1 if resident == 0 else 2)  # beside the one at work


@pytest.mark.parametrize("level", ["kv", "weights"])
def test_a_stream_that_failed_leaves_the_model_fit_for_the_next(
    deep: Weights, clip: np.ndarray, level: Offload
) -> None:
    upscaler = Upscaler.load(deep, PARAMS)
    whole = stream(upscaler, clip)
    upscaler.place(Placement(level))
    block = upscaler.net.dit.blocks[3]

    def fail(*_: object) -> None:
        raise RuntimeError("something else than memory")

    hook = block.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="something else"):
        stream(upscaler, clip)
    hook.remove()
    assert np.array_equal(stream(upscaler, clip), whole)


@pytest.mark.parametrize("level", ["kv", "weights"])
def test_every_group_of_tiles_begins_with_the_first_block(deep: Weights, level: Offload) -> None:
    """Three tiles, two at once: the second group's are fewer than the places of the first's."""
    frames = moving_clip(FRAMES, 32, 128)
    upscaler = Upscaler.load(deep, TILED)
    upscaler.place(Placement(batch=2))
    whole = stream(upscaler, frames)
    upscaler.place(Placement(level, batch=2))
    assert np.array_equal(stream(upscaler, frames), whole)


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


@pytest.mark.gpu
def test_copies_beside_the_computation_change_nothing_at_full_size() -> None:
    """Blocks take milliseconds here, and so do their copies: what overtook another would be seen in the picture."""
    spec, params = model_spec("v1.1"), replace(PARAMS, local_range=11)
    upscaler = Upscaler.load(random_weights(spec, "tiny", torch.device("cuda")), params, "cuda")
    clip = random_clip(49, 192, 352)
    whole = stream(upscaler, clip)
    for placement in (Placement("kv"), Placement("kv", resident=10), Placement("weights"), Placement("dit")):
        upscaler.place(placement)
        assert np.array_equal(stream(upscaler, clip), whole), placement
    for placement in (Placement(strips=2), Placement("kv", strips=8), Placement("weights", strips=4)):
        upscaler.place(placement)  # products of fewer rows may be summed in another order
        assert np.abs(stream(upscaler, clip).astype(int) - whole).mean() < 0.1, placement


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


def test_streamed_weights_are_two_blocks_at_most(deep: Weights, clip: np.ndarray) -> None:
    upscaler = Upscaler.load(deep, PARAMS)
    before, whole = upscaler.offloader.weight_bytes, stream(upscaler, clip)
    upscaler.place(Placement("weights"))
    seen: list[int] = []
    upscaler.net.dit.blocks[3].register_forward_hook(lambda *_: seen.append(upscaler.offloader.weight_bytes))  # type: ignore[union-attr]
    assert np.array_equal(stream(upscaler, clip), whole)
    assert max(seen) < 0.45 * before
    upscaler.place(Placement("none"))
    assert np.array_equal(stream(upscaler, clip), whole)


def test_keys_and_values_go_to_the_host_in_tiles_too(
    weights: Weights, clip: np.ndarray, expected: dict[str, np.ndarray]
) -> None:
    upscaler = Upscaler.load(weights, TILED)
    upscaler.place(Placement("kv", decoder_tile=256))
    assert np.abs(stream(upscaler, clip).astype(int) - expected["on"]).max() <= 1


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
