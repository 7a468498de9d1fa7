"""`flashvsr serve`: a run from the form of Prefect's UI, and a server that goes away and comes back."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from selenium.common.exceptions import (
    InvalidElementStateException,
    NoSuchElementException,
    StaleElementReferenceException,
)
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.ui import WebDriverWait

from tasks.media.probe import probe
from tests.browser.chromium import chromium
from tests.flows.clips import make_clip
from tests.system.api import Api
from tests.system.processes import free_port, prefect_env, prefect_server, prefect_server_of, running, wait_for
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
            long = make_clip(media / "long.mp4", 480)
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


@contextmanager
def serving(tmp_path: Path) -> Iterator[tuple[dict[str, str], Api, subprocess.Popen[bytes]]]:
    """A server and `flashvsr serve` on it, with a folder for media: the environment, the server's API, the command."""
    (tmp_path / "media").mkdir()
    (tmp_path / "prefect").mkdir()
    with prefect_server(tmp_path / "prefect") as server:
        env = settings_of(tmp_path, server) | {"PREFECT_RUNNER_POLL_FREQUENCY": "1"}
        log = tmp_path / "serve.log"
        with running([*FLASHVSR, "serve"], env, log) as process:
            wait_for(lambda: f"serving {LAST}" in log.read_text(), process, log)
            yield env, Api(env, tmp_path), process


def test_a_run_from_the_form_in_a_browser(tmp_path: Path) -> None:
    """Nothing but the source is filled in; all else is what the form offers."""
    with serving(tmp_path) as (env, api, _):
        source = make_clip(tmp_path / "media" / "film.mp4", 8)
        api.set_parameters(BY_HAND, PIXELS)
        ui, deployment = env["PREFECT_API_URL"].removesuffix("/api"), api.deployment(BY_HAND)["id"]
        with chromium(tmp_path / "profile", 1440, 3000) as browser:
            browser.get(f"{ui}/deployments/deployment/{deployment}/run")
            fill_in(browser, "source", str(source))
            browser.find_element(By.CSS_SELECTOR, "button[type=submit]").click()
            api.until(lambda: api.upscalings(str(source)), 120, "a run made by the form")
        api.until(lambda: api.upscalings(str(source)) == ["COMPLETED"], 400, "the end of the run")
    assert probe(tmp_path / "media" / "film_2x.mp4").frames == 8


def test_a_termination_signal_ends_what_runs(tmp_path: Path) -> None:
    """No process is left, its run is not said to run, nothing more is scheduled; served again, it is."""
    with serving(tmp_path) as (env, api, process):
        long = make_clip(tmp_path / "media" / "long.mp4", 480)
        run = api.start(BY_HAND, PIXELS | {"source": str(long), "segment_frames": 16})
        segments = tmp_path / "media" / ".flashvsr"
        api.until(lambda: list(segments.glob("*/segments/*.json")), 400, "a segment")
        family = psutil.Process(process.pid).children(recursive=True)
        assert family
        process.terminate()
        assert process.wait(120) == 0, (tmp_path / "serve.log").read_text()
        assert psutil.wait_procs(family, 60)[1] == []
        assert api.run(run)["state_type"] == "CANCELLED"
        assert api.deployment(SWEEP)["paused"]
        assert not list((tmp_path / "media" / ".flashvsr").glob("*/lease.json"))
        with running([*FLASHVSR, "serve"], env, tmp_path / "serve again.log"):
            api.until(lambda: not api.deployment(SWEEP)["paused"], 120, "schedules")


def fill_in(browser: WebDriver, label: str, text: str) -> None:
    """Write into a field of the form until it is still there at the next look: the form fills itself as it loads."""
    field = (By.XPATH, f"(//label[.//span[text()='{label}']]/following::textarea)[1]")

    def kept(_: WebDriver) -> bool:
        found = browser.find_element(*field)
        if found.get_attribute("value") == text:
            return True
        found.clear()
        found.send_keys(text)
        return False

    again = (NoSuchElementException, StaleElementReferenceException, InvalidElementStateException)
    WebDriverWait(browser, 240, poll_frequency=5, ignored_exceptions=again).until(kept)
