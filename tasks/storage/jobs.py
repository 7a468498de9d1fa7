"""A job is one piece of work with one identity; its directory holds plan, lease, finished segments and report.

A segment is done when its record (`segments/00012.json`) is there, and the record is written after its data.
"""

import hashlib
import json
import logging
import re
import unicodedata
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import TypeAdapter, ValidationError

from flashvsr_core.errors import TransientError, UserError
from tasks.storage import local, urls

log = logging.getLogger(__name__)

RECORD = 1  # version of what a segment's record holds
SLUG = 40  # characters of a slug, at most
KEY = 16  # characters of a key: 64 bits of a sha256
AT_ONCE = 8  # requests at once to a remote store
DIRECTORY_NAME = re.compile(rf"(?P<slug>[a-z0-9-]{{1,{SLUG}}})-(?P<key>[0-9a-f]{{{KEY}}})")
LOG_NAME = "job.log"
RECORD_NAME = re.compile(r"(\d{5,})\.json")

Extension = Literal["mp4", "mkv", "mov"]


class DamagedSegment(TransientError):
    """A stored segment is not what its record says; the record is gone, so that running again redoes this segment."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(index, reason)  # both, so that the error survives pickling between processes
        self.index = index
        self.reason = reason

    def __str__(self) -> str:
        return f"segment {self.index} is damaged: {self.reason}; run again to redo it"


@dataclass(frozen=True)
class SegmentResult:
    """One finished segment: frames [start, stop) of the video, where they are and how they were made."""

    segment: int
    start: int
    stop: int
    url: str
    frames: int
    bytes: int
    sha256: str
    seconds: float
    peak_memory_bytes: int
    device: str
    fallbacks: tuple[str, ...] = ()
    attempts: int = 1  # times it was begun, by whatever process
    worker: str = ""  # host, process and device that made it
    started: float = 0.0  # seconds since 1970
    encoder_wait: float = 0.0  # seconds of `seconds` that the model waited for the encoder

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop or self.frames != self.stop - self.start:
            raise ValueError(f"segment {self.segment} [{self.start}, {self.stop}) cannot have {self.frames} frames")


_results: TypeAdapter[SegmentResult] = TypeAdapter(SegmentResult)


@dataclass(frozen=True)
class Job:
    """Identity of the work and every URL in it; `url` is the job's directory."""

    key: str
    slug: str
    url: str
    extension: Extension

    def __post_init__(self) -> None:
        if self.extension not in get_args(Extension):
            raise UserError(
                f"segments cannot be .{self.extension} files; choose one of {', '.join(get_args(Extension))}"
            )

    @classmethod
    def at(cls, store: str, source_name: str, key: str, extension: Extension) -> "Job":
        label = slug(source_name)
        return cls(key, label, urls.join(store, f"{label}-{key}"), extension)

    @classmethod
    def of(cls, url: str, extension: Extension) -> "Job":
        """The job whose directory is at `url`, known by its name."""
        url = urls.normalise(url)
        match = DIRECTORY_NAME.fullmatch(urls.name(url))
        if match is None:
            raise UserError(
                f"{url} is not a job's directory, which is named NAME-KEY; 'flashvsr jobs list STORE' shows them"
            )
        return cls(match["key"], match["slug"], url, extension)

    @property
    def work_prefix(self) -> str:
        """How folders with this job's work files are named on any machine.

        Of its place, not of its key alone: the same work for another store is under another lease, and only the
        holder of the lease may sweep.
        """
        place = hashlib.sha256(self.url.encode(errors="surrogateescape")).hexdigest()[:8]
        return f"{self.key}-{place}-"

    @property
    def plan_url(self) -> str:
        return urls.join(self.url, "plan.json")

    @property
    def lease_url(self) -> str:
        return urls.join(self.url, "lease.json")

    @property
    def report_url(self) -> str:
        return urls.join(self.url, "report.json")

    @property
    def rung_url(self) -> str:
        """The tiles with which a segment got through after memory had run out (see tasks/memory)."""
        return urls.join(self.url, "rung.json")

    @property
    def segments_url(self) -> str:
        return urls.join(self.url, "segments")

    @property
    def live_url(self) -> str:
        """Where workers say which segment they are at (see tasks/beat)."""
        return urls.join(self.url, "live")

    @property
    def log_url(self) -> str:
        return urls.join(self.url, LOG_NAME)

    def segment_url(self, index: int) -> str:
        return urls.join(self.segments_url, f"{index:05d}.{self.extension}")

    def record_url(self, index: int) -> str:
        return urls.join(self.segments_url, f"{index:05d}.json")

    def write_plan(self, plan: dict[str, Any]) -> dict[str, Any]:
        """Store the plan unless there is one, and return the plan in force: the first writer's."""
        data = _plan_bytes(plan)
        if urls.create_exclusive(self.plan_url, data):
            return dict(json.loads(data))
        found = self.read_plan()
        if found is None:
            raise TransientError(f"{self.plan_url} was removed while the job was planned; run again")
        return found

    def replace_plan(self, plan: dict[str, Any]) -> None:
        """Store another plan in the place of the one in force; for the holder of the lease."""
        urls.write_bytes(self.plan_url, _plan_bytes(plan))

    def read_plan(self) -> dict[str, Any] | None:
        """The plan in force, if there is one."""
        try:
            plan = urls.read_json(self.plan_url)
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise UserError(f"{self.plan_url} is damaged ({error}); delete {self.url} and run again") from error
        if not isinstance(plan, dict):
            raise UserError(f"{self.plan_url} is not a plan; delete {self.url} and run again")
        return plan

    def record_segment(
        self,
        index: int,
        start: int,
        stop: int,
        local_file: Path,
        *,
        frames: int,
        seconds: float,
        peak_memory_bytes: int,
        device: str,
        fallbacks: tuple[str, ...] = (),
        attempts: int = 1,
        worker: str = "",
        started: float = 0.0,
        encoder_wait: float = 0.0,
    ) -> SegmentResult:
        """Store a finished segment, verified, and only then its record. Being killed in between costs a redo."""
        result = SegmentResult(
            segment=index,
            start=start,
            stop=stop,
            url=self.segment_url(index),
            frames=frames,
            bytes=local_file.stat().st_size,
            sha256=local.digest(str(local_file)),
            seconds=seconds,
            peak_memory_bytes=peak_memory_bytes,
            device=device,
            fallbacks=fallbacks,
            attempts=attempts,
            worker=worker,
            started=started,
            encoder_wait=encoder_wait,
        )
        urls.remove(self.record_url(index), missing_ok=True)  # it speaks of data that is about to be replaced
        urls.publish(local_file, result.url, overwrite=True, sha256=result.sha256)
        urls.write_json(self.record_url(index), {"version": RECORD, **asdict(result)})
        return result

    def result(self, index: int) -> SegmentResult | None:
        """What is recorded of a segment, if its object is there with the recorded size."""
        return self._check(index, {})

    def holds(self, index: int) -> bool:
        """Whether a segment is finished (its digest is checked by `fetch_segment`)."""
        return self.result(index) is not None

    def finished(self) -> dict[int, SegmentResult]:
        """Every finished segment, by index."""
        sizes = urls.list_sizes(self.segments_url)
        indices = sorted(int(match[1]) for match in map(RECORD_NAME.fullmatch, sizes) if match)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            found = pool.map(lambda index: self._check(index, sizes), indices)
        return {result.segment: result for result in found if result is not None}

    def fetch_segment(self, index: int, directory: Path) -> Path:
        """A local file with a finished segment, its digest checked: the stored file itself or a copy in `directory`.

        If it is missing or damaged, its record is removed and DamagedSegment raised.
        """
        result = self.result(index)
        if result is None:
            raise self._damaged(index, "it is missing or not as recorded")
        if urls.is_local(result.url):
            path = urls.local_path(result.url)
        else:
            path = directory / urls.name(result.url)
            try:
                urls.copy_to_local(result.url, path)
            except FileNotFoundError as error:
                raise self._damaged(index, f"{result.url} is missing") from error
        if (found := urls.digest(str(path))) != result.sha256:
            raise self._damaged(index, f"{result.url} has sha256 {found}, recorded is {result.sha256}")
        return path

    def remove_segments(self) -> None:
        """Remove segments and records, and what killed runs left among them; plan, report and log stay."""
        # Records first: killed in between, what is left is data without a record.
        names = sorted(urls.list_names(self.segments_url), key=lambda name: RECORD_NAME.fullmatch(name) is None)
        for name in names:
            urls.remove(urls.join(self.segments_url, name), missing_ok=True)
        urls.remove(self.rung_url, missing_ok=True)
        for name in urls.list_names(self.live_url):
            urls.remove(urls.join(self.live_url, name), missing_ok=True)
        if urls.is_local(self.url):
            for url in (self.segments_url, self.live_url):
                local.remove_directory(str(urls.local_path(url)))

    def _damaged(self, index: int, reason: str) -> DamagedSegment:
        urls.remove(self.record_url(index), missing_ok=True)
        return DamagedSegment(index, reason)

    def _check(self, index: int, sizes: Mapping[str, int]) -> SegmentResult | None:
        """The record of a segment if it holds; `sizes`: what a listing has already told of the segments' sizes."""
        url = self.record_url(index)
        try:
            recorded = json.loads(urls.read_bytes(url))
            if not isinstance(recorded, dict) or recorded.pop("version", None) != RECORD:
                log.warning("segment %d will be redone: %s is not a record of version %d", index, url, RECORD)
                return None
            result = replace(_results.validate_json(json.dumps(recorded), strict=True), url=self.segment_url(index))
        except FileNotFoundError:
            return None
        except (ValueError, ValidationError) as error:
            log.warning("segment %d will be redone: %s is damaged (%s)", index, url, " ".join(str(error).split()))
            return None
        if result.segment != index:
            log.warning("segment %d will be redone: %s is the record of segment %d", index, url, result.segment)
            return None
        try:
            size = sizes.get(urls.name(result.url))
            stored = urls.size(result.url) if size is None else size
        except FileNotFoundError:
            log.warning("segment %d will be redone: %s is missing", index, result.url)
            return None
        if stored != result.bytes:
            log.warning(
                "segment %d will be redone: %s has %d bytes, recorded are %d", index, result.url, stored, result.bytes
            )
            return None
        return result


def _plan_bytes(plan: dict[str, Any]) -> bytes:
    return json.dumps(plan, indent=1, allow_nan=False).encode()


def slug(name: str) -> str:
    """The stem of a file name or URL reduced to a-z, 0-9 and '-', at most 40 characters; `video` if nothing is left."""
    stem = Path(name.rstrip("/").rpartition("/")[2]).stem
    plain = unicodedata.normalize("NFKD", stem).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:SLUG].strip("-") or "video"


def job_key(parts: Mapping[str, Any]) -> str:
    """16 hexadecimal characters that identify the work: equal parts give equal keys, on every machine and version.

    Parts are made of None, bool, int, float, str, lists, tuples and mappings with str keys. 2 and 2.0 are equal.
    """
    text = json.dumps(_canonical(parts, "parts"), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY]


def _canonical(value: Any, where: str) -> Any:
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        if value != value or value in (float("inf"), float("-inf")):
            raise ValueError(f"{where} is {value}, which cannot be part of a key; give a finite number")
        return int(value) if value.is_integer() else value
    if isinstance(value, Mapping):
        if wrong := [key for key in value if type(key) is not str]:
            raise TypeError(f"{where} has the key {wrong[0]!r}; keys must be str")
        return {key: _canonical(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item, f"{where}[{i}]") for i, item in enumerate(value)]
    raise TypeError(f"{where} is a {type(value).__name__}, which cannot be part of a key; give plain JSON values")
