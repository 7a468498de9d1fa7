"""Scene lists: files in which a user says where scenes begin."""

import re

from flashvsr_core.errors import UserError
from tasks.media.probe import VideoInfo
from tasks.media.trim import frame_at, parse_seconds

LARGEST = 10_000_000  # bytes of a scene list
FRAME = re.compile(r"\d+")
TIME = re.compile(r"(?:\d+:)?\d{1,2}:\d{1,2}(?:\.\d+)?|\d+\.\d+")
TIMECODE = re.compile(r"(\d+):(\d{2}):(\d{2}):(\d{2,3})")
SHOWN = 40  # characters of an entry that an error repeats


def parse_scenes(text: str, name: str, info: VideoInfo) -> tuple[int, ...]:
    """The first frames of scenes, rising, from a list with one entry per line (or separated by blanks or commas).

    An entry is a frame's number from 0 (1200), a time (0:00:50.0, 50.0) or a timecode (00:00:50:00, hours to frames);
    what follows a # is a comment. UserError names the line that is none of these, is out of order, or beyond the end.
    """
    found: list[int] = []
    last = -1
    for number, line in enumerate(text.splitlines(), 1):
        for entry in line.partition("#")[0].replace(",", " ").split():
            where = f"{name} line {number}: {entry[:SHOWN]!r}"
            frame = _frame(entry, where, info)
            if frame >= info.frames:
                raise UserError(
                    f"{where} is frame {frame}, beyond the video's {info.frames} frames; correct the list or the source"
                )
            if frame <= last:
                raise UserError(f"{where} is frame {frame}, not behind frame {last} of the entry before; sort the list")
            last = frame
            if frame:  # a video begins with a scene anyway
                found.append(frame)
    return tuple(found)


def _frame(entry: str, where: str, info: VideoInfo) -> int:
    if FRAME.fullmatch(entry):
        return int(entry)
    if TIME.fullmatch(entry):
        return frame_at(parse_seconds(entry), info)
    if match := TIMECODE.fullmatch(entry):
        hours, minutes, seconds, frames = map(int, match.groups())
        rate = round(info.frame_rate[0] / info.frame_rate[1])
        if frames >= rate:
            raise UserError(f"{where} has frame {frames} of a second that has {rate}; timecodes count from 0")
        return ((hours * 60 + minutes) * 60 + seconds) * rate + frames
    raise UserError(
        f"{where} is no frame number (1200), time (0:00:50.0) or timecode (00:00:50:00, without dropped frames)"
    )
