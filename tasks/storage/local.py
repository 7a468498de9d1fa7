"""Files appear whole or not at all: temporary name in the same directory, fsync, then one rename or link."""

import ctypes
import errno
import hashlib
import os
import re
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import LOCK_EX, flock
from pathlib import Path

from flashvsr_core.errors import TransientError, UserError
from tasks.storage.process import ProcessId, this_process

CHUNK = 1 << 20
TEMPORARY = re.compile(r"\.flashvsr-(?P<of>\w{16})-(?P<host>\w{16})-(?P<pid>\d+)-(?P<started>[\d.]+)-\w{8}\.tmp")
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)  # what file systems without hard links answer
NO_SYNC = (errno.EINVAL, errno.EOPNOTSUPP, errno.EBADF)  # ... and those that cannot sync a directory


@contextmanager
def staged(target: str) -> Iterator[str]:
    """A name for a temporary file beside `target`; whatever is still there under it at the end is removed."""
    me = this_process()
    name = f".flashvsr-{_tag(target)}-{me.host}-{me.pid}-{me.started:.2f}-{secrets.token_hex(4)}.tmp"
    temporary = os.path.join(os.path.dirname(target), name)
    try:
        yield temporary
    finally:
        Path(temporary).unlink(missing_ok=True)


def sweep(target: str) -> None:
    """Remove temporaries of `target` that killed processes of this host left behind."""
    directory = os.path.dirname(target)
    for name in os.listdir(directory):
        match = TEMPORARY.fullmatch(name)
        if match and match["of"] == _tag(target) and is_leftover(name):
            Path(directory, name).unlink(missing_ok=True)


def is_leftover(name: str) -> bool:
    """Whether a file of this name is the temporary of a process of this host that has ended."""
    match = TEMPORARY.fullmatch(name)
    return match is not None and ProcessId(match["host"], int(match["pid"]), float(match["started"])).is_gone


def settle(temporary: str, target: str, overwrite: bool) -> None:
    """Give a finished temporary file its name; FileExistsError if that is taken and `overwrite` is False."""
    _sync(temporary)
    if overwrite:
        os.replace(temporary, target)
    else:
        _rename_new(temporary, target)
    _sync(os.path.dirname(target))


def write(target: str, data: bytes, overwrite: bool) -> None:
    """Write a small file whole; FileExistsError if it exists and `overwrite` is False."""
    with staged(target) as temporary:
        with open(temporary, "xb") as file:
            file.write(data)
        settle(temporary, target, overwrite)


def version(data: bytes) -> str:
    """What `replace` compares."""
    return hashlib.sha256(data).hexdigest()


def replace(target: str, expected: str, data: bytes) -> bool:
    """Replace a small file if its content still is version `expected`; whether it was."""
    with locked(f"{target}.lock"):
        try:
            same = version(Path(target).read_bytes()) == expected
        except FileNotFoundError:
            return False
        if same:
            write(target, data, overwrite=True)
        return same


def publish(source: str, target: str, overwrite: bool, sha256: str | None, consume: bool) -> None:
    """Make a copy of a file appear whole; `consume` allows the same file instead of a copy."""
    if not overwrite and os.path.lexists(target):
        raise FileExistsError(f"{target} exists already")  # known before gigabytes are copied; settle() makes sure
    sweep(target)
    with staged(target) as temporary:
        linked = consume and link(source, temporary)
        if not linked:
            copy(source, temporary)
            compare(os.path.getsize(temporary), os.path.getsize(source), "bytes", target)
        if sha256 is not None:
            compare(digest(temporary), sha256, "sha256", target)
        settle(temporary, target, overwrite)


def compare(found: int | str, expected: int | str, what: str, url: str) -> None:
    """TransientError unless what was stored or fetched is what was meant."""
    if found != expected:
        raise TransientError(f"{url}: {what} {found} after copying, expected {expected}; run again")


def copy(source: str, target: str) -> None:
    with open(source, "rb") as reader, open(target, "xb") as writer:
        while chunk := reader.read(CHUNK):
            writer.write(chunk)


def link(source: str, target: str) -> bool:
    """Name the same file a second time; whether that was possible there."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (*NO_LINKS, errno.EXDEV):
            raise
        return False
    return True


def digest(path: str) -> str:
    """sha256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def list_files(directory: str) -> dict[str, tuple[int, float]]:
    """Size and time of last change (seconds since 1970) of the files in a directory; empty if it is not there."""
    files: dict[str, tuple[int, float]] = {}
    if not os.path.isdir(directory):
        return files
    with os.scandir(directory) as entries:
        for entry in entries:
            try:
                if entry.is_file():
                    stat = entry.stat()
                    files[entry.name] = stat.st_size, stat.st_mtime
            except FileNotFoundError:
                continue  # removed while the directory was listed
    return files


def list_directories(directory: str) -> list[str]:
    if not os.path.isdir(directory):
        return []
    with os.scandir(directory) as entries:
        return [entry.name for entry in entries if entry.is_dir()]


def remove_directory(path: str) -> None:
    """Remove a directory if it is there and empty."""
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise


def make_directory(path: str) -> None:
    """Make the directory that holds `path`."""
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, "a file is where its directory should be", path) from error


def check_writable(path: str) -> None:
    if os.path.lexists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise UserError(f"{path} is neither a file nor a directory; choose another name")
    directory = nearest_directory(path)
    with staged(os.path.join(directory, "check")) as temporary:
        try:
            Path(temporary).write_bytes(b"0")  # a full disk may still create empty files
        except FileNotFoundError as error:  # what /proc answers
            raise UserError(f"no file can be created in {directory}; choose another place") from error


def nearest_directory(path: str) -> str:
    """`path` itself if it is a directory, else the closest one above it that exists."""
    directory = path if os.path.isdir(path) else os.path.dirname(path)
    while not os.path.isdir(directory):
        if os.path.lexists(directory):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), directory)
        directory = os.path.dirname(directory)
    return directory


@contextmanager
def locked(path: str) -> Iterator[None]:
    """Hold the lock file `path`; it ends with the process that holds it and is removed by the last to leave."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            flock(handle, LOCK_EX)
        except OSError as error:
            os.close(handle)
            raise UserError(
                f"cannot lock {path}: {error.strerror}; this file system has no file locks, choose a store on another"
            ) from error
        if is_file(handle, path):
            break
        os.close(handle)  # the one who held it removed the file meanwhile, so the lock guards nothing any more
    try:
        yield
    finally:
        Path(path).unlink(missing_ok=True)
        os.close(handle)


def is_file(handle: int, path: str) -> bool:
    """Whether an open file still is the one at `path`."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _tag(target: str) -> str:
    # The target's own name may already have the 255 bytes a name may have.
    return hashlib.sha256(os.fsencode(os.path.basename(target))).hexdigest()[:16]


def _sync(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NO_SYNC or not os.path.isdir(path):
            raise
    finally:
        os.close(handle)


def _rename_new(source: str, target: str) -> None:
    # A link is exclusive and, unlike creating the file, shows it with its content; the caller removes the source.
    if not link(source, target):
        _rename_noreplace(source, target)


def _rename_noreplace(source: str, target: str) -> None:
    """renameat2(RENAME_NOREPLACE), which FAT and exFAT have and Python lacks."""
    if sys.platform != "linux":
        raise UserError(f"cannot create {target} exclusively: the file system has no hard links; choose another place")
    at_cwd, noreplace = -100, 1
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(at_cwd, os.fsencode(source), at_cwd, os.fsencode(target), noreplace):
        code = ctypes.get_errno()
        if code in (errno.EINVAL, errno.ENOSYS):
            raise UserError(
                f"cannot create {target} exclusively: the file system has neither hard links nor exclusive renaming; "
                "choose another place"
            )
        raise OSError(code, os.strerror(code), target)
