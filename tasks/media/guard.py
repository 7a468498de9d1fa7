"""Looking at files of strangers in a process of their own: what it costs is bounded, and its death is only an error."""

import json
import os
import resource
import signal
import subprocess
import sys
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from flashvsr_core.errors import BadInput
from tasks.media.limits import DEFAULT_LIMITS, Limits
from tasks.media.probe import VideoInfo, probe
from tasks.media.sequence import find_images, is_sequence
from tasks.media.stills import is_pictures, probe_pictures

MB = 1_000_000
ANSWER = "flashvsr-probe "  # begins the line with the answer; libraries may write others
LARGEST_ANSWER = 1 << 28  # bytes
LAST_LINES = 3  # of the child's complaints that an error repeats
OPEN_FILES = 64
# One thread and one arena each: what libraries reserve per thread counts as address space.
ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}

_infos: TypeAdapter[VideoInfo] = TypeAdapter(VideoInfo)


def describe(
    path: str | Path, allow_truncated: bool = False, fps: Fraction | None = None, limits: Limits = DEFAULT_LIMITS
) -> VideoInfo:
    """What a source of any kind is: a video file, an image, a sequence of images, an animated WebP."""
    if is_pictures(path):
        return probe_pictures(path, fps, limits)
    if fps is not None:
        raise BadInput(f"{str(path)!r} is a video with times of its own, and --fps is for sequences of images")
    return probe(path, allow_truncated, limits)


def describe_guarded(
    path: str | Path, allow_truncated: bool = False, fps: Fraction | None = None, limits: Limits = DEFAULT_LIMITS
) -> VideoInfo:
    """`describe` in a child process under `limits`. Raises BadInput as it does, and where the child dies or hangs."""
    name = repr(str(path))
    request = {
        "path": os.fspath(path),
        "allow_truncated": allow_truncated,
        "fps": str(fps) if fps else None,
        "limits": asdict(limits),
    }
    seconds = limits.seconds_for(*_extent(path))
    child = subprocess.Popen(
        [sys.executable, "-c", "from tasks.media.guard import serve; serve()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    with child:
        try:
            said, complaints = child.communicate(json.dumps(request).encode(), timeout=seconds)
        except subprocess.TimeoutExpired as error:
            raise BadInput(
                f"{name} takes longer than {seconds:.0f} s to look at; it may be damaged: copy it again, or allow "
                "more with --probe-seconds"
            ) from error
        finally:
            child.kill()
    return _answer(name, child.returncode, said, complaints, limits)


def _extent(path: str | Path) -> tuple[int, int]:
    """Bytes to read, and how many images they are in."""
    try:
        if is_sequence(path):
            files = find_images(path).files
            return sum(file.stat().st_size for file in files), len(files)
        return os.path.getsize(path), 0
    except (OSError, BadInput):  # the child says it better
        return 0, 0


def _answer(name: str, status: int, said: bytes, complaints: bytes, limits: Limits) -> VideoInfo:
    answers = [line for line in said[:LARGEST_ANSWER].decode(errors="replace").splitlines() if line.startswith(ANSWER)]
    try:
        found: dict[str, Any] = json.loads(answers[-1].removeprefix(ANSWER))
        if "error" in found:
            raise BadInput(str(found["error"]))
        return _infos.validate_python(found["info"])
    except (IndexError, KeyError, ValueError, ValidationError):
        raise BadInput(
            f"{name} cannot be looked at: {_death(status, complaints, limits)}; it may be damaged or made to do harm: "
            "copy it again, or convert it with ffmpeg where that is safe"
        ) from None


def _death(status: int, complaints: bytes, limits: Limits) -> str:
    if status == -signal.SIGXCPU:
        return "the process that looked at it used up its time (--probe-seconds)"
    if status < 0:
        return f"the process that looked at it died of {signal.Signals(-status).name}"
    lines = complaints.decode(errors="replace").strip().splitlines()[-LAST_LINES:]
    if any("MemoryError" in line for line in lines):
        return f"it needs more than {limits.probe_memory_mb} MB of memory (--probe-memory-mb)"
    return f"the process that looked at it ended with status {status} ({' | '.join(lines) or 'no message'})"


def serve() -> None:
    """The child: one request on standard input, one answer on standard output."""
    request = json.load(sys.stdin)
    limits = Limits(**request["limits"])
    confine(limits, request["path"])
    fps = Fraction(request["fps"]) if request["fps"] else None
    answer: dict[str, Any]
    try:
        answer = {"info": asdict(describe(request["path"], request["allow_truncated"], fps, limits))}
    except BadInput as error:
        answer = {"error": str(error)}
    sys.stdout.write(f"\n{ANSWER}{json.dumps(answer)}\n")
    sys.stdout.flush()
    os._exit(0)


def confine(limits: Limits, path: str | Path) -> None:
    """Bound what this process may use from now on: memory, computing time, open files; and it can write no file."""
    memory = limits.probe_memory_mb * MB
    seconds = int(limits.seconds_for(*_extent(path))) + 1
    for kind, bound in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
    ):
        hard = resource.getrlimit(kind)[1]
        soft = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
        resource.setrlimit(kind, (soft, hard))
