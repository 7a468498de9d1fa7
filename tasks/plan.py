"""Planning: what a source is, what will be made of it, and the job that identifies the work."""

import logging
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import torch
from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import TypeAdapter, ValidationError

from flashvsr_core.config import ComputeParams, UpscaleParams
from flashvsr_core.errors import BadInput, UserError
from flashvsr_core.geometry import Geometry
from flashvsr_core.segments import SegmentPlan, plan_segments
from flashvsr_core.upscaler import resolve_params
from tasks import weights
from tasks.gpu import devices_of, models_dir
from tasks.media import encode as encoding
from tasks.media.encode import SEGMENT_FORMAT, Container, EncodeParams
from tasks.media.probe import VideoInfo, probe
from tasks.storage import urls
from tasks.storage.fingerprint import fingerprint
from tasks.storage.jobs import Job, job_key

log = logging.getLogger(__name__)

DEFAULT_STORE = ".flashvsr"  # beside the output
PLAN = 1  # version of plan.json
PIXELS = 2  # raised by hand when the same parameters give other pixels
BYTES = 1  # raised by hand when the same pixels are encoded otherwise

_OTHER_SCALES = {
    "nano": "nano is for scale 4; at 2 and 3 it may help damaged input, but is 0.2 to 5 dB below bicubic on clean",
    "published": "the published models were trained for scale 4; at 2 and 3 faces and small text may distort",
}

# Bits per pixel of a demanding source at the default quality, to foresee a full disk; both segments and the merged
# file stand on the disk at the end.
_BITS_PER_PIXEL = 0.25


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

    @property
    def output_url(self) -> str:
        if self.output is not None:
            return urls.normalise(self.output)
        name = urls.name(self.source)
        stem = name.rpartition(".")[0] or name
        return urls.join(urls.parent(self.source), f"{stem}_{self.params.scale}x.mp4")

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

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.info.width, self.info.height, self.params.scale)

    @property
    def segments(self) -> tuple[SegmentPlan, ...]:
        return plan_segments(self.info.frames, self.segment_frames)

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
    source, output = urls.normalise(request.source), request.output_url
    if output == source:
        raise UserError(f"output {output} is the source itself; choose another OUTPUT")
    container = container_of(output)
    path = _local_source(source, cache_dir)
    info = probe(path, allow_truncated=request.allow_truncated)
    geometry = Geometry(info.width, info.height, request.params.scale)
    plan_segments(info.frames, request.segment_frames)
    encode = encoding.resolve(
        replace(request.encode, container=container), info, geometry.out_width, geometry.out_height
    )
    device = devices_of(request.compute)[0]
    asked = request.params
    found = weights.locate(asked.model, asked.mode, models_dir(request.compute), asked.unknown_weights)
    params = resolve_params(request.params, found.spec, device)
    if (cut := _last_cut(params)) >= info.frames:
        raise UserError(f"scene cut at frame {cut} lies beyond the video's {info.frames} frames; correct --scenes")
    digest = fingerprint(source, cache_dir)
    parts = {
        "source": digest,
        "params": asdict(params),
        "encode": asdict(encode),
        "weights": dict(found.digests),
        "pixels": PIXELS,
        "bytes": BYTES,
        "device": device.type,
    }
    job = Job.at(request.store_url, urls.name(source), job_key(parts), SEGMENT_FORMAT)
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
        notes=_notes(info, encode, params),
        versions=_versions(),
    )
    return job, plan


def settle_plan(job: Job, plan: JobPlan) -> JobPlan:
    """The plan in force: an earlier run's segments are only of use with that run's segment length."""
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
    return settled


@task(name="plan", task_run_name="plan-{request.source}", cache_policy=NO_CACHE)
def plan_job(request: Request, cache_dir: Path) -> tuple[Job, JobPlan]:
    """Plan a job and check that output, store and disk can take it; bad input is refused before anything is written."""
    job, plan = make_plan(request, cache_dir)
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
    geometry = plan.geometry
    return int(2 * plan.info.frames * geometry.out_width * geometry.out_height * _BITS_PER_PIXEL / 8)


def _local_source(source: str, cache_dir: Path) -> Path:
    try:
        return urls.localise(source, cache_dir / "sources")
    except FileNotFoundError as error:
        raise BadInput(f"{source} does not exist; check the name") from error


def container_of(output: str) -> Container:
    suffix = urls.name(output).rpartition(".")[2].lower()
    if suffix not in get_args(Container):
        raise UserError(f"output {output} must end in {', '.join('.' + e for e in get_args(Container))}")
    return suffix  # type: ignore[return-value]


def _last_cut(params: UpscaleParams) -> int:
    return params.scenes[-1] if isinstance(params.scenes, tuple) and params.scenes else -1


def _notes(info: VideoInfo, encode: EncodeParams, params: UpscaleParams) -> tuple[str, ...]:
    notes = []
    if params.scale != 4:
        notes.append(_OTHER_SCALES["nano" if params.model == "nano" else "published"])
    if info.truncated:
        notes.append(f"the source is truncated: {info.frames} frames can be read")
    if encode.pix_fmt.startswith("yuv444") and not info.pix_fmt.startswith("yuv444"):
        notes.append(f"encoded as {encode.pix_fmt}: 4:2:0 cannot hold an odd width or height")
    return tuple(notes)


def _versions() -> dict[str, str]:
    packages = {name: version(name) for name in ("torch", "av", "prefect", "numpy")}
    return packages | {"cuda": torch.version.cuda or ""}
