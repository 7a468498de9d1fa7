"""The main flow: plan, segments, merge, verify, publish, report. Running it again does only what is missing."""

import logging
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import platformdirs
from prefect import flow

from flashvsr_core.config import ComputeParams, UpscaleParams
from flashvsr_core.errors import FlashvsrError, TransientError, UserError
from flows import settings
from flows.results import result_storage
from flows.runners import settled, shared_api, task_runner
from flows.upscale_segments import SegmentsFailed, upscale_segments
from tasks import stop
from tasks.assemble import assemble
from tasks.events import JobPlanned, SegmentReused, StageEntered, tell
from tasks.media.encode import EncodeParams
from tasks.plan import JobPlan, Request, parse_plan, plan_job, settle_plan
from tasks.report import (
    OutputFile,
    RunReport,
    announce_output,
    make_report,
    own_output,
    read_report,
    recorded_output,
    report_beside,
)
from tasks.storage import urls
from tasks.storage.jobs import DamagedSegment, Job, SegmentResult
from tasks.storage.lease import Lease, hold
from tasks.verify import Depth, verify_output

log = logging.getLogger(__name__)

ROUNDS = 3  # times the subflow is called for what is missing, within one run


@flow(name="upscale-video", flow_run_name="upscale-{source}", log_prints=False, persist_result=False)
def upscale_video(
    source: str,
    output: str | None = None,
    params: UpscaleParams = UpscaleParams(),
    encode: EncodeParams = EncodeParams(),
    compute: ComputeParams = ComputeParams(),
    store: str | None = None,
    segment_frames: int = 512,
    force: bool = False,
    fresh: bool = False,
    keep_segments: bool = False,
    allow_truncated: bool = False,
    verify: Depth = "joins",
) -> RunReport:
    """Upscale one video.

    Args:
        source: Path or fsspec URL of the video.
        output: Path or URL of the result; default <stem>_<scale>x.mp4 beside the source.
        params: Everything that changes pixels.
        encode: How the result is encoded.
        compute: Devices and folders; changes no pixels.
        store: Where finished segments are kept; default .flashvsr/ beside the output.
        segment_frames: Frames of one segment, a multiple of 8.
        force: Replace an output that this job did not make; finished segments are still used.
        fresh: Compute everything anew.
        keep_segments: Keep the segments after the output was published.
        allow_truncated: Upscale what can be read of a truncated source.
        verify: joins decodes around every join, full decodes everything.
    """
    begun = time.monotonic()
    stop.forget()
    compute = settled(_checked(Request(source, output, params, store=store), compute))
    cache_dir = Path(compute.work_dir) if compute.work_dir else platformdirs.user_cache_path("flashvsr")
    request = Request(source, output, params, encode, compute, store, segment_frames, allow_truncated)
    tell(StageEntered("plan"))
    job, planned = plan_job(request, cache_dir)
    mine = own_output(job, request.output_url)
    if mine is None and urls.exists(request.output_url) and not force:
        raise UserError(f"{request.output_url} exists and was not made by this job; use --force to replace it")
    with hold(job.lease_url, owner=f"upscale {planned.source}") as lease:
        if mine is not None and not fresh and (report := read_report(job)) is not None:
            log.info("already done: %s", request.output_url)
            report = replace(report, status="already done")
        else:
            if fresh:
                _forget(job)
            plan = _begin(job, settle_plan(job, planned))
            results, computed, notes, published = _produce(
                job, plan, compute, cache_dir, lease, verify, request.output_url, force or mine is not None
            )
            report = make_report(job, plan, published, results, computed, time.monotonic() - begun, plan.notes + notes)
        if not keep_segments:
            job.remove_segments()
    return report


def _checked(request: Request, compute: ComputeParams) -> ComputeParams:
    """`compute` with this machine's folders; refuses every place outside of its roots before anything is looked at."""
    roots = settings.roots()
    roots.check("source", request.source)
    for place in (request.output_url, report_beside(request.output_url)):
        roots.check("output", place)
    roots.check("store", request.store_url)
    return settings.checked_compute(compute, roots)


def _forget(job: Job) -> None:
    job.remove_segments()
    for url in (job.plan_url, job.report_url):
        urls.remove(url, missing_ok=True)


def _begin(job: Job, plan: JobPlan) -> JobPlan:
    plan = parse_plan(job.write_plan(plan.to_json()), job.plan_url)
    finished = job.finished()
    frames = plan.info.frames
    tell(
        JobPlanned(job.url, frames, len(plan.segments), len(finished)),
        f"{frames} frames in {len(plan.segments)} segments, {len(finished)} of them finished before",
    )
    for result in finished.values():
        tell(SegmentReused(result.segment, result.frames), f"segment {result.segment} reused")
    return plan


def _produce(
    job: Job,
    plan: JobPlan,
    compute: ComputeParams,
    cache_dir: Path,
    lease: Lease,
    verify: Depth,
    output_url: str,
    overwrite: bool,
) -> tuple[tuple[SegmentResult, ...], frozenset[int], tuple[str, ...], OutputFile]:
    """Segments, merge, verification, publication."""
    work = cache_dir / "work"
    _sweep(work, job)
    work.mkdir(parents=True, exist_ok=True)
    _abort_uploads(job, output_url)
    computed: frozenset[int] = frozenset()
    with tempfile.TemporaryDirectory(prefix=job.work_prefix, dir=work) as name:
        for attempt in range(ROUNDS):
            computed |= _compute_missing(job, plan, compute, cache_dir, lease)
            _sweep(work, job, keep=Path(name))  # of workers that died
            try:
                merged, notes = assemble(job, plan, Path(name), cache_dir, compute)
                break
            except DamagedSegment as error:
                # Its record is gone: the next round redoes this segment and no other.
                log.warning("%s", error)
                if attempt == ROUNDS - 1:
                    raise
        verify_output(merged, plan, verify)
        lease.check()
        tell(StageEntered("publish"), f"publishing {output_url}")
        output = announce_output(job, merged, output_url)
        _publish(job, merged, output, overwrite)
    tell(StageEntered("report"))
    results = job.finished()
    return tuple(results[segment.index] for segment in plan.segments), computed, notes, output


def _publish(job: Job, merged: Path, output: OutputFile, overwrite: bool) -> None:
    try:
        urls.publish(merged, output.url, overwrite, sha256=output.sha256, consume=True)
    except FileExistsError as error:
        # A store may take an upload, lose its answer, and refuse what its client then tries again.
        if own_output(job, output.url) is None:
            raise UserError(
                f"{output.url} appeared while this job ran, made by somebody else; use --force to replace it"
            ) from error


def _abort_uploads(job: Job, output_url: str) -> None:
    """Give up what killed runs of this job were uploading; this run holds the job's lease."""
    announced = recorded_output(job)
    try:
        count = urls.abort_uploads(job.url, below=True)
        if announced is not None and announced.url == output_url:
            count += urls.abort_uploads(output_url, below=False)
    except FlashvsrError as error:
        log.info("unfinished uploads of earlier runs were not looked for: %s", error)
    else:
        if count:
            log.info("gave up %d unfinished uploads of earlier runs", count)


def _compute_missing(job: Job, plan: JobPlan, compute: ComputeParams, cache_dir: Path, lease: Lease) -> frozenset[int]:
    """Have every missing segment made, again where a passing fault left one missing. Returns what was computed."""
    tell(StageEntered("segments"))
    everything = [segment.index for segment in plan.segments]
    missing = frozenset(everything) - job.finished().keys()
    wanted = everything
    for attempt in range(ROUNDS):
        lease.check()
        subflow = upscale_segments.with_options(
            task_runner=task_runner(compute), result_storage=result_storage(job), persist_result=False
        )
        try:
            with shared_api(compute):
                subflow(job, wanted, compute, cache_dir)
            break
        except SegmentsFailed as error:
            transient = all(isinstance(cause, TransientError) for cause in error.failures.values())
            if not transient or attempt == ROUNDS - 1:
                raise
            # A worker may have died after it had stored its segment.
            wanted = sorted(error.failures.keys() - job.finished().keys())
            log.warning("trying %d segments again: %s", len(wanted), error)
            if not wanted:
                break
    return missing


def _sweep(work: Path, job: Job, keep: Path | None = None) -> None:
    """Remove what killed runs or workers of this job left behind; this run holds the job's lease."""
    for leftover in work.glob(f"{job.work_prefix}*"):
        if leftover != keep:
            shutil.rmtree(leftover, ignore_errors=True)
