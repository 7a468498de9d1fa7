"""The ffmpeg program: finding it, running commands that ffmpeg-python built."""

import logging
import os
import re
import shlex
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path

import ffmpeg
import imageio_ffmpeg
from ffmpeg.nodes import OutputStream

from flashvsr_core.errors import FlashvsrError, UserError

logger = logging.getLogger(__name__)
LAST_LINES = 8  # of ffmpeg's complaints that an error repeats


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


def run_ffmpeg(output: OutputStream, program: str | None = None) -> None:
    """Run a command to its end. Its complaints go to the log, or into the error where it fails."""
    command = [program or find_ffmpeg(), "-nostdin", "-hide_banner", "-v", "warning", "-nostats"]
    command += [*ffmpeg.get_args(output), "-y"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    complaints = done.stderr.decode(errors="replace").strip().splitlines()
    if done.returncode:
        reason = " | ".join(complaints[-LAST_LINES:]) or "no message"
        raise FfmpegError(f"ffmpeg ended with status {done.returncode}: {reason} (command: {_shown(command)})")
    for line in complaints:
        logger.debug("ffmpeg: %s", line)


def _shown(command: list[str]) -> str:
    return shlex.join([Path(command[0]).name, *command[1:]])
