"""The command as a user meets it: exit status, one clear line, nothing written where nothing should be."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.media.probe import probe
from tests.flows.clips import make_clip
from tests.media.clips import run as ffmpeg

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "assets" / "bbb.mp4"


def flashvsr(*arguments: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    command = [sys.executable, "-m", "flows.cli.main", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=280)


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit 2, one line on standard error that holds all `words`, no traceback."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("flashvsr: ")]
    assert len(lines) == 1, done.stderr
    for word in words:
        assert word in lines[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "text.mp4").write_text("this is not a video\n" * 100)
    (tmp_path / "cut.mp4").write_bytes(DEMO.read_bytes()[:60_000])
    (tmp_path / "empty.mp4").write_bytes(b"")
    ffmpeg("-f", "lavfi", "-i", "sine=d=1", "-c:a", "aac", tmp_path / "sound.mp4")
    return tmp_path


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("missing.mp4", ("missing.mp4", "does not exist")),
        ("text.mp4", ("text.mp4",)),
        ("empty.mp4", ("empty.mp4",)),
        ("sound.mp4", ("sound.mp4", "video")),
        ("cut.mp4", ("cut.mp4", "truncated", "29 frames", "--allow-truncated")),
        (".", ("has no images", "folder of numbered images")),
    ],
)
def test_bad_sources_are_refused_and_write_nothing(folder: Path, source: str, words: tuple[str, ...]) -> None:
    before = sorted(folder.iterdir())
    refused(flashvsr("run", folder / source, folder / "out.mp4"), *words)
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--scale", "5"), ("scale", "5", "2, 3, 4")),
        (("--scenes", "some"), ("some", "scenes")),
        (("--color-fix", "nonsense"), ("nonsense", "wavelet")),
        (("--no-such-option",), ("--no-such-option",)),
        (("--preroll", "12"), ("preroll 12", "16")),
        (("--devices", "gpu"), ("gpu", "0,2")),
    ],
)
def test_bad_options_are_refused(tmp_path: Path, options: tuple[str, ...], words: tuple[str, ...]) -> None:
    refused(flashvsr("run", DEMO, tmp_path / "out.mp4", *options), *words)
    assert list(tmp_path.iterdir()) == []


def test_output_equal_to_source_and_unwritable_output(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "clip.mp4", 3)
    content = source.read_bytes()
    refused(flashvsr("run", source, source, "--work-dir", tmp_path / "w"), "source itself")
    assert source.read_bytes() == content
    refused(flashvsr("run", source, "/proc/out.mp4", "--work-dir", tmp_path / "w"), "/proc")
    refused(flashvsr("run", source, tmp_path / "out.avi", "--work-dir", tmp_path / "w"), ".mp4")


@pytest.mark.system  # takes half a minute
def test_a_truncated_source_on_demand(tmp_path: Path, folder: Path) -> None:
    done = flashvsr(
        "run", folder / "cut.mp4", tmp_path / "out.mp4", "--allow-truncated", "--scale", "2", "--preset", "ultrafast",
        "--json", "--work-dir", tmp_path / "w", "--devices", "cpu", "--model", "nano",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["frames"] == probe(tmp_path / "out.mp4").frames == 29
    assert any("29 frames" in note for note in report["notes"])
    assert "29 frames" in done.stderr


def test_plan_shows_what_would_be_done_and_writes_nothing(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "clip.mp4", 40)
    done = flashvsr("plan", source, "--segment-frames", "16", "--json", "--work-dir", tmp_path / "work")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["segments"] == [[0, 16], [16, 32], [32, 40]]
    assert found["output_size"] == [192, 128]
    assert found["finished"] == []
    assert found["estimate_seconds"] > 0
    assert found["output"] == str(tmp_path / "clip_4x.mp4")
    assert {p.name for p in tmp_path.iterdir()} <= {"clip.mp4", "work"}
    shown = flashvsr("plan", source, "--work-dir", tmp_path / "work").stdout
    assert "192x128" in shown
    assert "40 frames" in shown


def test_doctor() -> None:
    done = flashvsr("doctor", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = {finding["what"]: finding for finding in json.loads(done.stdout)}
    assert found["ffmpeg"]["state"] == found["encoders"]["state"] == found["prefect"]["state"] == "ok"
    assert all(finding["remedy"] for finding in found.values() if finding["state"] != "ok")
    assert "hub" in found["scores"]["found"]


def test_names_that_shells_and_ffmpeg_would_misread(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "clip.mp4", 3)
    odd = tmp_path / '-it\'s a "clip" 100% [x]:y\n#1?.mp4'
    source.rename(odd)
    done = flashvsr(
        "run", f"./{odd.name}", "--scale", "2", "--work-dir", tmp_path / "w", "--model", "nano", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert probe(tmp_path / f"{odd.stem}_2x.mp4").frames == 3


def test_presets_lists_deliveries_and_codecs() -> None:
    done = flashvsr("presets", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found["deliveries"]) == {"web", "archive", "edit"}
    assert found["codecs"]["prores"]["containers"] == ["mov", "mkv"]
    shown = flashvsr("presets").stdout
    for word in ("web", "archive", "edit", "prores4444", "yuva420p", ".webm"):
        assert word in shown


def test_output_options_are_options_of_the_command(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "clip.mp4", 3)
    options = ("--delivery", "edit", "--target-size", "100p", "--codec-args", "bits_per_mb=500", "--deinterlace", "on")
    done = flashvsr("plan", source, *options, "--work-dir", tmp_path / "w", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["output"], found["output_size"]) == (str(tmp_path / "clip_4x.mov"), [150, 100])
    assert found["plan"]["encode"]["codec"] == "prores"
    assert found["plan"]["params"]["deinterlace"] == "on"
    refused(flashvsr("plan", source, tmp_path / "o.webm", "--codec", "h264"), "webm does not hold h264", "vp9")
