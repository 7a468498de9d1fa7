"""`flashvsr serve` while Prefect's server is away: it stays, and goes on when the server is back."""

from pathlib import Path

import pytest

from tasks.media.probe import probe
from tests.flows.clips import make_clip
from tests.system.api import Api
from tests.system.processes import free_port, prefect_env, prefect_server_of, running, wait_for
from tests.system.stack import FLASHVSR
from tests.system.test_deploy import settings_of

pytestmark = [pytest.mark.system, pytest.mark.timeout(1800)]

BY_HAND, SWEEP, LAST = "upscale-video/upscale", "inbox-sweep/inbox-sweep", "upscale-on-object/upscale-on-object"
PIXELS = {"params": {"model": "nano", "scale": 2}, "compute": {"devices": "cpu"}}


def test_serve_outlasts_a_server_that_is_away(tmp_path: Path) -> None:
    """Once the server is back, runs are made by hand and by the schedule, and can be cancelled."""
    media = tmp_path / "media"
    (media / "in").mkdir(parents=True)
    (tmp_path / "prefect").mkdir()
    env = settings_of(tmp_path, prefect_env(tmp_path / "prefect", free_port())) | {"PREFECT_RUNNER_POLL_FREQUENCY": "1"}
    api, log = Api(env, tmp_path), tmp_path / "serve.log"
    serve = [*FLASHVSR, "serve", "--inbox", str(media / "in"), "--outbox", str(media / "out"), "--limit", "2"]
    server = prefect_server_of(env, tmp_path / "server.log")
    server.__enter__()
    try:
        with running([*serve, "--cron", "0 0 1 1 *"], env, log) as process:
            wait_for(lambda: f"serving {LAST}" in log.read_text(), process, log)
            server.__exit__(None, None, None)
            # The fourth poll that fails; Prefect's own runner ends at the third.
            wait_for(lambda: "asking again in 8 s" in log.read_text(), process, log)
            assert env["PREFECT_API_URL"] in log.read_text()
            server = prefect_server_of(env, tmp_path / "server again.log")
            server.__enter__()
            wait_for(lambda: "answers again" in log.read_text(), process, log)

            make_clip(media / "in" / "swept.mp4", 8)
            long = make_clip(media / "long.mp4", 2000)
            api.set_parameters(SWEEP, PIXELS | {"min_age": 0, "look_again": 0.2})
            api.set_schedule(SWEEP, "* * * * *", active=True)
            run = api.start(BY_HAND, PIXELS | {"source": str(long), "segment_frames": 16})
            api.until(lambda: api.run(run)["state_type"] == "RUNNING", 400, "a run at work")
            body = {"state": {"type": "CANCELLING"}}
            api.call("POST", f"/flow_runs/{run}/set_state", body)
            assert api.finish(run)["state_type"] == "CANCELLED"
            api.until(lambda: (media / "out" / "swept_2x.mp4").exists(), 600, "the schedule's output")
            assert any(one["auto_scheduled"] for one in api.runs_of("inbox-sweep"))
            assert process.poll() is None
        assert probe(media / "out" / "swept_2x.mp4").frames == 8
    finally:
        server.__exit__(None, None, None)
