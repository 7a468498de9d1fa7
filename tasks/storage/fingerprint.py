"""What identifies a source's content: part of a job's key."""

import hashlib
import json
import os
import time
from collections.abc import Sequence
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
    return _fingerprint([key], cache_dir)


def fingerprint_all(files: Sequence[str], cache_dir: Path) -> str:
    """`sha256:...` of several local files in this order, by their contents; names do not matter."""
    return _fingerprint(list(files), cache_dir)


def _fingerprint(files: list[str], cache_dir: Path) -> str:
    before = [_stamp(file) for file in files]
    label = hashlib.sha256(b"\0".join(map(os.fsencode, files))).hexdigest()[:32]
    memory = urls.join(str(cache_dir), "fingerprints", label + ".json")
    remembered = _remembered(memory)
    if remembered.get("stamp") == before and isinstance(remembered.get("fingerprint"), str):
        return str(remembered["fingerprint"])
    digests = [urls.digest(file) for file in files]
    # One file is its own digest, as sha256sum gives it; several are the digest of theirs.
    whole = digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()
    for file, stamp in zip(files, before, strict=True):
        if _stamp(file) != stamp:
            raise TransientError(f"{file} changed while it was read; run again when it is complete")
    newest = max(max(stamp["mtime_ns"], stamp["ctime_ns"]) for stamp in before)
    if time.time() - newest / 1e9 > SETTLED:
        urls.write_json(memory, {"stamp": before, "fingerprint": f"sha256:{whole}"})
    return f"sha256:{whole}"


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
