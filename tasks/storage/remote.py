"""Objects in stores reached through fsspec, each named by protocol and key; conditional writes for S3 and memory.

A put becomes visible only when it is complete, so nothing here needs a temporary name.
"""

import hashlib
import logging
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import fsspec

from flashvsr_core.errors import UserError
from tasks.storage.faults import code_of

log = logging.getLogger(__name__)

S3 = ("s3", "s3a")
# Passing faults are waited out for about half a minute: the server restarts, or asks to slow down. Botocore's own
# default gives up after some seconds. `config_kwargs` in fsspec's configuration replaces this.
RETRIES = {"retries": {"mode": "standard", "max_attempts": 8}}
MEMORY = "memory"
BLOCK = 8 << 20  # bytes asked for at once while an object is digested
CONFLICT_TRIES = 5

# MemoryFileSystem has no conditional writes; its objects live in this process only, so one lock makes them.
_memory = threading.Lock()


def filesystem(protocol: str) -> Any:
    try:
        # Listings must not be remembered: other machines write to the same places.
        patience = {"config_kwargs": RETRIES} if protocol in S3 and not _chosen(protocol, "config_kwargs") else {}
        return fsspec.filesystem(protocol, use_listings_cache=False, **patience)
    except ValueError as error:
        raise UserError(f"protocol {protocol!r} is not known; use a path, file:// or s3://") from error
    except ImportError as error:
        remedy = "pip install 'flashvsr[s3]'" if protocol in S3 else "install its fsspec package"
        raise UserError(f"{protocol}:// needs a package that is missing ({error}); {remedy}") from error


def _chosen(protocol: str, option: str) -> bool:
    return option in fsspec.config.conf.get(protocol, {})


def _at(protocol: str, key: str) -> tuple[Any, str]:
    # MemoryFileSystem leaves a key with '::' in it as it is, and so would know it by two names.
    return filesystem(protocol), f"/{key}" if protocol == MEMORY else key


def info(protocol: str, key: str) -> dict[str, Any] | None:
    """What the store knows of an object (size, ETag, VersionId ...); None where no object is, or only a prefix."""
    store, path = _at(protocol, key)
    try:
        found: dict[str, Any] = store.info(path)
    except FileNotFoundError:
        return None
    return found if found["type"] == "file" else None


def identity(protocol: str, key: str) -> str:
    """What tells one content of an object from another: version or etag, and size; sha256 where there is neither."""
    found = info(protocol, key)
    if found is None:
        raise FileNotFoundError(f"{protocol}://{key} does not exist")
    version_id, etag = found.get("VersionId"), str(found.get("ETag") or "").strip('"')
    if version_id and version_id != "null":  # what S3 calls the version of objects older than versioning
        return f"version:{version_id}:{found['size']}"
    return f"etag:{etag}:{found['size']}" if etag else f"sha256:{digest(protocol, key)}"


def read(protocol: str, key: str) -> bytes:
    store, path = _at(protocol, key)
    data: bytes = store.cat_file(path)
    return data


def digest(protocol: str, key: str) -> str:
    if protocol == MEMORY:  # its open() hands out one shared read position
        return hashlib.sha256(read(protocol, key)).hexdigest()
    store, path = _at(protocol, key)
    with store.open(path, "rb", block_size=BLOCK) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def list_files(protocol: str, key: str) -> dict[str, tuple[int, float]]:
    """Size and time of last change (seconds since 1970; 0 where the store tells none) of the objects in a prefix."""
    return {name: (int(found["size"]), _changed(found)) for name, found in _children(protocol, key, "file").items()}


def list_objects(protocol: str, key: str) -> dict[str, dict[str, Any]]:
    """What the store knows of each object in a prefix, by name."""
    return _children(protocol, key, "file")


def list_directories(protocol: str, key: str) -> list[str]:
    """Names of the prefixes in a prefix. Some stores go on listing one that was emptied."""
    return list(_children(protocol, key, "directory"))


def _children(protocol: str, key: str, kind: str) -> dict[str, dict[str, Any]]:
    store, path = _at(protocol, key)
    found = store.ls(path, detail=True)
    named = ((str(f["name"]).rstrip("/").removeprefix(f"{path}/"), f) for f in found if f["type"] == kind)
    # S3 lists a prefix's own marker ('in/') as an object without a name, and an object as its own directory.
    return {name: f for name, f in named if name and "/" not in name}


def _changed(found: dict[str, Any]) -> float:
    for name in ("LastModified", "created"):  # S3's and MemoryFileSystem's name for it
        if (value := found.get(name)) is not None:
            return float(value.timestamp()) if isinstance(value, datetime) else float(value)
    return 0.0


def write(protocol: str, key: str, data: bytes, create: bool) -> bool:
    """Write something small; False if `create` and something is there."""
    store, path = _at(protocol, key)
    mode = "create" if create else "overwrite"
    if protocol == MEMORY:
        with _memory:
            return _conditionally(lambda: store.pipe_file(path, data, mode=mode))
    return _conditionally(lambda: store.pipe_file(path, data, mode=mode))


def upload(protocol: str, key: str, local_file: Path, create: bool) -> bool:
    """Store a file; False if `create` and something is there."""
    if protocol == MEMORY:  # its put_file() shows the object while it grows
        return write(protocol, key, local_file.read_bytes(), create)
    store, path = _at(protocol, key)
    return _conditionally(lambda: store.put_file(str(local_file), path, mode="create" if create else "overwrite"))


def download(protocol: str, key: str, local_file: str) -> None:
    if protocol == MEMORY:  # its get_file() reads through the one shared position
        Path(local_file).write_bytes(read(protocol, key))
    else:
        store, path = _at(protocol, key)
        store.get_file(path, local_file)


def remove(protocol: str, key: str) -> bool:
    """Remove an object; False if there was none."""
    if info(protocol, key) is None:  # S3 deletes what is not there without a word
        return False
    store, path = _at(protocol, key)
    store.rm_file(path)
    return True


def abort_uploads(protocol: str, key: str, below: bool) -> int:
    if protocol not in S3:
        return 0
    store = filesystem(protocol)
    bucket, _, inside = key.partition("/")
    prefix, aborted = f"{inside}/" if below else inside, 0
    where: dict[str, Any] = {"Bucket": bucket, "Prefix": prefix}
    while True:
        found = store.call_s3("list_multipart_uploads", **where)
        for upload in found.get("Uploads") or ():
            if below or upload["Key"] == inside:
                store.call_s3("abort_multipart_upload", Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
                aborted += 1
        if not found.get("IsTruncated"):
            return aborted
        where |= {"KeyMarker": found["NextKeyMarker"], "UploadIdMarker": found["NextUploadIdMarker"]}


def version(protocol: str, key: str) -> str | None:
    """What `replace` compares; None where nothing is."""
    if protocol in S3:
        found = info(protocol, key)
        return str(found["ETag"]) if found else None
    try:
        return digest(protocol, key)
    except FileNotFoundError:
        return None


def replace(protocol: str, key: str, expected: str, data: bytes) -> bool:
    """Replace something small if it still is version `expected`; whether it was."""
    store, path = _at(protocol, key)
    if protocol in S3:
        return _conditionally(lambda: store.pipe_file(path, data, IfMatch=expected))
    if protocol != MEMORY:
        raise UserError(f"{protocol}:// has no conditional replacing; use a local directory or s3://")
    with _memory:
        same = version(protocol, key) == expected
        if same:
            store.pipe_file(path, data)
        return same


def check_writable(protocol: str, key: str) -> None:
    """Begin an upload and give it up: needs the permission a put needs, makes no object, version or event."""
    if protocol not in S3:
        return
    store = filesystem(protocol)
    bucket, _, inside = key.partition("/")
    try:
        store.call_s3("head_bucket", Bucket=bucket)  # some servers would make a missing bucket by themselves
    except FileNotFoundError as error:
        raise UserError(f"the bucket {bucket!r} does not exist; create it or choose another") from error
    except PermissionError:
        log.debug("not allowed to look at bucket %s itself; the upload will tell", bucket)
    where = {"Bucket": bucket, "Key": f"{inside}/.flashvsr-check".lstrip("/")}
    begun = store.call_s3("create_multipart_upload", **where)
    store.call_s3("abort_multipart_upload", **where, UploadId=begun["UploadId"])


def _conditionally(write: Callable[[], object]) -> bool:
    """Run a conditional write; False if its condition did not hold."""
    for attempt in range(CONFLICT_TRIES):
        try:
            write()
            return True
        except FileExistsError:
            return False
        except OSError as error:
            code = code_of(error)
            # s3fs knows only AWS's form of 'precondition failed': SeaweedFS answers without naming the condition.
            # NoSuchKey answers an If-Match where nothing is.
            if code in ("PreconditionFailed", "412", "NoSuchKey", "404"):
                return False
            # AWS asks writers that met another one to try again.
            if code not in ("ConditionalRequestConflict", "409") or attempt == CONFLICT_TRIES - 1:
                raise
            time.sleep(0.1 * 2**attempt)
    raise AssertionError("unreachable")
