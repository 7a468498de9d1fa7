"""Writing on every kind of place: whole or not at all, and by one of many."""

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from flashvsr_core.errors import TransientError, UserError
from tasks.storage import local, remote, urls


@pytest.mark.parametrize("size", [0, 1, 3 * local.CHUNK + 5])
def test_publish(place: str, file, size: int) -> None:
    made = file(os.urandom(size))
    digest = hashlib.sha256(made.read_bytes()).hexdigest()
    url = urls.join(place, "new", "out.mp4")
    urls.publish(made, url, overwrite=False, sha256=digest)
    assert urls.digest(url) == digest
    other = file(b"other")
    with pytest.raises(FileExistsError):
        urls.publish(other, url, overwrite=False)
    assert urls.digest(url) == digest
    assert other.exists()
    urls.publish(other, url, overwrite=True)
    assert urls.read_bytes(url) == b"other"
    other.write_bytes(b"changed later")
    assert urls.read_bytes(url) == b"other", "what is published must not follow the local file"
    assert urls.list_names(urls.parent(url)) == ["out.mp4"]


def test_publish_consuming(place: str, file) -> None:
    made = file(b"data")
    url = urls.join(place, "out.mp4")
    urls.publish(made, url, overwrite=False, consume=True)
    assert not made.exists()
    kept = file(b"more")
    with pytest.raises(FileExistsError):
        urls.publish(kept, url, overwrite=False, consume=True)
    assert kept.read_bytes() == b"more"
    urls.publish(kept, url, overwrite=True, consume=True)
    assert urls.read_bytes(url) == b"more"
    assert urls.list_names(place) == ["out.mp4"]


def test_publish_onto_itself(tmp_path: Path) -> None:
    made = tmp_path / "a"
    made.write_bytes(b"1")
    os.link(made, tmp_path / "b")  # rename() between two names of one file does nothing and leaves both
    urls.publish(made, str(tmp_path / "b"), overwrite=True, consume=True)
    assert os.listdir(tmp_path) == ["b"]


def test_publish_onto_the_same_path(tmp_path: Path) -> None:
    made = tmp_path / "a"
    made.write_bytes(b"1")
    (tmp_path / "link").symlink_to(tmp_path)
    for url in (str(made), str(tmp_path / "link" / "a")):
        with pytest.raises(UserError, match="onto itself"):
            urls.publish(made, url, overwrite=True, consume=True)
    assert made.read_bytes() == b"1"


def test_publish_of_wrong_content(place: str, file) -> None:
    with pytest.raises(TransientError, match="sha256"):
        urls.publish(file(b"data"), urls.join(place, "out"), overwrite=True, sha256="0" * 64)
    assert urls.list_names(place) == []


def test_publish_of_nothing(place: str, tmp_path: Path) -> None:
    for overwrite in (True, False):
        with pytest.raises(FileNotFoundError):
            urls.publish(tmp_path / "none", urls.join(place, "out"), overwrite)
    assert urls.list_names(place) == []


def test_publish_race(place: str, file, race) -> None:
    made = [file(str(i).encode() * (1 << 20)) for i in range(8)]
    url = urls.join(place, "out")
    results = race(8, lambda i: urls.publish(made[i], url, overwrite=False))
    winners = [i for i, result in enumerate(results) if result is None]
    assert len(winners) == 1, results
    assert all(isinstance(r, FileExistsError) for r in results if r is not None), results
    assert urls.read_bytes(url) == made[winners[0]].read_bytes()
    assert urls.list_names(place) == ["out"]


def test_create_race(place: str, race) -> None:
    for turn in range(2):  # SeaweedFS makes the losers of a race wait for seconds
        url = urls.join(place, f"{turn}.json")
        results = race(8, lambda i, url=url: urls.create_exclusive(url, b"%d" % i))
        assert results.count(True) == 1, results
        assert results.count(False) == 7, results
        assert urls.read_bytes(url) == b"%d" % results.index(True)


def test_replace_race(place: str, race) -> None:
    url = urls.join(place, "a.json")
    assert urls.read_version(url) is None
    urls.create_exclusive(url, b"start")
    for turn in range(2):  # SeaweedFS makes the losers of a race wait for seconds
        found = urls.read_version(url)
        assert found is not None
        results = race(8, lambda i, v=found[1], turn=turn: urls.replace_version(url, v, b"%d-%d" % (turn, i)))
        assert results.count(True) == 1, results
        assert results.count(False) == 7, results
        assert urls.read_bytes(url) == b"%d-%d" % (turn, results.index(True))
    found = urls.read_version(url)
    assert found is not None
    urls.remove(url)
    assert not urls.replace_version(url, found[1], b"late")
    assert urls.list_names(place) == []


def test_readers_never_see_a_part(place: str, file) -> None:
    small, large = file(b"a" * 10), file(b"b" * (2 << 20))
    url = urls.join(place, "out")
    urls.publish(small, url, overwrite=True)
    over = threading.Event()
    seen = set()

    def watch() -> None:
        while not over.is_set():
            seen.add(hashlib.sha256(urls.read_bytes(url)).hexdigest())

    reader = threading.Thread(target=watch)
    reader.start()
    for _ in range(10):
        urls.publish(large, url, overwrite=True)
        urls.publish(small, url, overwrite=True)
    over.set()
    reader.join()
    assert seen <= {hashlib.sha256(f.read_bytes()).hexdigest() for f in (small, large)}


def test_locks_that_are_removed_still_lock(tmp_path: Path, race) -> None:
    inside, most = 0, 0

    def act(_: int) -> None:
        nonlocal inside, most
        for _ in range(20):
            with local.locked(str(tmp_path / "lock")):
                inside += 1
                most = max(most, inside)
                time.sleep(0.0005)
                inside -= 1

    assert race(6, act) == [None] * 6
    assert most == 1
    assert os.listdir(tmp_path) == []


def test_memory_is_conditional_however_slow(race, monkeypatch: pytest.MonkeyPatch) -> None:
    """MemoryFileSystem looks and writes in two steps; here other threads get their chance in between."""
    memory = type(remote.filesystem("memory"))

    def slowly(original):
        def look(self, path: str, *arguments: object, **options: object):
            found = original(self, path, *arguments, **options)
            time.sleep(0.02)
            return found

        return look

    for name in ("exists", "cat_file"):
        monkeypatch.setattr(memory, name, slowly(getattr(memory, name)))
    url = "memory://slow/a"
    assert race(4, lambda i: urls.create_exclusive(url, b"%d" % i)).count(True) == 1
    found = urls.read_version(url)
    assert found is not None
    assert race(4, lambda i: urls.replace_version(url, found[1], b"new %d" % i)).count(True) == 1


def test_no_hard_links(tmp_path: Path, file, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on FAT and exFAT."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    url = str(tmp_path / "place" / "out")
    assert urls.create_exclusive(url, b"1")
    assert not urls.create_exclusive(url, b"2")
    with pytest.raises(FileExistsError):
        urls.publish(file(b"3"), url, overwrite=False)
    urls.publish(file(b"4"), url, overwrite=True, consume=True)
    assert urls.read_bytes(url) == b"4"
    assert urls.list_names(urls.parent(url)) == ["out"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_failed_write(tmp_path: Path, file, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    url = str(tmp_path / "place" / "out")
    urls.write_bytes(url, b"old")
    made = file(b"new")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(TransientError if code == errno.EIO else UserError, match=os.strerror(code)) as caught:
        urls.publish(made, url, overwrite=True)
    assert url in str(caught.value)
    assert urls.list_names(urls.parent(url)) == ["out"]
    assert urls.read_bytes(url) == b"old"


def test_left_overs_of_the_dead_are_swept(tmp_path: Path, file) -> None:
    target = str(tmp_path / "place" / "out")
    urls.write_bytes(target, b"old")
    child = os.fork()
    if child == 0:
        with local.staged(target) as temporary:
            Path(temporary).write_bytes(b"half")
            os._exit(0)
    os.waitpid(child, 0)
    with local.staged(target) as mine, local.staged(target + "2") as others:
        Path(mine).write_bytes(b"")
        Path(others).write_bytes(b"")
        assert len(urls.list_names(urls.parent(target))) == 4
        urls.publish(file(b"new"), target, overwrite=True)
        assert set(urls.list_names(urls.parent(target))) == {"out", Path(mine).name, Path(others).name}


@pytest.mark.parametrize(
    ("code", "kind"),
    [("NoSuchBucket", UserError), ("AccessDenied", UserError), ("SlowDown", TransientError), ("Odd", TransientError)],
)
def test_s3_error_codes(code: str, kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    """As s3fs raises them; SeaweedFS does not give these answers on demand."""
    errors = pytest.importorskip("s3fs.errors")
    client_error = pytest.importorskip("botocore.exceptions").ClientError

    def refuse(*_: object, **__: object) -> None:
        raise errors.translate_boto_error(client_error({"Error": {"Code": code, "Message": "no"}}, "PutObject"))

    monkeypatch.setattr(type(remote.filesystem("memory")), "pipe_file", refuse)
    with pytest.raises(kind, match="memory://a/b"):
        urls.create_exclusive("memory://a/b", b"")


def test_conditional_request_conflict(monkeypatch: pytest.MonkeyPatch) -> None:
    """AWS answers 409 to a conditional write that met another one and wants it tried again."""
    errors = pytest.importorskip("s3fs.errors")
    client_error = pytest.importorskip("botocore.exceptions").ClientError
    answers = ["ConditionalRequestConflict", "ConditionalRequestConflict", "PreconditionFailed"]

    def answer(*_: object, **__: object) -> None:
        response = {"Error": {"Code": answers.pop(0), "Message": "no"}}
        raise errors.translate_boto_error(client_error(response, "PutObject"))

    monkeypatch.setattr(type(remote.filesystem("memory")), "pipe_file", answer)
    assert not urls.create_exclusive("memory://a/b", b"")
    assert answers == []


@pytest.mark.system
def test_s3_large_objects(seaweed, file, race) -> None:
    """Multipart uploads: exclusive, and nothing is left dangling by those that lost."""
    url = "s3://media/large/out.mp4"
    made = file(os.urandom(1 << 20) * 101)
    results = race(2, lambda _: urls.publish(made, url, overwrite=False))
    assert [type(result) for result in sorted(results, key=lambda r: r is not None)] == [type(None), FileExistsError]
    assert urls.digest(url) == local.digest(str(made))
    store = remote.filesystem("s3")
    assert not store.call_s3("list_multipart_uploads", Bucket="media").get("Uploads")
    urls.remove(url)


@pytest.mark.system
def test_unfinished_uploads_are_given_up(seaweed) -> None:
    store = remote.filesystem("s3")
    keys = ["abandoned/job/segments/00001.mp4", "abandoned/job/plan.json", "abandoned/jobs/a", "abandoned/job"]
    for key in keys * 2:
        begun = store.call_s3("create_multipart_upload", Bucket="media", Key=key)
        store.call_s3("upload_part", Bucket="media", Key=key, UploadId=begun["UploadId"], PartNumber=1, Body=b"1")

    def left() -> list[str]:
        return sorted(u["Key"] for u in store.call_s3("list_multipart_uploads", Bucket="media").get("Uploads") or ())

    assert urls.abort_uploads("s3://media/abandoned/job", below=True) == 4
    assert left() == ["abandoned/job", "abandoned/job", "abandoned/jobs/a", "abandoned/jobs/a"]
    assert urls.abort_uploads("s3://media/abandoned/job", below=False) == 2
    assert urls.abort_uploads("s3://media/abandoned", below=True) == 2
    assert left() == []
    assert urls.abort_uploads("memory://abandoned", below=True) == 0


@pytest.mark.system
def test_killed_while_uploading(seaweed, file) -> None:
    """Nothing is at the URL, what was there before stays, and publishing again works."""
    url = "s3://media/killed-upload/out.mp4"
    made = file(os.urandom(1 << 20) * 150)
    urls.write_bytes(url, b"before")
    code = (
        "import sys; from pathlib import Path; from tasks.storage import urls\n"
        "urls.publish(Path(sys.argv[1]), sys.argv[2], overwrite=True)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "FSSPEC_S3": json.dumps(seaweed.options)}
    child = subprocess.Popen([sys.executable, "-c", code, str(made), url], env=environment)
    store = remote.filesystem("s3")
    try:
        deadline = time.monotonic() + 30
        while not (uploads := store.call_s3("list_multipart_uploads", Bucket="media").get("Uploads")):
            assert child.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert child.returncode == -signal.SIGKILL
    assert urls.read_bytes(url) == b"before"
    for upload in uploads:
        store.call_s3("abort_multipart_upload", Bucket="media", Key=upload["Key"], UploadId=upload["UploadId"])
    urls.publish(made, url, overwrite=True)
    assert urls.digest(url) == local.digest(str(made))
    urls.remove(url)
