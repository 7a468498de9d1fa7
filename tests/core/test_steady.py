"""Recorded steps against computed ones. CUDA graphs are imitated: the same operations on the same tensors, again."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flashvsr_core import run
from flashvsr_core.bench.inputs import random_clip
from flashvsr_core.config import UpscaleParams
from flashvsr_core.geometry import Geometry
from flashvsr_core.models.attention import Sparsity
from flashvsr_core.relief import Placement
from flashvsr_core.steady import Steady
from flashvsr_core.upscaler import Upscaler
from tests.core.formula import formula_weights

PARAMS = UpscaleParams(scale=4, color_fix="adain", preroll=0, local_range=3, scenes="off")


class Operations(TorchDispatchMode):
    """Notes every operation, and answers with tensors of the right shape, full of NaN where they are numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        own = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        writes = func._schema.is_mutable
        kept = [leaf.clone() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)] if writes else []
        out = func(*args, **kwargs)
        if writes:  # a recording leaves everything as it was
            for leaf, old in zip((x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)), kept):
                leaf.copy_(old)
        fresh = [x for x in tree_leaves(out) if isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in own]
        self.noted.append((func, args, kwargs, fresh))
        for tensor in fresh:
            tensor.fill_(torch.nan if tensor.is_floating_point() else 0)
        return out


class Recorder:
    """What CUDA graphs do, on the CPU."""

    def __init__(self) -> None:
        self.recordings = 0

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        self.recordings += 1
        with Operations() as operations:
            work()

        def replay() -> None:
            for func, args, kwargs, fresh in operations.noted:
                out = func(*args, **kwargs)
                for place, tensor in zip(
                    fresh, (x for x in tree_leaves(out) if isinstance(x, Tensor)), strict=bool(fresh)
                ):
                    place.copy_(tensor)

        return replay


class Broken:
    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        with Operations():
            work()
        raise RuntimeError("operation not permitted when stream is capturing")


def dense(q: Tensor, k: Tensor, v: Tensor, blocks: Any) -> Tensor:
    """Attention without a branch in Python: what is recorded must not depend on numbers."""
    mask = blocks.repeat_interleave(128, -2).repeat_interleave(128, -1)
    out = F.scaled_dot_product_attention(*(x.flatten(2, 3) for x in (q, k, v)), attn_mask=mask)
    return out.unflatten(2, (-1, 128))


class Plain(Upscaler):
    def sparsity(self, geometry: Geometry) -> Sparsity:
        return replace(super().sparsity(geometry), attend=dense)


@pytest.fixture(scope="module")
def upscaler() -> Upscaler:
    return Plain.load(formula_weights(), PARAMS)


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    return random_clip(25 + 5 * 8, 32, 32)


def streamed(upscaler: Upscaler, frames: np.ndarray, first: int = 0) -> np.ndarray:
    return np.concatenate([np.asarray(part) for part in upscaler.stream(iter([frames]), first=first)])


def recording(upscaler: Upscaler, recorder: Any) -> Upscaler:
    other = Plain(upscaler.net, upscaler.spec, upscaler.params, upscaler.device)
    other.recorder = lambda: recorder
    return other


def kept(upscaler: Upscaler) -> Steady:
    assert upscaler._steady is not None
    return upscaler._steady[1]


def test_replayed_steps_are_the_computed_ones(upscaler: Upscaler, clip: np.ndarray) -> None:
    expected = streamed(upscaler, clip)
    recorder = Recorder()
    other = recording(upscaler, recorder)
    assert np.array_equal(streamed(other, clip), expected)
    # 7 steps: the first of 25 frames, one that warms up, and the others: the ring has 4 slots.
    assert (recorder.recordings, kept(other).replayed) == (4, 5)
    # Later streams, elsewhere in the video, use the same recordings; other sizes get their own.
    later = streamed(upscaler, clip[40::-1], first=800)
    assert np.array_equal(streamed(other, clip[40::-1], first=800), later)
    assert (recorder.recordings, kept(other).replayed) == (4, 8)
    wider = np.concatenate([clip[:41], clip[:41]], axis=2)
    assert np.array_equal(streamed(other, wider), streamed(upscaler, wider))
    assert (recorder.recordings, kept(other).replayed) == (6, 2)


def test_two_streams_at_once_do_not_share_recordings(upscaler: Upscaler, clip: np.ndarray) -> None:
    other = recording(upscaler, Recorder())
    streams = [other.stream(iter([frames])) for frames in (clip[:49], clip[8:57])]
    parts: list[list[np.ndarray]] = [[], []]
    for pair in zip(*streams):
        for found, part in zip(parts, pair):
            found.append(np.asarray(part))
    for found, frames in zip(parts, (clip[:49], clip[8:57])):
        assert np.array_equal(np.concatenate(found), streamed(upscaler, frames))
    assert kept(other).replayed == 3
    assert np.array_equal(streamed(other, clip[:49]), np.concatenate(parts[0]))
    assert kept(other).replayed == 7


def test_what_cannot_be_recorded_is_computed_and_told(
    upscaler: Upscaler, clip: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    other = recording(upscaler, Broken())
    assert np.array_equal(streamed(other, clip), streamed(upscaler, clip))
    assert kept(other).failed == "RuntimeError: operation not permitted when stream is capturing"
    assert kept(other).replayed == 0
    assert "cannot be recorded" in caplog.text


def test_where_memory_runs_out_recordings_are_let_go(
    upscaler: Upscaler, clip: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, other, calls, told = (
        streamed(upscaler, clip),
        recording(upscaler, Recorder()),
        itertools.count(1),
        list[str](),
    )
    correct = run.CORRECTIONS["adain"]

    def full(*args: Tensor) -> Tensor:
        if next(calls) == 5:  # the third step that is replayed
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return correct(*args)

    monkeypatch.setitem(run.CORRECTIONS, "adain", full)
    parts = [np.asarray(part) for part in other.stream(iter([clip]), on_fallback=told.append)]
    assert np.array_equal(np.concatenate(parts), expected)
    assert kept(other).failed == told[0]
    assert kept(other).replayed == 3


def test_only_whole_pictures_with_everything_on_the_device_are_recorded(upscaler: Upscaler, clip: np.ndarray) -> None:
    expected, recorder = streamed(upscaler, clip[:49]), Recorder()
    other = Plain.load(formula_weights(), PARAMS)
    other.recorder = lambda: recorder
    assert np.array_equal(streamed(other, clip[:49]), expected)
    assert kept(other).replayed == 3
    steady, recordings = kept(other), recorder.recordings
    other.place(Placement("dit"))  # moves the weights that are read by what was recorded
    assert steady.failed is not None
    assert np.array_equal(streamed(other, clip[:49]), expected)
    assert (other._steady, recorder.recordings) == (None, recordings)
    tiled = Plain.load(formula_weights(), replace(PARAMS, tiled_dit="on", tile_size="256", tile_overlap=128))
    tiled.recorder = lambda: recorder
    streamed(tiled, np.concatenate([clip[:49]] * 3, axis=2))
    assert recorder.recordings == recordings


@pytest.mark.gpu
def test_cuda_graphs_give_the_same_bits(clip: np.ndarray) -> None:
    params = replace(PARAMS, precision="bf16", attention="triton")
    computed = Upscaler.load(formula_weights(), params, "cuda")
    by_itself, computed.recorder = computed.recorder, None
    expected = streamed(computed, clip)
    computed.recorder = by_itself
    for _ in range(2):
        assert np.array_equal(streamed(computed, clip), expected)
    assert (kept(computed).failed, kept(computed).replayed) == (None, 11)
