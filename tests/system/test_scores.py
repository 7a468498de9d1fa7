"""The real pyiqa, as the extra `scores` brings it, scores runs from weights on disk, and reaches for no network.

The weights are random, so the numbers mean nothing: that they come is what is tested.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from tasks.report import page_beside, report_beside
from tasks.storage import urls
from tests.flows.clips import make_clip
from tests.system.processes import ROOT

pytestmark = pytest.mark.system

# What runs at the start of every Python of the environment. PyPI's torchvision belongs to the CUDA build of PyTorch:
# beside a CPU build it cannot be imported unless two operators, which no metric here uses, are declared.
START = """
import os, sys, torch

if torch.version.cuda is None:
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

def refuse(event, args):
    # Prefect's own server and its clients are on this machine.
    host = {"socket.getaddrinfo": lambda: args[0], "socket.connect": lambda: args[1][0]}.get(event, lambda: None)()
    if host not in (None, "localhost", "127.0.0.1", "::1", b"localhost", b"127.0.0.1"):
        with open(os.environ["REACHED_FOR"], "a") as file:
            file.write(f"{event} {args}\\n")
        raise OSError("there is no network")

sys.addaudithook(refuse)
"""


@dataclass(frozen=True)
class Environment:
    """A virtual environment with pyiqa, and a folder of PyTorch's with weights."""

    python: Path
    home: Path

    def run(self, arguments: list[str], folder: Path, home: Path) -> subprocess.CompletedProcess[str]:
        env = os.environ | {
            "TORCH_HOME": str(home),
            "FLASHVSR_WORK": str(folder / "work"),
            "PYTHONPATH": str(ROOT),
            "REACHED_FOR": str(folder / "reached-for.txt"),
        }
        return subprocess.run(
            [str(self.python), *arguments], cwd=folder, env=env, capture_output=True, text=True, timeout=600
        )


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    """What the extra asks for, installed on top of the packages that are here; more than a gigabyte, removed after."""
    folder = tmp_path_factory.mktemp("scores")
    try:
        python = folder / "venv" / "bin" / "python"
        venv.create(folder / "venv", symlinks=True)
        (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
        under = sysconfig.get_path("purelib")
        (packages / "under.pth").write_text(f"import site; site.addsitedir({under!r})\n")
        wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["scores"]
        pip = [
            sys.executable,
            "-m",
            "pip",
            "--python",
            str(python),
            "install",
            "--quiet",
            "--disable-pip-version-check",
        ]
        done = subprocess.run([*pip, f"torch=={version('torch')}", *wanted], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        (packages / "sitecustomize.py").write_text(START)
        found = Environment(python, folder / "torch")
        made = found.run(
            [str(ROOT / "tests" / "system" / "iqa_weights.py"), str(folder / "torch" / "hub")], folder, folder
        )
        assert made.returncode == 0, made.stderr[-3000:]
        yield found
    finally:
        shutil.rmtree(folder)


def report_of(environment: Environment, folder: Path, home: Path) -> tuple[dict[str, Any], str]:
    """The report and its page of a run of the command on a small clip."""
    make_clip(folder / "clip.mp4", 9)
    command = ["-m", "flows.cli.main", "run", "clip.mp4", "out.mp4", "--scale", "2", "--devices", "cpu"]
    done = environment.run(command, folder, home)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Loading pretrained model" not in done.stdout + done.stderr
    output = str(folder / "out.mp4")
    return urls.read_json(report_beside(output)), Path(page_beside(output)).read_text()


def test_a_run_is_scored_from_weights_on_disk(environment: Environment, tmp_path: Path) -> None:
    report, page = report_of(environment, tmp_path, environment.home)
    scores = report["quality"]["scores"]
    assert list(scores) == ["musiq", "clipiqa"], report["quality"]["notes"]
    assert 0 < scores["clipiqa"] < 1
    assert report["quality"]["notes"] == []
    assert report["versions"]["pyiqa"]
    assert ">MUSIQ<" in page
    assert ">CLIPIQA<" in page
    assert not (tmp_path / "reached-for.txt").exists()


def test_missing_and_damaged_weights_cost_scores_and_no_download(environment: Environment, tmp_path: Path) -> None:
    """pyiqa itself would fetch both files again."""
    damaged = tmp_path / "torch" / "hub" / "clip" / "RN50.pt"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes((environment.home / "hub" / "clip" / "RN50.pt").read_bytes()[:1_000_000])
    report, page = report_of(environment, tmp_path, tmp_path / "torch")
    assert report["quality"]["scores"] == {}
    (note,) = report["quality"]["notes"]
    assert note.startswith(f"the score clipiqa was not measured: pyiqa made nothing of {damaged} (1000000 bytes): ")
    assert note.endswith("or fetch the file again")
    assert note in report["warnings"]
    assert "was not measured: pyiqa made nothing of" in page
    assert damaged.stat().st_size == 1_000_000
    assert not (tmp_path / "reached-for.txt").exists()
