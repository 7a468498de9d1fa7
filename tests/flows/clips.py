"""Clips for whole runs, and what a finished file is compared by."""

import hashlib
from pathlib import Path

import numpy as np

from tasks.media.decode import read_frames
from tasks.media.probe import probe
from tests.media.clips import run


def make_clip(
    path: Path, frames: int, size: str = "48x32", rate: str = "24", sound: bool = True, seed: int = 1
) -> Path:
    """A lively clip (moving test picture with noise) of exactly `frames` frames, with a tone."""
    width, height = size.split("x")
    # The test picture has even sides only; 4:4:4 and lossless, so that odd sides and the content stay as drawn.
    shape = f"format=yuv444p,scale={width}:{height},noise=alls=12:allf=t+u:all_seed={seed}"
    picture = ["-f", "lavfi", "-i", f"testsrc2=s=192x128:r={rate},{shape}"]
    tone = ["-f", "lavfi", "-i", "sine=frequency=440:sample_rate=48000"] if sound else []
    streams = ["-map", "0:v", "-map", "1:a", "-c:a", "aac"] if sound else []
    video = ["-c:v", "libx264", "-qp", "0", "-pix_fmt", "yuv444p", "-frames:v", str(frames)]
    seconds = str(frames * _seconds_per_frame(rate))
    run(*picture, *tone, *streams, *video, "-t", seconds, path)
    return path


def digests(path: Path) -> list[str]:
    """sha256 of every decoded frame."""
    info = probe(path)
    chunks = read_frames(path, info, 0, info.frames)
    return [hashlib.sha256(np.ascontiguousarray(frame)).hexdigest() for chunk in chunks for frame in chunk]


def _seconds_per_frame(rate: str) -> float:
    numerator, _, denominator = rate.partition("/")
    return int(denominator or 1) / int(numerator)
