"""SIGKILL while a segment is stored leaves no record or a true one, and never half a segment under its name."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tasks.storage import urls
from tasks.storage.jobs import Job

DRIVER = Path(__file__).with_name("crash_driver.py")
ROOT = DRIVER.parents[2]
DATA = bytes(range(256)) * 12  # as in the driver
OLDER = DATA[::-1]
ORDER = ["older record", "nothing", "segment", "record"]


def campaign(arguments: list[str], scratch: Path, options: dict[str, str]) -> list[dict[str, Any]]:
    scratch.mkdir()
    ran = subprocess.run(
        [sys.executable, str(DRIVER), *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT), "SCRATCH": str(scratch)} | options,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert ran.returncode == 0, ran.stderr
    kills: list[dict[str, Any]] = [json.loads(line) for line in ran.stdout.splitlines()]
    assert kills[-1]["died_at"] is None, "the last child is the one that was not killed"
    return kills


def check(store: str, killed: dict[str, Any], scratch: Path) -> str:
    """What a kill left. It must be true, and recording again must work and clean up."""
    job = Job.at(f"{store}/{killed['n']}", "a.mp4", "0" * 16, "mp4")
    stored = urls.read_bytes(job.segment_url(0)) if urls.exists(job.segment_url(0)) else None
    assert stored in (None, DATA, OLDER), killed
    assert urls.exists(job.record_url(0)) == job.holds(0), killed
    left = "nothing" if stored in (None, OLDER) else "segment"
    if job.holds(0):
        assert job.fetch_segment(0, scratch / "fetched").read_bytes() == stored, killed
        left = "record" if stored == DATA else "older record"
    made = scratch / "again"
    made.write_bytes(DATA)
    job.record_segment(0, 0, 8, made, frames=8, seconds=1.0, peak_memory_bytes=1, device="cpu")
    assert job.fetch_segment(0, scratch / "fetched").read_bytes() == DATA
    assert [n for n in urls.list_names(job.segments_url) if n.startswith("00000.")] == ["00000.json", "00000.mp4"]
    job.remove_segments()
    assert urls.list_names(job.segments_url) == []
    return left


def test_killed_at_every_line(tmp_path: Path) -> None:
    store, scratch = str(tmp_path / "store"), tmp_path / "scratch"
    kills = campaign([store, "1"], scratch, {})
    found = [check(store, killed, scratch) for killed in kills]
    assert found == sorted(found, key=ORDER.index), "a later kill must not leave less"
    assert set(found) == set(ORDER[1:])
    places = {killed["died_at"].partition(":")[0] for killed in kills[:-1]}
    assert {"jobs.py", "urls.py", "local.py", "faults.py"} <= places


def test_killed_while_replacing(tmp_path: Path) -> None:
    """The older record must not come to speak of the newer data."""
    store, scratch = str(tmp_path / "store"), tmp_path / "scratch"
    kills = campaign([store, "3", "again"], scratch, {})
    found = [check(store, killed, scratch) for killed in kills]
    assert found == sorted(found, key=ORDER.index)
    assert set(found) == set(ORDER)


@pytest.mark.system
def test_killed_on_s3(tmp_path: Path, seaweed) -> None:
    """At every 9th line, between requests; a kill in the middle of one is in test_publish."""
    store, scratch = "s3://media/killed", tmp_path / "scratch"
    kills = campaign([store, "9"], scratch, {"FSSPEC_S3": json.dumps(seaweed.options)})
    assert {check(store, killed, scratch) for killed in kills} == set(ORDER[1:])
