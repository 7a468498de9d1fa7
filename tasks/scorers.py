"""No-reference scores by models of others, only where package and weights are on this machine already.

Such a package runs in a process of its own: what it prints, breaks, or takes too long over costs a score and no more,
and there it reaches no network. Most of what a score takes is loading package and weights: all scorers do that at once,
while the result's quality is measured, and score one after the other.
"""

import io
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from subprocess import PIPE
from typing import Any, Protocol

import numpy as np
import torch

from flashvsr_core.errors import FlashvsrError, UserError
from tasks.events import LookBegan, tell
from tasks.quality import or_note

SECONDS = 120.0  # a scorer may take for all frames
# Of a frame that are looked at. MUSIQ's work grows with their square: 14 s of a core and 1.5 GB for 1920x1080, and for
# 3840x2160 109 s and 4.7 GB.
PIXELS = 1920 * 1080
ANSWER = "flashvsr-score "  # begins a line with a score; the package writes others
# Threads of a scorer that wait for each other sleep: beside other work on a computer of two cores, spinning made scores
# take 14.3 s instead of 10.1, and here scorers load while others score.
PATIENT = {"OMP_WAIT_POLICY": "PASSIVE"}
NETWORK = frozenset({"socket.connect", "socket.getaddrinfo", "urllib.Request"})  # Python's audit events


@dataclass(frozen=True)
class Metric:
    """What pyiqa needs for one of its metrics, and usually takes where all load at once: seconds on two cores, by a
    frame's megapixels (measured from 640x360 to 1920x1080)."""

    weights: str  # below PyTorch's hub folder, where pyiqa keeps them
    option: str  # of `pyiqa.create_metric`, that takes their path: given one, pyiqa does not look for a download
    start: float  # seconds from the first score's turn on until this one can begin with its first frame
    linear: float  # seconds a frame and megapixel ...
    square: float  # ... and what each megapixel more adds to that
    least: int = 1  # pixels of a frame's shorter side


PYIQA = {
    "musiq": Metric("pyiqa/musiq_koniq_ckpt-*.pth", "pretrained_model_path", 6.4, 1.5, 0.9),
    # CLIP's ResNet-50 halves a frame five times.
    "clipiqa": Metric("clip/RN50.pt", "backbone", 9.1, 3.1, 0.1, least=32),
}


class Ready(Protocol):
    """A scorer that loads, or has loaded, what it needs."""

    @property
    def name(self) -> str: ...

    def score(self, frames: Sequence[np.ndarray]) -> Sequence[float]:
        """The scores of frames (uint8 H W 3, all of one size), at least one; fewer than frames where time is short."""
        ...


class Scorer(Protocol):
    """A score of single frames, higher is better."""

    @property
    def name(self) -> str: ...

    def ready(self) -> AbstractContextManager[Ready]:
        """It loads from now on, beside whatever else is done, and is good for one call of `score`."""
        ...

    def usual_seconds(self, megapixels: float, frames: int, ahead: float) -> float:
        """What the scores of so many frames of this size may take, where it was made ready `ahead` seconds before."""
        ...


@dataclass(frozen=True)
class Scores:
    """Mean scores by name of the scorer, notes on what they are of, and what each took, in seconds."""

    values: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class PyiqaScorer:
    """A metric of pyiqa, on the CPU."""

    name: str
    weights: Path

    @contextmanager
    def ready(self) -> Iterator["PyiqaProcess"]:
        code = "from tasks.scorers import serve; serve()"
        command = [sys.executable, "-P", "-c", code, self.name, str(self.weights)]
        env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))} | PATIENT
        with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=env) as process:
            try:
                yield PyiqaProcess(self.name, process)
            finally:
                process.kill()

    def usual_seconds(self, megapixels: float, frames: int, ahead: float) -> float:
        metric = PYIQA[self.name]
        scoring = frames * megapixels * (metric.linear + megapixels * metric.square)
        return min(SECONDS, max(0.0, metric.start - ahead) + scoring)


@dataclass(frozen=True)
class PyiqaProcess:
    """The process of such a metric."""

    name: str
    process: subprocess.Popen[bytes]

    def score(self, frames: Sequence[np.ndarray]) -> tuple[float, ...]:
        """As Ready. UserError where frames are too small, FlashvsrError with what pyiqa complains of."""
        height, width = frames[0].shape[:2]
        least = PYIQA[self.name].least
        if min(height, width) < least:
            raise UserError(f"a frame of {width}x{height} is too small for it; it needs {least} pixels each way")
        given = io.BytesIO()
        np.save(given, np.stack(frames))
        try:
            said, complaint = self.process.communicate(given.getvalue(), timeout=SECONDS)
            end = _end(self.process.returncode, complaint)
        except subprocess.TimeoutExpired as late:
            self.process.kill()
            said, end = late.stdout or b"", f"no frame of {width}x{height} was done within {SECONDS:.0f} s"
        lines = said.decode(errors="replace").splitlines()
        found = tuple(float(line.removeprefix(ANSWER)) for line in lines if line.startswith(ANSWER))
        if not found:
            raise FlashvsrError(end)
        return found


def _end(status: int, complaint: bytes) -> str:
    lines = complaint.decode(errors="replace").strip().splitlines()
    if status == 1 and lines:  # said by us, or the last words of an exception
        return lines[-1]
    return f"its process ended with status {status}; below 0 it was killed by that signal, -9 for want of memory"


def serve() -> None:
    """The child: frames on standard input as numpy writes them, a line for each score on standard output."""
    sys.addaudithook(_stay_here)
    name, weights = sys.argv[1:]
    metric = _metric(name, Path(weights))
    frames = np.load(io.BytesIO(sys.stdin.buffer.read()), allow_pickle=False)
    for frame in frames:
        x = torch.from_numpy(frame).permute(2, 0, 1)[None].float() / 255
        with torch.inference_mode():
            value = float(metric(x))
        if not math.isfinite(value):
            sys.exit(f"the score is {value}; {weights} may be damaged: fetch it again")
        sys.stdout.write(f"\n{ANSWER}{value}\n")
        sys.stdout.flush()
    os._exit(0)  # taking PyTorch down would need more than a second, for nothing


def _stay_here(event: str, args: tuple[Any, ...]) -> None:
    if event in NETWORK:
        raise PermissionError(f"pyiqa wanted to download ({event}), and nothing is downloaded for a score")


def _metric(name: str, weights: Path) -> Any:
    """The module of a metric; ends the process with a sentence where the package or its weights are unfit."""
    try:
        import pyiqa

        return pyiqa.create_metric(name, device="cpu", **{PYIQA[name].option: str(weights)})
    except Exception as error:  # noqa: BLE001 - whatever a foreign package raises; told
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        sys.exit(
            f"pyiqa made nothing of {weights} ({weights.stat().st_size} bytes): {reason}; install it anew "
            "(pip install 'flashvsr[scores]'), or fetch the file again"
        )


def hub() -> Path:
    """Where PyTorch keeps weights on this machine."""
    return Path(torch.hub.get_dir())


def present(folder: Path | None = None) -> tuple[Scorer, ...]:
    """All scorers that work here without any download; `folder`: where PyTorch keeps weights, by default `hub()`."""
    if find_spec("pyiqa") is None:
        return ()
    found = ((name, sorted((folder or hub()).glob(metric.weights))) for name, metric in PYIQA.items())
    return tuple(PyiqaScorer(name, files[-1]) for name, files in found if files)


@contextmanager
def made_ready(scorers: Sequence[Scorer]) -> Iterator[tuple[tuple[Ready, ...], tuple[str, ...]]]:
    """All of them, loading at once, and notes on those that cannot."""
    ready: list[Ready] = []
    notes: tuple[str, ...] = ()
    with ExitStack() as stack:
        for scorer in scorers:
            begun, failed = or_note(f"the score {scorer.name}", partial(stack.enter_context, scorer.ready()))
            ready += [] if begun is None else [begun]
            notes += failed
        yield tuple(ready), notes


def score(frames: Sequence[np.ndarray], scorers: Sequence[Ready]) -> Scores:
    """Mean scores of frames (uint8 H W 3, all of one size)."""
    if not frames or not scorers:
        return Scores()
    values: dict[str, float] = {}
    seconds: dict[str, float] = {}
    notes: tuple[str, ...] = ()
    parts = [middle(frame) for frame in frames]
    if parts[0].shape != frames[0].shape:
        size = "{1}x{0}".format(*parts[0].shape)
        notes += (f"no-reference scores are of the middle of each frame, {size} pixels",)
    for scorer in scorers:
        tell(LookBegan(scorer.name), f"scoring the result: {scorer.name}")
        begun = time.monotonic()
        made, failed = or_note(f"the score {scorer.name}", partial(scorer.score, parts))
        seconds[scorer.name] = time.monotonic() - begun
        notes += failed
        if made:
            values[scorer.name] = round(float(np.mean(made)), 4)
            if len(made) < len(parts):
                notes += (f"the score {scorer.name} is of {len(made)} of {len(parts)} frames; it had no time for more",)
    return Scores(values, notes, seconds)


def usual_seconds(width: int, height: int, frames: int) -> dict[str, float]:
    """What the scorers that are here usually take for frames of this size, by name: each loads while others score."""
    megapixels = min(PIXELS, width * height) / 1e6
    found: dict[str, float] = {}
    for scorer in present():
        found[scorer.name] = scorer.usual_seconds(megapixels, frames, ahead=sum(found.values()))
    return found


def versions(scores: Mapping[str, float]) -> dict[str, str]:
    """Of the packages that made scores."""
    return {"pyiqa": version("pyiqa")} if scores.keys() & PYIQA.keys() else {}


def middle(frame: np.ndarray) -> np.ndarray:
    """The middle of a frame (H W 3), of its shape and of at most PIXELS pixels."""
    height, width = frame.shape[:2]
    share = min(1.0, math.sqrt(PIXELS / (height * width)))
    rows, columns = int(height * share), int(width * share)
    top, left = (height - rows) // 2, (width - columns) // 2
    return frame[top : top + rows, left : left + columns]
