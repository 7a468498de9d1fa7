"""A fingerprint follows the content, and remembers it no longer than the file stays as it was."""

import hashlib
import os
import time
from pathlib import Path

import pytest

from flashvsr_core.errors import TransientError
from tasks.storage import fingerprint as module
from tasks.storage import local, urls
from tasks.storage.fingerprint import fingerprint


def aged(path: Path, data: bytes, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file old enough to be remembered (its ctime cannot be set, so the threshold is)."""
    path.write_bytes(data)
    monkeypatch.setattr(module, "SETTLED", -1.0)
    return path


@pytest.fixture
def digests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every path that is read to be digested."""
    asked: list[str] = []
    digest = local.digest

    def note(path: str) -> str:
        asked.append(path)
        return digest(path)

    monkeypatch.setattr(local, "digest", note)
    return asked


def test_content(place: str, tmp_path: Path) -> None:
    url = urls.join(place, "a.mp4")
    with pytest.raises(FileNotFoundError):
        fingerprint(url, tmp_path / "cache")
    urls.write_bytes(url, b"one")
    first = fingerprint(url, tmp_path / "cache")
    assert fingerprint(url, tmp_path / "cache") == first
    urls.write_bytes(url, b"two")
    second = fingerprint(url, tmp_path / "cache")
    assert second != first
    if not url.startswith("s3:"):
        assert second == "sha256:" + hashlib.sha256(b"two").hexdigest()
    else:
        assert second == f"etag:{hashlib.md5(b'two').hexdigest()}:3"


def test_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digests: list[str]) -> None:
    source, cache = aged(tmp_path / "so#u::rce", b"one", monkeypatch), tmp_path / "cache"
    first = fingerprint(str(source), cache)
    assert fingerprint(str(source), cache) == first
    assert len(digests) == 1
    stat = source.stat()
    source.write_bytes(b"two")
    os.utime(source, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # same size, name, inode and modification time
    assert fingerprint(str(source), cache) == "sha256:" + hashlib.sha256(b"two").hexdigest()
    assert len(digests) == 2
    source.unlink()
    source.write_bytes(b"two")
    fingerprint(str(source), cache)
    assert len(digests) == 3


def test_young_files_are_not_remembered(tmp_path: Path, digests: list[str]) -> None:
    (tmp_path / "a").write_bytes(b"1")
    for _ in range(2):
        fingerprint(str(tmp_path / "a"), tmp_path / "cache")
    assert len(digests) == 2
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"stamp": 1}', b"\xff\xfe"])
def test_damaged_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digests: list[str], damage: bytes) -> None:
    source, cache = aged(tmp_path / "a", b"1", monkeypatch), tmp_path / "cache"
    first = fingerprint(str(source), cache)
    (memory,) = (cache / "fingerprints").iterdir()
    memory.write_bytes(damage)
    assert fingerprint(str(source), cache) == first
    assert fingerprint(str(source), cache) == first
    assert len(digests) == 2


def test_many_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, race) -> None:
    source = aged(tmp_path / "a", b"1" * 100_000, monkeypatch)
    assert len(set(race(8, lambda _: fingerprint(str(source), tmp_path / "cache")))) == 1
    assert len(os.listdir(tmp_path / "cache" / "fingerprints")) == 1


def test_source_that_is_being_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "a"
    source.write_bytes(b"1")
    digest = local.digest

    def grow(path: str) -> str:
        found = digest(path)
        time.sleep(0.01)
        with source.open("ab") as file:
            file.write(b"2")
        return found

    monkeypatch.setattr(local, "digest", grow)
    with pytest.raises(TransientError, match="changed"):
        fingerprint(str(source), tmp_path / "cache")
