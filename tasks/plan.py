"""Planning: what a source is, what will be made of it, and the job that identifies the work."""

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import TypeAdapter, ValidationError

from flashvsr_core.config import ComputeParams, UpscaleParams
from flashvsr_core.errors import UserError
from flashvsr_core.geometry import Geometry
from flashvsr_core.registry import ModelSpec
from flashvsr_core.segments import SegmentPlan, plan_segments
from flashvsr_core.upscaler import resolve_params
from tasks import sources, weights
from tasks.gpu import devices_of, models_dir
from tasks.media import encode as encoding
from tasks.media.codecs import codecs_with_alpha, depth_of, has_alpha
from tasks.media.encode import SEGMENT_SUFFIX, EncodeParams
from tasks.media.encoder import CARRIES_HDR10
from tasks.media.guard import describe_guarded
from tasks.media.images import bits_per_pixel, is_images, kinds_with_alpha, resolve_images
from tasks.media.limits import Limits
from tasks.media.probe import VideoInfo
from tasks.media.size import target_pixels
from tasks.media.stills import DEFAULT_FPS, SEQUENCE, is_float_format
from tasks.media.timestamps import parse_rate
from tasks.media.trim import Trim, frame_range, trimmed
from tasks.memory import MemoryPlan, plan_memory, streams_of
from tasks.outputs import Outputs, container_wanted, outputs_of
from tasks.storage import urls
from tasks.storage.jobs import Job, job_key

log = logging.getLogger(__name__)

DEFAULT_STORE = ".flashvsr"  # beside the output
PLAN = 2  # version of plan.json
PIXELS = 4  # raised by hand when the same parameters give other pixels
BYTES = 1  # raised by hand when the same pixels are encoded otherwise

OTHER_SCALES = {
    "nano": "nano is for scale 4; at 2 and 3 it helps damaged input, but on clean it is about as good as bicubic",
    "published": "the published models were trained for scale 4; at 2 and 3 faces and small text may distort",
}

# Bits per pixel of a demanding source at the default quality, to foresee a full disk; both segments and the merged
# file stand on the disk at the end. ProRes HQ is made for 3.5.
_BITS_PER_PIXEL = {"prores": 4.0, "prores4444": 6.0, "ffv1": 14.0}
_OTHER_BITS_PER_PIXEL = 0.25


@dataclass(frozen=True)
class Request:
    """What a user asked for, before anything is looked at."""

    source: str
    output: str | None = None
    params: UpscaleParams = UpscaleParams()
    encode: EncodeParams = EncodeParams()
    compute: ComputeParams = ComputeParams()
    store: str | None = None
    segment_frames: int = 512
    allow_truncated: bool = False
    trim: Trim = Trim()
    fps: str | None = None
    limits: Limits = Limits()

    @property
    def outputs(self) -> Outputs:
        """What will be made, by names alone."""
        return outputs_of(self.source, self.output, self.params.scale, container_wanted(self.encode))

    @property
    def output_url(self) -> str:
        """The one file whose being there says that the job is done."""
        return self.outputs.url

    @property
    def store_url(self) -> str:
        if self.store is not None:
            return urls.normalise(self.store)
        return urls.join(urls.parent(self.output_url), DEFAULT_STORE)


@dataclass(frozen=True)
class JobPlan:
    """The frozen decision, as it stands in plan.json: every worker obeys it, nobody re-derives it."""

    version: int
    key: str
    source: str
    fingerprint: str
    info: VideoInfo
    params: UpscaleParams
    encode: EncodeParams
    digests: dict[str, str]
    device_type: str
    segment_frames: int
    allow_truncated: bool
    notes: tuple[str, ...]
    versions: dict[str, str]
    cpu_threads: int = 0
    """Threads of PyTorch on the CPU (0: as the worker has them): they decide how sums round, and so the last bit."""
    trim: Trim = Trim()
    fps: str | None = None
    first_number: int = 1  # of images that are made: that of the source's first image
    memory: MemoryPlan | None = None  # None: planned before memory was looked at

    @property
    def geometry(self) -> Geometry:
        target = target_pixels(self.info, self.encode.target_size)
        return Geometry(self.info.width, self.info.height, self.params.scale, target)

    @property
    def segments(self) -> tuple[SegmentPlan, ...]:
        return plan_segments(self.info.frames, self.segment_frames)

    @property
    def parameters(self) -> tuple[tuple[str, str], ...]:
        """Every parameter that shapes the output, and its value, for people."""
        fields = asdict(self.params) | asdict(self.encode) | {"segment_frames": self.segment_frames}
        return tuple((name, str(value)) for name, value in fields.items())

    def to_json(self) -> dict[str, Any]:
        found = _plans.dump_python(self, mode="json")
        assert isinstance(found, dict)
        return found


_plans: TypeAdapter[JobPlan] = TypeAdapter(JobPlan)


def read_plan(job: Job) -> JobPlan:
    """The plan in force in a job's directory."""
    found = job.read_plan()
    if found is None:
        raise UserError(f"{job.plan_url} is not there; run the job again from its source")
    return parse_plan(found, job.plan_url)


def parse_plan(found: dict[str, Any], url: str) -> JobPlan:
    if found.get("version") != PLAN:
        raise UserError(f"{url} is of version {found.get('version')}, not {PLAN}; use --fresh or another --store")
    try:
        return _plans.validate_python(found)
    except ValidationError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{url} is damaged ({reason}); delete it and run again") from error


def make_plan(request: Request, cache_dir: Path) -> tuple[Job, JobPlan]:
    """Look at the source and decide everything; writes nothing but what is remembered in `cache_dir`."""
    source, container = urls.normalise(request.source), request.outputs.container
    with sources.required(source, request.compute, cache_dir) as path:
        whole = describe_guarded(path, request.allow_truncated, parse_rate(request.fps), request.limits)
    first, stop = frame_range(request.trim, whole)
    info = trimmed(whole, first, stop)
    request.outputs.check_frames(info.frames)
    if request.params.deinterlace == "on" and is_float_format(info.pix_fmt):
        raise UserError(f"deinterlace on is not for images of floating-point numbers ({info.pix_fmt}); use auto or off")
    target = target_pixels(info, request.encode.target_size)
    geometry = Geometry(info.width, info.height, request.params.scale, target)
    plan_segments(info.frames, request.segment_frames)
    resolve = resolve_images if is_images(container) else encoding.resolve
    encode = resolve(replace(request.encode, container=container), info, geometry.out_width, geometry.out_height)
    device = devices_of(request.compute)[0]
    asked = replace(request.params, scenes=_scenes(request.params, whole, first, stop))
    found = weights.locate(asked.model, asked.mode, models_dir(request.compute), asked.unknown_weights)
    params, memory = _fitted(asked, found.spec, request.compute, geometry, device, streams_of(encode))
    digest = sources.fingerprint(source, cache_dir)
    parts = {
        "source": digest,
        "params": _hashed(params),
        "encode": asdict(encode),
        "weights": dict(found.digests),
        "pixels": PIXELS,
        "bytes": BYTES,
        "device": device.type,
    }
    # Only where they say something, so that jobs without them keep their keys.
    if info.excerpt is not None or info.skipped:
        parts["frames"] = [first, stop]
    if request.fps is not None:
        parts["fps"] = list(info.frame_rate)
    job = Job.at(request.store_url, urls.name(source), job_key(parts), SEGMENT_SUFFIX)
    plan = JobPlan(
        version=PLAN,
        key=job.key,
        source=source,
        fingerprint=digest,
        info=info,
        params=params,
        encode=encode,
        digests=dict(found.digests),
        device_type=device.type,
        segment_frames=request.segment_frames,
        allow_truncated=request.allow_truncated,
        notes=_notes(info, encode, params, request.fps),
        versions=_versions(),
        cpu_threads=torch.get_num_threads() if device.type == "cpu" else 0,
        trim=request.trim,
        fps=request.fps,
        first_number=sources.first_number(source) + first,
        memory=memory,
    )
    return job, plan


def _fitted(
    asked: UpscaleParams,
    spec: ModelSpec,
    compute: ComputeParams,
    geometry: Geometry,
    device: torch.device,
    streams: int,
) -> tuple[UpscaleParams, MemoryPlan]:
    """Resolved parameters, in the tiles that memory demands."""
    tiles = {"tiled_dit": asked.tiled_dit, "tile_size": asked.tile_size, "tile_overlap": asked.tile_overlap}
    resolved = replace(resolve_params(asked, spec, device), **tiles)  # type: ignore[arg-type]
    return plan_memory(spec, resolved, compute, geometry, device, streams)


def _hashed(params: UpscaleParams) -> dict[str, Any]:
    """What of the parameters identifies a job: nothing of tiles where there are none, so that keys stay."""
    fields = asdict(params)
    if params.tiled_dit == "off":
        for name in ("tiled_dit", "tile_size", "tile_overlap"):
            del fields[name]
    return fields


def settle_plan(job: Job, plan: JobPlan) -> JobPlan:
    """The plan in force: an earlier run's segments are only of use with that run's segment length.

    For the holder of the job's lease: a plan whose source has moved is written anew.
    """
    found = job.read_plan()
    if found is None:
        return plan
    settled = parse_plan(found, job.plan_url)
    if settled.segment_frames != plan.segment_frames:
        log.warning(
            "this job was begun with segments of %d frames, which are kept instead of %d (--fresh starts anew)",
            settled.segment_frames,
            plan.segment_frames,
        )
    if settled.info.frames != plan.info.frames:
        raise UserError(
            f"{plan.source} has {plan.info.frames} frames but the plan of {job.url} says {settled.info.frames}; "
            "use --fresh to plan anew"
        )
    settled = replace(settled, memory=plan.memory)  # where things are kept is this run's own choice
    if settled.source != plan.source:
        # The same content was moved, or is there twice; workers must read where it is now.
        settled = replace(settled, source=plan.source)
        job.replace_plan(settled.to_json())
    return settled


@task(name="plan", task_run_name="plan", cache_policy=NO_CACHE)
def plan_job(request: Request, cache_dir: Path) -> tuple[Job, JobPlan]:
    """Plan a job and check that output, store and disk can take it; bad input is refused before anything is written."""
    job, plan = make_plan(request, cache_dir)
    for note in plan.notes:
        log.warning("%s", note)
    for place in (request.output_url, job.url):
        urls.check_writable(place)
    need, free = bytes_needed(plan), urls.free_bytes(job.url)
    if free is not None and free < need:
        raise UserError(
            f"{job.url} has {free >> 20} MiB free but about {need >> 20} MiB are needed for segments and output; "
            "free some space or choose another place with --store"
        )
    return job, plan


def bytes_needed(plan: JobPlan) -> int:
    """Estimate of what segments and merged output take on the disk."""
    geometry, encode = plan.geometry, plan.encode
    if is_images(encode.container):
        bits: float = bits_per_pixel(encode)
    elif encode.bitrate is not None:
        return int(2 * plan.info.duration * encode.bitrate * 1000 / 8)
    else:
        bits = _BITS_PER_PIXEL.get(encode.codec, _OTHER_BITS_PER_PIXEL)
    return int(2 * plan.info.frames * geometry.out_width * geometry.out_height * bits / 8)


def _scenes(params: UpscaleParams, whole: VideoInfo, first: int, stop: int) -> str | tuple[int, ...]:
    """Scenes as the job needs them: given ones are frames of the source, which may be trimmed."""
    scenes = sources.read_scenes(params.scenes_file, whole) if params.scenes_file else params.scenes
    if isinstance(scenes, str):
        return scenes
    if scenes and scenes[-1] >= whole.frames:
        raise UserError(
            f"scene cut at frame {scenes[-1]} lies beyond the video's {whole.frames} frames; correct --scenes"
        )
    return tuple(cut - first for cut in scenes if first < cut < stop)


def _notes(info: VideoInfo, encode: EncodeParams, params: UpscaleParams, fps: str | None) -> tuple[str, ...]:
    notes = []
    if params.scale != 4:
        notes.append(OTHER_SCALES["nano" if params.model == "nano" else "published"])
    if info.truncated:
        notes.append(f"the source is truncated: {info.frames} frames can be read")
    if info.container == SEQUENCE and fps is None:
        notes.append(f"no --fps was given: {DEFAULT_FPS} frames per second were assumed")
    if is_float_format(info.pix_fmt):
        notes.append("the images hold linear light: what is brighter than 1.0 was clipped")
    geometry = Geometry(info.width, info.height, params.scale, target_pixels(info, encode.target_size))
    odd = bool(geometry.out_width % 2 or geometry.out_height % 2)
    if odd and encode.pix_fmt.startswith("yuv444") and not info.pix_fmt.startswith("yuv444"):
        notes.append(f"encoded as {encode.pix_fmt}: 4:2:0 cannot hold an odd width or height")
    if geometry.target and max(geometry.out_width / info.width, geometry.out_height / info.height) > params.scale:
        notes.append(
            f"the target {geometry.out_width}x{geometry.out_height} is larger than {params.scale} x the source: the "
            "rest is plain enlargement"
        )
    return (*notes, *_interlace_notes(info, params), *_hdr_notes(info, encode), *_alpha_notes(info, encode))


def _interlace_notes(info: VideoInfo, params: UpscaleParams) -> Iterator[str]:
    if info.interlaced and params.deinterlace == "auto":
        yield "the source is interlaced: made progressive with bwdif, one picture per frame; --deinterlace off does not"
    elif info.interlaced and params.deinterlace == "off":
        yield "the source is interlaced and was left so: moving edges are combed"


def _hdr_notes(info: VideoInfo, encode: EncodeParams) -> Iterator[str]:
    if info.dynamic_metadata:
        yield (
            f"{' and '.join(info.dynamic_metadata)} metadata was dropped: it describes the source's frames and cannot "
            "be made anew; the result is plain HDR10, HLG or SDR as its tags say"
        )
    if is_images(encode.container):
        if info.is_hdr:
            yield (
                f"the images hold the source's {info.color_trc} values without a tag that says so"
                + (", and exr takes them for sRGB on its way to linear light" if encode.container == "exr" else "")
            )
        return
    if info.is_hdr and depth_of(encode.pix_fmt) == 8:
        yield f"HDR encoded as {encode.pix_fmt}: 8 bits show bands; h265 or av1 with 10 bits do not"
    if (info.mastering_display or info.content_light) and encode.codec not in CARRIES_HDR10:
        yield (
            f"mastering display and light levels were left out: they are not written with {encode.codec}; "
            f"{', '.join(sorted(CARRIES_HDR10))} keep them"
        )


def _alpha_notes(info: VideoInfo, encode: EncodeParams) -> Iterator[str]:
    if info.has_alpha and not has_alpha(encode.pix_fmt):
        images = is_images(encode.container)
        able = kinds_with_alpha() if images else codecs_with_alpha()
        yield (
            f"the transparency of the source was left out: {encode.container if images else encode.codec} as "
            f"{encode.pix_fmt} does not hold it; {', '.join(able)} do"
        )


def _versions() -> dict[str, str]:
    packages = {name: version(name) for name in ("torch", "av", "prefect", "numpy")}
    return packages | {"cuda": torch.version.cuda or ""}
