"""What a person sees of a run: one live view on a terminal, plain lines elsewhere; drawn from tasks/progress."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Literal

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from flows.logs import listening
from tasks.progress import STAGES, RunProgress, SegmentProgress, Snapshot

Loudness = Literal["quiet", "normal", "verbose"]

VIEW_SECONDS = 1.0  # between views on a terminal: the clock shows seconds, and drawing costs processor time
LINE_SECONDS = 15.0  # between progress lines where there is no terminal
DONE = "green"  # what is done; rich's own bars are red, as if something were wrong
DEVICES = 8  # rows of segments at work that are shown


@contextmanager
def shown(console: Console, loudness: Loudness = "normal") -> Iterator[None]:
    """Show progress and log lines on `console` for the duration of a `with` block.

    On a terminal the live view tells what happens, so only warnings appear as lines; `verbose` shows every event,
    `quiet` nothing but errors.
    """
    progress = RunProgress()
    alive = console.is_terminal and loudness != "quiet"
    drawing = threading.RLock()
    lines = logging.StreamHandler(_ConsoleStream(console, drawing))
    lines.setLevel(_level(loudness, alive))
    lines.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
    with (
        listening(progress, lines, echo=False),
        _beside(console, progress, alive, loudness),
        _drawn(console, progress, drawing) if alive else nullcontext(),
    ):
        yield


def view(now: Snapshot, plain: bool = False) -> RenderableType:
    """The live view of a run at one moment; `plain`: for terminals that know ASCII only."""
    rows: list[RenderableType] = [_stages(now, plain)]
    if now.frames:
        rows += [_bar(now), _numbers(now)]
        rows += [_segment(segment) for segment in now.running[:DEVICES]]
        if len(now.running) > DEVICES:
            rows.append(Text(f"  and {len(now.running) - DEVICES} more segments at work", style="dim"))
    if now.fallbacks:
        more = f" (and {len(now.fallbacks) - 1} before)" if len(now.fallbacks) > 1 else ""
        text = f"  fallback  {now.fallbacks[-1]}{more}"
        rows.append(Text(text, style="yellow", no_wrap=True, overflow="ellipsis"))
    if now.warnings:  # they stand above as lines
        rows.append(Text(f"  warnings  {len(now.warnings)}, told above", style="yellow"))
    return Group(*rows)


def line(now: Snapshot) -> str:
    """The same in one line."""
    text = f"{now.stage}: {now.frames_done}/{now.frames} frames ({now.share:.0%})"
    text += f", {now.count('done', 'reused')}/{len(now.segments)} segments"
    if now.frames_reused:
        text += f" ({now.count('reused')} reused)"
    if now.fps_average:
        text += f", {now.fps_average:.2f} fps"
    if now.left is not None:
        text += f", {clock(now.left)} left"
    return text


def clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _stages(now: Snapshot, plain: bool) -> Text:
    done, here, ahead = ("+", ">", "-") if plain else ("✓", "▸", "·")
    at = STAGES.index(now.stage)
    text = Text("  ")
    for number, stage in enumerate(STAGES):
        mark, style = (done, "green") if number < at else (here, "bold") if number == at else (ahead, "dim")
        text.append(f"{mark} {stage}  ", style)
    return text.append(f"{clock(now.elapsed)}", "dim")


def _bar(now: Snapshot) -> Table:
    left = "time left not known yet" if now.left is None else f"{clock(now.left)} left"
    table = Table.grid(padding=(0, 2))
    table.add_row(
        "",
        ProgressBar(now.frames, now.frames_done, 32, complete_style=DONE, finished_style=DONE),
        f"{now.share:>4.0%}",
        f"{now.frames_done}/{now.frames} frames",
        Text(left, "bold"),
    )
    return table


def _numbers(now: Snapshot) -> Text:
    states = (
        ("done", "done"),
        ("reused", "reused"),
        ("running", "running"),
        ("waiting", "waiting"),
        ("failed", "failed"),
    )
    counts = ", ".join(f"{number} {name}" for state, name in states if (number := now.count(state)))  # type: ignore[arg-type]
    text = Text(f"  segments  {counts}", no_wrap=True, overflow="ellipsis")
    if now.fps_average:
        current = f"{now.fps_now:.2f} now, " if now.fps_now else ""
        text.append(f"    fps {current}{now.fps_average:.2f} average")
    if now.memory_bytes:
        text.append(f"    memory {_gib(now.memory_bytes)}")
    return text


def _segment(segment: SegmentProgress) -> Table:
    device = segment.worker.rpartition("/")[2] or segment.device
    table = Table.grid(padding=(0, 1))
    tries = f"  attempt {segment.attempts}" if segment.attempts > 1 else ""
    speed = f"{segment.fps:.2f} fps" if segment.fps else "starting"
    memory = _gib(segment.memory_bytes) if segment.memory_bytes else ""
    table.add_row(
        Text(f"  {device:<9}", "cyan"),
        f"segment {segment.index}",
        ProgressBar(segment.frames, segment.done, 16, complete_style=DONE, finished_style=DONE),
        f"{segment.done}/{segment.frames}",
        f"{speed}  {memory}{tries}",
    )
    return table


def _gib(number: int) -> str:
    return f"{number / 2**30:.2f} GiB"


def _level(loudness: Loudness, alive: bool) -> int:
    if loudness == "quiet":
        return logging.ERROR
    if loudness == "verbose":
        return logging.DEBUG
    return logging.WARNING if alive else logging.INFO


@contextmanager
def _drawn(console: Console, progress: RunProgress, drawing: threading.RLock) -> Iterator[None]:
    """The live view, drawn while nothing else writes.

    rich measures the view that it writes over before it writes: a view that another thread drew in between, of another
    height, would stay in part. So its own refreshing thread is not used, and `drawing` is held whenever one writes.
    """
    live = Live(
        get_renderable=lambda: view(progress.snapshot(), console.options.ascii_only),
        console=console,
        auto_refresh=False,
        transient=True,
    )
    over = threading.Event()

    def keep_on() -> None:
        while not over.wait(VIEW_SECONDS):
            with drawing:
                if not over.is_set():
                    live.refresh()

    with drawing:
        live.start(refresh=True)
    try:
        threading.Thread(target=keep_on, name="view", daemon=True).start()
        yield
    finally:
        over.set()
        with drawing:
            live.stop()


@contextmanager
def _beside(console: Console, progress: RunProgress, alive: bool, loudness: Loudness) -> Iterator[None]:
    """Where nothing is drawn, a line now and then tells how far the run is."""
    if alive or loudness == "quiet":
        yield
        return
    over = threading.Event()

    def keep_on() -> None:
        while not over.wait(LINE_SECONDS):
            if (now := progress.snapshot()).frames and not now.status:
                console.print(line(now), markup=False, highlight=False, soft_wrap=True)

    threading.Thread(target=keep_on, name="progress", daemon=True).start()
    try:
        yield
    finally:
        over.set()


class _ConsoleStream:
    """Log lines go above the live view."""

    def __init__(self, console: Console, drawing: threading.RLock) -> None:
        self.console, self.drawing = console, drawing

    def write(self, text: str) -> int:
        if text.strip():
            with self.drawing:
                self.console.print(text.rstrip("\n"), markup=False, highlight=False, soft_wrap=True)
        return len(text)

    def flush(self) -> None:
        """Nothing is buffered here."""
