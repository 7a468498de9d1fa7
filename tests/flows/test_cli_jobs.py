"""`flashvsr jobs` as a user meets it: what it prints, JSON, exit status; in this process also over memory://."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flashvsr_core.errors import UserError
from flashvsr_core.quantities import age_text, bytes_text, parse_age, parse_bytes
from flows.cli.main import app
from tasks.media.probe import probe
from tasks.storage.jobs import Job
from tests.flows.clips import digests, make_clip
from tests.flows.test_cli import ROOT, flashvsr, refused
from tests.s3server import BUCKET, S3Server
from tests.tasks.conftest import Made, job_in, made, store

__all__ = ["job_in", "made", "store"]

JobIn = Callable[..., Job]
Say = Callable[..., str]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """What a command prints, run in this process."""

    def run(*arguments: str) -> str:
        capsys.readouterr()
        app(["jobs", *arguments], result_action="return_value")
        return capsys.readouterr().out

    return run


WHERE = " (a store is the folder .flashvsr beside an output, or what --store named)"


def test_list_find_show_on_every_store(store: str, job_in: JobIn, say: Say) -> None:
    assert say("list", store) == f"no jobs in {store}{WHERE}\n"
    assert say("find", store) == f"no unmerged jobs in {store}{WHERE}\n"
    done, part = job_in(store), job_in(store, (1,), "0" * 16)
    job_in(store, (0, 1, 2), "1" * 16)
    listed = say("list", store)
    assert done.url in listed
    assert "complete, not merged" in listed
    assert "incomplete: 2 of 3 segments" in listed
    assert "planned" in listed
    found = json.loads(say("find", store, "--json"))
    assert [job["url"] for job in found] == sorted([done.url, part.url])
    assert "planned" not in say("find", store)
    shown = say("show", part.url)
    for words in ("48x32 to 96x64", "nano tiny", "missing", "[16, 32)", "nobody works on it"):
        assert words in shown
    details = json.loads(say("show", part.url, "--json"))
    assert [row["state"] for row in details["segment_table"]] == ["finished", "missing", "finished"]
    assert details["plan"]["params"]["model"] == "nano"


def test_recover_and_clean_on_every_store(store: str, job_in: JobIn, say: Say, made: Made, tmp_path: Path) -> None:
    job = job_in(store, (0,))
    output = tmp_path / "part.mp4"
    told = say("recover", job.url, str(output), "--partial", "--work-dir", str(made.cache_dir))
    assert "24 of 40: [16, 40)" in told
    assert "gap       frames [0, 16)" in told
    assert "VIDEO ONLY" in told
    assert probe(output).frames == 24
    assert "freed 0 B" in say("clean", store, "--older-than", "1h")
    assert "would remove 5 files" in say("clean", store, "--larger-than", "1kB", "--dry-run")
    assert job.url in say("list", store)
    cleaned = json.loads(say("clean", store, "--larger-than", "1kB", "--json"))
    assert cleaned["bytes"] == cleaned["jobs"][0]["removed_bytes"] > 1000
    assert say("list", store) == f"no jobs in {store}{WHERE}\n"


def test_resume_goes_on_and_cleans_up(job_in: JobIn, made: Made, tmp_path: Path) -> None:
    job = job_in(str(tmp_path / ".flashvsr"), (1,))
    done = flashvsr("jobs", "resume", job.url, "--work-dir", made.cache_dir, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert (report["segments_computed"], report["segments_reused"]) == (1, 2)
    assert report["job"] == job.url
    assert report["output"]["url"] == str(tmp_path / "clip_2x.mp4")
    assert digests(tmp_path / "clip_2x.mp4") == [
        digest for index in range(3) for digest in digests(Path(made.job.segment_url(index)))
    ]


def test_refusals(job_in: JobIn, tmp_path: Path) -> None:
    job = job_in(str(tmp_path / "store"), (0, 2))
    refused(flashvsr("jobs", "recover", job.url, tmp_path / "x.mp4"), "segments 0, 2 of 3", "--partial")
    refused(flashvsr("jobs", "clean", tmp_path / "store"), "--older-than", "--larger-than")
    refused(flashvsr("jobs", "clean", tmp_path / "store", "--older-than", "soon"), "soon", "7d")
    refused(flashvsr("jobs", "list", tmp_path / "none"), "none", "not a directory")
    refused(flashvsr("jobs", "show", tmp_path / "store"), "jobs list")
    shutil.rmtree(tmp_path / "store")


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("12h", 43200), ("7d", 604800), ("2w", 1209600)]
)
def test_ages(text: str, seconds: float) -> None:
    assert parse_age(text) == seconds
    assert age_text(seconds) in (text, "2m")


@pytest.mark.parametrize(
    ("text", "size"), [("500MB", 5 * 10**8), ("10gb", 10**10), ("1.5GiB", 3 << 29), ("12", 12), ("1 kB", 1000)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "7", "d", "-1d", "1y"])
def test_bad_ages_and_sizes(text: str) -> None:
    with pytest.raises(UserError, match="write for example"):
        parse_age(text)
    with pytest.raises(UserError, match="write for example"):
        parse_bytes(f"{text}x")
    assert bytes_text(1_500_000) == "1.5 MB"


def command(module: str, *arguments: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", *module.split(), *map(str, arguments)]
    return subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True, timeout=280)


OPTIONS = ("--segment-frames=16", "--scale=2", "--preset=ultrafast", "--preroll=8", "--devices=cpu", "--model=nano")


@pytest.mark.system
@pytest.mark.parametrize(("stage", "finished"), [("recorded", 2), ("merging", 3)])
def test_a_killed_job_is_recovered_without_any_prefect_database(tmp_path: Path, stage: str, finished: int) -> None:
    clip, output, work = make_clip(tmp_path / "clip.mp4", 40), tmp_path / "out.mp4", tmp_path / "work"
    undisturbed = command("flows.cli.main", "run", clip, tmp_path / "whole.mp4", *OPTIONS, f"--work-dir={work}")
    assert undisturbed.returncode == 0, undisturbed.stderr
    # A cache directory of its own holds Prefect's database; it is deleted before anything is recovered.
    env = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    places = (clip, output, *OPTIONS, f"--store={tmp_path / 'store'}", f"--work-dir={work}")
    killed = command(f"tests.system.kill_at {stage}", "run", *places, env=env)
    assert killed.returncode == -9, killed.stderr
    assert (tmp_path / "cache").is_dir()
    shutil.rmtree(tmp_path / "cache")
    env |= {"PREFECT_API_URL": "http://127.0.0.1:9/api"}  # nobody listens there
    found = command("flows.cli.main", "jobs", "find", tmp_path / "store", "--json", env=env)
    (job,) = json.loads(found.stdout)
    assert job["segments_done"] == finished
    recovery = ("jobs", "recover", job["url"], output, "--json", f"--work-dir={work}")
    done = command("flows.cli.main", *recovery, env=env)
    if finished < 3:
        refused(done, "lacks segments 2 of 3")
        done = command("flows.cli.main", *recovery, "--partial", env=env)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    frames = min(40, 16 * finished)
    assert (told["frames"], told["video_only"]) == (frames, finished < 3)
    assert digests(output) == digests(tmp_path / "whole.mp4")[:frames]
    assert "prefect.db" not in {path.name for path in tmp_path.rglob("*.db")}


@pytest.mark.system
def test_a_job_on_s3_is_found_recovered_and_cleaned(seaweed: S3Server, tmp_path: Path) -> None:
    """Only the store and S3's settings are shared with the machine that was killed."""
    import fsspec

    clip = make_clip(tmp_path / "clip.mp4", 40)
    remote = fsspec.filesystem("s3", use_listings_cache=False)
    remote.put_file(str(clip), f"{BUCKET}/in/film.mp4")
    env = os.environ | {"FSSPEC_S3": json.dumps(seaweed.options), "PYTHONPATH": str(ROOT)}
    store = f"s3://{BUCKET}/jobs"
    places = (f"s3://{BUCKET}/in/film.mp4", f"s3://{BUCKET}/out/film.mp4", f"--store={store}")
    killed = command("tests.system.kill_at merging", "run", *places, *OPTIONS, f"--work-dir={tmp_path / 'a'}", env=env)
    assert killed.returncode == -9, killed.stderr
    # Which host holds the lease is known, so the killed run's lease is over at once.
    (job,) = json.loads(command("flows.cli.main", "jobs", "find", store, "--json", env=env).stdout)
    assert (job["state"], job["segments_done"]) == ("unmerged", 3)
    arguments = ("jobs", "recover", job["url"], places[1], f"--work-dir={tmp_path / 'b'}", "--json")
    done = command("flows.cli.main", *arguments, env=env)
    assert done.returncode == 0, done.stderr
    remote.get_file(f"{BUCKET}/out/film.mp4", str(tmp_path / "film.mp4"))
    info = probe(tmp_path / "film.mp4")
    assert (info.frames, info.audio_start is not None) == (40, True)
    clean = ("jobs", "clean", store, "--larger-than", "1kB", "--records", "--json")
    cleaned = command("flows.cli.main", *clean, env=env)
    assert json.loads(cleaned.stdout)["jobs"][0]["state"] == "finished", cleaned.stderr
    assert json.loads(command("flows.cli.main", "jobs", "list", store, "--json", env=env).stdout) == []
    # Asked of S3 itself: s3fs names a prefix that SeaweedFS goes on showing after it was emptied.
    left = remote.call_s3("list_objects_v2", Bucket=BUCKET, Prefix=f"jobs/{job['slug']}-{job['key']}/")
    assert [found["Key"] for found in left.get("Contents", ()) if not found["Key"].endswith("/")] == []
