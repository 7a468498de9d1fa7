"""What others do to source and output while a run is at work is noticed, and nobody's file is replaced."""

import logging
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flashvsr_core.config import ComputeParams, UpscaleParams
from flashvsr_core.errors import UserError
from flows.upscale_segments import SegmentsFailed
from flows.upscale_video import upscale_video
from tasks.events import FramesDone, StageEntered
from tasks.media.encode import EncodeParams
from tasks.storage import urls
from tests.flows.clips import make_clip

pytestmark = pytest.mark.usefixtures("prefect_server")

Act = Callable[[], None]


class _At(logging.Handler):
    def __init__(self, wanted: Callable[[object], bool], act: Act) -> None:
        super().__init__(logging.DEBUG)
        self.wanted, self.act, self.done = wanted, act, False

    def emit(self, record: logging.LogRecord) -> None:
        if not self.done and self.wanted(getattr(record, "event", None)):
            self.done = True
            self.act()


@contextmanager
def at(wanted: Callable[[object], bool], act: Act) -> Iterator[None]:
    """Act once, when an event of the run is as wanted."""
    log, handler = logging.getLogger("tasks.events"), _At(wanted, act)
    before = log.level
    log.setLevel(logging.DEBUG)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)
    assert handler.done


def entering(stage: str) -> Callable[[object], bool]:
    return lambda event: isinstance(event, StageEntered) and event.stage == stage


def computing(event: object) -> bool:
    return isinstance(event, FramesDone)


def run(source: str, output: str, cache_dir: Path, **options: object) -> None:
    compute = ComputeParams(devices="cpu", work_dir=str(cache_dir))
    params = UpscaleParams(scale=2, model="nano", preroll=8)
    fast = EncodeParams(preset="ultrafast", threads=2)
    upscale_video(source, output, params, fast, compute, segment_frames=16, **options)  # type: ignore[arg-type]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return make_clip(tmp_path / "clip.mp4", 24)


@pytest.mark.parametrize("wanted", [computing, entering("merge")], ids=["computing", "merging"])
@pytest.mark.parametrize("place", ["local", "memory"])
def test_a_source_that_changes_is_an_error(
    place: str, wanted: Callable[[object], bool], clip: Path, cache_dir: Path, tmp_path: Path
) -> None:
    source = str(clip)
    if place == "memory":
        source = f"memory://{secrets.token_hex(6)}/clip.mp4"
        urls.publish(clip, source, overwrite=True)
    other = make_clip(tmp_path / "other.mp4", 24, seed=2)
    output = tmp_path / "out.mp4"
    with (
        at(wanted, lambda: urls.publish(other, source, overwrite=True)),
        pytest.raises((UserError, SegmentsFailed), match="changed while it was processed") as caught,
    ):
        run(source, str(output), cache_dir)
    assert caught.value.exit_code == 2
    assert not output.exists()
    if wanted is computing and place == "local":
        assert not list((tmp_path / ".flashvsr").glob("*/segments/*.json")), "made from who knows what"
    run(source, str(output), cache_dir)  # now a job of its own
    assert output.exists()


def test_an_output_that_appears_meanwhile_is_not_replaced(clip: Path, cache_dir: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    with (
        at(entering("publish"), lambda: urls.write_bytes(str(output), b"somebody else's")),
        pytest.raises(UserError, match="appeared while this job ran"),
    ):
        run(str(clip), str(output), cache_dir)
    assert output.read_bytes() == b"somebody else's"
    run(str(clip), str(output), cache_dir, force=True)
    assert output.read_bytes() != b"somebody else's"


def test_a_publication_whose_answer_got_lost_is_recognised(
    clip: Path, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store has the output; the client, which did not hear so, tried again and was refused."""
    real, output = urls.publish, tmp_path / "out.mp4"

    def twice(local_file: Path, url: str, overwrite: bool, **options: object) -> None:
        real(local_file, url, overwrite, **options | {"consume": False})  # type: ignore[arg-type]
        if url == str(output):
            real(local_file, url, overwrite, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(urls, "publish", twice)
    run(str(clip), str(output), cache_dir)
    assert output.exists()
