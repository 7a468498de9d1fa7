"""The report of a run: what was made, from what, how fast, what was reused, every fallback and note."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import TypeAdapter

from tasks.plan import JobPlan
from tasks.storage import urls
from tasks.storage.jobs import Job, SegmentResult

REPORT = 1  # version of report.json


@dataclass(frozen=True)
class OutputFile:
    """What was (or is about to be) published at `url`."""

    url: str
    bytes: int
    sha256: str
    pattern: str | None = None  # of images, where `url` is their manifest


@dataclass(frozen=True)
class RunReport:
    """One finished run; stands beside the output and in the job's directory."""

    version: int
    key: str
    status: str  # "done" or "already done"
    source: str
    output: OutputFile
    width: int
    height: int
    frames: int
    source_width: int
    source_height: int
    frame_rate: tuple[int, int]
    segments: int
    segments_computed: int
    segments_reused: int
    seconds: float
    fps: float
    peak_memory_bytes: int
    devices: tuple[str, ...]
    job: str
    plan: dict[str, Any]
    results: tuple[SegmentResult, ...]
    fallbacks: tuple[str, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        found = _reports.dump_python(self, mode="json")
        assert isinstance(found, dict)
        return found


_reports: TypeAdapter[RunReport] = TypeAdapter(RunReport)
_outputs: TypeAdapter[OutputFile] = TypeAdapter(OutputFile)


def report_beside(output_url: str) -> str:
    """Where the report of an output stands: `clip_4x.mp4` has `clip_4x.report.json`."""
    stem = urls.name(output_url).rpartition(".")[0].removesuffix(".manifest")
    return urls.join(urls.parent(output_url), urls.fitting(stem, ".report.json"))


@task(name="report", cache_policy=NO_CACHE)
def make_report(
    job: Job,
    plan: JobPlan,
    output: OutputFile,
    results: tuple[SegmentResult, ...],
    computed: frozenset[int],
    seconds: float,
    notes: tuple[str, ...],
) -> RunReport:
    """Write the report beside the output and into the job's directory."""
    fresh = [result for result in results if result.segment in computed]
    geometry = plan.geometry
    report = RunReport(
        version=REPORT,
        key=job.key,
        status="done",
        source=plan.source,
        output=output,
        width=geometry.out_width,
        height=geometry.out_height,
        frames=plan.info.frames,
        source_width=plan.info.width,
        source_height=plan.info.height,
        frame_rate=plan.info.frame_rate,
        segments=len(results),
        segments_computed=len(fresh),
        segments_reused=len(results) - len(fresh),
        seconds=seconds,
        fps=sum(result.frames for result in fresh) / seconds if seconds else 0.0,
        peak_memory_bytes=max((result.peak_memory_bytes for result in results), default=0),
        devices=tuple(sorted({result.device for result in results})),
        job=job.url,
        plan=plan.to_json(),
        results=results,
        fallbacks=tuple(sorted({f for result in results for f in result.fallbacks})),
        notes=notes,
    )
    for url in (job.report_url, report_beside(output.url)):
        urls.write_json(url, report.to_json())
    return report


def read_report(job: Job) -> RunReport | None:
    """The report of this job's last finished run, if there is one of this version."""
    try:
        found = urls.read_json(job.report_url)
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(found, dict) or found.get("version") != REPORT:
        return None
    return _reports.validate_python(found)


def output_record_url(job: Job) -> str:
    return urls.join(job.url, "output.json")


def recorded_output(job: Job) -> OutputFile | None:
    """What this job last published or was about to publish."""
    try:
        return _outputs.validate_python(urls.read_json(output_record_url(job)))
    except (FileNotFoundError, ValueError):
        return None


def announce_output(job: Job, merged: Path, output_url: str, pattern: str | None = None) -> OutputFile:
    """Record what is about to be published, so that a run killed right after publishing knows its own output again."""
    output = OutputFile(output_url, merged.stat().st_size, urls.digest(str(merged)), pattern)
    urls.write_json(output_record_url(job), _outputs.dump_python(output, mode="json"))
    return output


def own_output(job: Job, output_url: str) -> OutputFile | None:
    """The file at `output_url` if this very job made it: same place, size and digest as recorded."""
    output = recorded_output(job)
    try:
        if output is not None and output.url == output_url and urls.size(output_url) == output.bytes:
            return output if urls.digest(output_url) == output.sha256 else None
    except FileNotFoundError:
        return None
    return None
