"""How `nano` is trained: every number of the recipe, as data."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from flashvsr_core.registry import MODELS, ModelSpec
from flashvsr_core.training.export import spec_from


@dataclass(frozen=True)
class Recipe:
    """Numbers of one training run. Time-dependent ones follow the share of the planned minutes that has passed."""

    batch: int = 12  # clips of 256x256; larger crops come in smaller batches
    frames: int = 41  # 25 + 8k: a first step and k later ones
    sizes: tuple[int, ...] = (256, 256, 256, 512)  # one is drawn per iteration
    first: int = 48  # clips that the initial values are fitted to
    film: float = 0.3
    soft: float = 0.0  # share of the clips (not of those that H.264 damaged) whose truth a soft camera took
    lr: float = 1e-3
    fan_in: int = 288  # a layer with more inputs learns that much slower
    warmup: int = 150  # iterations
    decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float = 0.5
    average: float = 0.999
    alone: float = 0.25  # share of the time in which the detail injection is withheld: latents carry all ...
    mixed: float = 0.6  # ... then from a falling share of the clips, until this share of the time
    withheld: float = 0.0  # share of the clips from which it is withheld longer, until 80 % of the time; 0 at 95 %
    temporal: float = 0.4
    floor: float = 4e-5  # of the mean squared errors whose logarithm is the loss; about 50 dB
    sparse_share: tuple[float, float] = (0.35, 1.0)  # of blocks selected, drawn per iteration
    seed: int = 1


def load_recipe(path: Path | None) -> tuple[Recipe, ModelSpec]:
    """The default recipe and spec, with what a JSON file {"recipe": {...}, "spec": {"dit": {...}, ...}} changes."""
    changes: dict[str, Any] = json.loads(path.read_text()) if path else {}
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in changes.get("recipe", {}).items()}
    recipe = replace(Recipe(), **given)
    spec = {k: v for k, v in asdict(MODELS["nano"]).items() if k != "vae"}
    for part, values in changes.get("spec", {}).items():
        spec[part] = spec[part] | values if isinstance(values, dict) else values
    return recipe, spec_from(spec)
