"""What Prefect's UI shows of a run besides its state: a progress bar, a table of segments, a summary in Markdown.

Written by a thread of its own, seldom: a slow or absent server delays nothing and fails no run.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from prefect.artifacts import create_table_artifact
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.context import FlowRunContext

from tasks.beside import beside
from tasks.progress import RunProgress, SegmentProgress, Snapshot
from tasks.storage import urls

log = logging.getLogger(__name__)

SECONDS = 5.0  # between two looks at the run
LONGEST_END = 10.0  # seconds that a server which does not answer may hold up the end of a run
TABLE_LOOKS = 3  # the table, which is larger, is written every third time
LARGEST_TABLE = 1000  # rows; beyond, only what is not finished


class RunArtifacts:
    """The artifacts of one flow run: made when the job is known, then updated in place."""

    def __init__(self, client: SyncPrefectClient, flow_run_id: UUID, progress: RunProgress) -> None:
        self.client = client
        self.flow_run_id = flow_run_id
        self.progress = progress
        self.ids: dict[str, UUID] = {}
        self.written: dict[str, Any] = {}

    def write(self, table: bool) -> None:
        """Bring the artifacts up to date; what did not change is not written."""
        now = self.progress.snapshot()
        if not now.job:
            return
        self._put("progress", now, "progress", round(100 * now.share, 1), _described(now))
        if table or now.status:
            self._put("segments", now, "table", segment_rows(now), f"Segments of {now.source}, files below {now.job}")
            self._put("summary", now, "markdown", summary(now), f"Upscaling of {now.source}")

    def _put(self, name: str, now: Snapshot, kind: str, data: Any, description: str) -> None:
        if self.written.get(name) == (data, description):
            return
        key = f"{urls.name(now.job)}-{name}"
        if name not in self.ids:
            made = self.client.create_artifact(
                ArtifactCreate(key=key, type=kind, data=data, description=description, flow_run_id=self.flow_run_id)
            )
            self.ids[name] = made.id
        else:
            self.client.update_artifact(self.ids[name], ArtifactUpdate(data=data, description=description))
        self.written[name] = (data, description)


@contextmanager
def run_artifacts(progress: RunProgress) -> Iterator[None]:
    """Keep the artifacts of the flow run around us up to date for the duration of a `with` block."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:  # called as a plain function
        yield
        return
    run_id = context.flow_run.id

    def keep_on(over: threading.Event) -> None:
        with get_client(sync_client=True) as client:
            artifacts = RunArtifacts(client, run_id, progress)
            look = 0
            while True:
                ending = over.wait(SECONDS if look else 0.5)
                with _harmless("the run's artifacts", logging.DEBUG):
                    artifacts.write(table=ending or look % TABLE_LOOKS == 0)
                if ending:
                    return
                look += 1

    with beside("artifacts", keep_on, LONGEST_END):
        yield


def show_table(rows: list[dict[str, Any]], key: str, description: str) -> None:
    """A table in Prefect's UI, of the run around us; one that cannot be written is missed, and fails nothing."""
    with _harmless(f"the table {key}", logging.WARNING):
        create_table_artifact(rows, key=key, description=description)


@contextmanager
def _harmless(what: str, level: int) -> Iterator[None]:
    """The run matters, what is shown of it does not."""
    try:
        yield
    except Exception as error:  # noqa: BLE001
        log.log(level, "%s was not written to Prefect: %s", what, error)


def segment_rows(now: Snapshot) -> list[dict[str, Any]]:
    """The table of segments; of very many only those that are not finished."""
    shown = now.segments
    if len(shown) > LARGEST_TABLE:
        shown = tuple(s for s in shown if s.state not in ("done", "reused"))[:LARGEST_TABLE]
    return [_row(segment, now.extension) for segment in shown]


def _row(segment: SegmentProgress, extension: str) -> dict[str, Any]:
    """One row; short texts: the UI cuts a table that is wider than its window."""
    finished = segment.state in ("done", "reused")
    return {
        "segment": segment.index,
        "state": segment.state,
        "frames": f"{segment.start} to {segment.stop - 1}",
        "done": f"{segment.done}/{segment.frames}",
        "fps": round(segment.fps, 2) if segment.fps else "",
        "device": segment.worker or segment.device,
        "memory": f"{segment.memory_bytes / 2**30:.2f} GiB" if segment.memory_bytes else "",
        "attempts": segment.attempts or "",
        "link": f"segments/{segment.index:05d}.{extension}" if finished else "",
    }


def _described(now: Snapshot) -> str:
    text = f"{now.stage}: {now.frames_done} of {now.frames} frames"
    if now.fps_average:
        text += f", {now.fps_average:.2f} fps"
    if now.left:
        text += f", about {now.left:.0f} s left"
    return f"{text} ({now.status})" if now.status else text


def summary(now: Snapshot) -> str:
    """The run in Markdown: places, parameters, how far, and what a reader should know."""
    output = urls.normalise(now.output) if now.output else ""
    stem = output.rpartition(".")[0]
    rows = [
        ("source", _code(now.source)),
        ("output", _linked(output)),
        ("report", f"{_linked(f'{stem}.report.html')}, {_linked(f'{stem}.report.json')}" if stem else ""),
        ("job", _linked(now.job)),
        ("state", now.status or now.stage),
        ("frames", f"{now.frames_done} of {now.frames}, {now.frames_reused} of them reused"),
        ("segments", f"{now.count('done')} computed, {now.count('reused')} reused, {len(now.segments)} in all"),
        ("speed", f"{now.fps_average:.2f} fps" if now.fps_average else "not known yet"),
        ("peak memory", f"{now.memory_bytes / 2**30:.2f} GiB" if now.memory_bytes else "not known yet"),
    ]
    lines = ["| run | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows), ""]
    if now.parameters:
        lines += ["## Parameters", "", "| parameter | value |", "| --- | --- |"]
        lines += [f"| {name} | {_code(value)} |" for name, value in now.parameters]
        lines.append("")
    failed = tuple(f"segment {s.index}: {s.error}" for s in now.segments if s.state == "failed")
    for title, texts in (("Failed", failed), ("Fallbacks", now.fallbacks), ("Warnings", now.warnings)):
        if texts:
            lines += [f"## {title}", "", *(f"- {_plain(text)}" for text in texts), ""]
    return "\n".join(lines)


def _linked(url: str) -> str:
    """A link where a browser can follow it; a place on a disk or in a bucket as text that can be copied."""
    return f"[{_plain(url)}]({url})" if url.startswith(("http://", "https://")) else _code(url)


def _code(text: str) -> str:
    """Text as it is, whatever characters it holds, inside a table cell."""
    return f"`{_one_line(text).replace('`', chr(0x2019)).replace('|', chr(0xFF5C))}`" if text else ""


def _plain(text: str) -> str:
    return "".join(f"\\{c}" if c in "\\`*_{}[]()<>#+-.!|~" else c for c in _one_line(text))


def _one_line(text: str) -> str:
    return " ".join(text.split())
