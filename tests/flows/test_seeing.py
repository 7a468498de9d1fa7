"""What a person sees: the terminal's view and lines, the job's log, the artifacts' texts."""

import io
import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console, ConsoleRenderable, RenderHook

from flashvsr_core.errors import UserError
from flows.artifacts import segment_rows, summary
from flows.cli import options
from flows.cli.progress import clock, line, shown, view
from flows.cli.server import prefect_api
from flows.logs import LARGEST_LOG, job_log, listening
from tasks.events import (
    FramesDone,
    JobPlanned,
    RunEnded,
    SegmentComputed,
    SegmentFailed,
    SegmentReused,
    SegmentStarted,
    StageEntered,
    tell,
)
from tasks.forecast import Costs
from tasks.progress import RunProgress, Snapshot
from tasks.storage import urls
from tasks.storage.jobs import Job
from tests.browser.terminal import plain, screen
from tests.tasks.conftest import Made, job_in, made, store  # noqa: F401 - fixtures

log = logging.getLogger("tasks.test_seeing")
ROOT = Path(__file__).parents[2]
EVIL = "/in/a|b`c [link](javascript:x) <script>.mp4"


def happen() -> None:
    """A run in the middle of its third segment."""
    tell(StageEntered("plan"))
    ranges = ((0, 16), (16, 32), (32, 48), (48, 64), (64, 80))
    planned = JobPlanned(
        "/s/film-0123456789abcdef", 80, 5, 1, ranges, 8, Costs(tail=1.0), EVIL, "/o.mp4", (("scale", "4"),), "mov"
    )
    tell(planned, "80 frames in 5 segments, 1 of them finished before")
    tell(SegmentReused(0, 16))
    tell(StageEntered("segments"))
    tell(SegmentStarted(1, 16, "GPU", "host/7/cuda:0"))
    tell(FramesDone(1, 8, 2 << 30))
    tell(FramesDone(1, 8, 2 << 30))
    tell(SegmentComputed(1, 16, 2.0, 2 << 30, "GPU", ("attention in tiles",)), "segment 1 [16, 32) computed in 2.0 s")
    tell(SegmentStarted(2, 16, "GPU", "host/7/cuda:0", 2))
    tell(FramesDone(2, 8, 3 << 30))
    tell(SegmentFailed(3, "no memory"))
    log.warning("the disk is slow")


@pytest.fixture
def now() -> Snapshot:
    progress = RunProgress()
    with listening(progress, echo=False):
        happen()
    return progress.snapshot()


def drawn(now: Snapshot, plain: bool = False, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(view(now, plain))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_view_says_everything(now: Snapshot) -> None:
    text = drawn(now, width=140)
    for part in ("▸ segments", "· merge", "40/80 frames", "50%", "1 done, 1 reused, 1 running, 1 waiting, 1 failed",
                 "average", "memory 3.00 GiB", "cuda:0", "segment 2", "8/16", "attempt 2",
                 "attention in tiles", "warnings  1, told above"):  # fmt: skip
        assert part in text, (part, text)
    assert "> segments" in drawn(now, plain=True)


@pytest.mark.parametrize("width", [40, 60, 200])
def test_the_view_fits_narrow_terminals(now: Snapshot, width: int) -> None:
    assert all(len(row) <= width for row in drawn(now, width=width).splitlines())


def test_the_line_and_the_clock(now: Snapshot) -> None:
    assert line(now).startswith("segments: 40/80 frames (50%), 2/5 segments (1 reused)")
    assert [clock(seconds) for seconds in (0.2, 59.6, 61, 3661)] == ["0:00", "1:00", "1:01", "1:01:01"]


@pytest.mark.parametrize(
    ("loudness", "said", "not_said"),
    [
        ("normal", ("computed in", "the disk is slow"), ("FramesDone",)),
        ("verbose", ("computed in", "FramesDone"), ()),
        ("quiet", (), ("computed in", "the disk is slow")),
    ],
)
def test_lines_where_there_is_no_terminal(loudness: str, said: tuple[str, ...], not_said: tuple[str, ...]) -> None:
    console = Console(file=io.StringIO(), width=100)
    with shown(console, loudness):  # type: ignore[arg-type]
        happen()
        log.error("it broke")
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "it broke" in text
    for part in said:
        assert part in text
    for part in not_said:
        assert part not in text
    assert logging.getLogger("tasks").propagate


def test_a_terminal_gets_warnings_above_the_view() -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    with shown(console):
        happen()
    assert isinstance(console.file, io.StringIO)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", console.file.getvalue())
    assert "WARNING the disk is slow" in text
    assert "computed in" not in text


class _Slow(RenderHook):
    """Takes its time between what rich has measured and what it writes, as threads do on a busy machine."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        if threading.current_thread() is threading.main_thread():
            time.sleep(0.2)
        return renderables


def test_a_line_and_the_view_are_not_drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.cli.progress.VIEW_SECONDS", 0.01)
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    with shown(console):
        tell(StageEntered("plan"))
        console.push_render_hook(_Slow())
        log.warning("the disk is slow")  # makes the view a row higher
        console.pop_render_hook()
    assert isinstance(console.file, io.StringIO)
    left = plain(screen(console.file.getvalue().replace("\n", "\r\n"), 100))  # as a terminal would
    assert [row[9:] for row in left.splitlines() if row.strip()] == ["WARNING the disk is slow"]


def test_prefects_senders_do_not_break_into_the_view(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    for name in ("PREFECT_API_URL", "PREFECT_LOGGING_LEVEL", "DO_NOT_TRACK"):
        monkeypatch.setenv(name, "http://127.0.0.1:1/api" if name.endswith("URL") else "1")
    loggers = [logging.getLogger(kind.__name__) for kind in (EventsWorker, APILogWorker)]
    for logger in loggers:
        monkeypatch.setattr(logger, "level", logging.NOTSET)
        logger.manager._clear_cache()  # type: ignore[attr-defined]
    with prefect_api():
        assert [logger.isEnabledFor(logging.WARNING) for logger in loggers] == [False, False]


HEARTBEATS = """
from flows.cli.server import prefect_api
with prefect_api():
    from prefect.settings import get_current_settings
    from flows.observe import farewell
    print(get_current_settings().flows.heartbeat_frequency is not None, farewell() >= 1)
"""


@pytest.mark.parametrize(("url", "sent"), [("", "False False"), ("http://127.0.0.1:1/api", "True True")])
def test_only_a_server_that_outlives_the_command_gets_heartbeats(url: str, sent: str) -> None:
    """Prefect waits, as a flow ends, for the thread that sends them: up to a second, twice a run."""
    env = os.environ | {"PREFECT_API_URL": url}
    done = subprocess.run([sys.executable, "-c", HEARTBEATS], env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == sent, done.stderr


def test_quiet_and_verbose_contradict() -> None:
    assert (options.loudness(False, True), options.loudness(True, False)) == ("quiet", "verbose")
    with pytest.raises(UserError, match="contradict"):
        options.loudness(True, True)


def test_the_jobs_log_grows_run_by_run(job_in: Callable[..., Job], store: str) -> None:  # noqa: F811
    job = job_in(store)
    for number in (1, 2):
        with listening(echo=False), job_log(job):
            log.info("run %d", number)
            tell(FramesDone(0, 8))
    text = urls.read_bytes(job.log_url).decode()
    assert [part in text for part in ("run 1", "run 2", "FramesDone")] == [True, True, False]

    def fail() -> None:
        log.info("run 3")
        raise RuntimeError

    with pytest.raises(RuntimeError), listening(echo=False), job_log(job):
        fail()
    assert "run 3" in urls.read_bytes(job.log_url).decode()


def test_the_jobs_log_stays_small(job_in: Callable[..., Job], tmp_path: Path) -> None:  # noqa: F811
    job = job_in(str(tmp_path))
    urls.write_bytes(job.log_url, b"old line\n" * (LARGEST_LOG // 8))
    with listening(echo=False), job_log(job):
        log.info("new line")
    data = urls.read_bytes(job.log_url)
    assert len(data) < LARGEST_LOG
    assert data.startswith(b"(older lines were removed)\nold line\n")
    assert b"new line" in data


def test_the_artifacts_texts(now: Snapshot) -> None:
    rows = segment_rows(now)
    assert [row["state"] for row in rows] == ["reused", "done", "running", "failed", "waiting"]
    assert (rows[1]["link"], rows[3]["link"]) == ("segments/00001.mov", "")
    assert (rows[2]["attempts"], rows[2]["done"]) == (2, "8/16")
    text = summary(now)
    for part in (
        "| scale | `4` |",
        "/o.report.html",
        "- segment 3: no memory",
        "- attention in tiles",
        "- the disk is slow",
        "16 of them reused",
    ):
        assert part in text
    source = next(row for row in text.splitlines() if row.startswith("| source"))
    assert source.count("|") == 3  # the name's own bar does not end the cell
    assert source.count("`") == 2


def test_an_ended_run_has_its_state() -> None:
    progress = RunProgress()
    with listening(progress, echo=False):
        happen()
        tell(RunEnded("failed", 3.0))
    assert "| state | failed |" in summary(progress.snapshot())


def test_root_handlers_hear_messages_but_no_bare_events() -> None:
    heard: list[str] = []

    class Root(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    handler = Root()
    logging.getLogger().addHandler(handler)
    try:
        with listening(echo=True):
            tell(FramesDone(0, 8))
            log.info("hello")
    finally:
        logging.getLogger().removeHandler(handler)
    assert heard == ["hello"]
