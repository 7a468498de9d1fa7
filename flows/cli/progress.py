"""What a person sees of a run: a live line on a terminal, plain lines elsewhere. Fed by the events of tasks/events."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from tasks.events import FramesDone, JobPlanned, SegmentComputed, SegmentReused, StageEntered

_OURS = ("flashvsr_core", "tasks", "flows")


class RunProgress(logging.Handler):
    """Counts frames and segments; the average speed is that of frames computed in this run."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(logging.DEBUG)
        self.bar = progress.add_task("planning", total=None, detail="")
        self.progress = progress
        self.guard = threading.Lock()
        self.frames = self.segments = 0
        self.reused_frames = self.done_frames = 0
        self.reused = self.done = 0
        self.stage = "plan"
        self.begun: float | None = None

    def emit(self, record: logging.LogRecord) -> None:
        event = getattr(record, "event", None)
        if event is None:
            return
        with self.guard:
            self._count(event)
            self._show()

    def _count(self, event: object) -> None:
        if isinstance(event, JobPlanned):
            self.frames, self.segments = event.frames, event.segments
        elif isinstance(event, StageEntered):
            self.stage = event.stage
            if event.stage == "segments" and self.begun is None:
                self.begun = time.monotonic()
        elif isinstance(event, SegmentReused):
            self.reused += 1
            self.reused_frames += event.frames
        elif isinstance(event, SegmentComputed):
            self.done += 1
        elif isinstance(event, FramesDone):
            self.done_frames += event.frames

    def _show(self) -> None:
        elapsed = time.monotonic() - self.begun if self.begun else 0.0
        frames_done = self.reused_frames + self.done_frames
        detail = f"{frames_done}/{self.frames} frames  {self.done + self.reused}/{self.segments} segments"
        if self.reused:
            detail += f" ({self.reused} reused)"
        if self.done_frames and elapsed:
            fps = self.done_frames / elapsed
            left = (self.frames - frames_done) / fps
            detail += f"  {fps:.2f} fps  {_clock(max(0.0, left))} left"
        self.progress.update(
            self.bar,
            description=self.stage,
            total=self.frames or None,
            completed=frames_done,
            detail=detail if self.segments else "",
        )


@contextmanager
def shown(console: Console, verbose: bool) -> Iterator[None]:
    """Show progress and log lines on `console` for the duration of a `with` block."""
    progress = Progress(
        TextColumn("{task.description:<8}"),
        BarColumn(),
        TextColumn("{task.fields[detail]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    counter = RunProgress(progress)
    lines = logging.StreamHandler(_ConsoleStream(progress))
    lines.setLevel(logging.DEBUG if verbose else logging.INFO)
    lines.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
    loggers = [logging.getLogger(name) for name in _OURS]
    for logger in loggers:
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
        logger.addHandler(counter)
        logger.addHandler(lines)
    try:
        with progress:
            yield
    finally:
        for logger in loggers:
            logger.removeHandler(counter)
            logger.removeHandler(lines)


class _ConsoleStream:
    """Log lines go above the live progress line."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def write(self, text: str) -> int:
        if text.strip():
            self.progress.console.print(text.rstrip("\n"), markup=False, highlight=False, soft_wrap=True)
        return len(text)

    def flush(self) -> None:
        """Nothing is buffered here."""


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
