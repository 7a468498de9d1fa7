"""Source, output and store on S3 (a real SeaweedFS): a whole run, resumed by a machine that shares nothing else."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest

from flows.upscale_video import _abort_uploads
from tasks.media.probe import probe
from tasks.report import announce_output
from tasks.storage.jobs import Job
from tests.flows.clips import digests, make_clip
from tests.s3server import BUCKET, S3Server
from tests.system.processes import ROOT

pytestmark = pytest.mark.system

OPTIONS = ("--segment-frames=16", "--scale=2", "--preset=ultrafast", "--devices=cpu", "--model=nano", "--preroll=8")


def command(
    server: S3Server, folder: Path, module: tuple[str, ...], *arguments: str
) -> subprocess.CompletedProcess[str]:
    """Run the command on a machine of its own: nothing but the store is shared with those in other folders."""
    folder.mkdir(exist_ok=True)
    own = {name: str(folder / name.lower()) for name in ("HOME", "XDG_CACHE_HOME", "PREFECT_HOME", "TMPDIR")}
    for place in own.values():
        Path(place).mkdir(exist_ok=True)
    env = os.environ | own | {"FSSPEC_S3": json.dumps(server.options)}
    line = [sys.executable, "-m", *module, "run", *arguments, *OPTIONS, f"--work-dir={folder}"]
    return subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True, timeout=900)


def test_uploads_of_killed_runs_are_given_up(seaweed: S3Server, tmp_path: Path) -> None:
    store = fsspec.filesystem("s3", use_listings_cache=False)
    job = Job.at(f"s3://{BUCKET}/given-up/store", "clip.mp4", "a" * 16, "mp4")
    output, foreign = f"s3://{BUCKET}/given-up/out.mp4", f"s3://{BUCKET}/given-up/other.mp4"
    (tmp_path / "merged.mp4").write_bytes(b"1")
    announce_output(job, tmp_path / "merged.mp4", output)
    for url in (job.segment_url(3), output, foreign):
        store.call_s3("create_multipart_upload", Bucket=BUCKET, Key=url.removeprefix(f"s3://{BUCKET}/"))

    def left() -> list[str]:
        return [u["Key"] for u in store.call_s3("list_multipart_uploads", Bucket=BUCKET).get("Uploads") or ()]

    _abort_uploads(job, foreign)  # which this job never announced
    assert sorted(left()) == ["given-up/other.mp4", "given-up/out.mp4"]
    _abort_uploads(job, output)
    assert left() == ["given-up/other.mp4"]


def test_half_a_job_is_finished_by_another_machine(seaweed: S3Server, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", 72)
    store = fsspec.filesystem("s3", use_listings_cache=False)
    store.put_file(str(clip), f"{BUCKET}/half/clip.mp4")
    places = (f"s3://{BUCKET}/half/clip.mp4", f"s3://{BUCKET}/half/out/out.mp4")
    killed = command(seaweed, tmp_path / "one", ("tests.system.kill_at", "recorded"), *places)
    assert killed.returncode == -9, killed.stderr
    stored = [name for name in store.find(f"{BUCKET}/half/out") if re.search(r"segments/\d+\.json$", name)]
    assert len(stored) == 2
    resumed = command(seaweed, tmp_path / "two", ("flows.cli.main",), *places)
    assert resumed.returncode == 0, resumed.stderr
    assert len(re.findall(r"\) computed in", resumed.stderr)) == 3
    assert resumed.stderr.count("reused") >= 2
    local = command(seaweed, tmp_path / "three", ("flows.cli.main",), str(clip), str(tmp_path / "local.mp4"))
    assert local.returncode == 0, local.stderr
    store.get_file(f"{BUCKET}/half/out/out.mp4", str(tmp_path / "out.mp4"))
    assert digests(tmp_path / "out.mp4") == digests(tmp_path / "local.mp4")


def test_a_run_on_s3_is_resumed_by_another_machine(seaweed: S3Server, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", 40)
    store = fsspec.filesystem("s3", use_listings_cache=False)
    store.put_file(str(clip), f"{BUCKET}/in/a clip.mp4")
    places = (f"s3://{BUCKET}/in/a clip.mp4", f"s3://{BUCKET}/out/out.mp4")
    main = ("flows.cli.main",)
    killed = command(seaweed, tmp_path / "one", ("tests.system.kill_at", "merging"), *places)
    assert killed.returncode == -9, killed.stderr
    assert not store.exists(f"{BUCKET}/out/out.mp4")
    assert len(re.findall(r"\) computed in", killed.stderr)) == 3
    resumed = command(seaweed, tmp_path / "two", main, *places)
    assert resumed.returncode == 0, resumed.stderr
    assert re.findall(r"\) computed in", resumed.stderr) == []
    assert resumed.stderr.count("reused") >= 3
    store.get_file(f"{BUCKET}/out/out.mp4", str(tmp_path / "out.mp4"))
    assert probe(tmp_path / "out.mp4").frames == 40
    local = command(seaweed, tmp_path / "three", main, str(clip), str(tmp_path / "local.mp4"))
    assert local.returncode == 0, local.stderr
    assert digests(tmp_path / "out.mp4") == digests(tmp_path / "local.mp4")
    again = command(seaweed, tmp_path / "two", main, *places)
    assert again.returncode == 0
    assert "already done" in again.stderr
    report = json.loads(store.cat_file(f"{BUCKET}/out/out.report.json"))
    assert "testsecret" not in json.dumps(report)
