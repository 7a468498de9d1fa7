"""Sources fetched from remote stores: kept on this machine up to a size, those unused for longest go first.

Whoever uses a file holds a shared lock on it, which ends with its process; only what nobody holds is removed.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, flock
from pathlib import Path

from tasks.storage import local, urls

log = logging.getLogger(__name__)

GB = 1e9


@dataclass(frozen=True)
class SourceCache:
    """A folder of fetched sources that holds at most `limit_gb`, unless what is in use needs more."""

    folder: Path
    limit_gb: float

    @contextmanager
    def localised(self, url: str) -> Iterator[Path]:
        """A local path with the content of `url`, which stays for the duration of a `with` block."""
        if urls.is_local(url):
            yield urls.local_path(url)
            return
        while (handle := _hold(path := urls.localise(url, self.folder, self._make_room))) is None:
            pass  # another process removed it in between
        try:
            yield path
        finally:
            os.close(handle)

    def _make_room(self, needed: int) -> None:
        """Remove files until `needed` bytes more fit, as far as nobody uses them; and what killed fetches left."""
        limit = int(self.limit_gb * GB)
        total, candidates = needed, []
        for name, (size, used) in local.list_files(str(self.folder)).items():
            path = self.folder / name
            if local.is_leftover(name):
                path.unlink(missing_ok=True)
            elif not name.endswith(".lock"):
                total += size
                if not local.TEMPORARY.fullmatch(name):
                    candidates.append((used, size, path))
        for _, size, path in sorted(candidates):
            if total <= limit:
                return
            if _remove_unused(path):
                log.info("removed a fetched source that was not used for longest: %s, %d MB", path.name, size >> 20)
                total -= size
        if total > limit:
            log.warning(
                "fetched sources in %s take %.1f GB, more than the %.1f GB allowed: all are in use or needed now",
                self.folder,
                total / GB,
                self.limit_gb,
            )


def _hold(path: Path) -> int | None:
    """A handle that keeps `path` from being removed, its time of use noted; None if it is gone."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    flock(handle, LOCK_SH)
    if not local.is_file(handle, str(path)):
        os.close(handle)
        return None
    os.utime(path)
    return handle


def _remove_unused(path: Path) -> bool:
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        flock(handle, LOCK_EX | LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return True
