"""Dask and Ray on this machine: the frames of one process, also when a worker is killed while it computes."""

import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.flows.clips import digests, make_clip
from tests.system.test_kill import Command, Outcome

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Large enough that each of the five segments takes seconds: a worker must be found while it computes one.
    return make_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", 72, "192x128")


@pytest.fixture(scope="module")
def plain(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    command = Command(tmp_path_factory.mktemp("plain"), clip)
    outcome = command.run()
    assert outcome.status == 0, outcome.log
    return digests(command.output)


class Cluster(Command):
    """The command with two workers, and a look at them."""

    def __init__(self, folder: Path, source: Path, runner: str) -> None:
        super().__init__(folder, source)
        self.arguments += [f"--runner={runner}", "--workers=2"]
        self.work = folder / "work" / "work"

    def writing(self) -> psutil.Process | None:
        """A process, other than the command's own, that has a segment's file open: it computes one."""
        for process in psutil.process_iter(["cmdline"]):
            try:
                if self._is_ours(process) and any(str(self.work) in file.path for file in process.open_files()):
                    return process
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return None

    def start_and_wait_for_a_worker(self) -> tuple[subprocess.Popen[str], psutil.Process]:
        process = self.start()
        deadline = time.monotonic() + 600
        while (worker := self.writing()) is None:
            assert process.poll() is None, process.communicate()[1]
            if time.monotonic() > deadline:
                process.kill()
                raise AssertionError(f"no worker after 600 s: {process.communicate()[1]}")
            time.sleep(0.05)
        assert worker.pid != process.pid
        return process, worker


@pytest.mark.parametrize("runner", ["processes", "dask", "ray"])
def test_same_frames_though_a_worker_is_killed(runner: str, clip: Path, plain: list[str], tmp_path: Path) -> None:
    command = Cluster(tmp_path, clip, runner)
    process, worker = command.start_and_wait_for_a_worker()
    worker.kill()
    log = process.communicate(timeout=600)[1]
    outcome = Outcome(process.returncode, log)
    assert outcome.status == 0, log
    assert outcome.computed == [0, 1, 2, 3, 4], log
    assert digests(command.output) == plain
    assert command.leftovers() == []
    assert list((tmp_path / "work" / "work").iterdir()) == []


@pytest.mark.parametrize("runner", ["processes", "dask", "ray"])
def test_nothing_is_left_of_a_killed_run(runner: str, clip: Path, plain: list[str], tmp_path: Path) -> None:
    command = Cluster(tmp_path, clip, runner)
    process, _ = command.start_and_wait_for_a_worker()
    process.kill()
    process.communicate()
    # Ray's agents look for their raylet, find it dead five times, and try to tell a head that is gone as well.
    assert command.leftovers(90 if runner == "ray" else 15) == []
    again = command.run()
    assert again.status == 0, again.log
    assert digests(command.output) == plain
    assert list((tmp_path / "work" / "work").iterdir()) == []


@pytest.mark.parametrize("runner", ["processes", "dask", "ray"])
def test_ctrl_c(runner: str, clip: Path, plain: list[str], tmp_path: Path) -> None:
    """Once: the segments that run are finished, no other is begun. Twice: they are given up. Nothing is left."""
    for times in (2, 1):
        folder = tmp_path / str(times)  # so that each round finds all of its segments to do
        folder.mkdir()
        command = Cluster(folder, clip, runner)
        process, _ = command.start_and_wait_for_a_worker()
        process.send_signal(2)
        before = read_until("interrupted: finishing", process)
        if times == 2:
            process.send_signal(2)
        after = process.communicate(timeout=300)[1]
        assert process.returncode == 130, before + after
        assert "Traceback" not in before + after
        assert command.leftovers(90 if runner == "ray" else 15) == []
        assert list((folder / "work" / "work").iterdir()) == []
        assert not list((folder / ".flashvsr").glob("*/lease.json"))
        assert not list((folder / ".flashvsr").glob("*/halt.json"))
        # Of the two that computed when the signal came and the two that were being stored; others may have been done
        # before. That running ones are given up at the second signal is tested where it does not hang on moments:
        # test_stopping_now_gives_up_what_runs.
        done, late = (Outcome(130, text).computed for text in (before + after, after))
        assert (1 if times == 1 else 0) <= len(late) <= 4, before + after
    again = command.run()
    assert again.status == 0, again.log
    assert set(again.computed).isdisjoint(done)
    assert digests(command.output) == plain


def read_until(text: str, process: subprocess.Popen[str]) -> str:
    """What a process says on standard error up to a line with `text`."""
    assert process.stderr is not None
    said = ""
    while text not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    return said
