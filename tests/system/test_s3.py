"""Source, output and store on S3 (a real SeaweedFS): a whole run, resumed by a machine that shares nothing else."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest

from tasks.media.probe import probe
from tests.flows.clips import digests, make_clip
from tests.s3server import BUCKET, S3Server
from tests.system.processes import ROOT

pytestmark = pytest.mark.system

OPTIONS = ("--segment-frames=16", "--scale=2", "--preset=ultrafast", "--devices=cpu", "--model=nano", "--preroll=8")


def command(
    server: S3Server, folder: Path, module: tuple[str, ...], *arguments: str
) -> subprocess.CompletedProcess[str]:
    """Run the command with the S3 settings in the environment, as fsspec reads them, and a cache of its own."""
    env = os.environ | {"FSSPEC_S3": json.dumps(server.options)}
    line = [sys.executable, "-m", *module, "run", *arguments, *OPTIONS, f"--work-dir={folder}"]
    return subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True, timeout=400)


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
