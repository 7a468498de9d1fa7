"""SIGKILL while a segment is stored leaves no record or a true one, and never half a segment under its name."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.storage import urls
from tasks.storage.jobs import Job

DRIVER = Path(__file__).with_name("crash_driver.py")
ROOT = DRIVER.parents[2]
DATA = bytes(range(256)) * 12


def campaign(store: str, scratch: Path, first: int, step: int, options: dict[str, str]) -> list[dict]:
    scratch.mkdir()
    ran = subprocess.run(
        [sys.executable, str(DRIVER), store, str(first), str(step)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "SCRATCH": str(scratch)} | options,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert ran.returncode == 0, ran.stderr
    return [json.loads(line) for line in ran.stdout.splitlines()]


def check(store: str, killed: dict, scratch: Path) -> str:
    """What a kill left; the job must be redone or finished, and redoing it must work and clean up."""
    job = Job.at(f"{store}/{killed['n']}", "a.mp4", "0" * 16, "mp4")
    held = job.holds(0)
    if urls.exists(job.segment_url(0)):
        assert urls.read_bytes(job.segment_url(0)) == DATA, killed
    left = "record" if held else "segment" if urls.exists(job.segment_url(0)) else "nothing"
    assert urls.exists(job.record_url(0)) == held, killed
    job.record_segment(0, 0, 8, scratch / str(killed["n"]), frames=8, seconds=1.0, peak_memory_bytes=1, device="cpu")
    assert job.fetch_segment(0, scratch / "fetched").read_bytes() == DATA
    assert [n for n in urls.list_names(job.segments_url) if n.startswith("00000.")] == ["00000.json", "00000.mp4"]
    job.remove_segments()
    assert urls.list_names(job.segments_url) == []
    return left


def test_killed_at_every_line(tmp_path: Path) -> None:
    store, scratch = str(tmp_path / "store"), tmp_path / "scratch"
    kills = campaign(store, scratch, 1, 1, {})
    assert kills[-1]["died_at"] is None
    found = [check(store, killed, scratch) for killed in kills]
    order = ["nothing", "segment", "record"]
    assert found == sorted(found, key=order.index), "a later kill must not leave less"
    assert set(found) == set(order)
    places = {killed["died_at"].partition(":")[0] for killed in kills[:-1]}
    assert {"jobs.py", "urls.py", "local.py", "faults.py"} <= places


@pytest.mark.system
def test_killed_on_s3(tmp_path: Path, seaweed) -> None:
    """At every 9th line, between requests; a kill in the middle of one is in test_publish."""
    store, scratch = "s3://media/killed", tmp_path / "scratch"
    kills = campaign(store, scratch, 1, 9, {"FSSPEC_S3": json.dumps(seaweed.options)})
    assert kills[-1]["died_at"] is None
    assert {check(store, killed, scratch) for killed in kills} == {"nothing", "segment", "record"}
