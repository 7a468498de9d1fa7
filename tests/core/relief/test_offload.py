"""What is kept off the device: the picture stays the same."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from flashvsr_core.bench.inputs import random_clip, random_weights
from flashvsr_core.kernels.fp8_linear import ROUNDING, Rounding, linear_torch
from flashvsr_core.offload import LEVELS, Offload
from flashvsr_core.registry import model_spec
from flashvsr_core.relief import Placement
from flashvsr_core.upscaler import Upscaler
from flashvsr_core.weights import Weights
from tests.core.formula import moving_clip
from tests.core.relief.streams import FRAMES, PARAMS, TILED, stream


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
