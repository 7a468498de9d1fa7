"""Keys, slugs, plans, and segments that are finished only when their record and their data agree."""

import hashlib
import json
import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flashvsr_core.errors import TransientError, UserError
from tasks.storage import urls
from tasks.storage.jobs import DamagedSegment, Job, SegmentResult, job_key, slug

KEY = "0123456789abcdef"


@pytest.fixture
def job(place: str) -> Job:
    return Job.at(place, "My Film.mkv", KEY, "mp4")


def record(job: Job, made: Path, index: int = 3) -> SegmentResult:
    return job.record_segment(
        index,
        index * 8,
        index * 8 + 8,
        made,
        frames=8,
        seconds=1.5,
        peak_memory_bytes=7,
        device="cpu",
        fallbacks=("x",),
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("My Film.mkv", "my-film"),
        ("/a/b/..mp4", "video"),
        ("s3://b/Müller & Söhne (1).mov", "muller-sohne-1"),
        ("日本.mp4", "video"),
        ("", "video"),
        ("---", "video"),
        ("../../etc/passwd", "passwd"),
        ("a" * 39 + " b" * 20, "a" * 39),
        ("x\n$(rm -rf).mp4", "x-rm-rf"),
        (".hidden", "hidden"),
        ("a.tar.gz", "a-tar"),
    ],
)
def test_slug(name: str, expected: str) -> None:
    assert slug(name) == expected


def test_places(job: Job, place: str) -> None:
    assert job.url == f"{place}/my-film-{KEY}"
    assert job.plan_url == f"{job.url}/plan.json"
    assert job.lease_url == f"{job.url}/lease.json"
    assert job.report_url == f"{job.url}/report.json"
    assert job.segment_url(12) == f"{job.url}/segments/00012.mp4"
    assert job.record_url(123456) == f"{job.url}/segments/123456.json"
    assert pickle.loads(pickle.dumps(job)) == job
    with pytest.raises(UserError, match="avi"):
        Job.at(place, "a", KEY, "avi")  # type: ignore[arg-type]


def test_key() -> None:
    parts = {"source": "sha256:1", "params": {"scale": 4, "ratio": 2.0, "list": (1, None, True)}, "PIXELS": 1}
    assert job_key(parts) == "eedfc2653714b515", "keys must never change: stores would lose their segments"
    assert job_key(dict(reversed(parts.items()))) == job_key(parts)
    assert job_key(parts | {"params": {"scale": 4.0, "ratio": 2, "list": [1, None, True]}}) == job_key(parts)
    others: list[dict[str, Any]] = [
        {"a": 1}, {"a": True}, {"a": "1"}, {"a": [1]}, {"a": {"1": 1}}, {"a": None}, {"b": 1}, {"a": 1.5}, {"a": "é"},
        {"a": "e\u0301"}, {"a": "\udcff"}, {},
    ]  # fmt: skip
    assert len({job_key(other) for other in others}) == len(others)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), b"1", {1}, Path("a"), {1: 2}, object(), [float("-inf")]])
def test_key_refuses(value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="params"):
        job_key({"params": {"x": value}})


def test_plan(job: Job) -> None:
    assert job.read_plan() is None
    assert job.write_plan({"frames": 10, "segments": [[0, 8], [8, 10]]}) == {
        "frames": 10,
        "segments": [[0, 8], [8, 10]],
    }
    assert job.write_plan({"frames": 11}) == job.read_plan() == {"frames": 10, "segments": [[0, 8], [8, 10]]}


def test_plan_race(job: Job, race) -> None:
    plans = race(8, lambda i: job.write_plan({"by": i}))
    assert plans == [job.read_plan()] * 8


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff"])
def test_damaged_plan(tmp_path: Path, damage: bytes) -> None:
    job = Job.at(str(tmp_path), "a", KEY, "mp4")
    urls.write_bytes(job.plan_url, damage)
    with pytest.raises(UserError, match=r"delete .* and run again"):
        job.write_plan({})


def test_segments(job: Job, file, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert (job.holds(3), job.finished()) == (False, {})
    results = {i: record(job, file(b"segment %d" % i), i) for i in (3, 0, 12)}
    assert results[3] == SegmentResult(
        3, 24, 32, job.segment_url(3), 8, 9, hashlib.sha256(b"segment 3").hexdigest(), 1.5, 7, "cpu", ("x",)
    )
    assert job.finished() == results
    assert list(job.finished()) == [0, 3, 12]
    assert [job.holds(i) for i in (0, 1, 3, 12)] == [True, False, True, True]
    path = job.fetch_segment(12, tmp_path / "fetched")
    assert path.read_bytes() == b"segment 12"
    assert (path == urls.local_path(job.segment_url(12))) if urls.is_local(job.url) else path.parent.name == "fetched"
    assert (tmp_path / "fetched").exists() != urls.is_local(job.url)
    assert urls.list_names(job.segments_url) == sorted(f"{i:05d}.{e}" for i in results for e in ("json", "mp4"))
    assert not caplog.records
    urls.write_json(job.report_url, {})
    job.remove_segments()
    job.remove_segments()
    assert job.finished() == {}
    assert (urls.list_names(job.url), urls.list_names(job.segments_url)) == (["report.json"], [])
    if urls.is_local(job.url):
        assert os.listdir(job.url) == ["report.json"]


def test_again(job: Job, file, tmp_path: Path) -> None:
    record(job, file(b"first"))
    again = record(job, file(b"second"))
    assert job.finished() == {3: again}
    assert job.fetch_segment(3, tmp_path).read_bytes() == b"second"


def test_a_moved_store(tmp_path: Path, file) -> None:
    job = Job.at(str(tmp_path / "one"), "a", KEY, "mp4")
    record(job, file(b"data"))
    (tmp_path / "one").rename(tmp_path / "two")
    moved = Job.at(str(tmp_path / "two"), "a", KEY, "mp4")
    assert moved.finished()[3].url == moved.segment_url(3)
    assert moved.fetch_segment(3, tmp_path).read_bytes() == b"data"


@dataclass(frozen=True)
class Damage:
    do: Callable[[Job], None]
    says: str


def edit(**changes: Any) -> Callable[[Job], None]:
    def do(job: Job) -> None:
        found = urls.read_json(job.record_url(3)) | changes
        urls.write_json(job.record_url(3), {key: value for key, value in found.items() if value != "-"})

    return do


def overwrite(url: str, data: bytes) -> Callable[[Job], None]:
    return lambda job: urls.write_bytes(getattr(job, url)(3), data)


DAMAGES = {
    "no segment": Damage(lambda job: urls.remove(job.segment_url(3)), "missing"),
    "segment is shorter": Damage(overwrite("segment_url", b"dat"), "has 3 bytes"),
    "segment is empty": Damage(overwrite("segment_url", b""), "has 0 bytes"),
    "record is empty": Damage(overwrite("record_url", b""), "damaged"),
    "record is cut": Damage(overwrite("record_url", b'{"version": 1, "segm'), "damaged"),
    "record is not UTF-8": Damage(overwrite("record_url", b"\xff\xfe"), "damaged"),
    "record is a list": Damage(overwrite("record_url", b"[]"), "version"),
    "record is newer": Damage(edit(version=2), "version"),
    "record has no version": Damage(edit(version="-"), "version"),
    "record lacks a field": Damage(edit(sha256="-"), "damaged"),
    "record has a wrong type": Damage(edit(bytes="4"), "damaged"),
    "record has wrong frames": Damage(edit(frames=7), "damaged"),
    "record of another": Damage(edit(segment=4), "record of segment 4"),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_damage(job: Job, file, what: str, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    record(job, file(b"data"))
    kept = record(job, file(b"other"), 5)
    DAMAGES[what].do(job)
    with caplog.at_level(logging.WARNING):
        assert not job.holds(3)
        assert job.finished() == {5: kept}
    assert len(caplog.records) == 2
    assert all(DAMAGES[what].says in r.message and "segment 3" in r.message for r in caplog.records), caplog.text
    with pytest.raises(DamagedSegment) as caught:
        job.fetch_segment(3, tmp_path)
    assert caught.value.index == 3
    assert not urls.exists(job.record_url(3))
    record(job, file(b"data"))
    assert set(job.finished()) == {3, 5}


def test_changed_content_of_equal_size(job: Job, file, tmp_path: Path) -> None:
    record(job, file(b"data"))
    kept = record(job, file(b"other"), 5)
    urls.write_bytes(job.segment_url(3), b"dAta")
    assert job.holds(3), "planning looks at sizes only"
    with pytest.raises(DamagedSegment, match=r"segment 3 is damaged: .*sha256") as caught:
        job.fetch_segment(3, tmp_path)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.index, str(again)) == (3, str(caught.value))
    assert isinstance(again, TransientError)
    assert job.finished() == {5: kept}


def test_segment_without_record_is_missing(job: Job, file) -> None:
    urls.write_bytes(job.segment_url(3), b"data")
    assert not job.holds(3)
    assert job.finished() == {}


def test_a_failing_store_is_not_a_missing_segment(job: Job, file, monkeypatch: pytest.MonkeyPatch) -> None:
    record(job, file(b"data"))

    def fail(_: str) -> bytes:
        raise TransientError("the store does not answer; run again")

    monkeypatch.setattr(urls, "read_bytes", fail)
    for ask in (lambda: job.holds(3), job.finished):
        with pytest.raises(TransientError, match="does not answer"):
            ask()


def test_what_was_stored_is_verified(job: Job, file, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.storage import local, remote

    copy, upload = local.copy, remote.upload
    monkeypatch.setattr(local, "copy", lambda source, target: (copy(source, target), Path(target).write_bytes(b"dAta")))
    monkeypatch.setattr(remote, "upload", lambda protocol, key, _, create: upload(protocol, key, file(b"dAta"), create))
    with pytest.raises(TransientError, match="sha256"):
        record(job, file(b"data"))
    assert urls.list_names(job.segments_url) == []


def test_wrong_results_are_refused(job: Job, file) -> None:
    with pytest.raises(ValueError, match="7 frames"):
        job.record_segment(0, 0, 8, file(b"1"), frames=7, seconds=1, peak_memory_bytes=0, device="cpu")
    with pytest.raises(FileNotFoundError):
        record(job, Path("/nowhere/segment.mp4"))
    assert urls.list_names(job.segments_url) == []


def test_key_is_the_same_in_another_process() -> None:
    code = "from tasks.storage.jobs import job_key; print(job_key({'b': {'x', 'y'} and 1, 'a': 0.1}))"
    root = Path(__file__).parents[2]
    seeds = [os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(root)} for seed in ("1", "2")]
    keys = {
        subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True).stdout for env in seeds
    }
    assert keys == {job_key({"a": 0.1, "b": 1}) + "\n"}


def test_records_are_plain_json(tmp_path: Path, file) -> None:
    job = Job.at(str(tmp_path), "a", KEY, "mp4")
    record(job, file(b"data"))
    found = json.loads(Path(job.record_url(3)).read_text())
    assert found["version"] == 1
    assert found["fallbacks"] == ["x"]
