"""The flow against a standing server: from plain Python, and from a deployment through a process worker."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.media.probe import probe
from tests.flows.clips import make_clip
from tests.system.processes import ROOT, prefect_server, running

pytestmark = pytest.mark.system

FROM_PYTHON = """
import sys
from flashvsr_core.config import ComputeParams, UpscaleParams
from flows.upscale_video import upscale_video
report = upscale_video(sys.argv[1], sys.argv[2], params=UpscaleParams(scale=2, model="nano"),
                       compute=ComputeParams(devices="cpu", work_dir=sys.argv[3]))
print(report.status, report.frames)
"""

DEPLOY = """
import json, sys
from prefect.client.schemas.objects import StateType
from prefect.deployments import run_deployment
from prefect.flows import EntrypointType
from flows.upscale_video import upscale_video
deployment = upscale_video.to_deployment("hand", entrypoint_type=EntrypointType.MODULE_PATH)
deployment.work_pool_name = "local"
deployment.apply()
run = run_deployment("upscale-video/hand", parameters=json.loads(sys.argv[1]), timeout=300, as_subflow=False)
print(run.state.type.value, run.name, run.state.message)
"""


def test_from_python_and_from_a_deployment(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "clip.mp4", 24)
    home = tmp_path / "prefect"
    home.mkdir()
    with prefect_server(home) as env:
        work = str(tmp_path / "work")
        plain = python(FROM_PYTHON, env, str(source), str(tmp_path / "plain.mp4"), work)
        assert "done 24" in plain
        pool = [sys.executable, "-m", "prefect", "work-pool", "create", "local", "--type", "process"]
        subprocess.run(pool, env=env, check=True, capture_output=True)
        worker = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "local"]
        parameters = {
            "source": str(source),
            "output": str(tmp_path / "deployed.mp4"),
            "params": {"model": "nano", "scale": 2},
            "compute": {"devices": "cpu", "work_dir": work},
        }
        with running(worker, env, tmp_path / "worker.log"):
            told = python(DEPLOY, env, json.dumps(parameters))
            raw = {"output": str(tmp_path / "raw.mp4"), "encode": {"codec_args": "aq-mode=2"}}
            refused = python(DEPLOY, env, json.dumps(parameters | raw))
        assert "COMPLETED" in told, (tmp_path / "worker.log").read_text()
        assert f"upscale-{source}" in told  # a name people can read
        assert "FAILED" in refused
        assert "not taken from deployments" in refused
        assert not (tmp_path / "raw.mp4").exists()
    for name in ("plain.mp4", "deployed.mp4"):
        assert probe(tmp_path / name).frames == 24


def python(code: str, env: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=env, cwd=ROOT, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
