"""`flashvsr deploy` and `flashvsr serve` on a real server: forms, a manual run, a sweep, and both commands again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.media.probe import probe
from tests.flows.clips import make_clip
from tests.system.api import Api
from tests.system.processes import ROOT, prefect_server, running, wait_for

pytestmark = pytest.mark.system

NAMES = [
    "upscale-video/upscale",
    "upscale-batch/upscale-batch",
    "inbox-sweep/inbox-sweep",
    "upscale-on-object/upscale-on-object",
]
FLASHVSR = [sys.executable, "-m", "flows.cli.main"]
PIXELS = {"model": "nano", "scale": 2}


def flashvsr(env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*FLASHVSR, *arguments], env=env, cwd=ROOT, capture_output=True, text=True, timeout=120)


def settings_of(tmp_path: Path, env: dict[str, str]) -> dict[str, str]:
    """The environment of a worker that may touch nothing but one folder."""
    return env | {"FLASHVSR_ROOTS": str(tmp_path / "media"), "FLASHVSR_WORK": str(tmp_path / "work")}


def test_deploy_then_by_hand_and_by_sweep(tmp_path: Path) -> None:
    inbox, outbox = tmp_path / "media" / "in", tmp_path / "media" / "out"
    make = make_clip(tmp_path / "clip.mp4", 8)
    (inbox / "deep").mkdir(parents=True)
    (inbox / "deep" / "a.mp4").write_bytes(make.read_bytes())
    (tmp_path / "prefect").mkdir()
    with prefect_server(tmp_path / "prefect") as env:
        api = Api(env, tmp_path)
        told = flashvsr(env, "deploy")
        assert told.stdout.split() == NAMES, told.stderr
        assert api.deployment(NAMES[2])["schedules"][0]["active"] is False
        told = flashvsr(env, "deploy", "--inbox", str(inbox), "--outbox", str(outbox), "--cron", "0 3 * * *")
        assert told.stdout.split() == NAMES, told.stderr
        before = [api.deployment(name) for name in NAMES]
        assert flashvsr(env, "deploy").stdout.split() == NAMES  # keeps the inbox it was given
        after = [api.deployment(name) for name in NAMES]
        for old, new in zip(before, after):
            for field in ("id", "parameters", "entrypoint", "work_pool_name", "parameter_openapi_schema"):
                assert new[field] == old[field]
            assert [s["schedule"]["cron"] for s in new["schedules"]] == [
                s["schedule"]["cron"] for s in old["schedules"]
            ]
        (schedule,) = after[2]["schedules"]
        assert (schedule["schedule"]["cron"], schedule["active"]) == ("0 3 * * *", True)
        assert not any(deployment["pull_steps"] for deployment in after)

        worker = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "flashvsr"]
        log = tmp_path / "worker.log"
        with running(worker, settings_of(tmp_path, env), log):
            given = {"source": str(inbox / "deep" / "a.mp4"), "params": PIXELS, "compute": {"devices": "cpu"}}
            run = api.start(NAMES[0], given | {"output": str(tmp_path / "media" / "hand.mp4")})
            outside = api.start(NAMES[0], given | {"output": str(tmp_path / "hand.mp4")})
            sweep = {"params": PIXELS, "compute": {"devices": "cpu"}, "min_age": 0, "look_again": 0.2}
            swept = api.start(NAMES[2], after[2]["parameters"] | sweep)
            assert api.create_run(NAMES[0], given | {"encode": {"ffmpeg_args": "-f tee"}}).status_code in (409, 422)
            ended = api.finish(run)
            assert ended["state_type"] == "COMPLETED", log.read_text()
            refused = api.finish(outside)
            assert refused["state_type"] == "FAILED"
            assert "outside of the roots" in refused["state"]["message"]
            assert api.finish(swept)["state_type"] == "COMPLETED", log.read_text()
    assert not (tmp_path / "hand.mp4").exists()
    assert probe(tmp_path / "media" / "hand.mp4").frames == 8
    assert probe(outbox / "deep" / "a_2x.mp4").frames == 8


def test_serve_needs_no_worker(tmp_path: Path) -> None:
    media = tmp_path / "media"
    media.mkdir()
    make_clip(media / "a.mp4", 8)
    (tmp_path / "prefect").mkdir()
    with prefect_server(tmp_path / "prefect") as env:
        api, log = Api(env, tmp_path), tmp_path / "serve.log"
        env = settings_of(tmp_path, env) | {"PREFECT_RUNNER_POLL_FREQUENCY": "2"}
        with running([*FLASHVSR, "serve"], env, log) as process:
            wait_for(lambda: api.client.get(f"/deployments/name/{NAMES[1]}").status_code == 200, process, log)
            given = {"folder": str(media), "output_root": str(media / "out"), "params": PIXELS}
            run = api.start(NAMES[1], given | {"compute": {"devices": "cpu"}})
            assert api.finish(run)["state_type"] == "COMPLETED", log.read_text()
    assert probe(media / "out" / "a_2x.mp4").frames == 8


def test_without_a_server_the_remedy_is_told(tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    env |= {"PREFECT_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    told = flashvsr(env, "deploy")
    assert told.returncode == 2
    assert "PREFECT_API_URL" in told.stderr
    nobody = {"PREFECT_API_URL": "http://127.0.0.1:9/api", "FLASHVSR_SERVER_PATIENCE": "0"}
    told = flashvsr(env | nobody, "deploy")
    assert told.returncode == 1, told.stderr
    assert "does not answer" in told.stderr
    assert flashvsr(env, "deploy", "--inbox", "/in").returncode == 2


def test_the_yaml_is_what_prefect_itself_deploys(tmp_path: Path) -> None:
    (tmp_path / "prefect").mkdir()
    with prefect_server(tmp_path / "prefect") as env:
        prefect = [sys.executable, "-m", "prefect", "--no-prompt"]
        pool = [*prefect, "work-pool", "create", "flashvsr", "--type", "process"]
        subprocess.run(pool, env=env, check=True, capture_output=True)
        file = ROOT / "deployments" / "prefect.yaml"
        done = subprocess.run(
            [*prefect, "deploy", "--all", "--prefect-file", str(file)],
            env=env,
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        found = [Api(env, tmp_path).deployment(name) for name in NAMES]
    assert not any(deployment["pull_steps"] for deployment in found)
    assert json.dumps(found).count("flows.inbox.inbox_sweep") >= 1
