"""Every cell of the table in docs/media.md, judged by an independent reader (tests/media/reader.py)."""

from pathlib import Path

import pytest

from tasks.media.encode import EncodeParams
from tasks.plan import OTHER_SCALES
from tests.media.features import CONTAINERS, FEATURES, Feature, table
from tests.media.reader import (
    chapters,
    described,
    first_frame,
    packet_hashes,
    picture,
    side_data,
    streams,
    tags,
    times,
)
from tests.tasks.enlarging import enlarged

ROOT = Path(__file__).parents[2]
CODECS = {"transparency": {"mp4": "h264", "mkv": "ffv1", "mov": "prores4444", "webm": "vp9"}}
FAST_CODECS = {"mp4": "auto", "mkv": "auto", "mov": "auto", "webm": "auto"}


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {feature.name: feature.make(tmp_path_factory.mktemp("source")) for feature in FEATURES}


def test_the_table_is_in_the_guide() -> None:
    assert table() in (ROOT / "docs" / "media.md").read_text()


CELLS = [
    pytest.param(feature, container, id=f"{feature.name} in {container}")
    for feature in FEATURES
    for container in CONTAINERS
]


@pytest.mark.parametrize(("feature", "container"), CELLS)
def test_cell(
    feature: Feature, container: str, sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = sources[feature.name], tmp_path / f"out.{container}"
    codec = CODECS.get(feature.name, FAST_CODECS)[container]
    preset = "auto" if codec in ("ffv1", "prores4444") else "ultrafast"
    encode = EncodeParams(codec=codec, preset=preset, threads=2)  # type: ignore[arg-type]
    _, notes = enlarged(monkeypatch, source, output, encode)
    said = [note for note in notes if note not in OTHER_SCALES.values()]
    _same_programme(source, output, exact=container in ("mp4", "mov"))
    cell = feature.cells[CONTAINERS.index(container)]
    if cell == "left out":
        assert any("left out" in note for note in said), said
        _lost(feature.name, source, output)
    elif cell.startswith("-> "):
        target = cell.removeprefix("-> ")
        assert any(f"was converted to {target}" in note for note in said), said
        kind = "audio" if target in ("aac", "opus") else "subtitle"
        assert {stream["codec_name"] for stream in streams(output, kind)} == {target}
        assert len(streams(output, kind)) == len(streams(source, kind))
        _kept(feature.name, source, output, copied=False)
    elif cell == "made progressive":
        assert any("interlaced" in note for note in said), said
        assert picture(output).get("field_order", "progressive") == "progressive"
        assert picture(source)["field_order"] != "progressive"
        assert first_frame(output)["interlaced_frame"] == 0
    else:
        assert said == [], said
        _kept(feature.name, source, output, copied=True)


def _same_programme(source: Path, output: Path, exact: bool) -> None:
    """Whatever else a source has: its frames at their times, twice as large, of its duration."""
    before, after = picture(source), picture(output)
    assert (after["width"], after["height"]) == (2 * before["width"], 2 * before["height"])
    ours, theirs = times(output), times(source)
    assert len(ours) == len(theirs)
    drift = max(abs((a - ours[0]) - (b - theirs[0])) for a, b in zip(ours, theirs))
    assert drift <= (0.0001 if exact else 0.001)
    assert float(described(output)["format"]["duration"]) == pytest.approx(
        float(described(source)["format"]["duration"]), abs=0.05
    )


def _kept(name: str, source: Path, output: Path, copied: bool) -> None:
    before, after = picture(source), picture(output)
    for kind in ("audio", "subtitle"):
        ours, theirs = streams(output, kind), streams(source, kind)
        assert len(ours) == len(theirs)
        for number, (a, b) in enumerate(zip(ours, theirs)):
            assert a["disposition"]["forced"] == b["disposition"]["forced"]
            if any(stream["disposition"]["default"] for stream in theirs):  # else mp4 plays the first, as players do
                assert a["disposition"]["default"] == b["disposition"]["default"]
            assert tags(a).get("language", "und") == tags(b).get("language", "und")
            if copied:
                assert a["codec_name"] == b["codec_name"]
                assert packet_hashes(output, f"{kind[0]}:{number}") == packet_hashes(source, f"{kind[0]}:{number}")
            # Within a packet's priming, which containers count differently; decoded sound is measured in test_sync.
            assert abs(_offset(output, f"{kind[0]}:{number}") - _offset(source, f"{kind[0]}:{number}")) < 0.03
    if before.get("sample_aspect_ratio"):  # WebM says it in whole display pixels
        assert _ratio(after["sample_aspect_ratio"]) == pytest.approx(_ratio(before["sample_aspect_ratio"]), rel=2e-3)
    for field in ("color_range", "color_space", "color_transfer", "color_primaries"):
        if before.get(field) not in (None, "unknown", "N/A"):
            assert after[field] == before[field], field
    assert chapters(output) == chapters(source)
    ours, theirs = side_data(output), side_data(source)
    for kind in ("Mastering display metadata", "Content light level metadata", "Display Matrix"):
        if kind in theirs:
            assert _numbers(ours[kind]) == pytest.approx(_numbers(theirs[kind]), abs=1e-4), kind
    for key in ("title", "artist"):
        assert tags(described(output)["format"]).get(key) == tags(described(source)["format"]).get(key)
    if name == "transparency":
        assert "a" in after["pix_fmt"] or tags(after).get("alpha_mode") == "1"
    if name == "attached fonts":
        assert len(streams(output, "attachment")) == 1
    if name == "cover art":
        assert [s["disposition"]["attached_pic"] for s in streams(output, "video")] == [0, 1]
    if name == "timecode":
        found = {tags(s).get("timecode") for s in described(output)["streams"]} | {
            tags(described(output)["format"]).get("timecode")
        }
        assert "01:02:03:04" in found
    if name == "camera telemetry (gpmd)":
        assert packet_hashes(output, "d:0") == packet_hashes(source, "d:0") != []


def _offset(path: Path, stream: str) -> float:
    """Seconds from the first frame to the stream's first packet."""
    return times(path, stream)[0] - times(path)[0]


def _ratio(text: str) -> float:
    width, height = text.split(":")
    return int(width) / int(height)


def _lost(name: str, source: Path, output: Path) -> None:
    if name == "transparency":
        assert picture(output)["pix_fmt"] in ("yuv420p", "yuv420p10le")
    elif name == "second video stream":
        assert (len(streams(source, "video")), len(streams(output, "video"))) == (2, 1)
    else:
        assert len(described(output)["streams"]) == len(described(source)["streams"]) - 1


def _numbers(entry: dict[str, object]) -> list[float]:
    """Every number of a side data entry; fractions such as 34000/50000 as they are worth."""
    found = []
    for key, value in sorted(entry.items()):
        if key != "side_data_type" and isinstance(value, str | int | float):
            numerator, _, denominator = str(value).partition("/")
            if numerator.strip().replace(".", "").lstrip("-").isdigit():
                found.append(float(numerator) / float(denominator or 1))
    return found
