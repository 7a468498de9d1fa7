"""HDR: what is carried, by whom, and what is dropped and said."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flashvsr_core.errors import BadInput
from tasks.media.encode import EncodeParams
from tasks.media.hdr import ContentLight, MasteringDisplay, dolby_vision_profile
from tasks.media.probe import probe
from tasks.plan import Request, make_plan, plan_job
from tests.media.clips import copy_through, run
from tests.media.features import HDR_TAGS, MASTERING
from tests.media.reader import picture, side_data
from tests.tasks.enlarging import COMPUTE, PARAMS, enlarged

PQ = "format=yuv420p10le,setparams=color_primaries=bt2020:color_trc=smpte2084:colorspace=bt2020nc:range=tv"
STATIC = f":hdr10=1:master-display={MASTERING}:max-cll=1000,400"
PARENTS = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"hev1")


def hdr10(path: Path, more: str = STATIC, picture: str = "testsrc2=s=128x64:r=25:d=0.2") -> Path:
    codec = ("-c:v", "libx265", "-preset", "veryfast", "-x265-params", f"log-level=error:repeat-headers=1{more}")
    run("-f", "lavfi", "-i", f"{picture},{PQ}", *codec, *HDR_TAGS, "-color_trc", "smpte2084", path)
    return path


def dolby(path: Path, profile: int) -> Path:
    """An HDR10 file with a Dolby Vision configuration record put into its sample entry (ISO/IEC 14496-15 style box)."""
    data = bytearray(hdr10(path).read_bytes())
    flags = profile << 9 | 1 << 3 | 0b101  # level 1; RPU and base layer present
    box = (32).to_bytes(4, "big") + b"dvcC" + bytes([1, 0]) + flags.to_bytes(2, "big") + bytes([1 << 4]) + bytes(19)
    entry = data.index(PARENTS[-1]) - 4
    end = entry + int.from_bytes(data[entry : entry + 4], "big")
    assert data.index(b"mdat") < data.index(b"moov"), "no offsets may move"
    data[end:end] = box
    for name in PARENTS:
        at = data.index(name) - 4
        data[at : at + 4] = (int.from_bytes(data[at : at + 4], "big") + len(box)).to_bytes(4, "big")
    path.write_bytes(data)
    return path


def test_static_metadata_is_read_to_the_last_digit(tmp_path: Path) -> None:
    info = probe(hdr10(tmp_path / "in.mp4"))
    assert info.mastering_display == MasteringDisplay(
        (34000, 16000), (13250, 34500), (7500, 3000), (15635, 16450), 10_000_000, 50
    )
    assert info.content_light == ContentLight(1000, 400)
    assert (info.is_hdr, info.dynamic_metadata) == (True, ())


@pytest.mark.parametrize("codec", ["h264", "h265", "av1"])
@pytest.mark.parametrize("container", ["mp4", "mkv"])
def test_static_metadata_is_written_by(tmp_path: Path, codec: str, container: str) -> None:
    source, output = hdr10(tmp_path / "in.mp4"), tmp_path / f"out.{container}"
    encode = EncodeParams(codec=codec, container=container, preset="ultrafast")  # type: ignore[arg-type]
    info, _ = copy_through(source, output, encode, 2, tmp_path)
    made = probe(output)
    display, light = made.mastering_display, made.content_light
    assert light == info.content_light
    assert display is not None
    assert info.mastering_display is not None
    if codec == "av1":  # fixed point of other steps: 1/65536, 1/256 and 1/16384
        assert np.abs(np.subtract(display.red, info.mastering_display.red)).max() <= 1
        display = replace(display, **{k: getattr(info.mastering_display, k) for k in ("red", "green", "blue", "white")})
        assert abs(display.min_luminance - 50) <= 1
        display = replace(display, min_luminance=50)
    assert display == info.mastering_display


def test_a_light_level_alone_is_carried(tmp_path: Path) -> None:
    source = hdr10(tmp_path / "in.mp4", ":hdr10=1:max-cll=600,0")
    copy_through(source, tmp_path / "out.mp4", EncodeParams(preset="ultrafast"), 1, tmp_path)
    assert probe(tmp_path / "out.mp4").content_light == probe(source).content_light == ContentLight(600, 0)


@pytest.mark.parametrize(("codec", "container"), [("vp9", "webm"), ("prores", "mov"), ("ffv1", "mkv")])
def test_codecs_that_do_not_carry_it_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str, container: str
) -> None:
    source, output = hdr10(tmp_path / "in.mp4"), tmp_path / f"out.{container}"
    _, notes = enlarged(monkeypatch, source, output, EncodeParams(codec=codec))  # type: ignore[arg-type]
    assert any("mastering display and light levels were left out" in note and "h265" in note for note in notes)
    assert any("8 bits show bands" in note for note in notes) == (codec == "vp9")
    assert probe(output).color_trc == "smpte2084"


def test_hdr10_plus_is_dropped_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    luminance = {
        "AverageRGB": 1000,
        "LuminanceDistributions": {
            "DistributionIndex": [1, 5, 10, 25, 50, 75, 90, 95, 99],
            "DistributionValues": list(range(0, 90, 10)),
        },
        "MaxScl": [1000, 1000, 1000],
    }
    scene = {
        "LuminanceParameters": luminance, "NumberOfWindows": 1, "TargetedSystemDisplayMaximumLuminance": 400,
        "SceneFrameIndex": 0, "SceneId": 0, "SequenceFrameIndex": 0,
    }  # fmt: skip
    metadata = {"JSONInfo": {"HDR10plusProfile": "A", "Version": "1.0"}, "SceneInfo": [scene] * 5}
    (tmp_path / "plus.json").write_text(json.dumps(metadata))
    monkeypatch.chdir(tmp_path)  # x265's parameters have no way to write a colon or a slash
    source = hdr10(tmp_path / "in.mp4", f"{STATIC}:dhdr10-info=plus.json")
    assert "HDR Dynamic Metadata SMPTE2094-40 (HDR10+)" in side_data(source)
    assert probe(source).dynamic_metadata == ("HDR10+",)
    output = tmp_path / "out.mp4"
    with caplog.at_level(logging.WARNING):
        request = Request(str(source), str(output), PARAMS, EncodeParams(), COMPUTE, store=str(tmp_path / "s"))
        plan_job.fn(request, tmp_path / "cache")
    assert any("HDR10+ metadata was dropped" in record.getMessage() for record in caplog.records)
    _, notes = enlarged(monkeypatch, source, output)
    assert any("HDR10+ metadata was dropped" in note for note in notes)
    kept = side_data(output)
    assert "Mastering display metadata" in kept
    assert not any("HDR10+" in kind for kind in kept)


def test_dolby_vision_is_dropped_with_a_note_and_profile_5_refused(tmp_path: Path) -> None:
    source = dolby(tmp_path / "eight.mp4", 8)
    assert "DOVI configuration record" in side_data(source)  # ffprobe takes our box for the real thing
    assert dolby_vision_profile(source) == 8
    run("-i", source, "-c", "copy", "-strict", "unofficial", tmp_path / "eight.mkv")
    assert dolby_vision_profile(tmp_path / "eight.mkv") == 8
    for path in (source, tmp_path / "eight.mkv"):
        assert probe(path).dynamic_metadata == ("Dolby Vision",)
        request = Request(str(path), str(tmp_path / "o.mp4"), PARAMS, EncodeParams(), COMPUTE)
        assert any("Dolby Vision metadata was dropped" in n for n in make_plan(request, tmp_path / "c")[1].notes)
    with pytest.raises(BadInput, match=r"Dolby Vision of profile 5.*give a version in HDR10"):
        probe(dolby(tmp_path / "five.mp4", 5))
    assert dolby_vision_profile(hdr10(tmp_path / "none.mp4")) is None


LEVELS = (64, 80, 200, 400, 512, 573, 700, 800, 900, 940)  # code values: black, dim, ..., nominal peak
# In PQ 573 is 203 cd/m2 and 940 is 10000; in HLG 721 is 203 and 940 is 1000 (on a display of 1000 cd/m2).
HLG = PQ.replace("smpte2084", "arib-std-b67")


@pytest.mark.parametrize(
    ("form", "codec", "container", "limit"),
    [
        (PQ, "ffv1", "mkv", 1),
        (PQ, "h265", "mp4", 2),
        (PQ, "av1", "mkv", 3),
        (HLG, "ffv1", "mkv", 1),
        (HLG, "h265", "mp4", 2),
    ],
    ids=["pq-ffv1", "pq-h265", "pq-av1", "hlg-ffv1", "hlg-h265"],
)
def test_hdr_levels_come_out_as_they_went_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, codec: str, container: str, limit: int
) -> None:
    """Error in code values of 10 bits, over the middle of flat fields, through all of the pipeline but the model."""
    steps = "+".join(f"eq(floor(X/32),{i})*{level}" for i, level in enumerate(LEVELS))
    source = tmp_path / "in.mkv"
    chain = f"color=gray:s={32 * len(LEVELS)}x64:r=25:d=0.2,{form},geq=lum='{steps}':cb=512:cr=512"
    run("-f", "lavfi", "-i", chain, "-c:v", "ffv1", source)
    output = tmp_path / f"out.{container}"
    plan, _ = enlarged(monkeypatch, source, output, EncodeParams(codec=codec))  # type: ignore[arg-type]
    assert plan.info.is_hdr
    assert picture(output)["color_transfer"] == form.partition("color_trc=")[2].partition(":")[0]
    run("-i", output, "-map", "0:v", "-f", "rawvideo", "-pix_fmt", "yuv420p10le", tmp_path / "raw")
    width, height = 64 * len(LEVELS), 128
    frames = np.fromfile(tmp_path / "raw", "<u2").reshape(5, -1)[:, : width * height].reshape(5, height, width)
    for number, level in enumerate(LEVELS):
        field = frames[:, 16:-16, 64 * number + 16 : 64 * number + 48].astype(int)
        assert np.abs(field - level).max() <= limit, level
