"""What a person sees on a real terminal, from the first second to the last line."""

import os
import sys
from pathlib import Path

import pytest

from tests.browser.terminal import Recording, picture, plain, recorded
from tests.flows.clips import make_clip
from tests.system.processes import ROOT

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    folder = tmp_path_factory.mktemp("terminal")
    clip = make_clip(folder / "film.mp4", 40)
    options = ("--segment-frames=16", "--scale=2", "--preset=ultrafast", "--preroll=8", "--devices=cpu", "--model=nano")
    line = [sys.executable, "-m", "flows.cli.main", "run", str(clip), str(folder / "out.mp4"), *options]
    env = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    found = recorded([*line, f"--work-dir={folder / 'work'}"], env | {"PYTHONPATH": str(ROOT)})
    if (pictures := os.environ.get("FLASHVSR_PICTURES")) is not None:
        screens = found.screens()
        working = [shown for shown in screens if "segments  " in plain(shown) and "left" in plain(shown)]
        for name, shown in (("begun", screens[1]), ("half", working[len(working) // 2]), ("end", screens[-1])):
            picture(shown, found.columns, Path(pictures) / f"terminal-{name}.svg")
    return found


def test_something_is_seen_all_the_time(seen: Recording) -> None:
    screens = [plain(shown) for shown in seen.screens()]
    assert seen.status == 0, screens[-1]
    assert "starting" in screens[1]
    for part in ("▸ segments", "/40 frames", "running", "left"):
        assert any(part in shown for shown in screens), part
    assert all(len(row) <= seen.columns for shown in screens for row in shown.splitlines())


def test_the_view_leaves_nothing_behind(seen: Recording) -> None:
    last = plain(seen.screens()[-1])
    for part in ("▸", "starting", "left", "EventsWorker"):
        assert part not in last
    for part in ("done", "3 computed, 0 reused", "WARNING nano is for scale 4"):
        assert part in last
    assert "out.report.html" in "".join(last.split())  # a long path goes on in the next line
    whole = "".join(text for _, text in seen.pieces)
    assert whole.rfind("\x1b[?25h") > whole.rfind("\x1b[?25l") >= 0  # the cursor is back
