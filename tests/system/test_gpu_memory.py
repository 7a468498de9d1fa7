"""On GPUs: what a run that was stopped leaves there, which is nothing."""

import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.flows.clips import make_clip
from tests.system.test_kill import Command

pytestmark = [pytest.mark.system, pytest.mark.gpu]

TAKEN = 200  # MiB that a process with a loaded model takes at least: its context alone is larger


def used() -> int:
    """MiB in use on all GPUs, as the driver counts."""
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return sum(int(line) for line in subprocess.run(query, capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize("runner", ["threads", "processes"])
@pytest.mark.parametrize("signals", [(signal.SIGINT,), (signal.SIGINT, signal.SIGINT), (signal.SIGKILL,)])
def test_a_stopped_run_leaves_no_memory_taken(tmp_path: Path, signals: tuple[signal.Signals, ...], runner: str) -> None:
    command = Command(tmp_path, make_clip(tmp_path / "clip.mp4", 1200, "192x128"))
    devices = "all" if runner == "processes" else "0"
    command.arguments += [f"--devices={devices}", f"--runner={runner}"]
    command.arguments.remove("--devices=cpu")
    before = used()
    process = command.start()
    deadline = time.monotonic() + 180
    while used() < before + TAKEN:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "no model was loaded"
        time.sleep(0.2)
    for number in signals:
        process.send_signal(number)
        time.sleep(0.2)
    log = process.communicate(timeout=180)[1]
    assert process.returncode == (-9 if signal.SIGKILL in signals else 130), log
    assert command.leftovers() == []
    deadline = time.monotonic() + 15
    while (left := used()) > before + 16 and time.monotonic() < deadline:
        time.sleep(0.5)
    assert left <= before + 16
