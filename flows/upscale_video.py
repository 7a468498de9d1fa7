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
from flashvsr_core.errors import TransientError, UserError
from flows import settings
from flows.logs import job_log
from flows.observe import observed, tail_so_far, warnings_so_far
from flows.results import result_storage
from flows.runners import task_runner
from flows.upscale_segments import SegmentsFailed, upscale_segments
from tasks.assemble import assemble
from tasks.events import JobPlanned, SegmentReused, StageEntered, tell
from tasks.media.encode import EncodeParams
from tasks.plan import JobPlan, Request, parse_plan, plan_job, settle_plan
from tasks.reference import check_reference
from tasks.report import (
    Look,
    OutputFile,
    RunReport,
    announce_output,
    look_at,
    make_report,
    own_output,
    page_beside,
    read_report,
    report_beside,
)
from tasks.speed import expected_tail, remember_tail
from tasks.storage import urls
from tasks.storage.jobs import DamagedSegment, Job, SegmentResult
from tasks.storage.lease import Lease, hold
from tasks.verify import Depth, verify_output
from tasks.watch import watching

log = logging.getLogger(__name__)

ROUNDS = 3  # times the subflow is called for what is missing, within one run


@flow(name="upscale-video", flow_run_name="upscale-{source}", log_prints=False, persist_result=False)
@observed
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
    reference: str | None = None,
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
        reference: The true video in the output's size; PSNR, SSIM and VMAF against it go into the report.
    """
    begun = time.monotonic()
    compute = _checked(Request(source, output, params, store=store), compute, reference)
    cache_dir = Path(compute.work_dir) if compute.work_dir else platformdirs.user_cache_path("flashvsr")
    request = Request(source, output, params, encode, compute, store, segment_frames, allow_truncated)
    tell(StageEntered("plan"))
    job, planned = plan_job(request, cache_dir)
    truth = _truth(reference, planned, cache_dir)
    mine = own_output(job, request.output_url)
    if mine is None and urls.exists(request.output_url) and not force:
        raise UserError(f"{request.output_url} exists and was not made by this job; use --force to replace it")
    with hold(job.lease_url, owner=f"upscale {planned.source}") as lease, job_log(job):
        if mine is not None and not fresh and (report := read_report(job)) is not None:
            log.info("already done: %s", request.output_url)
            report = replace(report, status="already done")
        else:
            if fresh:
                _forget(job)
            plan = _begin(job, settle_plan(job, planned), request, cache_dir)
            results, computed, notes, published, look = _produce(
                job, plan, compute, cache_dir, lease, verify, request.output_url, begun, truth
            )
            seconds = time.monotonic() - begun
            notes = plan.notes + notes
            report = make_report(job, plan, published, results, computed, seconds, notes, look, warnings_so_far())
            remember_tail(plan, tail_so_far(), cache_dir)
        if not keep_segments:
            job.remove_segments()
    return report


def _checked(request: Request, compute: ComputeParams, reference: str | None) -> ComputeParams:
    """`compute` with this machine's folders; refuses every place outside of its roots before anything is looked at."""
    roots = settings.roots()
    roots.check("source", request.source)
    for place in (request.output_url, report_beside(request.output_url), page_beside(request.output_url)):
        roots.check("output", place)
    if reference is not None:
        roots.check("reference", reference)
    roots.check("store", request.store_url)
    return settings.checked_compute(compute, roots)


def _truth(reference: str | None, plan: JobPlan, cache_dir: Path) -> Path | None:
    """A local file with the true video, refused before any work where it cannot be compared."""
    if reference is None:
        return None
    path = urls.localise(reference, cache_dir / "sources")
    check_reference(path, plan.geometry.out_width, plan.geometry.out_height, plan.info.frames)
    return path


def _forget(job: Job) -> None:
    job.remove_segments()
    for url in (job.plan_url, job.report_url):
        urls.remove(url, missing_ok=True)


def _begin(job: Job, plan: JobPlan, request: Request, cache_dir: Path) -> JobPlan:
    plan = parse_plan(job.write_plan(plan.to_json()), job.plan_url)
    finished = job.finished()
    frames = plan.info.frames
    tell(
        JobPlanned(
            job.url,
            frames,
            len(plan.segments),
            len(finished),
            tuple((segment.start, segment.stop) for segment in plan.segments),
            int(plan.params.preroll),
            expected_tail(plan, cache_dir),
            plan.source,
            request.output_url,
            plan.parameters,
        ),
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
    begun: float,
    truth: Path | None,
) -> tuple[tuple[SegmentResult, ...], frozenset[int], tuple[str, ...], OutputFile, Look]:
    """Segments, merge, verification, a look at the result, publication."""
    work = cache_dir / "work"
    _sweep(work, job)
    work.mkdir(parents=True, exist_ok=True)
    computed: frozenset[int] = frozenset()
    with tempfile.TemporaryDirectory(prefix=job.work_prefix, dir=work) as name:
        for attempt in range(ROUNDS):
            with watching(job, frozenset(job.finished())):
                computed |= _compute_missing(job, plan, compute, cache_dir, lease)
            try:
                merged, notes = assemble(job, plan, Path(name), cache_dir)
                break
            except DamagedSegment as error:
                # Its record is gone: the next round redoes this segment and no other.
                log.warning("%s", error)
                if attempt == ROUNDS - 1:
                    raise
        verify_output(merged, plan, verify)
        local_source = urls.localise(plan.source, cache_dir / "sources")
        look = look_at(merged, local_source, plan, time.monotonic() - begun, truth)
        lease.check()
        tell(StageEntered("publish"), f"publishing {output_url}")
        output = announce_output(job, merged, output_url)
        urls.publish(merged, output_url, overwrite=True, sha256=output.sha256, consume=True)
    tell(StageEntered("report"))
    results = job.finished()
    return tuple(results[segment.index] for segment in plan.segments), computed, notes, output, look


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
            subflow(job, wanted, compute, cache_dir)
            break
        except SegmentsFailed as error:
            transient = all(isinstance(cause, TransientError) for cause in error.failures.values())
            if not transient or attempt == ROUNDS - 1:
                raise
            wanted = sorted(error.failures)
            log.warning("trying %d segments again: %s", len(wanted), error)
    return missing


def _sweep(work: Path, job: Job) -> None:
    """Remove what killed runs of this job left behind; this run holds the job's lease."""
    for leftover in work.glob(f"{job.work_prefix}*"):
        shutil.rmtree(leftover, ignore_errors=True)
