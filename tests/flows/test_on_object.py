"""Runs that events start: once per object, whoever else means it, and only for what an inbox may hold."""

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import httpx
import pytest
from prefect.settings import get_current_settings

from flashvsr_core.config import ComputeParams, UpscaleParams
from flashvsr_core.errors import UserError
from flows import one_file, settings
from flows.inbox import inbox_sweep, ledger_of
from flows.on_object import ObjectFailed, upscale_on_object
from flows.one_file import FileResult
from flows.patience import ServerLost
from tasks.folder import Skipped
from tasks.media.encode import EncodeParams
from tasks.storage import listing, urls
from tasks.storage.ledger import Ledger
from tasks.storage.listing import Entry
from tasks.storage.roots import OutsideRoots
from tests.flows.clips import make_clip
from tests.s3server import BUCKET

pytestmark = pytest.mark.usefixtures("prefect_server", "seaweed")


class Inbox:
    """A prefix of its own, with an outbox inside it, where events must not find their way back in."""

    def __init__(self, cache_dir: Path, clip: bytes) -> None:
        self.prefix = uuid.uuid4().hex
        self.url = f"s3://{BUCKET}/{self.prefix}/in"
        self.out = f"{self.url}/out"
        self.clip = clip
        self.options: dict[str, Any] = {
            "params": UpscaleParams(scale=2, model="nano", preroll=8),
            "encode": EncodeParams(preset="ultrafast", threads=2),
            "compute": ComputeParams(devices="cpu", work_dir=str(cache_dir)),
        }

    @property
    def ledger(self) -> Ledger:
        return ledger_of(f"{self.out}/.flashvsr")

    def put(self, name: str, content: bytes | None = None) -> Entry:
        store = fsspec.filesystem("s3", use_listings_cache=False)
        store.pipe_file(f"{BUCKET}/{self.prefix}/in/{name}", self.clip if content is None else content)
        entry = listing.look(self.url, name)
        assert entry is not None
        return entry

    def tell(self, name: str, **options: Any) -> FileResult | Skipped:
        key = f"{self.prefix}/in/{name}"
        where = {"inbox": self.url, "output_root": self.out}
        return upscale_on_object(BUCKET, key, **(where | self.options | options))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", 8, sound=False).read_bytes()


@pytest.fixture
def inbox(cache_dir: Path, clip: bytes) -> Inbox:
    return Inbox(cache_dir, clip)


def broken(error: Exception) -> Callable[..., None]:
    def upscale_video(*_: Any, **__: Any) -> None:
        raise error

    return upscale_video


def test_told_twice_and_swept_it_is_made_once(inbox: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    inbox.put("deep/a b.mp4")
    made = inbox.tell("deep/a b.mp4")
    assert isinstance(made, FileResult)
    assert (made.status, made.output) == ("done", f"{inbox.out}/deep/a b_2x.mp4")
    monkeypatch.setattr(one_file, "upscale_video", broken(AssertionError("a second run")))
    again = inbox.tell("deep/a b.mp4")
    assert isinstance(again, FileResult)
    assert again.status == "already done"
    swept = inbox_sweep(inbox.url, inbox.out, min_age=0.0, look_again=0.0, **inbox.options)
    assert (swept.handed, swept.done) == ((), 1)


def test_outputs_and_what_is_no_video_are_left_alone(inbox: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_file, "upscale_video", broken(AssertionError("a run")))
    inbox.put("out/a_2x.mp4")
    inbox.put("out/.flashvsr/a-1/segments/00000.mp4")
    inbox.put("notes.txt")
    inbox.put("a.mp4")
    for name in ("out/a_2x.mp4", "out/.flashvsr/a-1/segments/00000.mp4", "notes.txt", "gone.mp4"):
        assert isinstance(inbox.tell(name), Skipped), name
    assert isinstance(inbox.tell("a.mp4", glob="*.mov"), Skipped)
    # Outputs beside their sources are not yet reported when the store tells of them.
    inbox.put("a_2x.mp4")
    beside = inbox.tell("a_2x.mp4", output_root=inbox.url)
    assert isinstance(beside, Skipped)
    assert "output of a.mp4" in beside.reason


def test_while_another_run_has_it_nothing_is_begun(inbox: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = inbox.put("a.mp4")
    monkeypatch.setattr(one_file, "upscale_video", broken(AssertionError("a second run")))
    with inbox.ledger.claim(entry, "a sweep"):
        found = inbox.tell("a.mp4")
    assert isinstance(found, FileResult)
    assert found.status == "busy"
    assert inbox.ledger.attempts(entry).count == 0


def test_what_fails_is_tried_so_often_and_no_more(inbox: Inbox) -> None:
    entry = inbox.put("bad.mp4", b"no video")
    for attempt in (1, 2):
        with pytest.raises(ObjectFailed, match=r"bad\.mp4") as failure:
            inbox.tell("bad.mp4", max_attempts=2)
        assert failure.value.exit_code == 2
        assert inbox.ledger.attempts(entry).count == attempt
    found = inbox.tell("bad.mp4", max_attempts=2)
    assert isinstance(found, Skipped)
    assert "failed 2 times" in found.reason


def test_a_lost_server_is_no_files_fault(inbox: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = inbox.put("a.mp4")
    monkeypatch.setenv(settings.SERVER_PATIENCE, "0")
    request = httpx.Request("POST", f"{get_current_settings().api.url}/flow_runs/")
    monkeypatch.setattr(one_file, "upscale_video", broken(httpx.ConnectError("refused", request=request)))
    with pytest.raises(ServerLost):
        inbox.tell("a.mp4")
    with pytest.raises(ServerLost):  # the whole batch ends: its other files would fare no better
        inbox_sweep(inbox.url, inbox.out, min_age=0.0, look_again=0.0, **inbox.options)
    assert inbox.ledger.attempts(entry).count == 0


def test_places_outside_are_refused(inbox: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    inbox.put("a.mp4")
    for name in ("../secret.mp4", "deep/../../secret.mp4"):
        with pytest.raises(UserError):
            inbox.tell(name)
    with pytest.raises(UserError, match="not below"):
        upscale_on_object("other", "a.mp4", inbox.url, inbox.out, **inbox.options)
    monkeypatch.setenv(settings.ROOTS, inbox.url)
    monkeypatch.setenv(settings.WORK, str(inbox.options["compute"].work_dir))
    places: list[dict[str, Any]] = [
        {"output_root": f"s3://{BUCKET}/elsewhere"},
        {"output_root": "/tmp"},
        {"store": f"s3://{BUCKET}/elsewhere"},
        {"inbox": f"s3://{BUCKET}"},
        {"compute": ComputeParams(devices="cpu", models_dir="/etc")},
    ]
    for place in places[:4]:
        with pytest.raises(OutsideRoots):
            inbox.tell("a.mp4", **place)
    with pytest.raises(ObjectFailed, match="outside of the roots"):
        inbox.tell("a.mp4", **places[4])
    assert not urls.exists(f"{inbox.out}/a_2x.mp4")
