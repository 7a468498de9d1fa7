"""The main flow: plan, segments, merge, verify, publish, report. Running it again does only what is missing."""

import logging
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import platformdirs
from prefect import flow
from prefect.runtime import deployment

from flashvsr_core.config import ComputeParams, UpscaleParams
from flashvsr_core.errors import FlashvsrError, TransientError, UserError
from flows import settings
from flows.logs import job_log
from flows.observe import costs_so_far, farewell, observed, warnings_so_far
from flows.patience import Patience
from flows.results import result_storage
from flows.runners import settled, shared_api, task_runner
from flows.upscale_segments import SegmentsFailed, upscale_segments
from tasks import halt, heap, stop
from tasks.assemble import assemble
from tasks.events import JobPlanned, SegmentReused, StageEntered, tell
from tasks.images import all_there, foreign_image, publish_images, unpack_images, whole_of
from tasks.media.encode import EncodeParams
from tasks.media.images import is_images
from tasks.media.limits import Limits
from tasks.media.trim import Trim
from tasks.outputs import Outputs
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
    recorded_output,
    report_beside,
    usual_seconds,
)
from tasks.scout import scouting
from tasks.sources import linked, localised, required
from tasks.speed import expected_costs, remember_costs
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
    trim: Trim = Trim(),
    fps: str | None = None,
    limits: Limits = Limits(),
    reference: str | None = None,
) -> RunReport:
    """Upscale one video, image, or sequence of images.

    Args:
        source: Path or fsspec URL of the video; an image; or a folder or pattern (shot_*.png) of numbered images.
        output: Path or URL of the result; default beside the source, for film.mov film_4x.mp4. Images: one name with
            %06d for all, or a folder where encode.container is png, tiff, dpx or exr.
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
        trim: Upscale only a part of the source.
        fps: Frames per second of a sequence of images.
        limits: How large a source may be, and what looking at it may cost.
        reference: The true video in the output's size; PSNR, SSIM and VMAF against it go into the report.
    """
    begun = time.monotonic()
    heap.bound()  # before threads are started
    stop.forget()
    compute = settled(_checked(Request(source, output, params, encode, store=store), compute, reference))
    cache_dir = Path(compute.work_dir) if compute.work_dir else platformdirs.user_cache_path("flashvsr")
    request = Request(
        source, output, params, encode, compute, store, segment_frames, allow_truncated, trim, fps, limits
    )
    tell(StageEntered("plan"))
    job, planned = plan_job(request, cache_dir)
    outputs = request.outputs
    mine = own_output(job, outputs.url)
    if not force:
        _spare_others(job, planned, outputs, mine)
    if mine is not None and outputs.pattern is not None and not all_there(outputs):
        mine = None
    with (
        _truth(reference, planned, compute, cache_dir) as truth,
        hold(job.lease_url, owner=f"upscale {planned.source}") as lease,
        job_log(job),
    ):
        if mine is not None and not fresh and (report := read_report(job)) is not None:
            log.info("already done: %s", outputs.url)
            report = replace(report, status="already done")
        else:
            if fresh:
                _forget(job)
            plan, looks = settle_plan(job, planned), usual_seconds(planned, truth is not None)
            plan = _begin(job, plan, outputs, compute, cache_dir, looks)
            results, computed, notes, published, look = _produce(
                job, plan, compute, cache_dir, lease, verify, outputs, force or mine is not None, begun, truth
            )
            seconds = time.monotonic() - begun
            notes = plan.notes + notes
            report = make_report(job, plan, published, results, computed, seconds, notes, look, warnings_so_far())
            remember_costs(plan, compute, costs_so_far(), cache_dir, looks, look.seconds)
        if not keep_segments:
            job.remove_segments()
    return report


def _checked(request: Request, compute: ComputeParams, reference: str | None) -> ComputeParams:
    """`compute` with this machine's folders; refuses every place outside of its roots before anything is looked at."""
    roots = settings.roots()
    if request.encode.codec_args and (roots.places or deployment.id is not None):
        raise UserError(
            f"codec_args {request.encode.codec_args!r} are not taken from deployments, nor where {settings.ROOTS} is "
            "set: there parameters may come from strangers; leave them out, or use flashvsr run without it"
        )
    roots.check("source", request.source)
    if roots.places:
        for file in linked(request.source):  # a folder under a root may hold links that lead out of it
            roots.check("source", file)
    if request.params.scenes_file is not None:
        roots.check("scenes", request.params.scenes_file)
    for place in (request.output_url, report_beside(request.output_url), page_beside(request.output_url)):
        roots.check("output", place)
    if reference is not None:
        roots.check("reference", reference)
    roots.check("store", request.store_url)
    return settings.checked_compute(compute, roots)


@contextmanager
def _truth(reference: str | None, plan: JobPlan, compute: ComputeParams, cache_dir: Path) -> Iterator[Path | None]:
    """A local file with the true video, refused before any work where it cannot be compared."""
    if reference is None:
        yield None
        return
    with required(reference, compute, cache_dir) as path:
        check_reference(path, plan.geometry.out_width, plan.geometry.out_height, plan.info.frames)
        yield path


def _forget(job: Job) -> None:
    job.remove_segments()
    for url in (job.plan_url, job.report_url):
        urls.remove(url, missing_ok=True)


def _begin(
    job: Job,
    plan: JobPlan,
    outputs: Outputs,
    compute: ComputeParams,
    cache_dir: Path,
    looks: Mapping[str, float],
) -> JobPlan:
    plan = parse_plan(job.write_plan(plan.to_json()), job.plan_url)
    finished = job.finished()
    frames, costs = plan.info.frames, expected_costs(plan, compute, cache_dir, looks)
    tell(
        JobPlanned(
            job.url,
            frames,
            len(plan.segments),
            len(finished),
            tuple((segment.start, segment.stop) for segment in plan.segments),
            int(plan.params.preroll),
            replace(costs, tail=costs.tail + farewell()),
            plan.source,
            outputs.url,
            plan.parameters,
            job.extension,
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
    outputs: Outputs,
    overwrite: bool,
    begun: float,
    truth: Path | None,
) -> tuple[tuple[SegmentResult, ...], frozenset[int], tuple[str, ...], OutputFile, Look]:
    """Segments, merge, verification, a look at the result, publication."""
    work = cache_dir / "work"
    _sweep(work, job)
    work.mkdir(parents=True, exist_ok=True)
    _abort_uploads(job, outputs.url)
    halt.forget(job)  # a run that was killed may have left it
    computed: frozenset[int] = frozenset()
    with tempfile.TemporaryDirectory(prefix=job.work_prefix, dir=work) as name:
        for attempt in range(ROUNDS):
            finished = frozenset(job.finished())
            try:
                with watching(job, finished), scouting(plan, finished, compute, cache_dir):
                    computed |= _compute_missing(job, plan, compute, cache_dir, lease)
            finally:
                _sweep(work, job, keep=Path(name))  # of workers that died, or were ended with what they were at
            try:
                merged, notes = _put_together(job, plan, Path(name), cache_dir, compute, verify)
                break
            except DamagedSegment as error:
                # Its record is gone: the next round redoes this segment and no other.
                log.warning("%s", error)
                if attempt == ROUNDS - 1:
                    raise
        with localised(plan.source, compute, cache_dir) as source:
            tell(StageEntered("look"), "looking at the result")
            look = look_at(whole_of(merged), source, plan, time.monotonic() - begun, truth)
        lease.check()
        tell(StageEntered("publish"), f"publishing {outputs.url}")
        if outputs.pattern is not None:
            output = publish_images(job, plan, merged, outputs)
        else:
            output = announce_output(job, merged[0], outputs.url)
            _publish(job, merged[0], output, overwrite)
    tell(StageEntered("report"))
    results = job.finished()
    return tuple(results[segment.index] for segment in plan.segments), computed, notes, output, look


def _put_together(
    job: Job, plan: JobPlan, folder: Path, cache_dir: Path, compute: ComputeParams, verify: Depth
) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """One verified video, or all images, in `folder`; and what could not be carried over."""
    if is_images(plan.encode.container):
        return unpack_images(job, plan, folder, verify), ()
    merged, notes = assemble(job, plan, folder, cache_dir, compute)
    verify_output(merged, plan, verify)
    return (merged,), notes


def _spare_others(job: Job, plan: JobPlan, outputs: Outputs, mine: OutputFile | None) -> None:
    """UserError where something is in the output's place that this job did not make."""
    if mine is None and urls.exists(outputs.url):
        raise UserError(f"{outputs.url} exists and was not made by this job; use --force to replace it")
    begun = (recorded := recorded_output(job)) is not None and recorded.url == outputs.url
    if outputs.pattern is not None and not begun and (name := foreign_image(outputs, plan)):
        there = urls.join(urls.parent(outputs.url), name)
        raise UserError(f"{there} exists and was not made by this job; use --force to replace it")


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
    attempt, patience = 0, Patience()
    while wanted:
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
            attempt += 1
            if not transient or attempt == ROUNDS:
                raise
            # A worker may have died after it had stored its segment.
            wanted = sorted(error.failures.keys() - job.finished().keys())
            log.warning("trying %d segments again: %s", len(wanted), error)
        except Exception as error:
            # Prefect's engine may have failed at telling its server how the subflow ended.
            if not patience.wait(error):
                raise
            wanted = sorted(set(wanted) - job.finished().keys())
    return missing


def _sweep(work: Path, job: Job, keep: Path | None = None) -> None:
    """Remove what killed runs or workers of this job left behind; this run holds the job's lease."""
    for leftover in work.glob(f"{job.work_prefix}*"):
        if leftover != keep:
            shutil.rmtree(leftover, ignore_errors=True)
