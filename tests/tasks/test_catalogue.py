"""What a store is said to hold, on every kind of store, and what cleaning removes and never removes."""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from flashvsr_core.config import ComputeParams
from flashvsr_core.errors import UserError
from tasks import catalogue
from tasks.recover import recover
from tasks.storage import urls
from tasks.storage.jobs import Job
from tasks.storage.lease import hold
from tests.tasks.conftest import COMPUTE, Made

JobIn = Callable[..., Job]
KEYS = [f"{i:016x}" for i in range(9)]


def states(store: str) -> dict[str, str]:
    return {job.key: job.state for job in catalogue.list_jobs(store)}


def test_states_counts_and_sizes(store: str, job_in: JobIn, made: Made) -> None:
    assert catalogue.list_jobs(store) == []
    job_in(store, (0, 1, 2), KEYS[0])
    job_in(store, (1,), KEYS[1])
    job_in(store, (), KEYS[2])
    urls.write_bytes(urls.join(store, f"bad-{KEYS[3]}", "plan.json"), b"{")
    urls.write_bytes(urls.join(store, "results", "abc"), b"1")
    urls.write_bytes(urls.join(store, f"foreign-{KEYS[4]}", "film.mp4"), b"1")
    running = job_in(store, (2,), KEYS[5])
    with hold(running.lease_url, owner="somebody"):
        found = {job.key: job for job in catalogue.list_jobs(store)}
    assert {key: job.state for key, job in found.items()} == {
        KEYS[0]: "planned",
        KEYS[1]: "incomplete",
        KEYS[2]: "unmerged",
        KEYS[3]: "unreadable",
        KEYS[5]: "running",
    }
    part = found[KEYS[1]]
    assert (part.segments_done, part.segments, part.frames_done, part.frames) == (2, 3, 24, 40)
    assert part.source == str(made.source)
    listed = (*urls.list_sizes(part.url).values(), *urls.list_sizes(f"{part.url}/segments").values())
    assert part.bytes == sum(listed) > 0
    assert 0 <= catalogue.age(part) < 300
    assert "damaged" in str(found[KEYS[3]].problem)
    assert "by somebody" in str(found[KEYS[5]].holder)
    assert {key for key, job in found.items() if job.is_unmerged} == {KEYS[1], KEYS[2]}
    assert states(store)[KEYS[5]] == "incomplete", "the lease was released"


def test_a_recovered_job_is_finished(store: str, job_in: JobIn, made: Made, tmp_path: Path) -> None:
    job = job_in(store)
    recover(job, str(tmp_path / "out.mp4"), made.cache_dir)
    (summary,) = catalogue.list_jobs(store)
    assert (summary.state, summary.output) == ("finished", str(tmp_path / "out.mp4"))
    assert not summary.is_unmerged


def test_cleaning_a_finished_job_keeps_its_records(store: str, job_in: JobIn, made: Made, tmp_path: Path) -> None:
    job = job_in(store)
    recover(job, str(tmp_path / "out.mp4"), made.cache_dir)
    (summary,) = catalogue.list_jobs(store)
    would = catalogue.clean(summary, dry_run=True)
    assert len(urls.list_names(job.segments_url)) == 6
    done = catalogue.clean(summary)
    assert (done.files, done.bytes) == (would.files, would.bytes) == (6, done.bytes)
    assert urls.list_names(job.segments_url) == []
    assert states(store) == {job.key: "finished"}
    (summary,) = catalogue.list_jobs(store)
    catalogue.clean(summary, records=True)
    assert catalogue.list_jobs(store) == []


def test_cleaning_an_abandoned_job_removes_all_but_foreign_files(store: str, job_in: JobIn) -> None:
    job = job_in(store, (1,))
    urls.write_bytes(urls.join(job.url, "holiday.mp4"), b"mine")
    (summary,) = catalogue.list_jobs(store)
    done = catalogue.clean(summary)
    assert (done.files, done.kept) == (5, None)
    assert urls.list_names(job.url) == ["holiday.mp4"]
    assert catalogue.list_jobs(store) == []


def test_a_running_job_is_never_cleaned(store: str, job_in: JobIn) -> None:
    job = job_in(store)
    (before,) = catalogue.list_jobs(store)
    with hold(job.lease_url, owner="somebody"):
        assert catalogue.choose(catalogue.list_jobs(store), None, 0, time.time()) == []
        done = catalogue.clean(before)  # looked at before the run began
        assert (done.files, done.bytes) == (0, 0)
        assert "already running" in str(done.kept)
    urls.remove(job.record_url(1))
    assert "went on" in str(catalogue.clean(before).kept)
    assert urls.exists(job.plan_url)


def test_choosing_by_age_and_size(tmp_path: Path, job_in: JobIn) -> None:
    young, old = job_in(str(tmp_path), (), KEYS[0]), job_in(str(tmp_path), (0, 1, 2), KEYS[1])
    past = time.time() - 8 * 86400
    os.utime(old.plan_url, (past, past))
    jobs, now, week = catalogue.list_jobs(str(tmp_path)), time.time(), 7 * 86400.0
    big = jobs[0].bytes - 1

    def chosen(older: float | None, larger: int | None) -> list[str]:
        return [job.url for job in catalogue.choose(jobs, older, larger, now)]

    assert chosen(week, None) == [old.url]
    assert chosen(None, big) == [young.url]
    assert chosen(week, big) == []
    assert chosen(0, 0) == [young.url, old.url]
    timeless = replace(jobs[1], modified=0.0)
    assert catalogue.choose([timeless], week, None, now) == [], "an unknown age is no great age"
    with pytest.raises(UserError, match="--older-than"):
        chosen(None, None)


def test_a_job_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a directory"):
        catalogue.list_jobs(str(tmp_path / "none"))
    with pytest.raises(UserError, match="NAME-KEY"):
        catalogue.job_at(str(tmp_path))
    with pytest.raises(UserError, match="there is no job"):
        catalogue.job_at(f"memory://none/clip-{KEYS[0]}")


def test_the_request_that_goes_on_with_a_job(job_in: JobIn, made: Made, tmp_path: Path) -> None:
    job = job_in(str(tmp_path / ".flashvsr"))
    request = catalogue.request_again(job, None, ComputeParams(), made.cache_dir)
    assert request.output_url == str(tmp_path / "clip_2x.mp4")
    assert request.compute == COMPUTE, "the job was planned for the CPU"
    elsewhere = job_in(str(tmp_path / "elsewhere"))
    request = catalogue.request_again(elsewhere, None, COMPUTE, made.cache_dir)
    assert request.output_url == str(made.source.parent / "clip_2x.mp4")
    recover(job, str(tmp_path / "named.mp4"), made.cache_dir)
    assert catalogue.request_again(job, None, COMPUTE, made.cache_dir).output == str(tmp_path / "named.mp4")
    with pytest.raises(UserError, match=r"\.mp4"):
        catalogue.request_again(job, str(tmp_path / "x.mkv"), COMPUTE, made.cache_dir)


def test_what_would_be_another_job_is_refused(job_in: JobIn, made: Made, tmp_path: Path) -> None:
    job = job_in(str(tmp_path / "store"))
    plan = urls.read_json(job.plan_url)
    urls.write_json(job.plan_url, plan | {"params": plan["params"] | {"seed": 7}})
    with pytest.raises(UserError, match="another job"):
        catalogue.request_again(job, str(tmp_path / "x.mp4"), COMPUTE, made.cache_dir)
