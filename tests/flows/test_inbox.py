"""Sweeps of an inbox: what is ready goes into one batch; done, young, growing and hopeless files are left alone."""

import threading
from pathlib import Path

import pytest

from flashvsr_core.config import ComputeParams, UpscaleParams
from flows.inbox import SweepReport, inbox_sweep
from flows.upscale_batch import BatchFailed
from tasks.media.encode import EncodeParams
from tasks.media.probe import probe
from tasks.storage import listing
from tasks.storage.lease import hold
from tasks.storage.ledger import Ledger
from tests.flows.clips import make_clip
from tests.media.clips import run as ffmpeg

pytestmark = pytest.mark.usefixtures("prefect_server")


class Inbox:
    """One inbox with an outbox inside it, and sweeps of it."""

    def __init__(self, folder: Path, cache_dir: Path, clip: bytes) -> None:
        self.folder, self.out, self.cache_dir, self.clip = folder, folder / "out", cache_dir, clip
        self.ledger = Ledger(str(self.out / ".flashvsr" / "inbox"))
        folder.mkdir()

    def put(self, name: str, content: bytes | None = None) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.clip if content is None else content)
        return path

    def sweep(self, **options: object) -> SweepReport:
        given: dict[str, object] = {
            "params": UpscaleParams(scale=2, model="nano", preroll=8),
            "encode": EncodeParams(preset="ultrafast", threads=2),
            "compute": ComputeParams(devices="cpu", work_dir=str(self.cache_dir)),
            "min_age": 0.0,
            "look_again": 0.0,
        }
        return inbox_sweep(str(self.folder), str(self.out), **(given | options))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", 8, sound=False).read_bytes()


@pytest.fixture
def inbox(tmp_path: Path, cache_dir: Path, clip: bytes) -> Inbox:
    return Inbox(tmp_path / "inbox", cache_dir, clip)


def test_what_is_done_stays_done_and_what_is_replaced_is_made_anew(inbox: Inbox, tmp_path: Path) -> None:
    inbox.put("a.mp4")
    inbox.put("deep/b.mp4")
    first = inbox.sweep()
    assert first.handed == ("a.mp4", "deep/b.mp4")
    assert first.batch is not None
    assert [file.status for file in first.batch.files] == ["done", "done"]
    assert probe(inbox.out / "deep" / "b_2x.mp4").frames == 8
    # Who takes an output away does not ask for it again.
    (inbox.out / "a_2x.mp4").unlink()
    second = inbox.sweep()
    assert (second.handed, second.done, second.batch) == ((), 2, None)
    inbox.put("deep/b.mp4", make_clip(tmp_path / "longer.mp4", 9, sound=False).read_bytes())
    third = inbox.sweep()
    assert third.handed == ("deep/b.mp4",)
    assert probe(inbox.out / "deep" / "b_2x.mp4").frames == 9


@pytest.mark.system
def test_a_folder_of_images_is_done_once_and_anew_when_it_changes(inbox: Inbox) -> None:
    frames = inbox.folder / "takes" / "one"
    frames.mkdir(parents=True)
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=48x32:r=25:d=0.12", frames / "x%d.png")
    inbox.put("film.mp4")
    first = inbox.sweep(glob="takes/*/")
    assert first.handed == ("takes/one/",)
    assert probe(inbox.out / "takes" / "one_2x.mp4").frames == 3
    assert (inbox.sweep(glob="takes/*/").handed, inbox.sweep(glob="takes/*/").done) == ((), 1)
    (frames / "x4.png").write_bytes((frames / "x3.png").read_bytes())
    assert inbox.sweep(glob="takes/*/").handed == ("takes/one/",)
    assert probe(inbox.out / "takes" / "one_2x.mp4").frames == 4


def test_a_file_that_fails_is_tried_so_often_and_no_more(inbox: Inbox) -> None:
    inbox.put("bad.mp4", b"no video")
    inbox.put("good.mp4")
    for attempt in (1, 2):
        with pytest.raises(BatchFailed, match=r"bad\.mp4"):
            inbox.sweep(max_attempts=2)
        entry = listing.look(str(inbox.folder), "bad.mp4")
        assert entry is not None
        assert inbox.ledger.attempts(entry).count == attempt
    report = inbox.sweep(max_attempts=2)
    assert (report.handed, report.done) == ((), 1)
    assert "failed 2 times" in report.skipped[0].reason
    inbox.put("bad.mp4")
    assert inbox.sweep(max_attempts=2).handed == ("bad.mp4",)


def test_young_and_growing_files_wait(inbox: Inbox) -> None:
    path = inbox.put("a.mp4")
    report = inbox.sweep(min_age=3600.0)
    assert "must rest" in report.skipped[0].reason
    stop = threading.Event()

    def grow() -> None:
        with path.open("ab") as file:
            while not stop.wait(0.05):
                file.write(b"\0" * 64)
                file.flush()

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        report = inbox.sweep(look_again=0.5)
    finally:
        stop.set()
        writer.join()
    assert report.handed == ()
    assert "changed between two looks" in report.skipped[0].reason
    assert list(inbox.out.glob("*.mp4")) == []


def test_a_second_sweep_leaves_the_inbox_to_the_first(inbox: Inbox) -> None:
    inbox.put("a.mp4")
    with hold(inbox.ledger.lease_url, owner="another sweep"):
        report = inbox.sweep()
    assert (report.handed, report.batch) == ((), None)
    assert "already running" in report.note
