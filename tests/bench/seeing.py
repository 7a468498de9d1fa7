"""How right the time left is, and what being watched costs: python -m tests.bench.seeing

One real run of the bundled clip with the embedded model on the CPU. Time is processor time of this process, so that
other work on the machine, which makes the clock on the wall jump, does not count. The time left is sampled twice a
second and compared with what it then turned out to be.
"""

import functools
import statistics
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flows.cli.server import prefect_api

ROOT = Path(__file__).parents[2]
CLIP = ROOT / "assets" / "bbb.mp4"
TABLE = Path(__file__).with_suffix(".md")
SCALE, SEGMENT = 2, 16
ONCE = ("quality and pictures", "report and page")

spent: dict[str, float] = defaultdict(float)
guard = threading.Lock()


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
    from flows import artifacts, logs, metrics, upscale_video
    from tasks import beat, progress, report, watch

    timed(beat.Heart, "write", "beats")
    timed(watch.Watch, "look", "looking at others' segments")
    timed(artifacts.RunArtifacts, "write", "artifacts in Prefect's UI")
    timed(metrics.RunMetrics, "write", "metrics file")
    timed(progress.RunProgress, "emit", "counting events")
    timed(logs.RunLog, "emit", "run log")
    timed(upscale_video, "look_at", "quality and pictures")
    timed(report, "write_report", "report and page")


def main() -> None:
    with prefect_api(), tempfile.TemporaryDirectory() as folder:
        import os

        os.environ["FLASHVSR_METRICS"] = f"{folder}/flashvsr.prom"
        instrument()
        from flashvsr_core.config import ComputeParams, UpscaleParams
        from flows.logs import listening
        from flows.upscale_video import upscale_video
        from tasks.progress import RunProgress

        progress = RunProgress(clock=time.process_time)
        seen: list[tuple[float, float, float | None]] = []
        over = threading.Event()

        def sample() -> None:
            while not over.wait(0.5):
                now = progress.snapshot()
                seen.append((time.process_time(), now.share, now.left))

        thread = threading.Thread(target=sample)
        with listening(progress, echo=False):
            thread.start()
            begun, wall = time.process_time(), time.monotonic()
            upscale_video(
                str(CLIP),
                f"{folder}/out.mp4",
                params=UpscaleParams(scale=SCALE, model="nano"),
                compute=ComputeParams(devices="cpu", work_dir=f"{folder}/work"),
                segment_frames=SEGMENT,
            )
            end, wall = time.process_time(), time.monotonic() - wall
            over.set()
            thread.join()
    TABLE.write_text(table(seen, begun, end, wall))


def table(seen: list[tuple[float, float, float | None]], begun: float, end: float, wall: float) -> str:
    cpu = end - begun
    lines = [
        "# The time left, and what being watched costs",
        "",
        f"One run of the bundled clip (192x108, 96 frames) with nano at scale {SCALE} on a CPU, segments of {SEGMENT} "
        f"frames: {cpu:.0f} s of processor time. Time is that of the process: the machine was so busy with other work "
        f"that the run took {wall:.0f} s on the wall's clock, at a speed that jumped.",
        "",
        "Command: `python -m tests.bench.seeing`",
        "",
        "| frames done | time left said, median error | largest error | samples |",
        "| --- | --- | --- | --- |",
    ]
    for low, high in ((0.0, 0.1), (0.1, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 0.999)):
        # The last twentieth of a run is left out: there a second is many per cent.
        part = [(left, end - at) for at, share, left in seen if left is not None and low <= share < high]
        errors = [abs(left - real) / real for left, real in part if real > 0.05 * cpu]
        if errors:
            row = f"{statistics.median(errors):.0%} | {max(errors):.0%} | {len(errors)}"
        else:
            row = "not said yet | | 0"
        lines.append(f"| {low:.0%} to {high:.0%} | {row} |")
    lines += [
        "",
        "Once in a run (longer runs: looking takes at most a hundredth of the time):",
        "",
        "| what | processor seconds | of the run |",
        "| --- | --- | --- |",
    ]
    once = {label: seconds for label, seconds in spent.items() if label in ONCE}
    often = {label: seconds for label, seconds in spent.items() if label not in ONCE}
    lines += [f"| {label} | {seconds:.2f} | {seconds / cpu:.2%} |" for label, seconds in ranked(once)]
    lines += ["", "Again and again, by the wall's clock:", "", "| what | processor seconds | of one core |"]
    lines += ["| --- | --- | --- |"]
    lines += [f"| {label} | {seconds:.2f} | {seconds / wall:.2%} |" for label, seconds in ranked(often)]
    total = sum(once.values()) / cpu + sum(often.values()) / wall
    lines += ["", f"Together **{total:.2%}** of the run; all processor seconds over all of this run: "]
    lines[-1] += f"{sum(spent.values()) / cpu:.2%}, because so busy a machine gives the clock more time to tick."
    return "\n".join([*lines, ""])


def ranked(costs: dict[str, float]) -> list[tuple[str, float]]:
    return sorted(costs.items(), key=lambda item: -item[1])


if __name__ == "__main__":
    main()
