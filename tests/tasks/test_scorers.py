"""No-reference scores: through the interface into report and page, and nothing that would have to be downloaded.

The package here is a stand-in, for what the real one does seldom; tests/system/test_scores.py has the real one.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import pytest

from tasks import scorers
from tasks.recover import recover
from tasks.report import look_at, page_beside, report_beside
from tasks.scorers import PyiqaProcess, PyiqaScorer, Scorer, Scores, made_ready, middle, present, score, usual_seconds
from tasks.storage import urls
from tests.tasks.conftest import Made

# What pyiqa offers of itself: `create_metric`, which prints, and what it makes.
PYIQA = """
import json, os, pathlib, sys
import torch

class Mean(torch.nn.Module):
    def forward(self, x):
        assert x.dtype == torch.float32 and x.shape[:2] == (1, 3) and 0 <= float(x.min()) <= float(x.max()) <= 1
        {forward}
        return x.mean()[None, None]

def create_metric(name, device, **options):
    (pathlib.Path(__file__).parent / f"{{name}}.json").write_text(json.dumps([device, options]))
    print("Loading pretrained model", flush=True)
    {create}
    return Mean()
"""
FRAME = np.full((40, 60, 3), 51, np.uint8)


class Sharpness:
    """A scorer of this test's own: mean absolute difference of neighbouring pixels."""

    name = "sharpness"

    def ready(self) -> AbstractContextManager["Sharpness"]:
        return nullcontext(self)

    def usual_seconds(self, megapixels: float, frames: int, ahead: float) -> float:
        return 10.0 * frames

    def score(self, frames: Sequence[np.ndarray]) -> list[float]:
        return [float(np.abs(np.diff(frame.astype(float), axis=1)).mean()) for frame in frames]


class Broken:
    name = "broken"

    def ready(self) -> AbstractContextManager["Broken"]:
        return nullcontext(self)

    def usual_seconds(self, megapixels: float, frames: int, ahead: float) -> float:
        return 1.0

    def score(self, frames: Sequence[np.ndarray]) -> list[float]:
        raise RuntimeError("weights are damaged")


def scored(frames: Sequence[np.ndarray], found: Sequence[Scorer]) -> Scores:
    with made_ready(found) as (ready, notes):
        assert not notes
        return score(frames, ready)


@pytest.fixture
def pyiqa(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Makes the package importable, here and for child processes; returns its folder, which gets what it was told."""

    def make(create: str = "pass", forward: str = "pass") -> Path:
        (tmp_path / "site").mkdir()
        (tmp_path / "site" / "pyiqa.py").write_text(PYIQA.format(create=create, forward=forward))
        monkeypatch.syspath_prepend(str(tmp_path / "site"))
        return tmp_path / "site"

    return make


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """Where PyTorch keeps weights, with files of the names that pyiqa gives them."""
    for place in ("pyiqa/musiq_koniq_ckpt-e95806b9.pth", "clip/RN50.pt"):
        (tmp_path / "hub" / place).parent.mkdir(parents=True)
        (tmp_path / "hub" / place).write_text("weights")
    return tmp_path / "hub"


def test_the_score_is_the_mean_of_frames() -> None:
    flat, sharp = np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 3), np.uint8)
    sharp[:, ::2] = 90
    found = score([flat, sharp], [Sharpness()])
    assert (found.values, found.notes) == ({"sharpness": 45.0}, ())
    assert score([], [Sharpness()]) == Scores()


def test_of_a_large_frame_the_middle_is_scored() -> None:
    frame = np.zeros((2160, 3840, 3), np.uint8)
    frame[::2] = 90
    frame[540:1620, 960:2880] = 7
    assert middle(frame).shape == (1080, 1920, 3)
    found = score([frame], [Sharpness()])
    assert (found.values, len(found.notes)) == ({"sharpness": 0.0}, 1)
    assert "1920x1080 pixels" in found.notes[0]
    assert middle(np.zeros((4320, 1080, 3), np.uint8)).shape == (2880, 720, 3)


def test_a_scorer_reaches_report_and_page(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorers, "present", lambda: (Sharpness(),))
    output = tmp_path / "out.mp4"
    recover(made.job, str(output), made.cache_dir)
    report = urls.read_json(report_beside(str(output)))
    assert report["quality"]["scores"]["sharpness"] > 0
    assert ">SHARPNESS<" in Path(page_beside(str(output))).read_text()


def test_what_scores_take_is_foreseen(pyiqa: Callable[..., Path], hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyiqa()
    monkeypatch.setenv("TORCH_HOME", str(hub.parent))
    small, large, largest = (usual_seconds(width, width * 9 // 16, 4) for width in (640, 1920, 3840))
    assert small.keys() == {"musiq", "clipiqa"}
    assert all(0 < small[name] < large[name] <= scorers.SECONDS for name in small)
    assert largest == large  # no more than the middle is looked at


def test_a_scorer_that_fails_costs_only_its_numbers(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scorers, "present", lambda: (Broken(), Sharpness()))
    recover(made.job, str(tmp_path / "out.mp4"), made.cache_dir)
    quality = look_at(tmp_path / "out.mp4", made.source, made.plan, 1.0).quality
    assert quality is not None
    assert (list(quality.scores), quality.frames_measured > 0) == (["sharpness"], True)
    assert "the score broken was not measured: weights are damaged" in quality.notes[0]


def test_without_weights_on_disk_nothing_is_found(pyiqa: Callable[..., Path], tmp_path: Path) -> None:
    """Not where nothing is, and not where weights lie in a place at which the package would not look."""
    pyiqa()
    assert present(tmp_path) == ()
    (tmp_path / "pyiqa" / "old").mkdir(parents=True)
    for name in ("RN50.pt", "old/musiq_koniq_ckpt-e95806b9.pth"):
        (tmp_path / "pyiqa" / name).touch()
    assert present(tmp_path) == ()


def test_weights_without_the_package_are_left_alone(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorers, "find_spec", lambda _name: None)
    assert present(hub) == ()


def test_metrics_whose_weights_are_there_score(
    pyiqa: Callable[..., Path], hub: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """They are told where their weights are, so that they need not look; what they print is not ours to show."""
    told = pyiqa()
    found = present(hub)
    assert all(isinstance(scorer, PyiqaScorer) for scorer in found)
    scores = scored([FRAME, 2 * FRAME], found)
    assert (scores.values, scores.notes) == ({"musiq": 0.3, "clipiqa": 0.3}, ())
    assert scores.seconds.keys() == {"musiq", "clipiqa"}
    musiq = str(hub / "pyiqa" / "musiq_koniq_ckpt-e95806b9.pth")
    assert json.loads((told / "musiq.json").read_text()) == ["cpu", {"pretrained_model_path": musiq}]
    assert json.loads((told / "clipiqa.json").read_text()) == ["cpu", {"backbone": str(hub / "clip" / "RN50.pt")}]
    assert capfd.readouterr() == ("", "")


def test_all_load_while_other_things_are_done(pyiqa: Callable[..., Path], hub: Path) -> None:
    """Package and weights take seconds that would come one after the other behind everything else."""
    told = pyiqa()
    with made_ready(present(hub)) as (ready, _):
        deadline = time.monotonic() + 120
        while not all((told / f"{scorer.name}.json").exists() for scorer in ready):
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert len(ready) == 2
    # Nobody asked for a score: they end with what they were made ready for.
    assert all(isinstance(scorer, PyiqaProcess) and scorer.process.returncode is not None for scorer in ready)


def test_a_scorer_that_cannot_begin_is_a_note(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(hub / "no-python"))
    with made_ready([PyiqaScorer("clipiqa", hub / "clip" / "RN50.pt"), Sharpness()]) as (ready, (note,)):
        assert [scorer.name for scorer in ready] == ["sharpness"]
    assert note.startswith("the score clipiqa was not measured: ")


@pytest.mark.parametrize(
    ("create", "forward", "reason"),
    [
        ("import urllib.request; urllib.request.urlopen('http://127.0.0.1:9/')", "pass", "nothing is downloaded for a"),
        (
            "import pkg_resources_is_gone",
            "pass",
            "No module named 'pkg_resources_is_gone'; install it anew (pip install",
        ),
        ("pass", "x = x * torch.nan", "the score is nan; "),
        ("pass", "print('words', file=sys.stderr); os.kill(os.getpid(), 9)", "its process ended with status -9"),
    ],
    ids=["download", "package", "nan", "death"],
)
def test_what_goes_wrong_in_the_package_is_a_note(
    pyiqa: Callable[..., Path], hub: Path, create: str, forward: str, reason: str
) -> None:
    pyiqa(create, forward)
    weights = hub / "clip" / "RN50.pt"
    found = scored([FRAME], [PyiqaScorer("clipiqa", weights)])
    (note,) = found.notes
    assert found.values == {}
    assert note.startswith("the score clipiqa was not measured: ")
    assert reason in note
    assert "os.kill" in forward or str(weights) in note


def test_a_frame_too_small_for_the_metric_is_a_note(hub: Path) -> None:
    found = scored([FRAME[:24]], [PyiqaScorer("clipiqa", hub / "clip" / "RN50.pt")])
    (note,) = found.notes
    assert found.values == {}
    assert "a frame of 60x24 is too small for it; it needs 32 pixels each way" in note


@pytest.mark.parametrize("done", [0, 1], ids=["none", "some"])
def test_time_ends_a_score(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: int) -> None:
    slow = tmp_path / "python"
    slow.write_text(f"#!/bin/sh\n{done * 'echo flashvsr-score 0.5'}\nexec sleep 600\n")
    slow.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(slow))
    monkeypatch.setattr(scorers, "SECONDS", 3.0)
    found = scored([FRAME, FRAME], [PyiqaScorer("clipiqa", hub / "clip" / "RN50.pt")])
    (note,) = found.notes
    assert found.seconds["clipiqa"] >= 3.0
    assert found.values == ({"clipiqa": 0.5} if done else {})
    assert ("is of 1 of 2 frames" if done else "no frame of 60x40 was done within 3 s") in note
