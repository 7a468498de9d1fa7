"""One segment: its frames from the source, through the model, into an encoder, checked and stored."""

import logging
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from prefect import task
from prefect.cache_policies import CachePolicy
from prefect.context import TaskRunContext

from flashvsr_core.config import CLUSTERS, ComputeParams
from flashvsr_core.cuts import CONTEXT
from flashvsr_core.errors import BadInput, FlashvsrError, OutOfMemory, TransientError, UserError
from flashvsr_core.layout import Planes
from flashvsr_core.pixels import Pack, changed, grey_packer, resizer, yuv_packer
from flashvsr_core.segments import SegmentPlan, reading_range
from flashvsr_core.upscaler import Upscaler
from tasks import halt, heap, stop
from tasks.ahead import Ahead, Stalled, encoder_note
from tasks.beat import Heart, beating, forget_beat, this_worker
from tasks.events import FramesDone, SegmentComputed, SegmentStarted, tell
from tasks.forecast import Steps
from tasks.gpu import PeakMemory, device_name, devices_of, keep_compiled, loaded_upscaler, pins, turn_on_a_device
from tasks.media import images
from tasks.media.codecs import has_alpha
from tasks.media.decode import Channel, read_frames
from tasks.media.encode import EncodedSegment, check_segment, encode_segment, layout_of
from tasks.memory import Way, enforce_limit, grow_blocks, streams_of
from tasks.plan import JobPlan, bytes_needed, read_plan
from tasks.sources import check_unchanged, unchanged
from tasks.storage import urls
from tasks.storage.jobs import Job, SegmentResult
from tasks.workers import Released, WorkerDied, workers

log = logging.getLogger(__name__)

_PATIENCE = 300.0  # seconds for the next 8 frames of a source
_SECONDS_BEFORE = 0.2  # more for every frame before the first, which may all have to be decoded
_DECODED_AHEAD = 4  # items of `read_frames` that wait for the model
_CHUNKS_AHEAD = 2  # chunks of the model's output that wait for the encoder
_SPARE_BYTES = 2**26  # that a segment may still need of the disk; a fuller one ends it before others suffer


class SegmentKey(CachePolicy):
    """Prefect's cache key of a segment: the job's key says everything that changes its bytes."""

    def compute_key(
        self, task_ctx: TaskRunContext, inputs: dict[str, Any], flow_parameters: dict[str, Any], **_: Any
    ) -> str | None:
        return f"{task_ctx.task.name}-{inputs['job'].key}-{inputs['segment'].start}-{inputs['segment'].stop}"


def is_transient(_task: Any, _run: Any, state: Any) -> bool:
    """Whether a failed task may be tried again: only faults that may pass, never bad input or our own mistakes."""
    error = state.result(raise_on_failure=False)
    # Whoever called for the segment decides about another worker: it knows how often that was done before.
    return isinstance(error, TransientError | ConnectionError | TimeoutError) and not isinstance(error, WorkerDied)


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
    keep_compiled(cache_dir)
    if (held := job.result(segment.index)) is not None:
        return held
    work = cache_dir / "work"
    work.mkdir(parents=True, exist_ok=True)
    check_space(plan, segment, work)
    with (
        unchanged(plan.source, plan.fingerprint, compute, cache_dir) as source,
        tempfile.TemporaryDirectory(prefix=job.work_prefix, dir=work) as folder,
    ):
        what = (job, plan, segment, compute, source, Path(folder))
        result = _in_a_worker(*what) if compute.runner == "processes" else _make(*what, released=lambda: None)
    try:
        check_unchanged(plan.source, plan.fingerprint, cache_dir)
    except UserError:
        urls.remove(job.record_url(segment.index), missing_ok=True)  # a local source may have changed under the reader
        raise
    return result


def check_space(plan: JobPlan, segment: SegmentPlan, work: Path) -> None:
    """UserError where the folder for work files has no room for the segment, which is encoded there."""
    _demand(work, _encoded_bytes(plan, segment.frames), segment)


def _check_space_left(plan: JobPlan, segment: SegmentPlan, folder: Path, done: int) -> None:
    """The same while the segment is being made: others write to that disk too. Less is demanded than before it began,
    since what is expected may be too much."""
    _demand(folder, min(_SPARE_BYTES, _encoded_bytes(plan, segment.frames - done)), segment)


def _encoded_bytes(plan: JobPlan, frames: int) -> int:
    return bytes_needed(plan) * frames // (2 * plan.info.frames)


def _demand(folder: Path, need: int, segment: SegmentPlan) -> None:
    free = urls.free_bytes(str(folder))
    if free is not None and free < need:
        raise UserError(
            f"{folder} has {free >> 20} MiB free but about {need >> 20} MiB are needed for segment {segment.index}; "
            "finished segments stay: free some space or choose another place with --work-dir, and run again"
        )


def _in_a_worker(
    job: Job, plan: JobPlan, segment: SegmentPlan, compute: ComputeParams, source: Path, folder: Path
) -> SegmentResult:
    """`_make` in a process whose only GPU is the one it was given."""
    own = replace(compute, runner="threads", workers="auto", devices="cpu" if plan.device_type == "cpu" else "auto")
    made: SegmentResult = workers(pins(compute)).call(
        _make, job, plan, segment, own, source, folder, weight=segment.frames
    )
    return made


def _make(
    job: Job,
    plan: JobPlan,
    segment: SegmentPlan,
    compute: ComputeParams,
    source: Path,
    folder: Path,
    released: Released,
) -> SegmentResult:
    """Compute, check and store; `released` is called as soon as the device is free for another segment."""
    heap.bound()
    found = devices_of(compute)[0].type
    if found != plan.device_type:
        raise UserError(
            f"this job was planned for {plan.device_type}, this worker has {found}: pixels would differ; "
            "use a matching worker or --fresh"
        )
    file = folder / f"{segment.index:05d}.{job.extension}"
    geometry = plan.geometry
    with (
        turn_on_a_device(compute) as device,
        beating(job, segment.index, segment.frames, device_name(device), this_worker(str(device))) as heart,
    ):
        if compute.runner in CLUSTERS:
            halt.before_segment(job)  # it may have waited long for its turn
        begun = time.monotonic()
        if plan.cpu_threads:
            torch.set_num_threads(plan.cpu_threads)  # Dask and Ray give their workers one
        beat = heart.beat
        tell(SegmentStarted(segment.index, segment.frames, beat.device, beat.worker, beat.attempt))
        enforce_limit(compute, device)
        memory = PeakMemory(device)
        way = Way.of(job, plan.params, geometry, compute, device, streams_of(plan.encode))
        grow_blocks(way.rung, device)
        fallbacks: list[str] = []
        while True:
            try:
                encoded, blocked = _computed(plan, segment, way, source, file, memory, heart, fallbacks)
                break
            except OutOfMemory as error:
                fallbacks.append(str(error.reason))
                way = way.next(error)
            # What was made of the segment is overwritten.
            heart.start_over()
            tell(SegmentStarted(segment.index, segment.frames, beat.device, beat.worker, beat.attempt))
        way.remember()
        fallbacks += [way.fallback] if way.changes_pixels else []
        seconds = time.monotonic() - begun
        if (note := encoder_note(blocked, seconds)) is not None:
            log.info("segment %d: %s", segment.index, note)
    heap.trim()
    released()
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
        attempts=beat.attempt,
        worker=beat.worker,
        started=beat.started,
        fallbacks=tuple(dict.fromkeys(fallbacks)),
        encoder_wait=blocked,
    )
    forget_beat(job, segment.index)
    tell(
        SegmentComputed(segment.index, segment.frames, seconds, memory.bytes, result.device, result.fallbacks),
        f"segment {segment.index} [{segment.start}, {segment.stop}) computed in {seconds:.1f} s",
    )
    return result


def _computed(
    plan: JobPlan,
    segment: SegmentPlan,
    way: Way,
    source: Path,
    file: Path,
    memory: PeakMemory,
    heart: Heart,
    fallbacks: list[str],
) -> tuple[EncodedSegment, float]:
    """The segment encoded into `file`, and the seconds for which the model waited for the encoder."""
    upscaler = loaded_upscaler(way.rung.params, plan.digests, way.compute, way.device)
    upscaler.begin(way.rung.placement)
    # Three at work at once: a thread decodes, one drives the model, and this one encodes.
    with ExitStack() as threads:
        planes = _planes(plan, segment, upscaler, source, threads, fallbacks.append)
        chunks = threads.enter_context(Ahead(planes, _CHUNKS_AHEAD, "model"))
        steps = Steps(segment.start, segment.stop, in_chunks=not has_alpha(plan.encode.pix_fmt))
        told = _told(chunks, plan, segment, file.parent, memory, heart, steps)
        write: Any = images.encode_images if images.is_images(plan.encode.container) else encode_segment
        geometry = plan.geometry
        encoded: EncodedSegment = write(told, file, plan.info, plan.encode, geometry.out_width, geometry.out_height)
    return encoded, chunks.blocked


def _planes(
    plan: JobPlan,
    segment: SegmentPlan,
    upscaler: Upscaler,
    source: Path,
    threads: ExitStack,
    on_fallback: Callable[[str], None],
) -> Iterator[np.ndarray | Planes]:
    """The segment's planes (RGB or RGBA for images), straight from source frames through the model; transparency
    goes through it as a picture of its own."""
    colour_pack: Pack
    if images.is_images(plan.encode.container):
        depth = images.depth_of(plan.encode)
        colour_pack, alpha_pack = upscaler.rgb_pack(depth), grey_packer(depth)
    else:
        layout = layout_of(plan.encode, plan.info)
        colour_pack, alpha_pack = yuv_packer(layout), grey_packer(layout.depth)
    chunks = _pictures(plan, segment, upscaler, source, threads, colour_pack, "colour", on_fallback)
    if has_alpha(plan.encode.pix_fmt):
        alphas = _pictures(plan, segment, upscaler, source, threads, alpha_pack, "alpha", on_fallback)
        chunks = _with_alpha(chunks, alphas)
    return chunks


def _pictures(
    plan: JobPlan,
    segment: SegmentPlan,
    upscaler: Upscaler,
    source: Path,
    threads: ExitStack,
    pack: Pack,
    channel: Channel,
    on_fallback: Callable[[str], None],
) -> Iterator[np.ndarray | Planes]:
    """One channel of the segment through the model, made into what `pack` makes, at the final size."""
    preroll = plan.params.preroll
    assert isinstance(preroll, int), "a plan's parameters are resolved"
    first, end = reading_range(segment, preroll, CONTEXT, plan.info.frames)
    # PQ and HLG pictures go through as they are coded: every curve tried instead did worse (tests/bench/hdr.md).
    decoded = read_frames(source, plan.info, first, end, deinterlace=plan.params.deinterlace, channel=channel)
    patience = (_PATIENCE, _PATIENCE + first * _SECONDS_BEFORE)
    frames = threads.enter_context(Ahead(decoded, _DECODED_AHEAD, f"decode {channel}", *patience))
    pack = changed(pack, resizer(plan.geometry.out_width, plan.geometry.out_height))
    emit = (segment.start, segment.stop)
    return upscaler.stream(_patient(frames, plan), first=first, emit=emit, pack=pack, on_fallback=on_fallback)


def _patient(frames: Iterable[np.ndarray], plan: JobPlan) -> Iterator[np.ndarray]:
    """The same; a decoder that stands still is a fault of the file: strangers make files that never end."""
    try:
        yield from frames
    except Stalled as error:
        raise BadInput(
            f"{plan.source} cannot be decoded in time ({error}); it may be damaged or made to do harm: copy it again, "
            "or convert it with ffmpeg where that is safe"
        ) from error


def _told(
    chunks: Iterable[np.ndarray | Planes],
    plan: JobPlan,
    segment: SegmentPlan,
    folder: Path,
    memory: PeakMemory,
    heart: Heart,
    steps: Steps,
) -> Iterator[np.ndarray | Planes]:
    """The same chunks; each is looked at and told of when the encoder takes it."""
    for planes in chunks:
        stop.within_segment()
        _check_space_left(plan, segment, folder, heart.done)
        memory.look()
        count = len(planes[0] if isinstance(planes, tuple) else planes)
        latents, cuts = steps.add(count)
        heart.count(count, memory.bytes, latents, cuts)
        tell(FramesDone(segment.index, count, memory.bytes, latents, cuts))
        yield planes


def _with_alpha(
    colours: Iterator[np.ndarray | Planes], alphas: Iterator[np.ndarray | Planes]
) -> Iterator[np.ndarray | Planes]:
    """Y, U, V and A (RGBA for images) of each frame: the two streams may cut their chunks at other frames."""
    clear = (np.asarray(chunk)[i : i + 1] for chunk in alphas for i in range(len(chunk)))
    for colour, alpha in zip(_single(colours), clear, strict=True):
        yield (*colour, alpha) if isinstance(colour, tuple) else np.concatenate([colour, alpha[..., None]], axis=-1)


def _single(chunks: Iterator[np.ndarray | Planes]) -> Iterator[np.ndarray | Planes]:
    """The same, one frame at a time."""
    for chunk in chunks:
        if isinstance(chunk, tuple):
            yield from (tuple(plane[i : i + 1] for plane in chunk) for i in range(len(chunk[0])))
        else:
            yield from (chunk[i : i + 1] for i in range(len(chunk)))
