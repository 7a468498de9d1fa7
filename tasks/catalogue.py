"""What is in a store: every job, how far it is, how big, who works on it; and removing what nobody needs any more.

Everything here is read from the store itself: no Prefect server or database is asked.
"""

import logging
import re
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from flashvsr_core.config import ComputeParams, UpscaleParams
from flashvsr_core.errors import AlreadyRunning, UserError
from tasks.beat import Beat, beats
from tasks.media.encode import SEGMENT_SUFFIX
from tasks.media.images import DEFAULT_PATTERN, is_images
from tasks.outputs import outputs_of
from tasks.plan import DEFAULT_STORE, JobPlan, Request, make_plan, read_plan
from tasks.report import RunReport, read_report, recorded_output
from tasks.storage import local, urls
from tasks.storage.jobs import AT_ONCE, DIRECTORY_NAME, LOG_NAME, Job, SegmentResult
from tasks.storage.lease import hold, holder_of

log = logging.getLogger(__name__)

State = Literal["running", "planned", "incomplete", "unmerged", "finished", "unreadable"]
UNMERGED: tuple[State, ...] = ("incomplete", "unmerged")

# What a job's directory may hold; anything else in it is somebody's and is never removed.
PLAN, LEASE, REPORT, OUTPUT = "plan.json", "lease.json", "report.json", "output.json"
RECORDS = (PLAN, REPORT, OUTPUT, LOG_NAME)
LIVE_FILE = re.compile(r"\d{5,}\.json")
SEGMENT_FILE = re.compile(rf"\d{{5,}}\.(json|{SEGMENT_SUFFIX})")


@dataclass(frozen=True)
class JobSummary:
    """One job of a store; `modified` is the time of its latest change, in seconds since 1970."""

    url: str
    slug: str
    key: str
    state: State
    holder: str | None  # who works on it now
    source: str | None
    output: str | None
    segments: int | None  # None where no plan can be read
    segments_done: int
    frames: int | None
    frames_done: int
    bytes: int
    modified: float
    problem: str | None  # why no plan can be read

    @property
    def is_unmerged(self) -> bool:
        """Whether finished segments wait for a run or a recovery to merge them."""
        return self.state in UNMERGED


@dataclass(frozen=True)
class JobDetails:
    """Everything known of one job."""

    summary: JobSummary
    plan: JobPlan | None
    segments: tuple[SegmentResult, ...]  # the finished ones, in order
    report: RunReport | None
    beats: tuple[Beat, ...] = ()  # of segments that are being made, or were when their worker died


@dataclass(frozen=True)
class Removal:
    """What was (or would be) removed of one job; `kept` says why nothing was."""

    job: JobSummary
    files: int
    bytes: int
    kept: str | None = None


def job_at(url: str) -> Job:
    """The job at `url`; UserError if there is none."""
    job = Job.of(url, SEGMENT_SUFFIX)
    if not _is_job(urls.list_sizes(job.url), urls.list_sizes(job.segments_url)):
        raise UserError(
            f"there is no job at {job.url}; 'flashvsr jobs list {urls.parent(job.url)}' shows what there is"
        )
    return job


def list_jobs(store: str) -> list[JobSummary]:
    """Every job in a store, by name; directories that are no jobs are passed over."""
    store = urls.normalise(store)
    if urls.is_local(store) and not urls.local_path(store).is_dir():
        raise UserError(f"{store} is not a directory; give a store (default: .flashvsr beside the output)")
    names = [name for name in urls.list_directories(store) if DIRECTORY_NAME.fullmatch(name)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = pool.map(lambda name: _summary_if_job(Job.of(urls.join(store, name), SEGMENT_SUFFIX)), names)
        return [summary for summary in found if summary is not None]


def describe(job: Job) -> JobDetails:
    """Look at everything a job's directory holds."""
    files, stored = urls.list_files(job.url), urls.list_files(job.segments_url)
    plan, problem = _plan_of(job)
    results = finished_segments(job, plan) if stored else ()
    holder = holder_of(job.lease_url) if LEASE in files else None
    report = _report_of(job) if REPORT in files else None
    output = recorded_output(job) if OUTPUT in files else None
    every = (*files.values(), *stored.values())
    summary = JobSummary(
        url=job.url,
        slug=job.slug,
        key=job.key,
        state=_state(holder is not None, report is not None, plan, len(results)),
        holder=str(holder) if holder else None,
        source=plan.source if plan else None,
        output=output.url if output else report.output.url if report else None,
        segments=len(plan.segments) if plan else None,
        segments_done=len(results),
        frames=plan.info.frames if plan else None,
        frames_done=sum(result.frames for result in results),
        bytes=sum(size for size, _ in every),
        modified=max((changed for _, changed in every), default=0.0),
        problem=problem,
    )
    return JobDetails(summary, plan, results, report, beats(job) if plan else ())


def finished_segments(job: Job, plan: JobPlan | None) -> tuple[SegmentResult, ...]:
    """Finished segments in order; those of another plan (other ranges) do not count."""
    found = job.finished()
    if plan is not None:
        ranges = {segment.index: (segment.start, segment.stop) for segment in plan.segments}
        found = {i: result for i, result in found.items() if ranges.get(i) == (result.start, result.stop)}
    return tuple(found[index] for index in sorted(found))


def choose(
    jobs: Iterable[JobSummary], older_than: float | None, larger_than: int | None, now: float
) -> list[JobSummary]:
    """Jobs that `clean` is about: older (seconds) and larger (bytes) than given, and not running."""
    if older_than is None and larger_than is None:
        raise UserError("nothing says what to remove; give --older-than 7d, --larger-than 10GB, or both")
    return [
        job
        for job in jobs
        if job.state != "running"
        and (older_than is None or 0 < job.modified < now - older_than)  # 0: the store tells no times
        and (larger_than is None or job.bytes > larger_than)
    ]


def clean(summary: JobSummary, records: bool = False, dry_run: bool = False) -> Removal:
    """Remove a finished job's leftovers or a whole abandoned job. Never one that runs, nor one that went on meanwhile.

    Of a finished job plan, report and output record stay (some kB), so that running it again ends at once, unless
    `records` asks for these too.
    """
    job = Job.of(summary.url, SEGMENT_SUFFIX)
    keep_records = summary.state == "finished" and not records
    if dry_run:
        files = dict(_removable(job, keep_records))
        return Removal(summary, len(files), sum(files.values()))
    removed = freed = 0
    try:
        with hold(job.lease_url, owner="jobs clean") as lease:
            # The lease itself has just changed the directory; segments and records tell whether a run was here.
            if _idle_state(job) != (summary.state, summary.segments_done):
                return Removal(summary, 0, 0, "it went on since it was looked at")
            for url, size in list(_removable(job, keep_records)):
                lease.check()
                urls.remove(url, missing_ok=True)
                removed, freed = removed + 1, freed + size
    except AlreadyRunning as error:
        return Removal(summary, removed, freed, str(error))
    if urls.is_local(job.url):
        for url in (job.segments_url, job.live_url, job.url):
            local.remove_directory(str(urls.local_path(url)))
    return Removal(summary, removed, freed)


def _idle_state(job: Job) -> tuple[State, int]:
    """State and number of finished segments, as if nobody held the lease."""
    plan, _ = _plan_of(job)
    done = len(finished_segments(job, plan))
    return _state(False, _report_of(job) is not None, plan, done), done


def _removable(job: Job, keep_records: bool) -> Iterator[tuple[str, int]]:
    """What may be removed, and sizes. Records of segments go first and the plan last: killed in between, what is left
    is a job with fewer segments, which can be run or cleaned again."""
    segments = urls.list_sizes(job.segments_url)
    for name in sorted(segments, key=lambda name: not name.endswith(".json")):
        if SEGMENT_FILE.fullmatch(name) or local.is_leftover(name):
            yield urls.join(job.segments_url, name), segments[name]
    for name, size in urls.list_sizes(job.live_url).items():
        if LIVE_FILE.fullmatch(name) or local.is_leftover(name):
            yield urls.join(job.live_url, name), size
    files = urls.list_sizes(job.url)
    for name in sorted(files, key=lambda name: name == PLAN):
        if local.is_leftover(name) or (name in RECORDS and not keep_records):
            yield urls.join(job.url, name), files[name]


def _summary_if_job(job: Job) -> JobSummary | None:
    if not _is_job(urls.list_sizes(job.url), urls.list_sizes(job.segments_url)):
        return None  # some stores list a prefix that was emptied; others' directories may be called like ours
    return describe(job).summary


def _is_job(files: dict[str, int], segments: dict[str, int]) -> bool:
    return any(name in files for name in (*RECORDS, LEASE)) or any(map(SEGMENT_FILE.fullmatch, segments))


def _plan_of(job: Job) -> tuple[JobPlan | None, str | None]:
    try:
        return read_plan(job), None
    except UserError as error:
        return None, str(error)


def _report_of(job: Job) -> RunReport | None:
    try:
        return read_report(job)
    except ValidationError as error:
        log.warning("%s is damaged: %s", job.report_url, " ".join(str(error).split())[:300])
        return None


def _state(running: bool, reported: bool, plan: JobPlan | None, done: int) -> State:
    if running:
        return "running"
    if reported:
        return "finished"
    if plan is None:
        return "unreadable"
    if done == len(plan.segments):
        return "unmerged"
    return "incomplete" if done else "planned"


def request_again(job: Job, output: str | None, compute: ComputeParams, cache_dir: Path) -> Request:
    """What to ask for so that this very job goes on; UserError where that would be another job.

    The output is the one given, else the one the job recorded, else the default name beside the job's store.
    """
    plan = read_plan(job)
    store = urls.parent(job.url)
    container = plan.encode.container
    if output is None:
        recorded = recorded_output(job)
        output = (recorded.pattern or recorded.url) if recorded else _default_output(plan, store)
    if outputs_of(plan.source, output, plan.params.scale, container).container != container:
        raise UserError(f"output {output} must end in .{container}, as the job was planned; choose another OUTPUT")
    if compute.devices == "auto" and plan.device_type == "cpu":
        compute = replace(compute, devices="cpu")  # a GPU would make other pixels, hence another job
    request = Request(
        plan.source, output, _as_asked(plan), plan.encode, compute, store, plan.segment_frames, plan.allow_truncated,
        plan.trim, plan.fps,
    )  # fmt: skip
    again, planned = make_plan(request, cache_dir)
    if again.url != job.url:
        raise UserError(
            f"this would be another job ({again.url}) because {_difference(plan, planned)}; undo that, "
            "merge what is there with 'flashvsr jobs recover', or start anew with 'flashvsr run'"
        )
    return request


def _default_output(plan: JobPlan, store: str) -> str:
    # A store of the default name stands beside the output; any other says nothing about it.
    name = urls.name(Request(plan.source, None, plan.params).output_url).rpartition(".")[0]
    folder = urls.parent(store if urls.name(store) == DEFAULT_STORE else plan.source)
    if is_images(plan.encode.container) and plan.info.frames > 1:
        return urls.join(folder, f"{name}_{DEFAULT_PATTERN}.{plan.encode.container}")
    return urls.join(folder, f"{name}.{plan.encode.container}")


def _as_asked(plan: JobPlan) -> UpscaleParams:
    """A plan's parameters with given scenes as frames of the whole source again, which may have been trimmed."""
    scenes = plan.params.scenes
    if isinstance(scenes, str):
        return plan.params
    return replace(plan.params, scenes=tuple(cut + plan.info.skipped for cut in scenes))


def _difference(plan: JobPlan, now: JobPlan) -> str:
    for what in ("fingerprint", "device_type", "digests", "params", "encode"):
        then_value, now_value = getattr(plan, what), getattr(now, what)
        if then_value != now_value:
            label = {"fingerprint": "the source's content", "digests": "the weights"}.get(what, what.replace("_", " "))
            return f"{label} differs from the plan's"
    return f"this version of flashvsr makes other pixels or bytes than that of the plan ({plan.versions})"


def age(summary: JobSummary, now: float | None = None) -> float:
    """Seconds since the job last changed."""
    return max(0.0, (time.time() if now is None else now) - summary.modified)


def to_json(summary: JobSummary) -> dict[str, Any]:
    return {**vars(summary), "age_seconds": round(age(summary), 1)}
