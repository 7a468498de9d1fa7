"""Jobs in stores of every kind: made once by the real pipeline's steps (no Prefect server), copied for each test."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from flashvsr_core.config import ComputeParams, UpscaleParams
from tasks.media.encode import EncodeParams
from tasks.plan import JobPlan, Request, make_plan
from tasks.storage import urls
from tasks.storage.jobs import Job
from tasks.upscale import upscale_segment
from tests.flows.clips import make_clip
from tests.s3server import BUCKET

COMPUTE = ComputeParams(devices="cpu")


@dataclass(frozen=True)
class Made:
    """A job whose three segments of 16, 16 and 8 frames are all finished, and nothing else happened."""

    job: Job
    plan: JobPlan
    source: Path
    cache_dir: Path


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("made")
    source = make_clip(folder / "clip.mp4", 40)
    params = UpscaleParams(scale=2, model="nano", preroll=8)
    encode = EncodeParams(preset="ultrafast", threads=2)
    request = Request(str(source), str(folder / "out.mp4"), params, encode, COMPUTE, segment_frames=16)
    job, plan = make_plan(request, folder / "cache")
    job.write_plan(plan.to_json())
    for segment in plan.segments:
        upscale_segment.fn(job, segment, COMPUTE, folder / "cache")
    return Made(job, plan, source, folder / "cache")


@pytest.fixture(params=["local", "memory", pytest.param("s3", marks=pytest.mark.system)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty store."""
    if request.param == "local":
        (tmp_path / "store").mkdir()
        return str(tmp_path / "store")
    if request.param == "memory":
        return f"memory://{secrets.token_hex(6)}"
    request.getfixturevalue("seaweed")
    return f"s3://{BUCKET}/{secrets.token_hex(6)}"


@pytest.fixture
def job_in(made: Made) -> Callable[..., Job]:
    """Copy the finished job into a store, without the segments `missing`."""

    def copy(store: str, missing: tuple[int, ...] = (), key: str | None = None) -> Job:
        job = Job(key or made.job.key, made.job.slug, urls.join(store, f"{made.job.slug}-{key or made.job.key}"), "mp4")
        urls.publish(Path(made.job.plan_url), job.plan_url, overwrite=True)
        for segment in made.plan.segments:
            if segment.index not in missing:
                urls.publish(Path(made.job.segment_url(segment.index)), job.segment_url(segment.index), overwrite=True)
                urls.publish(Path(made.job.record_url(segment.index)), job.record_url(segment.index), overwrite=True)
        return job

    return copy
