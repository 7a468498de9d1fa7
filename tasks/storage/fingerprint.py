"""What identifies a source's content: part of a job's key."""

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

from flashvsr_core.errors import TransientError
from tasks.storage import remote, urls
from tasks.storage.faults import explained

SETTLED = 2.0  # seconds; file systems stamp times no finer than this, so a younger file may change unnoticed


def fingerprint(url: str, cache_dir: Path) -> str:
    """`sha256:...` of a local file, remembered in `cache_dir` until the file changes; version or etag of an object."""
    protocol, key = urls.split(url)
    if protocol:
        with explained("look at", url):
            return remote.identity(protocol, key)
    before = _stamp(key)
    memory = urls.join(str(cache_dir), "fingerprints", hashlib.sha256(os.fsencode(key)).hexdigest()[:32] + ".json")
    remembered = _remembered(memory)
    if remembered.get("stamp") == before and isinstance(remembered.get("fingerprint"), str):
        return str(remembered["fingerprint"])
    found = f"sha256:{urls.digest(url)}"
    if _stamp(key) != before:
        raise TransientError(f"{url} changed while it was read; run again when it is complete")
    if time.time() - max(before["mtime_ns"], before["ctime_ns"]) / 1e9 > SETTLED:
        urls.write_json(memory, {"stamp": before, "fingerprint": found})
    return found


def _stamp(path: str) -> dict[str, Any]:
    with explained("look at", path):
        stat = os.stat(path)
    return {
        "path": path,
        "size": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "ctime_ns": stat.st_ctime_ns,
        "inode": stat.st_ino,
        "device": stat.st_dev,
    }


def _remembered(url: str) -> dict[str, Any]:
    try:
        found = urls.read_json(url)
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return found if isinstance(found, dict) else {}
