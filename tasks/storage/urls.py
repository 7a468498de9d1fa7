"""Places and what can be done there. A place is a plain path or an fsspec URL (`file://`, `s3://`, `memory://`).

Local places are reached through `os`, never through fsspec's URL parsing, so that any file name works (`a::b#c?.mp4`).
Writing is atomic: an object is there whole or not at all. Operations raise FileNotFoundError, FileExistsError,
`UserError` (permission, space, missing bucket ...) or `TransientError` (everything that running again may cure).
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flashvsr_core.errors import TransientError, UserError
from tasks.storage import local, remote
from tasks.storage.faults import explained

LONGEST_NAME = 255  # bytes, in the file systems we know
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def split(url: str) -> tuple[str, str]:
    """Protocol ('' for local places) and the path or key behind it."""
    if not url or "\0" in url:
        raise UserError(f"{url!r} is not a place: it is empty or holds a NUL character; give a path or URL")
    match = SCHEME.match(url)
    if match is None:
        return "", os.path.abspath(url)
    protocol, path = match[1].lower(), url[match.end() :]
    if "@" in path.partition("/")[0] and protocol not in ("file", "local"):
        raise UserError(
            f"a {protocol}:// URL holds credentials ('@' before its first '/'), which would reach logs and reports; "
            "leave them out and set them as the store's client expects them (for S3: AWS_PROFILE, or "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)"
        )
    if protocol in ("file", "local"):
        if not path.startswith("/"):
            raise UserError(f"{url!r} is not absolute; write file:///directory/name, or a plain path")
        return "", os.path.abspath(path)
    if protocol in remote.S3 and "?versionId=" in path:
        raise UserError(f"{url!r} names an object version, which is not supported; leave ?versionId= out")
    return protocol, path.strip("/")


def normalise(url: str) -> str:
    """The one spelling of a place: an absolute path, or protocol://path without a trailing slash."""
    protocol, path = split(url)
    return f"{protocol}://{path}" if protocol else path


def join(url: str, *parts: str) -> str:
    """`url` extended by relative parts, each a name or names with slashes."""
    for part in parts:
        if not part or part.startswith("/") or ".." in part.split("/"):
            raise UserError(f"{part!r} cannot be put below {url!r}; give a relative name without '..'")
    protocol, path = split(url)
    return normalise(f"{protocol}://{path}/{'/'.join(parts)}" if protocol else os.path.join(path, *parts))


def parent(url: str) -> str:
    """The place around `url`; a root or bucket is its own parent."""
    protocol, path = split(url)
    if not protocol:
        return os.path.dirname(path)
    return f"{protocol}://{path.rpartition('/')[0] or path}"


def name(url: str) -> str:
    """The last component of `url`."""
    return split(url)[1].rpartition("/")[2]


def fitting(stem: str, rest: str) -> str:
    """`stem` + `rest` as one name of at most 255 bytes; a longer stem is cut and told apart by its digest."""
    data = os.fsencode(stem)
    room = LONGEST_NAME - len(os.fsencode(rest))
    if len(data) <= room:
        return stem + rest
    label = f"-{hashlib.sha256(data).hexdigest()[:8]}"
    return data[: room - len(label)].decode(errors="ignore") + label + rest


def is_local(url: str) -> bool:
    return not split(url)[0]


def local_path(url: str) -> Path:
    """The path of a local place."""
    protocol, path = split(url)
    if protocol:
        raise UserError(f"{url!r} is not on this machine; give a path or file:// URL")
    return Path(path)


def exists(url: str) -> bool:
    """Whether a file or object is there; directories and prefixes do not count."""
    protocol, path = split(url)
    with explained("look at", url):
        return remote.info(protocol, path) is not None if protocol else os.path.isfile(path)


def size(url: str) -> int:
    """Bytes of a file or object."""
    protocol, path = split(url)
    with explained("look at", url):
        if not protocol:
            return os.path.getsize(path)
        found = remote.info(protocol, path)
        if found is None:
            raise FileNotFoundError(f"{url} does not exist")
        return int(found["size"])


def read_bytes(url: str) -> bytes:
    protocol, path = split(url)
    with explained("read", url):
        return remote.read(protocol, path) if protocol else Path(path).read_bytes()


def digest(url: str) -> str:
    """sha256 of the content, in hexadecimal; on disks and S3 without holding the whole content."""
    protocol, path = split(url)
    with explained("read", url):
        return remote.digest(protocol, path) if protocol else local.digest(path)


def read_json(url: str) -> Any:
    """A JSON document; ValueError if it is not one."""
    return json.loads(read_bytes(url))


def write_json(url: str, value: Any) -> None:
    write_bytes(url, json.dumps(value, indent=1, allow_nan=False).encode())


def write_bytes(url: str, data: bytes) -> None:
    """Write something small, replacing what is there."""
    protocol, path = split(url)
    with explained("write", url, writing=True):
        if protocol:
            remote.write(protocol, path, data, create=False)
        else:
            local.make_directory(path)
            local.write(path, data, overwrite=True)


def create_exclusive(url: str, data: bytes) -> bool:
    """Write something small if nothing is there; whether this call did it. Of many callers at once, one does."""
    protocol, path = split(url)
    with explained("create", url, writing=True):
        if protocol:
            return remote.write(protocol, path, data, create=True)
        local.make_directory(path)
        try:
            local.write(path, data, overwrite=False)
        except FileExistsError:
            return False
        return True


def read_version(url: str) -> tuple[bytes, str] | None:
    """Content and its version for `replace_version`; None where nothing is."""
    protocol, path = split(url)
    try:
        with explained("read", url):
            if not protocol:
                data = Path(path).read_bytes()
                return data, local.version(data)
            # Version first: if the object changes before it is read, replacing that version fails, as it should.
            version = remote.version(protocol, path)
            return None if version is None else (remote.read(protocol, path), version)
    except FileNotFoundError:
        return None


def replace_version(url: str, version: str, data: bytes) -> bool:
    """Replace something small if it still is `version`; whether it was. Of many callers at once, one succeeds."""
    protocol, path = split(url)
    with explained("replace", url, writing=True):
        if protocol:
            return remote.replace(protocol, path, version, data)
        return local.replace(path, version, data)


def publish(local_file: Path, url: str, overwrite: bool, sha256: str | None = None, consume: bool = False) -> None:
    """Make a finished local file appear at `url`, whole, with its size (and `sha256`, if given) verified.

    FileExistsError if something is there and `overwrite` is False. `consume` gives `local_file` up: it is linked
    rather than copied where both are on one file system, and gone afterwards.
    """
    protocol, path = split(url)
    with explained("publish", url, writing=True):
        if not protocol:
            source = os.path.realpath(local_file)
            if source == os.path.realpath(path):
                raise UserError(f"{local_file} cannot be published onto itself; name another place")
            local.make_directory(path)
            local.publish(source, path, overwrite, sha256, consume)
        else:
            # Looked at first because S3 tells only after the upload; the conditional upload makes sure.
            taken = not overwrite and remote.info(protocol, path) is not None
            if taken or not remote.upload(protocol, path, local_file, create=not overwrite):
                raise FileExistsError(f"{url} exists already")
            try:
                local.compare(size(url), local_file.stat().st_size, "bytes", url)
                if sha256 is not None:
                    local.compare(digest(url), sha256, "sha256", url)
            except TransientError:
                remove(url, missing_ok=True)
                raise
        if consume:
            local_file.unlink(missing_ok=True)


def remove(url: str, missing_ok: bool = False) -> None:
    protocol, path = split(url)
    with explained("remove", url):
        if not protocol:
            Path(path).unlink(missing_ok)
        elif not remote.remove(protocol, path) and not missing_ok:
            raise FileNotFoundError(f"{url} does not exist")


def abort_uploads(url: str, below: bool) -> int:
    """Give up unfinished uploads to `url`, or to everything below it: what killed processes left on S3. How many.

    Only for who may be sure that nobody else uploads there, as the holder of a job's lease.
    """
    protocol, path = split(url)
    with explained("clean up", url):
        return remote.abort_uploads(protocol, path, below)


def list_files(url: str) -> dict[str, tuple[int, float]]:
    """Files directly in a directory or prefix, sorted: size and time of last change; empty if it is not there."""
    protocol, path = split(url)
    try:
        with explained("list", url):
            return dict(sorted((remote.list_files(protocol, path) if protocol else local.list_files(path)).items()))
    except FileNotFoundError:
        return {}


def list_directories(url: str) -> list[str]:
    """Names of the directories or prefixes directly in one, sorted; empty if it is not there.

    A store may name a prefix that holds nothing any more: ask for an object before relying on one.
    """
    protocol, path = split(url)
    try:
        with explained("list", url):
            return sorted(remote.list_directories(protocol, path) if protocol else local.list_directories(path))
    except FileNotFoundError:
        return []


def list_sizes(url: str) -> dict[str, int]:
    """Names and sizes of the files directly in a directory or prefix, sorted; empty if it is not there."""
    return {name: size for name, (size, _) in list_files(url).items()}


def list_names(url: str) -> list[str]:
    """Names of the files directly in a directory or prefix, sorted; empty if it is not there."""
    return list(list_sizes(url))


def copy_to_local(url: str, path: Path) -> None:
    """Copy a file or object to a local path, which appears whole."""
    protocol, key = split(url)
    target = str(path.absolute())
    with explained("fetch", url):
        local.make_directory(target)
        if not protocol:
            local.publish(os.path.realpath(key), target, overwrite=True, sha256=None, consume=False)
            return
        local.sweep(target)
        with local.staged(target) as temporary:
            _download(url, temporary)
            local.settle(temporary, target, overwrite=True)


def localise(url: str, cache_dir: Path, before_fetch: Callable[[int], None] | None = None) -> Path:
    """A local path with the content of `url`: its own, or that of a copy fetched once per content into `cache_dir`.

    Threads and processes that ask at once wait for one of them to fetch, which first calls `before_fetch(bytes)`.
    Nothing in `cache_dir` is removed here, see `cache.SourceCache`.
    """
    protocol, key = split(url)
    if not protocol:
        return Path(key)
    with explained("fetch", url):
        identity = remote.identity(protocol, key)
        # The name of an object never becomes a path; only a harmless extension does, which ffmpeg looks at.
        extension = re.search(r"\.[A-Za-z0-9]{1,8}$", key)
        label = hashlib.sha256(f"{normalise(url)}\n{identity}".encode(errors="surrogateescape")).hexdigest()[:32]
        path = cache_dir / (label + (extension[0].lower() if extension else ""))
        local.make_directory(str(path))
        with local.locked(str(path.with_suffix(".lock"))):
            if not path.is_file():
                local.sweep(str(path))
                if before_fetch is not None:
                    before_fetch(size(url))
                with local.staged(str(path)) as temporary:
                    _download(url, temporary)
                    if remote.identity(protocol, key) != identity:
                        raise TransientError(f"{url} changed while it was fetched; run again when it is complete")
                    local.settle(temporary, str(path), overwrite=True)
        return path


def fetch_into(url: str, expected: int, folder: Path) -> None:
    """Fetch an object of so many bytes into a local folder under its own name."""
    path = folder / name(url)
    with explained("fetch", url), local.staged(str(path)) as temporary:
        _download(url, temporary)
        local.compare(os.path.getsize(temporary), expected, "bytes", url)
        local.settle(temporary, str(path), overwrite=True)


def free_bytes(url: str) -> int | None:
    """Free space where `url` is or would be; None for remote stores."""
    protocol, path = split(url)
    with explained("look at", url):
        return None if protocol else shutil.disk_usage(local.nearest_directory(path)).free


def check_writable(url: str) -> None:
    """UserError unless a file can be created at `url` or, if that is a directory, in it. Leaves nothing behind."""
    protocol, path = split(url)
    with explained("write", url, writing=True):
        if protocol:
            remote.check_writable(protocol, path)
        else:
            local.check_writable(path)


def _download(url: str, path: str) -> None:
    remote.download(*split(url), path)
    local.compare(os.path.getsize(path), size(url), "bytes", url)
