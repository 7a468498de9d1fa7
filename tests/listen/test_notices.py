"""Every form of notice becomes the same thing, once per object version; nothing else is taken for one."""

import json
from typing import Any

import pytest

from flashvsr_core.errors import UserError
from tasks.listen.notices import NotWatched, ObjectCreated, Unreadable, Watched, parse


def record(key: str, name: str = "ObjectCreated:Put", bucket: str = "videos", **more: Any) -> dict[str, Any]:
    found = {"key": key, "size": 7, "eTag": "abc"} | more
    return {"eventName": name, "s3": {"bucket": {"name": bucket}, "object": found}}


def body(*records: dict[str, Any]) -> bytes:
    return json.dumps({"Records": records}).encode()


def filer(path: str, event: str = "create", **entry: Any) -> bytes:
    new = {"name": path.rpartition("/")[2], "attributes": {"file_size": 7, "mtime": 1_790_000_000, "mtime_ns": 5}}
    return json.dumps({"event_type": event, "key": path, "message": {"new_entry": new | entry}}).encode()


def test_keys_of_records_are_decoded() -> None:
    (found,) = parse(body(record("in/my+clip%20%C3%A4+1%2B1.mp4")))
    assert found == ObjectCreated("videos", "in/my clip ä 1+1.mp4", "abc", 7)
    assert found.resource == "s3.object.videos/in/my clip ä 1+1.mp4"


def test_a_bridged_event_is_the_same_event() -> None:
    detail = {"bucket": {"name": "videos"}, "object": {"key": "in/a+b.mp4", "size": 7, "etag": "abc"}}
    (found,) = parse(json.dumps({"detail-type": "Object Created", "source": "aws.s3", "detail": detail}).encode())
    assert found == parse(body(record("in/a%2Bb.mp4")))[0]
    assert parse(json.dumps({"detail-type": "Object Deleted", "detail": detail}).encode()) == ()


def test_one_version_has_one_id() -> None:
    put = parse(body(record("in/a.mp4")))[0]
    multipart = parse(body(record("in/a.mp4", "s3:ObjectCreated:CompleteMultipartUpload")))[0]
    quoted = parse(body(record("in/a.mp4", eTag='"abc"')))[0]
    assert put.id == multipart.id == quoted.id
    others = [record("in/a.mp4", eTag="abd"), record("in/b.mp4"), record("in/a.mp4", versionId="1"), record("x")]
    assert len({notice.id for notice in parse(body(*others))} | {put.id}) == 5


def test_what_tells_of_nothing_created() -> None:
    assert parse(body(record("a.mp4", "ObjectRemoved:Delete"))) == ()
    assert parse(b'{"Service": "Amazon S3", "Event": "s3:TestEvent"}') == ()


@pytest.mark.parametrize(
    "message",
    [
        b"", b"\xff", b"[]", b"{}", b'{"Records": 1}', b'{"Records": [{}]}', b'{"event_type": "create"}',
        b'{"Records": [{"eventName": "ObjectCreated:Put", "s3": []}]}', body(record("")),
        body(record("a", bucket="b/c")),
        body(record("a", eTag="")), body(record("a", size=[])).replace(b"[]", b'"x"'), b"[" * 100_000,
    ],
)  # fmt: skip
def test_what_is_no_notice_is_refused(message: bytes) -> None:
    with pytest.raises(Unreadable):
        parse(message)


def test_the_filer_tells_of_more_than_objects() -> None:
    (found,) = parse(filer("/buckets/videos/in/first video.mp4"))
    assert (found.bucket, found.key, found.size) == ("videos", "in/first video.mp4", 7)
    again = parse(filer("/buckets/videos/in/first video.mp4"))[0]
    later = parse(filer("/buckets/videos/in/first video.mp4", attributes={"file_size": 7, "mtime": 1_790_000_009}))[0]
    assert again.id == found.id != later.id
    for other in (
        filer("/buckets/videos/.uploads/x/0001.part"),
        filer("/buckets/videos/in/a.mp4", "delete"),
        filer("/buckets/videos/in", is_directory=True),
        filer("/buckets/videos"),
        filer("/etc/iam/x"),
    ):
        assert parse(other) == ()


def test_a_versioned_bucket_of_the_filer_names_the_object() -> None:
    extended = {"Seaweed-X-Amz-Version-Id": "NjcxNTAyNWY=", "Seaweed-X-Amz-ETag": "YWVk"}
    (found,) = parse(filer("/buckets/videos/in/a.mp4.versions/v_6715025f", extended=extended))
    assert (found.key, found.version) == ("in/a.mp4", "6715025f")
    (found,) = parse(filer("/buckets/videos/in/a.mp4", extended={"Seaweed-X-Amz-ETag": "YWVk"}))
    assert (found.key, found.version) == ("in/a.mp4", "aed")
    assert parse(filer("/buckets/videos/in/a.mp4.versions", "update", is_directory=True)) == ()


def test_only_watched_places_count() -> None:
    watched = Watched(("s3://videos/in", "s3://other"), ("s3://videos/in/out",))

    def wants(bucket: str, key: str) -> bool:
        return watched.wants(ObjectCreated(bucket, key, "1", 1))

    assert wants("videos", "in/a.mp4")
    assert wants("videos", "in/deep/a.mp4")
    assert wants("other", "a.mp4")
    for key in ("in/out/a_4x.mp4", "in/.flashvsr/x/segments/00000.mp4", "in/.hidden.mp4", "in", "in/"):
        assert not wants("videos", key), key
    for bucket, key in (("videos", "inner/a.mp4"), ("videos", "in/../secret.mp4"), ("third", "in/a.mp4")):
        with pytest.raises(NotWatched):
            wants(bucket, key)
    for places in ((), ("/media/in",), ("s3://",)):
        with pytest.raises(UserError):
            Watched(places)
