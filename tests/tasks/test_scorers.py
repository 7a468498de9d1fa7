"""No-reference scores: through the interface into report and page, and nothing that would have to be downloaded."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tasks import scorers
from tasks.recover import recover
from tasks.report import look_at, page_beside, report_beside
from tasks.scorers import PyiqaScorer, present, score
from tasks.storage import urls
from tests.tasks.conftest import Made

# What pyiqa offers of itself here: `create_metric`, which would download weights that are not in place.
PYIQA = """
import torch

made = []

class Mean(torch.nn.Module):
    def forward(self, x):
        assert x.dtype == torch.float32 and x.shape[:2] == (1, 3) and 0 <= float(x.min()) <= float(x.max()) <= 1
        return x.mean()[None, None]

def create_metric(name, device):
    made.append((name, device))
    return Mean()
"""


class Sharpness:
    """A scorer of this test's own: mean absolute difference of neighbouring pixels."""

    name = "sharpness"

    def score(self, frame: np.ndarray) -> float:
        return float(np.abs(np.diff(frame.astype(float), axis=1)).mean())


@pytest.fixture
def pyiqa(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, str]]]:
    """The package is importable; returns the metrics that were made with it."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "pyiqa.py").write_text(PYIQA)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    before = sys.modules.pop("pyiqa", None)
    yield importlib.import_module("pyiqa").made
    del sys.modules["pyiqa"]
    if before is not None:
        sys.modules["pyiqa"] = before


def test_the_score_is_the_mean_of_frames() -> None:
    flat, sharp = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 3), np.uint8)
    sharp[:, ::2] = 90
    assert score([flat, sharp], [Sharpness()]) == {"sharpness": 45.0}
    assert score([], [Sharpness()]) == {}


def test_a_scorer_reaches_report_and_page(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorers, "FINDERS", (lambda _hub: (Sharpness(),),))
    output = tmp_path / "out.mp4"
    recover(made.job, str(output), made.cache_dir)
    report = urls.read_json(report_beside(str(output)))
    assert report["quality"]["scores"]["sharpness"] > 0
    assert ">SHARPNESS<" in Path(page_beside(str(output))).read_text()


def test_a_scorer_that_fails_costs_only_its_numbers(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_hub: Path) -> tuple[Sharpness, ...]:
        raise RuntimeError("weights are damaged")

    monkeypatch.setattr(scorers, "FINDERS", (broken,))
    recover(made.job, str(tmp_path / "out.mp4"), made.cache_dir)
    quality = look_at(tmp_path / "out.mp4", made.source, made.plan, 1.0).quality
    assert quality is not None
    assert (quality.scores, quality.frames_measured > 0) == ({}, True)
    assert "weights are damaged" in quality.notes[0]


def test_without_weights_on_disk_nothing_is_made(pyiqa: list[tuple[str, str]], tmp_path: Path) -> None:
    """Not where nothing is, and not where weights lie in a place at which the package would not look."""
    assert present(tmp_path) == ()
    (tmp_path / "pyiqa" / "old").mkdir(parents=True)
    for name in ("RN50.pt", "old/musiq_koniq_ckpt-e95806b9.pth"):
        (tmp_path / "pyiqa" / name).touch()
    assert present(tmp_path) == ()
    assert pyiqa == []


def test_weights_without_the_package_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorers, "find_spec", lambda _name: None)
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "RN50.pt").touch()
    assert present(tmp_path) == ()


def test_metrics_whose_weights_are_there_score(pyiqa: list[tuple[str, str]], tmp_path: Path) -> None:
    for place in ("pyiqa/musiq_koniq_ckpt-e95806b9.pth", "clip/RN50.pt"):
        (tmp_path / place).parent.mkdir()
        (tmp_path / place).touch()
    found = present(tmp_path)
    assert all(isinstance(scorer, PyiqaScorer) for scorer in found)
    assert pyiqa == [("musiq", "cpu"), ("clipiqa", "cpu")]
    assert score([np.full((4, 6, 3), 51, np.uint8)], found) == {"musiq": 0.2, "clipiqa": 0.2}
