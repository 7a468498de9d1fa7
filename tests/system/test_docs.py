"""Every command in README and docs is run as it stands there, or says in its first line why it is not.

The blocks of a page run in order in one folder, which holds two small clips and a store with a job that nobody merged.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import ffmpeg
import pytest
from PIL import Image

from tasks.media.ffmpeg import run_ffmpeg
from tasks.storage.jobs import Job
from tests.flows.clips import make_clip
from tests.system.processes import ROOT
from tests.tasks.conftest import Made, job_in, made  # noqa: F401 - fixtures

pytestmark = pytest.mark.system

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Pages whose commands have a test of their own, which runs them on a server; it knows them by a word behind `sh`.
ELSEWHERE = {"deployments.md": "test_commands.py", "notifications.md": "test_notifications.py"}
UNTESTED = re.compile(r"# not tested here: \w+")
SHELL = ("", "sh", "bash")
# Commands of a page that show alternatives: each finds the store as it was at first, and no outputs.
AFRESH = {"jobs.md": "rm -rf .flashvsr *_?x.* part.*; cp -r saved .flashvsr"}
PLACEHOLDER = "film-0123456789abcdef"


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of every fenced block."""
    found = re.findall(r"^```([^\n]*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [(language.split(" ")[0], text) for language, text in found]


def commands(page: Path) -> list[str]:
    return [text for language, text in blocks(page) if language in SHELL and not UNTESTED.match(text)]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_what_is_not_run_says_so(page: Path) -> None:
    for _, text in blocks(page):
        if (match := UNTESTED.match(text)) is not None:
            for name in re.findall(r"tests/\S+?\.py", text.partition("\n")[0]):
                assert (ROOT / name).exists(), f"{page.name} names {name}, which does not exist ({match[0]})"
    if page.name in ELSEWHERE:
        test = (ROOT / "tests" / "system" / ELSEWHERE[page.name]).read_text()
        assert page.name in test
        for info, text in re.findall(r"^```([^\n]*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
            language, _, word = info.partition(" ")
            if language in SHELL and not UNTESTED.match(text):
                assert word, f"{page.name}: nobody runs {text!r}"
                assert word in test, f"{ELSEWHERE[page.name]} does not look for blocks marked {word!r}"


@pytest.mark.parametrize(
    "page", [page for page in PAGES if commands(page) and page.name not in ELSEWHERE], ids=lambda p: p.name
)
def test_commands_run(page: Path, made: Made, job_in: Callable[..., Job], tmp_path: Path) -> None:  # noqa: F811
    make_clip(tmp_path / "holiday.mp4", 9)
    make_clip(tmp_path / "film.mp4", 9)
    (tmp_path / "frames").mkdir()
    make_clip(tmp_path / "in.mp4", 9)
    for made_of_it in ("tape.mpg", "frames/%03d.png"):
        run_ffmpeg(ffmpeg.output(ffmpeg.input(str(tmp_path / "holiday.mp4")), str(tmp_path / made_of_it)))
    Image.new("RGB", (48, 32), "teal").save(tmp_path / "photo.tif")
    job = job_in(str(tmp_path / ".flashvsr"))
    name = Path(job.url).name
    (tmp_path / "bin").mkdir()
    for program in ("flashvsr", "prefect"):  # a link to python would not find its packages
        (tmp_path / "bin" / program).symlink_to(Path(sys.executable).with_name(program))
    shutil.copytree(ROOT / "assets", tmp_path / "assets")
    env = os.environ | {
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "FLASHVSR_WORK": str(tmp_path / "work"),
    }
    shutil.copytree(tmp_path / ".flashvsr", tmp_path / "saved")
    lines = "\n".join(commands(page)).replace(PLACEHOLDER, name).replace(".venv/bin/", "").splitlines()
    between = f"{AFRESH.get(page.name, ':')}\n"
    script = "set -eux\n" + "\n".join(f"{between}{line}" if line.startswith("flashvsr") else line for line in lines)
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=1100)
    assert done.returncode == 0, done.stderr[-3000:]
    if "flashvsr run holiday.mp4" in script:
        assert (tmp_path / "holiday_4x.mp4").exists()
        assert (tmp_path / "holiday_4x.report.html").exists()
