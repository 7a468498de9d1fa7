"""A folder of clips in one run: outputs, failures, loop protection; and the roots that parameters are held to."""

from pathlib import Path

import pytest
from prefect.client.orchestration import get_client

from flashvsr_core.config import ComputeParams, UpscaleParams
from flashvsr_core.errors import UserError
from flashvsr_core.upscaler import Upscaler
from flows import settings
from flows.upscale_batch import BatchFailed, BatchReport, artifact_key, upscale_batch
from flows.upscale_video import upscale_video
from tasks.folder import Folder
from tasks.media.encode import EncodeParams
from tasks.media.probe import probe
from tasks.storage.listing import Entry
from tasks.storage.roots import OutsideRoots, Roots
from tests.flows.clips import make_clip
from tests.media.clips import run as ffmpeg

pytestmark = pytest.mark.usefixtures("prefect_server")

FAST = EncodeParams(preset="ultrafast", threads=2)
PARAMS = UpscaleParams(scale=2, model="nano", preroll=8)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", 8, sound=False).read_bytes()


@pytest.fixture
def options(cache_dir: Path) -> dict[str, object]:
    return {"params": PARAMS, "encode": FAST, "compute": ComputeParams(devices="cpu", work_dir=str(cache_dir))}


def fill(folder: Path, content: bytes, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def statuses(report: BatchReport) -> dict[str, str]:
    return {Path(file.source).name: file.status for file in report.files}


@pytest.mark.system  # takes half a minute
def test_failures_cost_no_other_file_and_are_all_named(
    clip: bytes, tmp_path: Path, options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = []
    monkeypatch.setattr("tasks.gpu._loaded", {})
    load = Upscaler.load
    monkeypatch.setattr("tasks.gpu.Upscaler.load", lambda *given: loads.append(given) or load(*given))
    source, out = fill(tmp_path / "in", clip, "a.mp4", "deep/er/b.mov", "c.mp4", "c.mov"), tmp_path / "in" / "out"
    fill(source, b"no video", "broken.mp4", "notes.txt", ".hidden.mp4", ".flashvsr/x/segments/00000.mp4")
    with pytest.raises(BatchFailed) as failure:
        upscale_batch(str(source), str(out), **options)  # type: ignore[arg-type]
    report = failure.value.report
    assert statuses(report) == {
        "a.mp4": "done", "b.mov": "done", "broken.mp4": "failed", "c.mov": "done", "c.mp4": "failed",
    }  # fmt: skip
    assert "broken.mp4" in str(failure.value)
    assert "c.mp4: its output" in str(failure.value)
    assert failure.value.exit_code == 2
    assert len(loads) == 1  # the model stays loaded
    for name in ("a_2x.mp4", "deep/er/b_2x.mp4", "c_2x.mp4"):
        assert probe(out / name).frames == 8
    with get_client(sync_client=True) as client:
        artifacts = client.read_artifacts()
    (found,) = [a for a in artifacts if a.key == artifact_key("batch", str(source))]
    assert "broken.mp4" in str(found.data)
    (source / "broken.mp4").unlink()
    (source / "c.mp4").unlink()
    again = upscale_batch(str(source), str(out), **options)  # type: ignore[arg-type]
    assert set(statuses(again).values()) == {"already done"}


def test_outputs_beside_sources_are_not_picked_up(clip: bytes, tmp_path: Path, options: dict[str, object]) -> None:
    folder = fill(tmp_path / "in", clip, "a.mp4")
    upscale_batch(str(folder), **options)  # type: ignore[arg-type]
    (folder / "a.mp4").unlink()
    fill(folder, clip, "new.mp4")
    report = upscale_batch(str(folder), str(folder), **options)  # type: ignore[arg-type]
    assert statuses(report) == {"new.mp4": "done"}
    assert [Path(skipped.source).name for skipped in report.skipped] == ["a_2x.mp4"]
    assert sorted(path.name for path in folder.glob("*.mp4")) == ["a_2x.mp4", "new.mp4", "new_2x.mp4"]


def test_named_files_globs_and_replaced_sources(clip: bytes, tmp_path: Path, options: dict[str, object]) -> None:
    folder, out = fill(tmp_path / "in", clip, "a.mp4", "b.mp4", "sub/c.mp4"), tmp_path / "out"
    with pytest.raises(BatchFailed, match=r"missing\.mp4 does not exist"):
        upscale_batch(str(folder), str(out), files=["a.mp4", str(folder / "a.mp4"), "missing.mp4"], **options)  # type: ignore[arg-type]
    assert sorted(path.name for path in out.rglob("*.mp4")) == ["a_2x.mp4"]
    (folder / "a.mp4").write_bytes(make_clip(tmp_path / "other.mp4", 9, sound=False).read_bytes())
    report = upscale_batch(str(folder), str(out), glob="a*", **options)  # type: ignore[arg-type]
    assert statuses(report) == {"a.mp4": "done"}
    assert probe(out / "a_2x.mp4").frames == 9
    (out / "sub").mkdir()
    (out / "sub" / "c_2x.mp4").write_bytes(b"somebody else's")
    with pytest.raises(BatchFailed, match="--force"):
        upscale_batch(str(folder), str(out), glob="sub/*", **options)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"\.\."):
        upscale_batch(str(folder), str(out), files=["../other.mp4"], **options)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="lie under the output root"):
        upscale_batch(str(folder), str(tmp_path), **options)  # type: ignore[arg-type]


def shots(folder: Path, *names: str) -> Path:
    """Folders of three numbered images each."""
    for name in names:
        (folder / name).mkdir(parents=True)
        ffmpeg("-f", "lavfi", "-i", "testsrc2=s=48x32:r=25:d=0.12", folder / name / "x%d.png")
    return folder


@pytest.mark.system  # three runs
def test_folders_of_images_are_members_where_the_glob_says_so(
    clip: bytes, tmp_path: Path, options: dict[str, object]
) -> None:
    source, out = fill(tmp_path / "in", clip, "film.mp4"), tmp_path / "out"
    shots(source, "a", "deep/b.v1")
    report = upscale_batch(str(source), str(out), glob="*/", **options)  # type: ignore[arg-type]
    assert {file.source: file.status for file in report.files} == {
        f"{source}/a/": "done",
        f"{source}/deep/b.v1/": "done",
    }
    made = [probe(out / "a_2x.mp4"), probe(out / "deep" / "b.v1_2x.mp4")]
    assert [(info.width, info.frames) for info in made] == [(96, 3), (96, 3)]
    images = {**options, "encode": EncodeParams(container="png")}
    report = upscale_batch(str(source), str(out), glob="deep/*/", **images)  # type: ignore[arg-type]
    assert [file.status for file in report.files] == ["done"]
    assert sorted(p.name for p in (out / "deep" / "b.v1_2x").glob("*.png")) == [f"00000{n}.png" for n in (1, 2, 3)]
    again = upscale_batch(str(source), str(out), files=["deep/b.v1"], **images)  # type: ignore[arg-type]
    assert [file.status for file in again.files] == ["already done"]


def test_a_folder_of_images_is_one_source(tmp_path: Path) -> None:
    source = shots(tmp_path / "in", "a", "b", "made", "empty")
    for image in (source / "empty").iterdir():
        image.unlink()
    (source / "made" / "images.manifest.json").write_text("{}")
    place = Folder(str(source), str(tmp_path / "out"), 2, "mp4")
    chosen, skipped = place.choose("*/")
    assert [(entry.name, entry.url) for entry in chosen] == [("a/", f"{source}/a"), ("b/", f"{source}/b")]
    assert [(s.source, "manifest" in s.reason) for s in skipped] == [(f"{source}/made", True)]
    assert place.choose(None) == ([], [])
    assert place.pick(["a", "b/", "empty"]) == ([*chosen, "empty"], [])
    before = chosen[0]
    (source / "a" / "x4.png").write_bytes((source / "a" / "x3.png").read_bytes())
    (entry,), _ = place.pick(["a"])
    assert isinstance(entry, Entry)
    assert (entry.version != before.version, entry.size > before.size) == (True, True)


def test_a_sequence_may_not_hold_links_out_of_the_roots(
    tmp_path: Path, options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, secret = tmp_path / "in", tmp_path / "secret"
    for folder in (inside / "frames", secret):
        folder.mkdir(parents=True)
        ffmpeg("-f", "lavfi", "-i", "testsrc2=s=64x48:r=25:d=0.12", folder / "x%d.png")
    (inside / "frames" / "x2.png").unlink()
    (inside / "frames" / "x2.png").symlink_to(secret / "x2.png")
    monkeypatch.setenv(settings.ROOTS, f"{inside}")
    monkeypatch.setenv(settings.WORK, str(options["compute"].work_dir))  # type: ignore[attr-defined]
    for source in (inside / "frames", inside / "frames" / "x*.png"):
        with pytest.raises(OutsideRoots, match=r"x2\.png is outside of the roots"):
            upscale_video.fn(str(source), str(inside / "o.mp4"), **options)  # type: ignore[arg-type]


def test_deployments_take_no_arguments_of_encoders(
    clip: bytes, tmp_path: Path, options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = fill(tmp_path / "in", clip, "a.mp4") / "a.mp4"
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "8b4d5ef4-0000-4000-8000-000000000000")
    raw = {"encode": EncodeParams(codec_args="aq-mode=2")}
    with pytest.raises(UserError, match="not taken from deployments"):
        upscale_video.fn(str(source), str(tmp_path / "o.mp4"), **(options | raw))  # type: ignore[arg-type]


def test_places_outside_of_the_roots_are_refused(
    clip: bytes, tmp_path: Path, options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = fill(tmp_path / "in", clip, "a.mp4")
    secret = fill(tmp_path / "secret", clip, "s.mp4")
    (inside / "link.mp4").symlink_to(secret / "s.mp4")
    (inside / "way").symlink_to(secret)
    good = str(inside / "a.mp4")
    monkeypatch.setenv(settings.ROOTS, f"{inside},s3://bucket/in")
    monkeypatch.setenv(settings.WORK, str(options["compute"].work_dir))  # type: ignore[attr-defined]
    refused: list[tuple[str, str | None, dict[str, object]]] = [
        (str(secret / "s.mp4"), str(inside / "o.mp4"), {}),
        (str(inside / "link.mp4"), str(inside / "o.mp4"), {}),
        (f"{inside}/../secret/s.mp4", str(inside / "o.mp4"), {}),
        (f"file://{inside}/../secret/s.mp4", str(inside / "o.mp4"), {}),
        ("s3://bucket/in/../secret.mp4", str(inside / "o.mp4"), {}),
        ("s3://bucket/inner/a.mp4", str(inside / "o.mp4"), {}),
        ("memory://bucket/in/a.mp4", str(inside / "o.mp4"), {}),
        (good, str(secret / "o.mp4"), {}),
        (good, str(inside / "way" / "o.mp4"), {}),
        (good, str(inside / "o.mp4"), {"store": str(secret / "store")}),
        (good, str(inside / "o.mp4"), {"store": str(inside / "way")}),
        (good, str(inside / "o.mp4"), {"compute": ComputeParams(devices="cpu", work_dir=str(secret))}),
        (good, str(inside / "o.mp4"), {"compute": ComputeParams(devices="cpu", models_dir=str(secret))}),
    ]
    # The checks of the flow alone: that no file is opened follows from where they stand.
    for source, output, more in refused:
        with pytest.raises(OutsideRoots):
            upscale_video.fn(source, output, **(options | more))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="must end in"):
        upscale_video.fn(good, str(inside), **options)  # type: ignore[arg-type]
    raw = {"encode": EncodeParams(codec_args="aq-mode=2")}
    with pytest.raises(UserError, match="codec_args"):
        upscale_video.fn(good, str(inside / "o.mp4"), **(options | raw))  # type: ignore[arg-type]
    assert sorted(path.name for path in secret.iterdir()) == ["s.mp4"]
    assert sorted(path.name for path in inside.iterdir()) == ["a.mp4", "link.mp4", "way"]
    with pytest.raises(OutsideRoots):
        upscale_batch(str(secret), str(inside / "out"), **options)  # type: ignore[arg-type]
    with pytest.raises(OutsideRoots):
        upscale_batch(str(inside), str(inside / "out"), ledger=str(secret), **options)  # type: ignore[arg-type]
    with pytest.raises(BatchFailed, match=r"link\.mp4.*outside of the roots") as failure:
        upscale_batch(str(inside), str(inside / "out"), **options)  # type: ignore[arg-type]
    assert statuses(failure.value.report) == {"a.mp4": "done", "link.mp4": "failed"}
    monkeypatch.setenv(settings.ROOTS, " ")
    with pytest.raises(UserError, match=settings.ROOTS):
        upscale_video.fn(good)
    with pytest.raises(UserError, match="relative"):
        Roots(("in",))
