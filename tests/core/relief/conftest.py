"""A small model, another of five blocks, and a clip."""

from dataclasses import replace

import numpy as np
import pytest

from flashvsr_core.upscaler import Upscaler
from flashvsr_core.weights import Weights
from tests.core.formula import LEAST, formula_weights, moving_clip
from tests.core.relief.streams import FRAMES, PARAMS, TILED, stream


@pytest.fixture(scope="module")
def weights() -> Weights:
    return formula_weights(LEAST)


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    return moving_clip(FRAMES, 32, 96)


@pytest.fixture(scope="module")
def expected(weights: Weights, clip: np.ndarray) -> dict[str, np.ndarray]:
    return {p.tiled_dit: stream(Upscaler.load(weights, p), clip) for p in (PARAMS, TILED)}


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
