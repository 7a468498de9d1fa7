"""How right the time left is, and what being watched costs: python -m tests.bench.seeing

One real run of the bundled clip with the embedded model on the CPU. The time left is sampled twice a second and
compared with what the time left then turned out to be. The cost is processor time (of the thread that spends it, so
other processes on the machine do not count) inside everything that only watches, against that of the whole process.
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

        progress = RunProgress()
        seen: list[tuple[float, float, float | None]] = []
        over = threading.Event()

        def sample() -> None:
            while not over.wait(0.5):
                now = progress.snapshot()
                seen.append((time.monotonic(), now.share, now.left))

        thread = threading.Thread(target=sample)
        with listening(progress, echo=False):
            thread.start()
            cpu, begun = time.process_time(), time.monotonic()
            upscale_video(
                str(CLIP),
                f"{folder}/out.mp4",
                params=UpscaleParams(scale=SCALE, model="nano"),
                compute=ComputeParams(devices="cpu", work_dir=f"{folder}/work"),
                segment_frames=SEGMENT,
            )
            end, cpu = time.monotonic(), time.process_time() - cpu
            over.set()
            thread.join()
    TABLE.write_text(table(seen, begun, end, cpu))


def table(seen: list[tuple[float, float, float | None]], begun: float, end: float, cpu: float) -> str:
    wall = end - begun
    lines = [
        "# The time left, and what being watched costs",
        "",
        f"One run of the bundled clip (192x108, 96 frames) with nano at scale {SCALE} on a CPU, segments of {SEGMENT} "
        f"frames: {wall:.0f} s, {cpu:.0f} s of processor time. The machine was shared with other "
        "work, so its speed varied.",
        "Command: `python -m tests.bench.seeing`",
        "",
        "| frames done | time left said, median error | largest error | samples |",
        "| --- | --- | --- | --- |",
    ]
    for low, high in ((0.0, 0.1), (0.1, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 0.999)):
        # The last twentieth of a run is left out: there a second is many per cent.
        part = [(left, end - at) for at, share, left in seen if left is not None and low <= share < high]
        errors = [abs(left - real) / real for left, real in part if real > 0.05 * wall]
        if errors:
            row = f"{statistics.median(errors):.0%} | {max(errors):.0%} | {len(errors)}"
        else:
            row = "not said yet | | 0"
        lines.append(f"| {low:.0%} to {high:.0%} | {row} |")
    lines += ["", "| what | processor seconds | of the run |", "| --- | --- | --- |"]
    for label, seconds in sorted(spent.items(), key=lambda item: -item[1]):
        lines.append(f"| {label} | {seconds:.2f} | {seconds / cpu:.2%} |")
    total = sum(spent.values())
    return "\n".join([*lines, f"| **together** | {total:.2f} | {total / cpu:.2%} |", ""])


if __name__ == "__main__":
    main()
