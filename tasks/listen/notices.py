"""What object stores say when an object was created, in one form.

Read are S3's notifications (also MinIO's and what SQS carries), EventBridge's `Object Created` and the webhook of
SeaweedFS's filer. A notice is a hint: whoever acts on it looks at the object itself.
"""

import base64
import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_plus

from flashvsr_core.errors import FlashvsrError, UserError
from tasks.storage import remote, urls
from tasks.storage.listing import is_hidden
from tasks.storage.roots import is_below

EVENT = "s3.object.created"
_NAMESPACE = uuid.UUID("5b0c0a4e-6d0f-5a35-9a39-3d7f4a2f9a10")  # ours alone: ids of one object version must not vary
_FILER_BUCKETS = "/buckets/"  # where SeaweedFS's filer keeps buckets


class Unreadable(FlashvsrError):
    """A message that is no notice of any form we know."""


class NotWatched(UserError):
    """A notice of an object outside of the watched buckets and prefixes."""


@dataclass(frozen=True)
class ObjectCreated:
    """One version of one object; `version` is the version id, else the etag, else what the store tells of it."""

    bucket: str
    key: str
    version: str
    size: int | None

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}/{self.key}"

    @property
    def resource(self) -> str:
        """What event triggers match."""
        return f"s3.object.{self.bucket}/{self.key}"

    @property
    def id(self) -> uuid.UUID:
        """The same for every notice of one object version, so that what is delivered twice is one event."""
        return uuid.uuid5(_NAMESPACE, f"{self.bucket}/{self.key}@{self.version}")


@dataclass(frozen=True)
class Watched:
    """The buckets and prefixes of which notices are accepted, and the output roots below them that are ignored."""

    places: tuple[str, ...]
    outputs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.places:
            raise UserError("no inbox is watched; name at least one, for example s3://videos/in")
        for place in self.places + self.outputs:
            protocol, path = urls.split(place)
            if protocol not in remote.S3 or not path:
                raise UserError(f"{place!r} is not in a bucket; notices come from buckets: write s3://bucket/prefix")

    def wants(self, notice: ObjectCreated) -> bool:
        """Whether a notice is worth an event. NotWatched if it is of an object outside of every watched place."""
        around = next((place for place in self.places if is_below(notice.url, place)), None)
        if around is None:
            raise NotWatched(f"{notice.url} is in none of the watched places {', '.join(self.places)}")
        inside = notice.key[len(urls.split(around)[1].partition("/")[2]) :].strip("/")
        # Stores, temporary uploads and outputs are nobody's sources.
        return bool(inside) and not is_hidden(inside) and not any(is_below(notice.url, out) for out in self.outputs)


def parse(body: bytes) -> tuple[ObjectCreated, ...]:
    """The objects whose creation a message tells of; none for messages about something else. Unreadable otherwise."""
    try:
        message = json.loads(body)
        if not isinstance(message, dict):
            raise TypeError(f"it is a {type(message).__name__}")
        return tuple(_notices(message))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Unreadable(f"a message is no notice of a created object ({error!r})") from error


def _notices(message: dict[str, Any]) -> Iterator[ObjectCreated]:
    if "Records" in message:
        for record in message["Records"]:
            if record["eventName"].removeprefix("s3:").startswith("ObjectCreated"):
                yield _of_record(record["s3"])
    elif "detail-type" in message:
        if message["detail-type"] == "Object Created":
            yield _of_event_bridge(message["detail"])
    elif "event_type" in message:
        yield from _of_filer(message)
    elif message.get("Event") != "s3:TestEvent":
        raise KeyError("Records, detail-type or event_type")


def _of_record(s3: dict[str, Any]) -> ObjectCreated:
    found = s3["object"]
    version = found.get("versionId") or found.get("eTag") or found.get("sequencer")
    return _checked(s3["bucket"]["name"], unquote_plus(found["key"]), version, found.get("size"))


def _of_event_bridge(detail: dict[str, Any]) -> ObjectCreated:
    found = detail["object"]  # its key, unlike that of a record, is not encoded
    version = found.get("version-id") or found.get("etag") or found.get("sequencer")
    return _checked(detail["bucket"]["name"], found["key"], version, found.get("size"))


def _of_filer(message: dict[str, Any]) -> Iterator[ObjectCreated]:
    """The filer tells of everything in its tree: also of directories and of the parts of uploads."""
    entry = (message.get("message") or {}).get("new_entry")
    path = message["key"]
    if message["event_type"] not in ("create", "update", "rename") or not entry or entry.get("is_directory"):
        return
    if not path.startswith(_FILER_BUCKETS):
        return
    bucket, _, key = path.removeprefix(_FILER_BUCKETS).partition("/")
    if not key or key.startswith(".uploads/"):
        return
    attributes, extended = entry.get("attributes") or {}, entry.get("extended") or {}
    version = _decoded(extended, "Seaweed-X-Amz-Version-Id")
    if version:  # a bucket with versioning keeps KEY as KEY.versions/v_VERSION
        key = key.removesuffix(f".versions/v_{version}")
    else:
        # What did not come in by S3 has no etag; its time of writing and size tell contents apart.
        fallback = f"{attributes['mtime']}.{attributes.get('mtime_ns', 0)}-{attributes.get('file_size', 0)}"
        version = _decoded(extended, "Seaweed-X-Amz-ETag") or fallback
    yield _checked(bucket, key, version, attributes.get("file_size"))


def _decoded(extended: dict[str, str], name: str) -> str:
    return base64.b64decode(extended.get(name, "")).decode()


def _checked(bucket: object, key: object, version: object, size: object) -> ObjectCreated:
    if not (isinstance(bucket, str) and isinstance(key, str) and bucket and key) or "/" in bucket or "\0" in key:
        raise ValueError(f"bucket {bucket!r} and key {key!r} name no object")
    if not version:
        raise ValueError(f"{bucket}/{key} comes without version, etag and sequencer")
    return ObjectCreated(bucket, key, str(version).strip('"'), int(size) if isinstance(size, int | str) else None)
