"""What an operator sees in Prefect's UI, in a real browser: names, logs, progress, segments, summary."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from tests.browser.chromium import chromium
from tests.flows.clips import make_clip
from tests.system.api import Api
from tests.system.processes import ROOT, prefect_server

pytestmark = pytest.mark.system

OPTIONS = ("--segment-frames=16", "--scale=2", "--preset=ultrafast", "--preroll=8", "--devices=cpu", "--model=nano")
NAME = "film|one.mp4"

# Whether the last cell of the table can be seen to its end.
SEEN_WHOLE = """
    const cell = [...document.querySelectorAll("td")].at(-1), box = cell.getBoundingClientRect();
    return cell.contains(document.elementFromPoint(box.right - 4, box.top + box.height / 2));
"""


@dataclass(frozen=True)
class Seen:
    """A finished run on a server that still stands."""

    api: Api
    ui: str
    run: dict[str, Any]
    output: Path

    def artifacts(self) -> dict[str, dict[str, Any]]:
        where = {"artifacts": {"flow_run_id": {"any_": [self.run["id"]]}}}
        found = self.api.call("POST", "/artifacts/filter", where)
        return {artifact["key"].rpartition("-")[2]: artifact for artifact in found}


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    folder = tmp_path_factory.mktemp("ui")
    clip, output = make_clip(folder / NAME, 40), folder / "out.mp4"
    (folder / "prefect").mkdir()
    with prefect_server(folder / "prefect") as env:
        line = [sys.executable, "-m", "flows.cli.main", "run", str(clip), str(output), *OPTIONS]
        done = subprocess.run(
            [*line, f"--work-dir={folder / 'work'}"], cwd=ROOT, env=env, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stderr
        api = Api(env, folder)
        found = api.call("POST", "/flow_runs/filter", {})
        (run,) = [run for run in found if run["name"].startswith("upscale-")]
        yield Seen(api, env["PREFECT_API_URL"].removesuffix("/api"), run, output)


def test_names_can_be_read(seen: Seen) -> None:
    runs = seen.api.call("POST", "/flow_runs/filter", {})
    assert {run["name"].rpartition("/")[2] for run in runs} == {NAME, "segments-film-one"}
    numbered = {f"upscale-{index:05d}" for index in range(3)}
    wanted = {"plan", *numbered, "assemble", "verify", "report", "upscale-segments-0"}  # the last: the subflow

    def known() -> bool:
        return {task["name"] for task in seen.api.call("POST", "/task_runs/filter", {})} == wanted

    seen.api.until(known, 60, f"task runs {wanted}")  # the server learns of task runs by events, in batches


def test_logs_reach_the_run(seen: Seen) -> None:
    deadline = time.monotonic() + 30
    lines: list[str] = []
    while time.monotonic() < deadline and not any("publishing" in line for line in lines):
        lines = [log["message"] for log in seen.api.call("POST", "/logs/filter", {})]
        time.sleep(0.5)
    for text in ("40 frames in 3 segments", "segment 2 [32, 40) computed in", "looking at the result", "publishing"):
        assert any(text in line for line in lines), (text, lines)
    assert not any("FramesDone" in line for line in lines)


def test_artifacts_tell_the_end_of_the_run(seen: Seen) -> None:
    found = seen.artifacts()
    assert found.keys() == {"progress", "segments", "summary"}
    assert found["progress"]["data"] == 100.0
    rows = found["segments"]["data"]
    assert isinstance(rows, str | list)
    import json

    table = json.loads(rows) if isinstance(rows, str) else rows
    assert [(row["segment"], row["state"], row["attempts"]) for row in table] == [
        (0, "done", 1),
        (1, "done", 1),
        (2, "done", 1),
    ]
    assert str(seen.output.with_suffix(".report.html")) in found["summary"]["data"]
    assert "| sparse_ratio | `2.0` |" in found["summary"]["data"]


def test_the_browser_shows_them(seen: Seen, tmp_path: Path) -> None:
    pictures = Path(os.environ.get("FLASHVSR_PICTURES", tmp_path))
    found = seen.artifacts()
    with chromium(tmp_path / "profile", 1440, 1000) as browser:
        wait = WebDriverWait(browser, 60)

        def shows(url: str, *texts: str) -> None:
            browser.get(url)
            wait.until(lambda b: all(text in b.find_element(By.TAG_NAME, "body").text for text in texts))

        shows(f"{seen.ui}/runs/flow-run/{seen.run['id']}", NAME, "Completed", "merging 3 segments")
        time.sleep(2)
        browser.save_screenshot(str(pictures / "ui-run.png"))
        shows(f"{seen.ui}/artifacts/artifact/{found['segments']['id']}", "attempts", "00002.mp4")
        browser.save_screenshot(str(pictures / "ui-segments.png"))
        assert browser.execute_script(SEEN_WHOLE), "the table of segments is cut at its right"
        shows(f"{seen.ui}/artifacts/artifact/{found['summary']['id']}", "sparse_ratio", "out.report.html")
        time.sleep(1)
        browser.save_screenshot(str(pictures / "ui-summary.png"))
        shows(f"{seen.ui}/artifacts/artifact/{found['progress']['id']}", "100")
        browser.save_screenshot(str(pictures / "ui-progress.png"))
        broken = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
        assert [entry for entry in broken if "artifact" in entry["message"]] == []
