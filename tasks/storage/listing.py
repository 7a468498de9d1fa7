"""What lies in a folder or under a prefix, at any depth, with what tells one content from another."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from flashvsr_core.errors import BadInput
from tasks.storage import remote, urls
from tasks.storage.faults import explained

STORE = ".flashvsr"  # stores beside outputs; their files are ours


@dataclass(frozen=True)
class Entry:
    """One file or object: `name` is relative to the folder, `version` changes with the content."""

    url: str
    name: str
    size: int
    version: str
    modified: float | None  # seconds since 1970


def entries(folder: str) -> list[Entry]:
    """Every file below `folder`, sorted by name, without stores and hidden files. Links to folders aren't followed."""
    protocol, path = urls.split(folder)
    with explained("list", folder):
        found = _remote(folder, protocol, path) if protocol else _local(path)
        return sorted((entry for entry in found if not is_hidden(entry.name)), key=lambda entry: entry.name)


def objects(folder: str) -> dict[str, Entry]:
    """The objects of a remote prefix by name, none of those below it. FileNotFoundError where nothing is."""
    protocol, path = urls.split(folder)
    with explained("list", folder):
        found = remote.list_objects(protocol, path)
    return {name: _of_object(f"{urls.normalise(folder)}/{name}", name, object_) for name, object_ in found.items()}


def look(folder: str, name: str) -> Entry | None:
    """The entry of one file, as `entries` gives it; None if it is not there."""
    url = urls.join(folder, name)
    protocol, path = urls.split(url)
    with explained("look at", url):
        if not protocol:
            return _of_file(path, name) if os.path.isfile(path) else None
        found = remote.info(protocol, path)
        return None if found is None else _of_object(url, name, found)


def is_hidden(name: str) -> bool:
    """Whether a relative name is in a store, a temporary file of ours or hidden by its owner."""
    return any(part.startswith(".") for part in name.split("/"))


def _local(folder: str) -> Iterator[Entry]:
    if not os.path.isdir(folder):
        raise BadInput(f"{folder} is not a folder; check the name")
    for directory, below, names in os.walk(folder):
        below[:] = [name for name in below if not name.startswith(".")]
        for name in names:
            path = os.path.join(directory, name)
            try:
                if os.path.isfile(path):
                    yield _of_file(path, os.path.relpath(path, folder))
            except FileNotFoundError:
                continue  # removed while the folder was listed


def _of_file(path: str, name: str) -> Entry:
    stat = Path(path).stat()
    # The later of both times: copying tools set the modification time back, moving sets only the other.
    modified = max(stat.st_mtime, stat.st_ctime)
    return Entry(path, name, stat.st_size, f"{stat.st_mtime_ns}", modified)


def _remote(folder: str, protocol: str, key: str) -> Iterator[Entry]:
    store = remote.filesystem(protocol)
    around = f"/{key}" if protocol == remote.MEMORY else key
    for path, found in store.find(around, detail=True).items():
        name = path.removeprefix(f"{around}/")
        # Prefixes may have an object of their own ('in/'), and a prefix that is an object lists itself.
        if name != path and name and not name.endswith("/") and found["type"] == "file":
            yield _of_object(f"{urls.normalise(folder)}/{name}", name, found)


def _of_object(url: str, name: str, found: dict[str, Any]) -> Entry:
    modified = found.get("LastModified") or found.get("created") or found.get("mtime")
    time = modified.timestamp() if isinstance(modified, datetime) else modified
    version = str(found.get("ETag") or modified or "").strip('"')
    return Entry(url, name, int(found["size"]), version, time if isinstance(time, int | float) else None)
