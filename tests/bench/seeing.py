"""How right the time left is, and what being watched costs: python -m tests.bench.seeing [--record]

Real runs of the bundled clip (repeated, where it is to be longer) with the embedded model on the CPU, each in a process
of its own, the first of them on a machine that remembers nothing. The time left is asked twice a second, on the clock
on the wall and on the process's own, which other work on the machine does not hold up; afterwards it is known what was
right. What is watched costs is counted in processor time. With --record the runs become those that tests replay.
"""

import copy
import functools
import logging
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import ffmpeg
from rich.console import Console

from flows.cli.server import prefect_api
from tasks.media.ffmpeg import run_ffmpeg
from tests.tasks.recorded import record, save

ROOT = Path(__file__).parents[2]
CLIP = ROOT / "assets" / "bbb.mp4"
TABLE = Path(__file__).with_suffix(".md")
CLOCKS = (time.monotonic, time.process_time)
RIGHT = 0.2
BANDS = ((0.1, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 0.999))

spent: dict[str, float] = defaultdict(float)
guard = threading.Lock()


@dataclass
class Watched:
    """One run: how often the clip is repeated, scale, segment length, whether cuts count; then what was seen of it."""

    repeats: int
    scale: int
    segment: int
    scenes: Literal["auto", "off"] = "auto"
    samples: list[tuple[float, tuple[float, float], tuple[float | None, float | None]]] = field(default_factory=list)
    begun: tuple[float, float] = (0.0, 0.0)
    end: tuple[float, float] = (0.0, 0.0)
    load: float = 0.0
    cpu: float = 0.0
    events: list[tuple[float, Any]] = field(default_factory=list)  # on the process's own clock
    recorded: Any = None

    @property
    def name(self) -> str:
        return f"{96 * self.repeats} frames, x{self.scale}, segments of {self.segment}{self.one_scene}"

    @property
    def one_scene(self) -> str:
        return ", one scene" if self.scenes == "off" else ""


RUNS = (
    Watched(1, 4, 32),
    Watched(2, 2, 512),
    Watched(5, 2, 64),
    Watched(5, 2, 512),
    Watched(4, 2, 32),
    Watched(1, 2, 32, "off"),
    Watched(2, 2, 48, "off"),
    Watched(1, 4, 32, "off"),
)


def timed(holder: Any, name: str, label: str) -> None:
    """Have `holder.name` add its processor time to `spent[label]`."""
    real: Callable[..., Any] = getattr(holder, name)

    @functools.wraps(real)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        begun = time.thread_time()
        try:
            return real(*args, **kwargs)
        finally:
            with guard:
                spent[label] += time.thread_time() - begun

    setattr(holder, name, wrapped)


def instrument() -> None:
    import rich.live

    from flows import artifacts, logs, metrics, upscale_video
    from tasks import beat, progress, report, scout, watch

    timed(rich.live.Live, "refresh", "live view on a terminal")
    timed(beat.Heart, "write", "beats")
    timed(watch.Watch, "look", "looking at others' segments")
    timed(scout, "find_cuts", "looking for scene cuts ahead")
    timed(artifacts.RunArtifacts, "write", "artifacts in Prefect's UI")
    timed(metrics.RunMetrics, "write", "metrics file")
    timed(progress.RunProgress, "emit", "counting events")
    timed(logs.RunLog, "emit", "run log")
    timed(upscale_video, "look_at", "quality and pictures")
    timed(report, "write_report", "report and page")


def watch_run(run: Watched, source: Path, folder: str, output: str) -> None:
    from flashvsr_core.config import ComputeParams, UpscaleParams
    from flows.cli.progress import shown
    from flows.logs import listening
    from flows.upscale_video import upscale_video
    from tasks.events import JobPlanned, StageEntered
    from tasks.forecast import NOTHING_KNOWN
    from tasks.progress import RunProgress

    class Own(RunProgress):
        """On the process's clock, in which the end of a run hardly shows: only until the last frame, nothing known."""

        def emit(self, record: logging.LogRecord) -> None:
            event = getattr(record, "event", None)
            if event is not None:
                run.events.append((time.process_time(), event))
            if isinstance(event, JobPlanned):
                record = copy.copy(record)
                record.event = replace(event, costs=NOTHING_KNOWN)
            if isinstance(event, StageEntered) and event.stage == "merge":
                run.end = run.end[0], time.process_time()
            super().emit(record)

    both = RunProgress(clock=CLOCKS[0]), Own(clock=CLOCKS[1])
    over = threading.Event()

    def sample() -> None:
        while not over.wait(0.5):
            seen = [progress.snapshot() for progress in both]
            now = CLOCKS[0](), CLOCKS[1]()
            run.samples.append((seen[0].share, now, (seen[0].left, seen[1].left)))

    thread = threading.Thread(target=sample)
    with (
        open(os.devnull, "w") as terminal,
        listening(*both, echo=False),
        shown(Console(file=terminal, force_terminal=True, width=120)),
    ):
        thread.start()
        run.begun = CLOCKS[0](), CLOCKS[1]()
        upscale_video(
            str(source),
            output,
            params=UpscaleParams(scale=run.scale, model="nano", scenes=run.scenes),
            compute=ComputeParams(devices="cpu", work_dir=f"{folder}/work"),
            segment_frames=run.segment,
        )
        run.end = CLOCKS[0](), run.end[1]
        ended = CLOCKS[1]()
        run.cpu = ended - run.begun[1]
        run.recorded = record(run.name, run.events, ended)
        over.set()
        thread.join()
    run.load = os.getloadavg()[1]


def one(number: int, folder: str) -> None:
    """One run in this process, as a command is one; what was seen goes into a file."""
    run = RUNS[number]
    os.environ["FLASHVSR_METRICS"] = f"{folder}/flashvsr.prom"
    with prefect_api():
        instrument()
        source = Path(folder) / f"{number}.mp4"
        repeated = ffmpeg.input(str(CLIP), stream_loop=run.repeats - 1).video
        run_ffmpeg(ffmpeg.output(repeated, str(source), vcodec="libx264", crf=16, fps_mode="passthrough"))
        watch_run(run, source, folder, f"{folder}/{number}_out.mp4")
    run.events.clear()
    (Path(folder) / f"{number}.seen").write_bytes(pickle.dumps((run, dict(spent))))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        if sys.argv[1:2] == ["--one"]:
            one(int(sys.argv[2]), sys.argv[3])
            return
        runs = []
        for number in range(len(RUNS)):
            subprocess.run([sys.executable, "-m", "tests.bench.seeing", "--one", str(number), folder], check=True)
            run, costs = pickle.loads((Path(folder) / f"{number}.seen").read_bytes())
            runs.append(run)
            for label, seconds in costs.items():
                spent[label] += seconds
            TABLE.write_text(table(runs))
    if "--record" in sys.argv:
        save([run.recorded for run in runs])


def errors(run: Watched, clock: int, low: float, high: float) -> list[float]:
    """Relative errors of what was said between two shares of the frames."""
    whole = run.end[clock] - run.begun[clock]
    found = [(left[clock], run.end[clock] - now[clock]) for share, now, left in run.samples if low <= share < high]
    # The last twentieth of a run is left out: there a second is many per cent.
    return [abs(left - real) / real for left, real in found if left is not None and real > 0.05 * whole]


def table(runs: list[Watched]) -> str:
    lines = [
        "# The time left, and what being watched costs",
        "",
        "Command: `python -m tests.bench.seeing`",
        "",
        "The bundled clip (192x108, 96 frames, scene cuts at 28 and 64; one scene: with --scenes off), repeated where "
        "a run is longer, with nano on a CPU of 2 cores. The load says how much other work ran (up to 2 is this run "
        "alone). So there are two clocks: that on the wall, until the end of the run; and this process's own, which "
        "others do not hold up, until the last frame and with nothing known from runs before.",
        "",
        "## The time left",
        "",
        f"Share of the moments at which it was right within {RIGHT:.0%} (median error), by how many frames were done. "
        "The last twentieth of the time is left out. The first run knows nothing of the machine.",
        "",
        "| frames, scale, segments of | load | seconds: wall, own | clock | "
        + " | ".join(f"{low:.0%} to {high:.0%}" for low, high in BANDS)
        + " | from 10% on |",
        "| --- | --- | --- | --- | " + "--- | " * (len(BANDS) + 1),
    ]
    for run in runs:
        took = [end - begun for begun, end in zip(run.begun, run.end)]
        for clock, name in enumerate(("wall", "own")):
            shape = f"{96 * run.repeats}, x{run.scale}, {run.segment}{run.one_scene}"
            row = f"| {shape} | {run.load:.1f} | {took[0]:.0f}, {took[1]:.0f} "
            cells = [cell(errors(run, clock, low, high)) for low, high in (*BANDS, (0.1, 0.999))]
            lines.append(f"{row}| {name} | {' | '.join(cells)} |")
    cpu = sum(run.cpu for run in runs)
    wall = sum(run.end[0] - run.begun[0] for run in runs)
    lines += [
        "",
        "## What being watched costs",
        "",
        f"All of these runs together: {cpu:.0f} s of processor time in {wall:.0f} s. The view, artifacts, beats and "
        "metrics are drawn and written so many times a second by the clock on the wall, so their share of the "
        "processor time grows where other work makes a run last.",
        "",
        "| what | processor seconds | of the runs' processor time | of the time on the wall |",
        "| --- | --- | --- | --- |",
    ]
    ranked = sorted(spent.items(), key=lambda item: -item[1])
    ranked.append(("together", sum(spent.values())))
    lines += [f"| {label} | {seconds:.2f} | {seconds / cpu:.2%} | {seconds / wall:.2%} |" for label, seconds in ranked]
    return "\n".join([*lines, ""])


def cell(found: list[float]) -> str:
    if not found:
        return ""
    return f"{sum(error <= RIGHT for error in found) / len(found):.0%} ({statistics.median(found):.0%})"


if __name__ == "__main__":
    main()
