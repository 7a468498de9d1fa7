"""One segment: its frames from the source, through the model, into an encoder, checked and stored."""

import logging
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
from prefect import task
from prefect.cache_policies import CachePolicy
from prefect.context import TaskRunContext

from flashvsr_core.config import ComputeParams
from flashvsr_core.cuts import CONTEXT
from flashvsr_core.errors import FlashvsrError, TransientError, UserError
from flashvsr_core.layout import Planes
from flashvsr_core.pixels import yuv_packer
from flashvsr_core.segments import SegmentPlan, reading_range
from flashvsr_core.upscaler import Upscaler
from tasks.ahead import Ahead
from tasks.events import FramesDone, SegmentComputed, SegmentStarted, tell
from tasks.gpu import PeakMemory, device_name, devices_of, loaded_upscaler, turn_on_a_device
from tasks.media.decode import read_frames
from tasks.media.encode import check_segment, encode_segment, layout_of
from tasks.plan import JobPlan, read_plan
from tasks.speed import remember_speed
from tasks.storage import urls
from tasks.storage.fingerprint import fingerprint
from tasks.storage.jobs import Job, SegmentResult

log = logging.getLogger(__name__)

_DECODED_AHEAD = 4  # items of `read_frames` that wait for the model
_CHUNKS_AHEAD = 2  # chunks of the model's output that wait for the encoder
_NOTICEABLE = 0.1  # share of the time that the model may wait for the encoder before it is worth a word


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
        # Three at work at once: a thread decodes, one drives the model, and this one encodes.
        with (
            Ahead(_frames(plan, segment, source), _DECODED_AHEAD, "decode") as frames,
            Ahead(_planes(plan, segment, upscaler, frames), _CHUNKS_AHEAD, "model") as chunks,
        ):
            told = _told(chunks, segment, memory)
            encoded = encode_segment(told, file, plan.info, plan.encode, geometry.out_width, geometry.out_height)
        seconds = time.monotonic() - begun
        if chunks.blocked > _NOTICEABLE * seconds:
            log.info(
                "segment %d: the model waited %.1f of %.1f s for the encoder; a faster --preset would be quicker",
                segment.index, chunks.blocked, seconds,
            )  # fmt: skip
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


def _frames(plan: JobPlan, segment: SegmentPlan, source: Path) -> Iterator[np.ndarray]:
    """The source frames that the segment needs."""
    first, end = _reading(plan, segment)
    return read_frames(source, plan.info, first, end)


def _planes(plan: JobPlan, segment: SegmentPlan, upscaler: Upscaler, frames: Iterable[np.ndarray]) -> Iterator[Planes]:
    """The segment's planes, from source frames through the model."""
    first, _ = _reading(plan, segment)
    pack = yuv_packer(layout_of(plan.encode, plan.info))
    emit = (segment.start, segment.stop)
    return cast(Iterator[Planes], upscaler.stream(frames, first=first, emit=emit, pack=pack))


def _reading(plan: JobPlan, segment: SegmentPlan) -> tuple[int, int]:
    preroll = plan.params.preroll
    assert isinstance(preroll, int), "a plan's parameters are resolved"
    return reading_range(segment, preroll, CONTEXT, plan.info.frames)


def _told(chunks: Iterable[Planes], segment: SegmentPlan, memory: PeakMemory) -> Iterator[Planes]:
    """The same chunks; each is looked at and told of when the encoder takes it."""
    for planes in chunks:
        memory.look()
        tell(FramesDone(segment.index, len(planes[0])))
        yield planes


def _source(plan: JobPlan, cache_dir: Path) -> Path:
    try:
        path = urls.localise(plan.source, cache_dir / "sources")
        found = fingerprint(plan.source, cache_dir)
    except FileNotFoundError as error:
        raise UserError(f"{plan.source} has disappeared while it was processed; put it back and run again") from error
    if found != plan.fingerprint:
        raise UserError(f"{plan.source} changed while it was processed; run again to start on the new content")
    return path
