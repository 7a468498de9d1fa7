"""One segment: its frames from the source, through the model, into an encoder, checked and stored."""

import logging
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from prefect import task
from prefect.cache_policies import CachePolicy
from prefect.context import TaskRunContext

from flashvsr_core.config import ComputeParams
from flashvsr_core.cuts import CONTEXT
from flashvsr_core.errors import FlashvsrError, TransientError, UserError
from flashvsr_core.layout import Planes
from flashvsr_core.pixels import Pack, changed, grey_packer, resizer, yuv_packer
from flashvsr_core.segments import SegmentPlan, reading_range
from flashvsr_core.upscaler import Upscaler
from tasks.events import FramesDone, SegmentComputed, SegmentStarted, tell
from tasks.gpu import PeakMemory, device_name, devices_of, loaded_upscaler, turn_on_a_device
from tasks.media.codecs import has_alpha
from tasks.media.decode import Channel, read_frames
from tasks.media.encode import check_segment, encode_segment, layout_of
from tasks.plan import JobPlan, read_plan
from tasks.speed import remember_speed
from tasks.storage import urls
from tasks.storage.fingerprint import fingerprint
from tasks.storage.jobs import Job, SegmentResult

log = logging.getLogger(__name__)


class SegmentKey(CachePolicy):
    """Prefect's cache key of a segment: the job's key says everything that changes its bytes."""

    def compute_key(
        self, task_ctx: TaskRunContext, inputs: dict[str, Any], flow_parameters: dict[str, Any], **_: Any
    ) -> str | None:
        return f"{task_ctx.task.name}-{inputs['job'].key}-{inputs['segment'].start}-{inputs['segment'].stop}"


def is_transient(_task: Any, _run: Any, state: Any) -> bool:
    """Whether a failed task may be tried again: only faults that may pass, never bad input or our own mistakes."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, TransientError | ConnectionError | TimeoutError)


@task(
    name="upscale-segment",
    task_run_name="upscale-{segment.index:05d}",
    tags=["gpu"],
    retries=2,
    retry_delay_seconds=[2, 10],
    retry_condition_fn=is_transient,
    cache_policy=SegmentKey(),
    persist_result=True,
    result_serializer="json",
)
def upscale_segment(job: Job, segment: SegmentPlan, compute: ComputeParams, cache_dir: Path) -> SegmentResult:
    """Make one segment of a planned job and store it with its record; one that is finished is left alone."""
    plan = read_plan(job)
    if (held := job.result(segment.index)) is not None:
        return held
    source = _source(plan, cache_dir)
    work = cache_dir / "work"
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=job.work_prefix, dir=work) as folder:
        result = _make(job, plan, segment, compute, source, Path(folder))
    remember_speed(plan, compute, result.frames, result.seconds, cache_dir)
    return result


def _make(
    job: Job, plan: JobPlan, segment: SegmentPlan, compute: ComputeParams, source: Path, folder: Path
) -> SegmentResult:
    found = devices_of(compute)[0].type
    if found != plan.device_type:
        raise UserError(
            f"this job was planned for {plan.device_type}, this worker has {found}: pixels would differ; "
            "use a matching worker or --fresh"
        )
    file = folder / f"{segment.index:05d}.{job.extension}"
    geometry = plan.geometry
    with turn_on_a_device(compute) as device:
        begun = time.monotonic()
        tell(SegmentStarted(segment.index, segment.frames))
        memory = PeakMemory(device)
        upscaler = loaded_upscaler(plan.params, plan.digests, compute, device)
        chunks = _chunks(plan, segment, upscaler, source, memory)
        encoded = encode_segment(chunks, file, plan.info, plan.encode, geometry.out_width, geometry.out_height)
        seconds = time.monotonic() - begun
    if encoded.frames != segment.frames:
        raise FlashvsrError(
            f"segment {segment.index} came out with {encoded.frames} frames instead of {segment.frames}; "
            "this is a bug, please report it with the plan"
        )
    check_segment(file, segment.frames, geometry.out_width, geometry.out_height)
    result = job.record_segment(
        segment.index,
        segment.start,
        segment.stop,
        file,
        frames=encoded.frames,
        seconds=seconds,
        peak_memory_bytes=memory.bytes,
        device=device_name(device),
    )
    tell(
        SegmentComputed(segment.index, segment.frames, seconds),
        f"segment {segment.index} [{segment.start}, {segment.stop}) computed in {seconds:.1f} s",
    )
    return result


def _chunks(
    plan: JobPlan, segment: SegmentPlan, upscaler: Upscaler, source: Path, memory: PeakMemory
) -> Iterator[Planes]:
    """The segment's planes, straight from source frames through the model; transparency as a picture of its own."""
    layout = layout_of(plan.encode, plan.info)
    colour = _pictures(plan, segment, upscaler, source, yuv_packer(layout), "colour")
    if has_alpha(plan.encode.pix_fmt):
        chunks = _with_alpha(colour, _pictures(plan, segment, upscaler, source, grey_packer(layout.depth), "alpha"))
    else:
        chunks = colour
    for planes in chunks:
        memory.look()
        tell(FramesDone(segment.index, len(planes[0])))
        yield planes  # type: ignore[misc]


def _pictures(
    plan: JobPlan, segment: SegmentPlan, upscaler: Upscaler, source: Path, pack: Pack, channel: Channel
) -> Iterator[np.ndarray | Planes]:
    """One channel of the segment through the model, made into `pack`'s planes at the final size."""
    preroll = plan.params.preroll
    assert isinstance(preroll, int), "a plan's parameters are resolved"
    first, end = reading_range(segment, preroll, CONTEXT, plan.info.frames)
    # PQ and HLG pictures go through as they are coded: every curve tried instead did worse (tests/bench/hdr.md).
    frames = read_frames(source, plan.info, first, end, deinterlace=plan.params.deinterlace, channel=channel)
    pack = changed(pack, resizer(plan.geometry.out_width, plan.geometry.out_height))
    return upscaler.stream(frames, first=first, emit=(segment.start, segment.stop), pack=pack)


def _with_alpha(
    colours: Iterator[np.ndarray | Planes], alphas: Iterator[np.ndarray | Planes]
) -> Iterator[np.ndarray | Planes]:
    """Y, U, V and A of each frame: the two streams may cut their chunks at other frames."""
    single = (tuple(plane[i : i + 1] for plane in chunk) for chunk in colours for i in range(len(chunk[0])))
    clear = (np.asarray(chunk)[i : i + 1] for chunk in alphas for i in range(len(chunk)))
    for planes, alpha in zip(single, clear, strict=True):
        yield (*planes, alpha)


def _source(plan: JobPlan, cache_dir: Path) -> Path:
    try:
        path = urls.localise(plan.source, cache_dir / "sources")
        found = fingerprint(plan.source, cache_dir)
    except FileNotFoundError as error:
        raise UserError(f"{plan.source} has disappeared while it was processed; put it back and run again") from error
    if found != plan.fingerprint:
        raise UserError(f"{plan.source} changed while it was processed; run again to start on the new content")
    return path
