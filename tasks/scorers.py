"""No-reference scores by models of others, only where package and weights are on this machine already."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

log = logging.getLogger(__name__)

# pyiqa's name of a metric, and what its weights' file is called in pyiqa's cache.
PYIQA = {"musiq": "musiq_koniq_ckpt*.pth", "clipiqa": "RN50.pt"}


class Scorer(Protocol):
    """A score of single frames, higher is better."""

    @property
    def name(self) -> str: ...

    def score(self, frame: np.ndarray) -> float:
        """The score of one frame, uint8 H W 3."""
        ...


@dataclass(frozen=True)
class PyiqaScorer:
    """A metric of pyiqa."""

    name: str
    metric: Any

    def score(self, frame: np.ndarray) -> float:
        x = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[None].float() / 255
        with torch.inference_mode():
            return float(self.metric(x))


def present(cache: Path | None = None) -> tuple[Scorer, ...]:
    """The scorers that work here without any download; `cache`: where pyiqa keeps weights."""
    if find_spec("pyiqa") is None:
        return ()
    cache = cache or Path(torch.hub.get_dir()) / "pyiqa"
    found: list[Scorer] = []
    for name, pattern in PYIQA.items():
        if not any(cache.rglob(pattern)):
            continue
        import pyiqa

        found.append(PyiqaScorer(name, pyiqa.create_metric(name, device="cpu")))
    return tuple(found)


def score(frames: Sequence[np.ndarray], scorers: Sequence[Scorer]) -> dict[str, float]:
    """Mean scores of frames, by name of the scorer."""
    return {s.name: round(float(np.mean([s.score(frame) for frame in frames])), 4) for s in scorers if frames}
