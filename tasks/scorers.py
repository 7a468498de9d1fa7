"""No-reference scores by models of others, only where package and weights are on this machine already."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

# pyiqa's name of a metric, and where below PyTorch's hub folder it looks for weights; elsewhere it would fetch them.
PYIQA = {"musiq": "pyiqa/musiq_koniq_ckpt-*.pth", "clipiqa": "clip/RN50.pt"}


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


Finder = Callable[[Path], Sequence[Scorer]]
"""The scorers of one kind that work without any download, given the folder where PyTorch keeps weights."""


def pyiqa_here(hub: Path) -> tuple[Scorer, ...]:
    """Metrics of pyiqa whose weights are on disk; nothing is imported where none are."""
    names = [name for name, pattern in PYIQA.items() if any(hub.glob(pattern))]
    if not names or find_spec("pyiqa") is None:
        return ()
    import pyiqa

    return tuple(PyiqaScorer(name, pyiqa.create_metric(name, device="cpu")) for name in names)


FINDERS: tuple[Finder, ...] = (pyiqa_here,)


def present(hub: Path | None = None) -> tuple[Scorer, ...]:
    """All scorers that work here without any download; `hub`: where weights are looked for, default PyTorch's."""
    hub = hub or Path(torch.hub.get_dir())
    return tuple(scorer for finder in FINDERS for scorer in finder(hub))


def score(frames: Sequence[np.ndarray], scorers: Sequence[Scorer]) -> dict[str, float]:
    """Mean scores of frames, by name of the scorer."""
    return {s.name: round(float(np.mean([s.score(frame) for frame in frames])), 4) for s in scorers if frames}
