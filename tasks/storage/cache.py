"""Sources fetched from remote stores: kept on this machine up to a size, those unused for longest go first.

Whoever uses a file holds a shared lock on it, which ends with its process; only what nobody holds is removed.
"""

import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, flock
from pathlib import Path

from flashvsr_core.errors import TransientError
from tasks.storage import local, urls
from tasks.storage.listing import Entry

log = logging.getLogger(__name__)

GB = 1e9
AT_ONCE = 8  # objects that are fetched at once
FOLDER = ".images"  # ends the name of a folder with a fetched sequence
COMPLETE = ".complete"  # file in it that says that all is there


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

    @contextmanager
    def localised_all(self, entries: Sequence[Entry], identity: str, now: Callable[[], str]) -> Iterator[Path]:
        """A local folder with the content of remote objects of one prefix under their own names, for a `with` block.

        `identity` tells this content of them from any other, and `now()` says what it has become; what was fetched is
        used again under the same. TransientError where the objects change while they are fetched.
        """
        label = hashlib.sha256(f"{_place(entries)}\n{identity}".encode(errors="surrogateescape")).hexdigest()
        path = self.folder / f"{label[:32]}{FOLDER}"
        handle = None
        while handle is None:
            path.mkdir(parents=True, exist_ok=True)
            handle = _hold(path)  # another process may have removed it in between
        try:
            if not (path / COMPLETE).exists():
                with local.locked(str(path.with_suffix(".lock"))):
                    if not (path / COMPLETE).exists():
                        self._make_room(sum(entry.size for entry in entries))
                        _fetch_all(entries, path)
                        if now() != identity:
                            raise TransientError(f"{_place(entries)} changed while it was fetched; run again")
                        (path / COMPLETE).touch()
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
        for folder in self.folder.glob(f"*{FOLDER}"):
            sizes = [size for size, _ in local.list_files(str(folder)).values()]
            total += sum(sizes)
            with suppress(FileNotFoundError):
                candidates.append((folder.stat().st_mtime, sum(sizes), folder))
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


def _place(entries: Sequence[Entry]) -> str:
    return urls.parent(entries[0].url)


def _fetch_all(entries: Sequence[Entry], folder: Path) -> None:
    """Fetch objects into a folder; what an earlier attempt left may be of another content."""
    for name in local.list_files(str(folder)):
        (folder / name).unlink()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda entry: urls.fetch_into(entry.url, entry.size, folder), entries))


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
        if path.is_dir():
            # Renamed first: nobody may take what is half removed for whole.
            gone = path.with_suffix(f".{os.getpid()}.gone")
            path.rename(gone)
            shutil.rmtree(gone)
        else:
            path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return True
