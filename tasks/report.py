"""The report of a run: what was made, from what, how fast, what was reused, every fallback and note.

Its form is described in docs/report.md and, for machines, in tasks/schemas/report-2.json.
"""

import logging
import platform
import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import TypeAdapter

from flashvsr_core.errors import FlashvsrError
from tasks import html, quality, scorers
from tasks.ahead import encoder_note
from tasks.events import LookBegan, tell
from tasks.media.ffmpeg import ffmpeg_version, find_ffmpeg
from tasks.pictures import Comparison, comparison
from tasks.plan import JobPlan
from tasks.quality import Quality
from tasks.reference import compare
from tasks.reference import usual_seconds as compared_seconds
from tasks.storage import urls
from tasks.storage.jobs import Job, SegmentResult

log = logging.getLogger(__name__)

REPORT = 2  # version of report.json; 1 had no fields with defaults
READABLE = (1, 2)
LOOK_SHARE = 0.01  # of the run's time that looking at the result may take
LEAST_LOOK = 3.0  # seconds it may take however short the run was
REFERENCE = "reference"  # among what looking takes


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
    warnings: tuple[str, ...] = ()
    created: str = ""  # ISO 8601, UTC
    command: str = ""  # makes the same output again
    versions: dict[str, str] = field(default_factory=dict)
    computed: tuple[int, ...] = ()  # segments made in this run
    quality: Quality | None = None

    def to_json(self) -> dict[str, Any]:
        found = _reports.dump_python(self, mode="json")
        assert isinstance(found, dict)
        return found


_reports: TypeAdapter[RunReport] = TypeAdapter(RunReport)


def schema() -> dict[str, Any]:
    """JSON Schema of report.json, as it stands in tasks/schemas."""
    found = _reports.json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": f"flashvsr-report-{REPORT}", **found}


_outputs: TypeAdapter[OutputFile] = TypeAdapter(OutputFile)


def report_beside(output_url: str) -> str:
    """Where the report of an output stands: `clip_4x.mp4` has `clip_4x.report.json`."""
    stem = urls.name(output_url).rpartition(".")[0].removesuffix(".manifest")
    return urls.join(urls.parent(output_url), urls.fitting(stem, ".report.json"))


@dataclass(frozen=True)
class Look:
    """What was seen of a result: numbers, pictures for the page, and the seconds that scorers and REFERENCE took."""

    quality: Quality | None = None
    comparisons: tuple[Comparison, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)


def page_beside(output_url: str) -> str:
    """Where the page for people stands: `clip_4x.mp4` has `clip_4x.report.html`."""
    return f"{report_beside(output_url).removesuffix('.json')}.html"


def look_at(result: Path, source: Path, plan: JobPlan, seconds: float, reference: Path | None = None) -> Look:
    """Measure and picture a finished file. `seconds`: how long the run took so far; looking takes a hundredth of it.

    What cannot be measured becomes a note: a good result is not lost for want of numbers.
    """
    joins = [segment.start for segment in plan.segments[1:]]
    allowed = max(LEAST_LOOK, LOOK_SHARE * seconds)
    try:
        here, notes = quality.or_note("the no-reference quality", scorers.present)
        with scorers.made_ready(here or ()) as (ready, failed):
            found, sights = quality.measure(
                result, source, plan.info, joins, allowed, deinterlace=plan.params.deinterlace
            )
            scores = scorers.score([s.result for s in sights], ready)
        notes += failed + scores.notes
        took = dict(scores.seconds)
        against: dict[str, float] | None = None
        if reference is not None:
            tell(LookBegan(REFERENCE), "comparing the result with the reference")
            begun = time.monotonic()
            against, more = quality.or_note("the reference", lambda: compare(result, reference))
            took[REFERENCE] = time.monotonic() - begun
            notes += more
        found = replace(
            found, scores=scores.values, reference=against or {}, reference_file=str(reference or ""), notes=notes
        )
        return Look(found, tuple(comparison(sight) for sight in sights), seconds=took)
    except (FlashvsrError, OSError, ValueError, MemoryError) as error:
        log.warning("the result's quality was not measured: %s", error)
        return Look(notes=(f"the result's quality was not measured: {error}",))


def usual_seconds(plan: JobPlan, reference: bool) -> dict[str, float]:
    """What `look_at` usually takes for scorers and, where there is one, a reference, by name."""
    width, height, frames = plan.geometry.out_width, plan.geometry.out_height, plan.info.frames
    here, _ = quality.or_note(
        "the no-reference quality", lambda: scorers.usual_seconds(width, height, min(quality.PICTURES, frames))
    )
    return (here or {}) | ({REFERENCE: compared_seconds(width, height, frames)} if reference else {})


@task(name="report", task_run_name="report", cache_policy=NO_CACHE)
def make_report(
    job: Job,
    plan: JobPlan,
    output: OutputFile,
    results: tuple[SegmentResult, ...],
    computed: frozenset[int],
    seconds: float,
    notes: tuple[str, ...],
    look: Look = Look(),
    warnings: tuple[str, ...] = (),
) -> RunReport:
    """Write the report beside the output and into the job's directory, and its page beside the output."""
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
        notes=notes + look.notes + _encoder_notes(fresh),
        warnings=warnings,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command_of(plan, output.pattern or output.url),
        versions=versions_here() | plan.versions | (scorers.versions(look.quality.scores) if look.quality else {}),
        computed=tuple(sorted(computed)),
        quality=look.quality,
    )
    write_report(report, look.comparisons, (job.report_url, report_beside(output.url)))
    return report


def _encoder_notes(computed: Sequence[SegmentResult]) -> tuple[str, ...]:
    note = encoder_note(sum(result.encoder_wait for result in computed), sum(result.seconds for result in computed))
    return () if note is None else (note,)


def write_report(report: RunReport, comparisons: Sequence[Comparison], places: Sequence[str]) -> None:
    """The page first: where there is a report, its page is there too."""
    urls.write_bytes(page_beside(report.output.url), html.page(report.to_json(), comparisons).encode())
    for url in places:
        urls.write_json(url, report.to_json())


def versions_here() -> dict[str, str]:
    """What made the report and merged the file."""
    return {
        "flashvsr": version("flashvsr"),
        "ffmpeg": ffmpeg_version(find_ffmpeg()),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def command_of(plan: JobPlan, output_url: str) -> str:
    """The command line that makes the same output again."""
    words = ["flashvsr", "run", plan.source, output_url]
    for params in (plan.params, plan.encode):
        for name in (one.name for one in fields(params)):
            value = getattr(params, name)
            option = f"--{name.replace('_', '-')}"
            # The container is told by the output's name.
            if name == "container" or value is None or value is False or value == "":
                continue
            words += [option] if value is True else [f"{option}={v}" for v in _each(value)]
    words.append(f"--segment-frames={plan.segment_frames}")
    words += [f"--{name}={value}" for name, value in asdict(plan.trim).items() if value is not None]
    words += [f"--fps={plan.fps}"] if plan.fps is not None else []
    words += ["--allow-truncated"] if plan.allow_truncated else []
    words += ["--devices=cpu"] if plan.device_type == "cpu" else []
    return shlex.join(words)


def _each(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def read_report(job: Job) -> RunReport | None:
    """The report of this job's last finished run, if there is one of this version."""
    try:
        found = urls.read_json(job.report_url)
    except (FileNotFoundError, ValueError):
        return None
    return parse_report(found)


def parse_report(found: object) -> RunReport | None:
    """A report as it was read; None if it is of no version that is known, ValidationError where it is damaged."""
    if not isinstance(found, dict) or found.get("version") not in READABLE:
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
