"""Memory of a run does not grow with the length of the video."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.flows.clips import make_clip
from tests.system.processes import ROOT

pytestmark = pytest.mark.system

ALLOWED = 80 << 20  # bytes; what allocators and Prefect's logs may differ by


def peak_memory(source: Path, folder: Path) -> int:
    """Highest resident set of the command's own process, sampled while it runs, in bytes."""
    options = ["--scale=2", "--preset=ultrafast", "--segment-frames=128", "--devices=cpu", "--model=nano"]
    command = [sys.executable, "-m", "flows.cli.main", "run", str(source), str(folder / f"{source.stem}.out.mp4")]
    process = subprocess.Popen([*command, *options, f"--work-dir={folder / 'work'}"], cwd=ROOT)
    watched, peak = psutil.Process(process.pid), 0
    while process.poll() is None:
        try:
            peak = max(peak, watched.memory_info().rss)
        except psutil.NoSuchProcess:
            break
        try:
            process.wait(0.1)
        except subprocess.TimeoutExpired:
            continue
    assert process.returncode == 0
    return peak


def test_ten_times_the_length_takes_the_same_memory(tmp_path: Path) -> None:
    short = peak_memory(make_clip(tmp_path / "short.mp4", 240), tmp_path)
    long = peak_memory(make_clip(tmp_path / "long.mp4", 2400), tmp_path)
    print(f"10 s: {short / 2**20:.0f} MiB, 100 s: {long / 2**20:.0f} MiB")
    assert long < short + ALLOWED
