"""The bench measures what it says: stages, blocks, arithmetic, and the distance from float32."""

from dataclasses import replace

import pytest
import torch

from flashvsr_core.bench import fidelity as against
from flashvsr_core.bench import speed
from flashvsr_core.bench.inputs import random_weights
from flashvsr_core.config import UpscaleParams
from flashvsr_core.errors import FlashvsrError
from flashvsr_core.kernels.block_attention import BlockList
from flashvsr_core.models.attention import Sparsity
from flashvsr_core.upscaler import Upscaler
from flashvsr_core.weights import Weights
from tests.core.formula import SMALL, formula_weights

PARAMS = UpscaleParams(scale=4, color_fix="none", preroll=0, local_range=3, scenes="off")


@pytest.fixture(scope="module")
def weights() -> Weights:
    return formula_weights()


def float32(weights: Weights) -> Upscaler:
    return against.float32(weights, PARAMS, torch.device("cpu"))


def test_measures_steps_and_stages(weights: Weights) -> None:
    found = speed.measure(Upscaler.load(weights, PARAMS), 128, 256, steps=2, warmup=1)
    assert found.steps == 2
    assert found.fps == pytest.approx(8e3 / found.step_ms)
    assert {"enlarge", "lq_proj", "mask", "attention", "dit_rest", "decoder", "color", "send"} <= set(found.stages_ms)
    # 2 windows, 2 heads, 2 layers: a step chooses at most 2 x 8 blocks in each.
    assert 0 < found.blocks <= 2 * 2 * 2 * 8
    assert found.tflop > 0
    assert (found.selections, found.ties) == (3 * SMALL.dit.num_layers, 0)


def test_float32_is_its_own_reference_and_half_precision_is_near(weights: Weights) -> None:
    exact = against.fidelity(Upscaler.load(weights, PARAMS), float32(weights), 128, 128)
    assert exact.psnr_db == float("inf")
    # 33 frames take three steps: the last ones are emitted by a step of their own.
    assert (exact.flipped, exact.ties, exact.selections) == (0, 0, 3 * SMALL.dit.num_layers)
    half = against.fidelity(Upscaler.load(weights, replace(PARAMS, precision="bf16")), float32(weights), 128, 128)
    assert 45 < half.psnr_db < 100


def test_a_selection_of_another_size_is_an_error(weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    upscaler = Upscaler.load(weights, replace(PARAMS, sparse_ratio=0.1))  # 24 of 48 blocks
    honest = Upscaler.sparsity

    def everything(self: Upscaler, geometry: object) -> Sparsity:
        sparsity = honest(self, geometry)  # type: ignore[arg-type]

        def select(q: torch.Tensor, k: torch.Tensor, *_: object) -> BlockList:
            counts = torch.full(q.shape[:3], k.shape[2], dtype=torch.int32)
            return BlockList(counts, torch.arange(k.shape[2], dtype=torch.int32).expand(*q.shape[:3], -1))

        return replace(sparsity, kernels=replace(sparsity.kernels, select=select))

    monkeypatch.setattr(Upscaler, "sparsity", everything)
    with pytest.raises(FlashvsrError, match="bug in the block selection"):
        against.fidelity(upscaler, float32(weights), 256, 256)
    with pytest.raises(FlashvsrError, match="bug in the block selection"):
        speed.measure(upscaler, 256, 256, steps=2, warmup=1)


def test_random_weights_have_the_models_keys() -> None:
    drawn = random_weights(SMALL, "tiny", torch.device("cpu"))
    expected = formula_weights()
    for part in ("dit", "lq_proj", "tcdecoder"):
        shapes = {key: value.shape for key, value in getattr(drawn, part).items()}
        assert shapes == {key: value.shape for key, value in getattr(expected, part).items()}


def test_steps_are_counted_by_their_frames() -> None:
    """Chunks of 5 and 3 frames are a step: large pictures come so."""
    moments = [(1.0, speed.FIRST_EMIT), (1.5, 5), (2.0, 3), (2.75, 5), (3.0, 3), (3.25, 8), (3.5, 8)]
    assert speed.step_spans(moments) == [1.0, 1.0, 0.25]
    assert speed.step_spans([(1.0, 5), (2.0, speed.FIRST_EMIT - 5), (3.0, 8), (3.1, 4)]) == [1.0]
