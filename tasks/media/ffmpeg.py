"""The ffmpeg program: finding it, running commands that ffmpeg-python built."""

import logging
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import ffmpeg
import imageio_ffmpeg
from ffmpeg.nodes import OutputStream

from flashvsr_core.errors import FlashvsrError, UserError

logger = logging.getLogger(__name__)
LAST_LINES = 8  # of ffmpeg's complaints that an error repeats
MB = 1_000_000
OUT_OF_MEMORY = ("Cannot allocate memory", "pthread_create() failed")  # what ffmpeg says without address space
COPYING_MB = 4000  # address space of one run; copying takes a tenth, its threads' stacks included
# Copying writes up to twice what it reads (the index is moved to the front); slow disks and busy machines write 5 MB/s.
LEAST_SECONDS = 300.0
BYTES_PER_SECOND = 2_000_000


class FfmpegError(FlashvsrError):
    """ffmpeg ended with an error; the message has its last lines."""


@lru_cache
def find_ffmpeg(setting: str | None = None) -> str:
    """Path of the program: `setting` where given, else imageio-ffmpeg's own, else the one on PATH."""
    if setting:
        found = shutil.which(os.path.expanduser(setting))
        if not found:
            raise UserError(
                f"ffmpeg is set to {setting!r}, which is not a program; correct the setting or leave it empty"
            )
        return found
    try:
        return imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:  # no wheel for this platform
        found = shutil.which("ffmpeg")
        if not found:
            raise UserError("no ffmpeg program was found; pip install imageio-ffmpeg, or install ffmpeg") from error
        return found


@lru_cache
def ffmpeg_version(program: str) -> str:
    """Version as the program gives it, such as n9.0.2-17-g2a571b6068."""
    command = [program, "-version"]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=True)
    match = re.match(r"ffmpeg version (\S+)", done.stdout)
    return match.group(1) if match else "unknown"


def seconds_for(*files: str | Path) -> float:
    """How long copying these files into another may take."""
    return LEAST_SECONDS + sum(os.path.getsize(file) for file in files) / BYTES_PER_SECOND


def run_ffmpeg(
    output: OutputStream, program: str | None = None, seconds: float | None = None, memory_mb: int | None = None
) -> None:
    """Run a command to its end. Its complaints go to the log, or into the error where it fails.

    For files that strangers made: `memory_mb` bounds its address space (on Linux), after `seconds` it is ended.
    """
    command = [program or find_ffmpeg(), "-nostdin", "-hide_banner", "-v", "warning", "-nostats"]
    command += [*ffmpeg.get_args(output), "-y"]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as child:
        try:
            if memory_mb is not None and sys.platform == "linux":
                with suppress(ProcessLookupError):  # it may have ended already
                    resource.prlimit(child.pid, resource.RLIMIT_AS, (memory_mb * MB, memory_mb * MB))
            _, said = child.communicate(timeout=seconds)
        except subprocess.TimeoutExpired as error:
            raise FfmpegError(
                f"ffmpeg took longer than {seconds:.0f} s and was ended; the source may be damaged: copy it again, or "
                f"convert it with ffmpeg where that is safe (command: {_shown(command)})"
            ) from error
        finally:
            child.kill()
    complaints = said.decode(errors="replace").strip().splitlines()
    if child.returncode:
        reason = " | ".join(complaints[-LAST_LINES:]) or "no message"
        if memory_mb is not None and any(sign in line for line in complaints for sign in OUT_OF_MEMORY):
            reason += f"; it may take {memory_mb} MB, and the source may be damaged or made to do harm"
        raise FfmpegError(f"ffmpeg ended with status {child.returncode}: {reason} (command: {_shown(command)})")
    for line in complaints:
        logger.debug("ffmpeg: %s", line)


def _shown(command: list[str]) -> str:
    return shlex.join([Path(command[0]).name, *command[1:]])
