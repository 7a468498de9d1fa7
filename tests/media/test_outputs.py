"""Choices of the output: each changes it, each wrong one is refused with what would do."""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flashvsr_core.config import UpscaleParams
from flashvsr_core.errors import UserError
from flashvsr_core.layout import Planes
from flows.cli.doctor import doctor
from tasks.media.codecs import NVENC, SOFTWARE
from tasks.media.decode import read_frames
from tasks.media.delivery import DELIVERIES
from tasks.media.encode import EncodeParams, check_segment, encode_segment, layout_of, resolve
from tasks.media.encoder import coded_format, probe_encoder
from tasks.media.probe import VideoInfo, probe
from tasks.media.scheduling import real_time_threads
from tasks.media.size import sample_aspect_ratio, target_pixels
from tasks.plan import Request, make_plan
from tests.media.clips import planes_of, run
from tests.media.reader import picture, times
from tests.tasks.enlarging import COMPUTE, PARAMS, enlarged

SIZE = (128, 96)


@pytest.fixture(scope="module")
def info(tmp_path_factory: pytest.TempPathFactory) -> VideoInfo:
    path = tmp_path_factory.mktemp("outputs") / "in.mp4"
    run("-f", "lavfi", "-i", f"testsrc2=s={SIZE[0]}x{SIZE[1]}:r=25:d=1", "-c:v", "libx264", path)
    return probe(path)


def lively(frames: int, seed: int = 0) -> np.ndarray:
    """Smooth shapes that move, with grain: T H W 3."""
    time, y, x, c = np.ogrid[:frames, : SIZE[1], : SIZE[0], :3]
    waves = np.sin(x / 9 + time / 4 + c) * np.cos(y / 7 - time / 5) * 80 + 120
    grain = np.random.default_rng(seed).normal(0, 12, waves.shape)
    return (waves + grain).clip(0, 255).astype(np.uint8)


def encoded(info: VideoInfo, path: Path, params: EncodeParams, frames: np.ndarray) -> str:
    """sha256 of the segment."""
    encode = resolve(params, info, *SIZE)
    chunks = planes_of([frames], info, encode)
    encode_segment(chunks, path, info, encode, *SIZE)
    check_segment(path, len(frames), *SIZE)
    return hashlib.sha256(path.read_bytes()).hexdigest()


BASES = {
    codec: EncodeParams(codec=codec, container=spec.containers[0], preset="fast" if spec.presets else "auto")  # type: ignore[arg-type]
    for codec, spec in SOFTWARE.items()
}
CHANGES: dict[str, tuple[dict[str, object], ...]] = {
    "h264": ({"crf": 30}, {"bitrate": 200}, {"preset": "veryfast"}, {"pix_fmt": "yuv422p"},
             {"codec_args": "bframes=0:aq-mode=3"}),
    "h265": ({"crf": 30}, {"bitrate": 200}, {"preset": "veryfast"}, {"pix_fmt": "yuv444p12le"},
             {"codec_args": "sao=0"}),
    "av1": ({"crf": 50}, {"bitrate": 200}, {"preset": "slow"}, {"pix_fmt": "yuv420p10le"},
            {"codec_args": "film-grain=8"}),
    "vp9": ({"crf": 50}, {"bitrate": 200}, {"preset": "slow"}, {"pix_fmt": "yuv444p"}, {"codec_args": "aq-mode=3"}),
    "prores": ({"codec_args": "bits_per_mb=200"}, {"codec": "prores4444"}),
    "prores4444": ({"codec_args": "bits_per_mb=200"}, {"codec": "prores"}),
    "ffv1": ({"codec_args": "coder=1"}, {"pix_fmt": "yuv444p10le"}),
}  # fmt: skip


@pytest.mark.parametrize("codec", BASES)
def test_bytes_follow_the_choices(info: VideoInfo, tmp_path: Path, codec: str) -> None:
    frames = lively(30)
    base = BASES[codec]
    first = encoded(info, tmp_path / "a", base, frames)
    assert {encoded(info, tmp_path / "a", base, frames) for _ in range(3)} == {first}
    for change in CHANGES[codec]:
        assert encoded(info, tmp_path / "b", replace(base, **change), frames) != first, change  # type: ignore[arg-type]


@pytest.mark.parametrize("codec", [codec for codec, spec in SOFTWARE.items() if spec.has_bitrate])
@pytest.mark.parametrize("bitrate", [300, 800])
def test_bitrate_is_the_average_of_a_segment(info: VideoInfo, tmp_path: Path, codec: str, bitrate: int) -> None:
    """Within 10 %, over 10 seconds."""
    encoded(info, tmp_path / "a", replace(BASES[codec], bitrate=bitrate), lively(250))
    size = sum(int(p["size"]) for p in _packets(tmp_path / "a"))
    assert size * 8 / 10 / 1000 == pytest.approx(bitrate, rel=0.1)


def _packets(path: Path) -> list[dict[str, str]]:
    from tests.media.reader import ffprobe

    found: list[dict[str, str]] = ffprobe(path, "-select_streams", "v:0", "-show_entries", "packet=size")["packets"]
    return found


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"codec": "prores"}, "mp4 does not hold prores; choose an output ending in .mov, .mkv, or a codec of mp4: h2"),
        ({"codec": "h264", "container": "webm"}, "webm does not hold h264.*a codec of webm: av1, vp9"),
        ({"codec": "av1", "container": "mov"}, "mov does not hold av1"),
        ({"codec": "av1", "pix_fmt": "yuv444p"}, "av1 does not encode yuv444p; choose one of yuv420p, yuv420p10le"),
        ({"codec": "h264", "crf": 60}, "crf 60 is out of range; allowed for h264 are 0 to 51"),
        ({"codec": "ffv1", "container": "mkv", "crf": 5}, "ffv1 has no crf"),
        ({"codec": "ffv1", "container": "mkv", "bitrate": 500}, "ffv1 has no bitrate"),
        ({"codec": "ffv1", "container": "mkv", "preset": "slow"}, "ffv1 has no presets"),
        ({"codec": "vp9", "encoder": "nvenc"}, "nvenc does not encode vp9; choose h264, h265 or av1"),
        ({"codec": "h264", "codec_args": "stats=x"}, "'stats' is not let through to libx264; allowed are 8x8dct"),
        ({"codec": "h264", "codec_args": "threads=9"}, "'threads' is not let through"),
        ({"codec": "h265", "codec_args": "csv=x:bframes=2"}, "'csv' is not let through to libx265"),
        ({"codec": "vp9", "codec_args": "passlogfile=x"}, "codec argument 'passlogfile' is not let through"),
    ],
)  # fmt: skip
def test_contradictions_are_refused(info: VideoInfo, params: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve(EncodeParams(**params), info, *SIZE)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text", ["bframes", "a=b c", "a=/etc/passwd", "a=$(x)", "-y=1;", "a=[0:v]", "a=b=c", "A=1", "a=\n", ":"]
)
def test_codec_arguments_hold_nothing_but_words_and_numbers(text: str) -> None:
    with pytest.raises(UserError, match="is not KEY=VALUE"):
        EncodeParams(codec_args=text)


def test_no_argument_that_is_let_through_names_a_file_or_threads() -> None:
    for specs in (SOFTWARE, NVENC):
        for spec in specs.values():
            for bad in ("file", "log", "stats", "csv", "dump", "threads", "pools", "numa", "opencl", "lp", "2pass"):
                assert not any(bad in arg and arg != "fast-pskip" for arg in spec.args), (spec.encoder, bad)


def test_quality_and_bitrate_exclude_each_other() -> None:
    with pytest.raises(UserError, match="exclude each other"):
        EncodeParams(crf=20, bitrate=500)
    with pytest.raises(UserError, match="bitrate 3 kbit/s is out of range; allowed are 10"):
        EncodeParams(bitrate=3)


def test_auto_follows_container_depth_and_hdr(info: VideoInfo) -> None:
    deep, hdr = replace(info, bit_depth=10), replace(info, bit_depth=10, color_trc="smpte2084")
    clear = replace(info, has_alpha=True)

    def chosen(source: VideoInfo, **params: object) -> tuple[str, str]:
        found = resolve(EncodeParams(**params), source, *SIZE)  # type: ignore[arg-type]
        assert resolve(found, source, *SIZE) == found
        assert layout_of(found, source).depth == (10 if "10le" in found.pix_fmt else 8)
        return found.codec, found.pix_fmt

    assert chosen(info) == ("h264", "yuv420p")
    assert chosen(deep) == ("h264", "yuv420p10le")
    assert chosen(hdr) == ("h265", "yuv420p10le")
    assert chosen(info, container="webm") == ("vp9", "yuv420p")
    assert chosen(deep, container="webm") == ("av1", "yuv420p10le")
    assert chosen(clear, container="webm") == ("vp9", "yuva420p")
    assert chosen(info, delivery="web") == ("h264", "yuv420p")
    assert chosen(deep, delivery="web") == ("h264", "yuv420p")
    assert chosen(hdr, delivery="web") == ("h265", "yuv420p10le")
    assert chosen(info, delivery="archive", container="mkv") == ("ffv1", "yuv444p10le")
    assert chosen(clear, delivery="archive", container="mkv") == ("ffv1", "yuva444p10le")
    assert chosen(info, delivery="edit", container="mov") == ("prores", "yuv422p10le")
    assert chosen(clear, delivery="edit", container="mov") == ("prores4444", "yuva444p10le")
    assert chosen(info, delivery="web", codec="h265") == ("h265", "yuv420p")
    assert resolve(EncodeParams(delivery="web"), info, *SIZE).preset == "slow"
    assert resolve(EncodeParams(delivery="web", preset="fast", crf=30), info, *SIZE).crf == 30
    for name, delivery in DELIVERIES.items():
        assert resolve(EncodeParams(delivery=name, container=delivery.container), info, *SIZE).is_resolved  # type: ignore[arg-type]


def test_nvenc_is_tried_and_refused_where_it_does_not_work(info: VideoInfo) -> None:
    """This machine has no GPU: whatever PyAV was built with, a test encode says so."""
    for codec in NVENC:
        with pytest.raises(UserError, match=r"nvenc with yuv420p at 320x192 does not work.*\(.+\).*--encoder software"):
            resolve(EncodeParams(codec=codec, encoder="nvenc"), replace(info), 320, 192)  # type: ignore[arg-type]


@pytest.mark.parametrize("codec", BASES)
def test_no_encoder_keeps_real_time_threads(info: VideoInfo, tmp_path: Path, codec: str) -> None:
    """SVT-AV1 takes them where it may (as root): while it works, afterwards, and in its test encode."""
    encode, seen = resolve(BASES[codec], info, *SIZE), []

    def chunks() -> Iterator[Planes]:
        for planes in planes_of([lively(8), lively(8)], info, encode):
            seen.append(real_time_threads())
            yield planes

    encode_segment(chunks(), tmp_path / "a", info, encode, *SIZE)
    probe_encoder.__wrapped__(SOFTWARE[codec].encoder, encode.pix_fmt)
    assert [*seen, real_time_threads()] == [frozenset()] * 3
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


@pytest.mark.parametrize(
    ("encoder", "pix_fmt", "size", "message"),
    [
        ("libx264", "yuv420p", (256, 144), None),
        ("libx264", "yuv420p10le", (320, 192), None),
        ("libsvtav1", "yuv444p", (320, 192), "libsvtav1 with yuv444p at 320x192 does not work"),  # 4:2:0 only
        ("libsvtav1", "yuv420p", (20_000, 64), "libsvtav1 with yuv420p at 20000x64 does not work"),
        ("no_such_encoder", "yuv420p", (256, 144), "no_such_encoder with yuv420p at 256x144 does not work"),
    ],
)
def test_a_test_encode_is_of_the_format_and_size_that_is_wanted(
    encoder: str, pix_fmt: str, size: tuple[int, int], message: str | None
) -> None:
    """With encoders that are here: one that works, and those that are there and cannot do what is asked."""
    if message is None:
        probe_encoder(encoder, pix_fmt, *size)
        return
    with pytest.raises(UserError, match=rf"{message}.*use --encoder software"):
        probe_encoder(encoder, pix_fmt, *size)


def test_an_encoder_that_passes_its_test_is_used(
    info: VideoInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No GPU lent to this project has NVENC: x264 stands in its place, all the rest is the way of --encoder nvenc."""
    stand_in = replace(NVENC["h264"], encoder="libx264", crf_option="crf", presets=SOFTWARE["h264"].presets, options={})
    monkeypatch.setitem(NVENC, "h264", stand_in)
    encode = resolve(EncodeParams(codec="h264", encoder="nvenc", preset="fast"), info, 320, 192)
    assert (encode.encoder, encode.crf, encode.pix_fmt) == ("nvenc", NVENC["h264"].crf[0], "yuv420p")  # type: ignore[index]
    frames = np.random.default_rng(0).integers(0, 255, (10, 192, 320, 3), np.uint8)
    encode_segment(planes_of([frames], info, encode), tmp_path / "a.mp4", info, encode, 320, 192)
    check_segment(tmp_path / "a.mp4", 10, 320, 192)
    assert picture(tmp_path / "a.mp4")["codec_name"] == "h264"
    assert coded_format(replace(encode, codec="h265", pix_fmt="yuv420p10le")) == "p010le"
    doctor(as_json=True)
    (found,) = (f for f in json.loads(capsys.readouterr().out) if f["what"] == "nvenc")
    assert (found["state"], found["found"]) == ("ok", "h264 (a test encode worked)")


@pytest.mark.gpu
@pytest.mark.parametrize("codec", NVENC)
def test_nvenc_makes_what_its_test_promises(info: VideoInfo, tmp_path: Path, codec: str) -> None:
    """Where the GPU has no encoder (H100 and H200 have none), or not for this format, it is refused beforehand."""
    for pix_fmt in NVENC[codec].pix_fmts:
        refusal = ""
        try:
            encode = resolve(EncodeParams(codec=codec, encoder="nvenc", pix_fmt=pix_fmt), info, 320, 192)  # type: ignore[arg-type]
        except UserError as error:
            refusal = str(error)
        if refusal:
            assert f"nvenc with {pix_fmt} at 320x192 does not work on this machine" in refusal
            continue
        frames = np.random.default_rng(0).integers(0, 255, (40, 192, 320, 3), np.uint8)
        path = tmp_path / f"{pix_fmt}.mp4"
        encode_segment(planes_of([frames], info, encode), path, info, encode, 320, 192)
        check_segment(path, 40, 320, 192)
        assert picture(path)["pix_fmt"] == pix_fmt


@pytest.mark.parametrize(
    ("size", "sar", "rotation", "text", "pixels", "shape"),
    [
        ((1920, 1080), (1, 1), 0, "3840x2160", (3840, 2160), 1),
        ((1920, 1080), (1, 1), 0, "2160p", (3840, 2160), 1),
        ((853, 480), (1, 1), 0, "3840x2160", (3840, 2160), 1),
        ((720, 576), (16, 15), 0, "1080p", (1440, 1080), 1),
        ((720, 576), (64, 45), 0, "2160p", (3840, 2160), 1),
        ((720, 576), (16, 15), 0, "1920x1080", (1920, 1080), 3 / 4),
        ((1920, 1080), (1, 1), 90, "2160p", (2160, 1216), 1),
        ((1920, 1080), (1, 1), -90, "1080x1920", (1920, 1080), 1),
        ((640, 480), (1, 1), 0, "", None, 1),
    ],
)
def test_target_sizes(
    info: VideoInfo, size: tuple[int, int], sar: tuple[int, int], rotation: int, text: str,
    pixels: tuple[int, int] | None, shape: float,
) -> None:  # fmt: skip
    source = replace(info, width=size[0], height=size[1], sample_aspect_ratio=sar, rotation=rotation)
    found = target_pixels(source, text)
    assert found == pixels
    if found:
        assert float(sample_aspect_ratio(source, *found)) == pytest.approx(shape, rel=1e-6)


@pytest.mark.parametrize("text", ["4k", "0p", "1x", "99999p", "12x99999", "-1x5", "2160P"])
def test_wrong_target_sizes(text: str) -> None:
    with pytest.raises(UserError, match="target size"):
        EncodeParams(target_size=text)


@pytest.mark.parametrize(("target", "size"), [("200x150", (200, 150)), ("100p", (134, 100)), ("600x450", (600, 450))])
def test_the_result_has_exactly_the_target_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, size: tuple[int, int]
) -> None:
    source = tmp_path / "in.mp4"
    run("-f", "lavfi", "-i", "testsrc2=s=128x96:r=25:d=0.4", "-c:v", "libx264", source)
    _, notes = enlarged(monkeypatch, source, tmp_path / "out.mp4", EncodeParams(target_size=target, crf=5))
    made = picture(tmp_path / "out.mp4")
    assert (made["width"], made["height"]) == size
    assert made["display_aspect_ratio"] in ("4:3", "67:50")
    assert any("larger than 2 x the source" in note for note in notes) == (size[0] > 256)
    shown = next(read_frames(tmp_path / "out.mp4", probe(tmp_path / "out.mp4"), 0, 1))[0].astype(float)
    run(
        "-i",
        source,
        "-vf",
        f"scale={size[0]}:{size[1]}:flags=bicubic",
        "-frames:v",
        "1",
        "-c:v",
        "ffv1",
        tmp_path / "r.mkv",
    )
    other = next(read_frames(tmp_path / "r.mkv", probe(tmp_path / "r.mkv"), 0, 1))[0].astype(float)
    assert np.abs(shown - other).mean() < 6  # the same picture, not a shifted or cropped one
    assert len(times(tmp_path / "out.mp4")) == 10


@pytest.mark.parametrize(
    "change",
    [
        {"target_size": "100p"}, {"delivery": "web"}, {"codec": "h265"}, {"bitrate": 900}, {"crf": 30},
        {"preset": "fast"}, {"pix_fmt": "yuv422p"}, {"codec_args": "bframes=1"}, {"threads": 2},
    ],
)  # fmt: skip
def test_every_choice_is_in_the_key_of_the_job(tmp_path: Path, change: dict[str, object]) -> None:
    source = tmp_path / "in.mp4"
    run("-f", "lavfi", "-i", "testsrc2=s=64x48:r=25:d=0.1", "-c:v", "libx264", source)

    def key(encode: EncodeParams, params: UpscaleParams = PARAMS) -> str:
        request = Request(str(source), str(tmp_path / "o.mp4"), params, encode, COMPUTE, store=str(tmp_path))
        return make_plan(request, tmp_path / "cache")[0].key

    assert key(EncodeParams()) == key(EncodeParams())
    assert key(EncodeParams(**change)) != key(EncodeParams())  # type: ignore[arg-type]
    assert key(EncodeParams(), replace(PARAMS, deinterlace="on")) != key(EncodeParams())
