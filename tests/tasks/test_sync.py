"""Sound and picture together over many segments: flashes and beeps at known times, looked for in the finished file."""

import subprocess
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from tasks.media.encode import EncodeParams
from tasks.media.ffmpeg import find_ffmpeg
from tests.media.clips import run
from tests.tasks.enlarging import enlarged

RATE = "24000/1001"
FRAME = 1001 / 24000  # seconds
EVERY = 240  # frames from flash to flash: 10.01 s
SAMPLES = 8000  # per second, as measured
FAST = EncodeParams(preset="ultrafast", crf=20, threads=1)


def flashing(path: Path, minutes: float) -> Path:
    """A frame of white every 240 frames, and a beep that begins with it; 16x16 pixels, 23.976 fps."""
    seconds = minutes * 60
    white = f"drawbox=c=white:t=fill:enable='not(mod(n,{EVERY}))'"
    picture = f"color=black:s=16x16:r={RATE}:d={seconds},format=yuv420p,{white}"
    period = EVERY * FRAME
    beep = f"aevalsrc='if(lt(mod(t,{period:.9f}),0.1),0.8*sin(2*PI*1000*t),0)':s=16000:d={seconds},aresample=48000"
    streams = ("-c:v", "libx264", "-preset", "ultrafast", "-bf", "2", "-c:a", "aac", "-b:a", "96k")
    run("-f", "lavfi", "-i", picture, "-f", "lavfi", "-i", beep, *streams, path)
    return path


def flashes(path: Path) -> np.ndarray:
    """Times of white frames, as players show them."""
    command = [find_ffmpeg(), "-v", "info", "-nostdin", "-i", str(path), "-map", "0:v:0"]
    command += [
        "-vf",
        "scale=1:1,showinfo=checksum=0",
        "-fps_mode",
        "passthrough",
        "-f",
        "rawvideo",
        "-pix_fmt",
        "gray",
        "-",
    ]
    done = subprocess.run(command, capture_output=True, check=True)
    shown = [line for line in done.stderr.decode().splitlines() if "Parsed_showinfo" in line and "pts_time:" in line]
    times = np.array([float(line.split("pts_time:")[1].split()[0]) for line in shown])
    levels = np.frombuffer(done.stdout, np.uint8)
    assert len(levels) == len(times)
    return times[levels > 128]


def beeps(path: Path) -> np.ndarray:
    """Times at which a beep begins, on the same clock."""
    command = [find_ffmpeg(), "-v", "error", "-nostdin", "-i", str(path), "-map", "0:a:0"]
    # The sound's own start is filled with silence, so that sample 0 is time 0.
    command += ["-af", "aresample=async=1:first_pts=0", "-ac", "1", "-ar", str(SAMPLES), "-f", "s16le", "-"]
    sound = np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, "<i2")
    loud = np.flatnonzero(np.abs(sound.astype(int)) > 4000)
    begins = loud[np.diff(loud, prepend=-SAMPLES) > SAMPLES // 2]
    return begins / SAMPLES


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[float], Path]:
    """`flashing`, once for each length."""
    folder = tmp_path_factory.mktemp("flashing")
    return lru_cache(lambda minutes: flashing(folder / f"{minutes}.mp4", minutes))


@pytest.mark.parametrize(
    ("minutes", "suffix"),
    [
        (1, "mp4"),
        (1, "mkv"),
        (1, "mov"),
        pytest.param(10, "mp4", marks=pytest.mark.system),
        pytest.param(10, "mkv", marks=pytest.mark.system),
        pytest.param(60, "mp4", marks=[pytest.mark.system, pytest.mark.timeout(2400)]),
        pytest.param(60, "mkv", marks=[pytest.mark.system, pytest.mark.timeout(2400)]),
    ],
)
def test_sound_and_picture_stay_together(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    made: Callable[[float], Path],
    minutes: int,
    suffix: str,
) -> None:
    """Within half a frame, from the first flash to the last; 60 minutes are 170 segments of 512 frames."""
    source, output = made(minutes), tmp_path / f"out.{suffix}"
    plan, _ = enlarged(monkeypatch, source, output, FAST, segment_frames=128 if minutes == 1 else 512)
    assert len(plan.segments) >= 11 * minutes if minutes == 1 else len(plan.segments) >= 2.8 * minutes
    seen, heard = flashes(output), beeps(output)
    assert len(seen) == len(heard) == -(-plan.info.frames // EVERY)
    assert np.abs(seen - heard).max() < FRAME / 2
    assert np.abs(seen - seen[0] - np.arange(len(seen)) * EVERY * FRAME).max() <= 0.001
