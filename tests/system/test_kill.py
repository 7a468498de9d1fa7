"""The kill campaign: SIGKILL at every stage, then the same command again."""

import os
import re
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.flows.clips import digests, make_clip

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
MARK = "FLASHVSR_TEST_MARK"  # in the environment of everything a test starts, so that leftovers can be told
OPTIONS = ("--segment-frames=16", "--scale=2", "--preset=ultrafast", "--preroll=8", "--devices=cpu", "--model=nano")
# Stage -> segments that a second run reuses at least, of 3.
STAGES = {
    "decoding": 0,
    "model": 0,
    "encoding": 1,
    "storing": 1,
    "recording": 1,
    "recorded": 2,
    "merging": 3,
    "merged": 3,
    "verifying": 3,
    "announcing": 3,
    "publishing": 3,
    "published": 3,
    "reporting": 3,
    "cleaning": 3,
}


@dataclass(frozen=True)
class Outcome:
    status: int
    log: str

    @property
    def computed(self) -> list[int]:
        return sorted(int(i) for i in re.findall(r"segment (\d+) \[\d+, \d+\) computed", self.log))


class Command:
    """`flashvsr run` in a folder of its own, with everything it starts marked."""

    def __init__(self, folder: Path, source: Path) -> None:
        self.output = folder / "out.mp4"
        self.mark = uuid.uuid4().hex
        self.arguments = ["run", str(source), str(self.output), *OPTIONS, f"--work-dir={folder / 'work'}"]
        self.env = os.environ | {MARK: self.mark}

    def start(self, *front: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", *(front or ("flows.cli.main",)), *self.arguments]
        return subprocess.Popen(
            command, cwd=ROOT, env=self.env, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, *front: str) -> Outcome:
        process = self.start(*front)
        _, log = process.communicate(timeout=600)
        return Outcome(process.returncode, log)

    def leftovers(self, seconds: int = 15) -> list[str]:
        """Processes that this command started and that still run so many seconds after it ended."""
        for _ in range(10 * seconds):
            found = [p for p in psutil.process_iter(["cmdline"]) if self._is_ours(p)]
            if not found:
                return []
            time.sleep(0.1)
        return [" ".join(p.info["cmdline"] or ()) for p in found]

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return False


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", 40)


@pytest.fixture(scope="module")
def undisturbed(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    command = Command(tmp_path_factory.mktemp("undisturbed"), clip)
    outcome = command.run()
    assert outcome.status == 0, outcome.log
    assert outcome.computed == [0, 1, 2]
    assert command.leftovers() == []
    return digests(command.output)


@pytest.mark.parametrize("stage", STAGES)
def test_killed_and_run_again(stage: str, clip: Path, undisturbed: list[str], tmp_path: Path) -> None:
    command = Command(tmp_path, clip)
    killed = command.run("tests.system.kill_at", stage)
    assert killed.status == -9, killed.log
    assert f"KILLED AT {stage}" in killed.log
    assert command.leftovers() == []
    if command.output.exists():  # published in one step: whole or not at all
        assert digests(command.output) == undisturbed
    again = command.run()
    assert again.status == 0, again.log
    assert digests(command.output) == undisturbed
    # What the killed run had finished is not computed again.
    assert set(again.computed).isdisjoint(killed.computed)
    assert 3 - len(again.computed) >= STAGES[stage]
    assert command.leftovers() == []
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith(".tmp")] == []
    assert list((tmp_path / "work" / "work").iterdir()) == []
    print(f"{stage}: {len(killed.computed)} segments computed before, {len(again.computed)} after")


@pytest.mark.parametrize("seconds", [6.0, 8.0, 10.0])
def test_killed_at_some_time(seconds: float, clip: Path, undisturbed: list[str], tmp_path: Path) -> None:
    command = Command(tmp_path, clip)
    process = command.start()
    time.sleep(seconds)
    process.kill()
    process.communicate()
    assert command.leftovers() == []
    again = command.run()
    assert again.status == 0, again.log
    assert digests(command.output) == undisturbed


def test_two_runs_at_once_do_the_work_once(clip: Path, undisturbed: list[str], tmp_path: Path) -> None:
    command = Command(tmp_path, clip)
    processes = [command.start(), command.start()]
    logs = [process.communicate(timeout=600)[1] for process in processes]
    outcomes = [Outcome(process.returncode, log) for process, log in zip(processes, logs)]
    statuses = sorted(outcome.status for outcome in outcomes)
    # The slower one finds the job running (1), or, if it was slow enough, done (0).
    assert statuses in ([0, 1], [0, 0]), logs
    if statuses == [0, 1]:
        assert any("already running" in outcome.log for outcome in outcomes)
    assert sorted(outcomes[0].computed + outcomes[1].computed) == [0, 1, 2]
    assert digests(command.output) == undisturbed


def test_interrupting_once_ends_with_130_and_keeps_segments(clip: Path, undisturbed: list[str], tmp_path: Path) -> None:
    command = Command(tmp_path, clip)
    process = command.start()
    assert process.stderr is not None
    log = ""
    while "segment 0 [0, 16) computed" not in log:
        line = process.stderr.readline()
        assert line, log
        log += line
    process.send_signal(2)
    rest = process.communicate(timeout=120)[1]
    assert process.returncode == 130, log + rest
    assert "Traceback" not in rest
    assert not command.output.exists()
    assert command.leftovers() == []
    again = command.run()
    assert again.status == 0
    assert 0 not in again.computed
    assert digests(command.output) == undisturbed


def test_interrupting_between_stages_ends_with_130(clip: Path, tmp_path: Path) -> None:
    """While the subflow is being closed Prefect swallows the interrupt; the run must end all the same."""
    command = Command(tmp_path, clip)
    process = command.start()
    assert process.stderr is not None
    log = ""
    while log.count(") computed in") < 3:
        line = process.stderr.readline()
        assert line, log
        log += line
    process.send_signal(2)
    rest = process.communicate(timeout=120)[1]
    assert process.returncode == 130, log + rest
    assert not command.output.exists()
    assert command.leftovers() == []
