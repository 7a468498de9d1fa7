import hashlib
import os
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from pydantic import TypeAdapter

from flashvsr_core.errors import FlashvsrError, UserError
from flashvsr_core.layout import YuvLayout
from tasks.media.decode import read_frames
from tasks.media.encode import EncodeParams, check_segment, encode_segment, layout_of, resolve
from tasks.media.probe import probe
from tests.media.clips import numbers, planes_of

FAST = EncodeParams(codec="h264", preset="veryfast")


def picture(info, encode, frames, width, height, seed=0):
    """Smooth moving colours as planes, and the RGB they came from."""
    time, y, x = np.meshgrid(np.arange(frames), np.arange(height), np.arange(width), indexing="ij")
    waves = [np.sin(x / 17 + time / 5 + seed), np.sin(y / 13 - time / 7), np.sin((x + y) / 23 + 1)]
    rgb = np.stack(waves, axis=-1) * 0.5 + 0.5
    rgb = (rgb * (65535 if info.bit_depth > 8 else 255)).round().astype(np.uint16 if info.bit_depth > 8 else np.uint8)
    return rgb, planes_of([rgb], info, encode)


@pytest.fixture(scope="module")
def info(clips):
    return probe(clips / "cfr.mp4")


@pytest.mark.parametrize("matrix", ["bt601", "bt709", "bt2020"])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("depth", [8, 10])
@pytest.mark.parametrize("codec", ["h264", "h265"])
def test_colour_round_trip_within_two_levels(info, tmp_path, matrix, full, depth, codec):
    """RGB -> our planes -> lossless file -> our decoder -> RGB."""
    info = replace(info, matrix=matrix, full_range=full, bit_depth=depth, colorspace=None)
    encode = EncodeParams(codec=codec, crf=0, pix_fmt="yuv444p10le" if depth == 10 else "yuv444p", preset="veryfast")
    rgb, planes = picture(info, encode, 3, 64, 48)
    if codec == "h265" or depth == 10:  # these are not lossless at crf 0, but keep flat colours
        rgb = np.broadcast_to(rgb[:, 10:11, 20:21], rgb.shape).copy()
        planes = planes_of([rgb], info, encode)
    encode_segment(planes, tmp_path / "a.mp4", info, encode, 64, 48)
    made = probe(tmp_path / "a.mp4")
    assert (made.matrix, made.full_range, made.bit_depth) == (matrix, full, depth)
    back = np.concatenate(list(read_frames(tmp_path / "a.mp4", made, 0, 3)))
    scale = 257 if depth == 10 else 1
    assert back.dtype == rgb.dtype
    assert np.abs(back.astype(float) - rgb).max() / scale <= 2
    assert np.abs(back.astype(float) - rgb).mean() / scale < 1


def test_chroma_is_sited_where_the_decoder_expects_it(info, tmp_path):
    """A colour ramp through 4:2:0 must not move sideways."""
    info = replace(info, matrix="bt709")
    encode = EncodeParams(codec="h264", crf=0, pix_fmt="yuv420p", preset="veryfast")
    ramp = (
        np.broadcast_to(np.linspace(40, 215, 256).round()[None, None, :, None], (1, 64, 256, 3)).astype(np.uint8).copy()
    )
    ramp[..., 1] = 255 - ramp[..., 1]
    encode_segment(planes_of([ramp], info, encode), tmp_path / "a.mp4", info, encode, 256, 64)
    back = next(read_frames(tmp_path / "a.mp4", probe(tmp_path / "a.mp4"), 0, 1)).astype(float)
    difference = (back - ramp)[0, 8:-8, 16:-16]
    assert np.abs(difference.mean(axis=(0, 1))).max() < 0.3  # half a pixel sideways would be 0.35
    assert np.abs(difference).max() <= 4


@pytest.mark.parametrize(
    ("bit_depth", "size", "pix_fmt", "layout"),
    [
        (8, (640, 360), "yuv420p", YuvLayout("420", 8, "bt601", False)),
        (8, (531, 429), "yuv444p", YuvLayout("444", 8, "bt601", False)),
        (10, (640, 360), "yuv420p10le", YuvLayout("420", 10, "bt601", False)),
        (12, (640, 361), "yuv444p10le", YuvLayout("444", 10, "bt601", False)),
    ],
)
def test_auto_is_resolved(info, bit_depth, size, pix_fmt, layout):
    source = replace(info, bit_depth=bit_depth)
    for codec, crf in (("h264", 18), ("h265", 20)):
        encode = resolve(EncodeParams(codec=codec), source, *size)
        assert (encode.pix_fmt, encode.crf, encode.is_resolved) == (pix_fmt, crf, True)
        assert layout_of(encode, source) == layout
        assert resolve(encode, source, *size) == encode


def test_explicit_choices_are_kept_or_refused(info):
    encode = resolve(EncodeParams(crf=30, pix_fmt="yuv420p10le"), info, 64, 48)
    assert (encode.crf, encode.pix_fmt) == (30, "yuv420p10le")
    with pytest.raises(UserError, match="odd output size 63x48 exactly; choose yuv444p10le or auto"):
        resolve(EncodeParams(pix_fmt="yuv420p10le"), info, 63, 48)
    with pytest.raises(UserError, match=r"beyond 16384 pixels.*smaller scale"):
        resolve(EncodeParams(), info, 20000, 48)
    with pytest.raises(UserError, match="below 64x16, the least h265 can encode; choose codec h264"):
        resolve(EncodeParams(codec="h265"), info, 8, 8)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("codec", "divx", "codec 'divx' is not known; choose one of auto, h264, h265, av1, vp9"),
        ("crf", 64, "crf 64 is out of range; allowed are 0 to 63"),
        ("preset", "warp", "preset 'warp' is not known"),
        ("pix_fmt", "bgr24", "pix_fmt 'bgr24' is not known"),
        ("container", "avi", "container 'avi' is not known; choose one of mp4, mkv, mov, webm, png"),
        ("threads", 0, "threads 0 is out of range; allowed are 1 to 64"),
    ],
)
def test_wrong_values(field, value, message):
    with pytest.raises(UserError) as caught:
        EncodeParams(**{field: value})
    assert message in str(caught.value)


def test_form_has_a_description_of_every_field():
    schema = TypeAdapter(EncodeParams).json_schema()
    assert all(field["description"] for field in schema["properties"].values())
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize("codec", ["h264", "h265"])
@pytest.mark.parametrize(
    ("width", "height"), [(64, 36), (177, 143), (36, 64), (2, 2), (1, 1), (3, 5), (17, 16), (130, 20)]
)
def test_sizes_are_exact(info, tmp_path, codec, width, height):
    if codec == "h265" and width < 64:
        with pytest.raises(UserError, match="choose codec h264"):
            resolve(replace(FAST, codec=codec), info, width, height)
        return
    encode = resolve(replace(FAST, codec=codec), info, width, height)
    _, planes = picture(info, encode, 3, width, height)
    done = encode_segment(planes, tmp_path / "a.tmp", info, encode, width, height)
    assert (done.frames, done.width, done.height) == (3, width, height)
    assert done.bytes == (tmp_path / "a.tmp").stat().st_size
    check_segment(tmp_path / "a.tmp", 3, width, height)
    with av.open(str(tmp_path / "a.tmp")) as container:
        assert [(frame.width, frame.height) for frame in container.decode(video=0)] == [(width, height)] * 3


@pytest.mark.parametrize("codec", ["h264", "h265"])
def test_the_same_frames_give_the_same_bytes(info, tmp_path, codec):
    encode = resolve(replace(FAST, codec=codec), info, 320, 192)
    digests = set()
    for name in "abcd":
        _, planes = picture(info, encode, 30, 320, 192)
        encode_segment(planes, tmp_path / name, info, encode, 320, 192)
        digests.add(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert len(digests) == 1


@pytest.mark.parametrize("codec", ["h264", "h265"])
@pytest.mark.parametrize("frames", [1, 2, 3])
def test_very_short_segments_are_sound_every_time(info, tmp_path, codec, frames):
    digests = set()
    for _ in range(12):
        encode = resolve(replace(FAST, codec=codec), info, 64, 48)
        encode_segment(picture(info, encode, frames, 64, 48)[1], tmp_path / "a.mp4", info, encode, 64, 48)
        check_segment(tmp_path / "a.mp4", frames, 64, 48)
        digests.add(hashlib.sha256((tmp_path / "a.mp4").read_bytes()).hexdigest())
    assert len(digests) == 1


@pytest.mark.parametrize("codec", ["h264", "h265"])
@pytest.mark.parametrize("preset", ["ultrafast", "faster", "medium", "slower", "placebo"])
def test_presets(info, tmp_path, codec, preset):
    encode = resolve(EncodeParams(codec=codec, preset=preset), info, 96, 64)
    encode_segment(picture(info, encode, 26, 96, 64)[1], tmp_path / "a.mp4", info, encode, 96, 64)
    check_segment(tmp_path / "a.mp4", 26, 96, 64)


@pytest.mark.parametrize("codec", ["h264", "h265"])
@pytest.mark.parametrize("rate", [(24000, 1001), (50, 1), (25, 1), (1, 2), (10000, 333)])
def test_times_are_multiples_of_the_frame_time(info, tmp_path, codec, rate):
    info = replace(info, frame_rate=rate)
    encode = resolve(replace(FAST, codec=codec), info, 64, 48)
    _, planes = picture(info, encode, 20, 64, 48)
    encode_segment(planes, tmp_path / "a.mp4", info, encode, 64, 48)
    made = probe(tmp_path / "a.mp4")
    assert (made.frame_rate, made.constant_rate, made.start_time) == (rate, True, 0)
    step = made.timestamps.pts(1)
    assert made.timestamps.array.tolist() == [i * step for i in range(20)]
    assert step * made.time_base[0] * rate[0] == rate[1] * made.time_base[1]


@pytest.mark.parametrize("codec", ["h264", "h265"])
def test_tags_rotation_and_pixel_shape(info, tmp_path, codec):
    source = replace(
        info, width=64, height=48, bit_depth=10, colorspace="bt2020nc", matrix="bt2020", color_primaries="bt2020",
        color_trc="smpte2084",
        sample_aspect_ratio=(4, 3), rotation=-90, display_matrix=(0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30),
    )  # fmt: skip
    encode = resolve(replace(FAST, codec=codec), source, 64, 48)
    _, planes = picture(source, encode, 2, 64, 48)
    encode_segment(planes, tmp_path / "a.mp4", source, encode, 64, 48)
    made = probe(tmp_path / "a.mp4")
    for field in ("colorspace", "color_primaries", "color_trc", "sample_aspect_ratio", "rotation", "display_matrix"):
        assert getattr(made, field) == getattr(source, field), field
    assert (made.color_range, made.pix_fmt, made.bit_depth) == ("tv", "yuv420p10le", 10)


def test_every_group_is_closed_and_starts_with_a_key_frame(info, tmp_path):
    for codec in ("h264", "h265"):
        encode = resolve(replace(FAST, codec=codec), info, 64, 48)
        _, planes = picture(info, encode, 40, 64, 48)
        encode_segment(planes, tmp_path / "a.mp4", info, encode, 64, 48)
        with av.open(str(tmp_path / "a.mp4")) as container:
            packets = [packet for packet in container.demux(video=0) if packet.size]
        assert packets[0].is_keyframe
        assert packets[0].pts == min(packet.pts for packet in packets)


def test_fault_of_the_frames_passes_through_and_closes_the_file(info, tmp_path):
    encode = resolve(FAST, info, 64, 48)

    def frames():
        yield from picture(info, encode, 8, 64, 48)[1]
        raise RuntimeError("the model failed")

    with pytest.raises(RuntimeError, match="the model failed") as caught:
        encode_segment(frames(), tmp_path / "a.tmp", info, encode, 64, 48)
    assert caught.value.__notes__ == [f"while encoding segment {str(tmp_path / 'a.tmp')!r}, after 8 frames"]
    assert not any(
        os.path.realpath(f"/proc/self/fd/{number}") == str(tmp_path / "a.tmp") for number in os.listdir("/proc/self/fd")
    )


def test_faults_of_the_caller(info, tmp_path):
    encode = resolve(FAST, info, 64, 48)
    with pytest.raises(FlashvsrError, match="no frames came"):
        encode_segment(iter(()), tmp_path / "a.tmp", info, encode, 64, 48)
    _, planes = picture(info, encode, 2, 64, 48)
    with pytest.raises(FlashvsrError, match="64x48 uint8, yuv420p at 66x48 wants 66x48"):
        encode_segment(planes, tmp_path / "a.tmp", info, encode, 66, 48)
    with pytest.raises(FlashvsrError, match="open choices"):
        encode_segment(planes, tmp_path / "a.tmp", info, EncodeParams(), 64, 48)


def test_full_disk_is_a_user_error(info):
    if not Path("/dev/full").exists():
        pytest.fail("this test needs /dev/full")
    encode = resolve(replace(FAST, crf=0), info, 320, 240)
    _, planes = picture(info, encode, 60, 320, 240)
    with pytest.raises(UserError, match="no space left"):
        encode_segment(planes, "/dev/full", info, encode, 320, 240)


def test_check_segment_finds_faults(clips):
    with pytest.raises(FlashvsrError, match="has 96 frames, expected 95"):
        check_segment(clips / "cfr.mp4", 95, 160, 64)
    with pytest.raises(FlashvsrError, match="is 160x64, expected 160x66"):
        check_segment(clips / "cfr.mp4", 96, 160, 66)
    with pytest.raises(FlashvsrError, match="has time"):
        check_segment(clips / "vfr.mp4", probe(clips / "vfr.mp4").frames, 160, 64)


def test_frames_stay_in_order(clips, tmp_path):
    info = probe(clips / "open.mp4")
    for codec in ("h264", "h265"):
        encode = resolve(replace(FAST, codec=codec), info, info.width, info.height)
        chunks = planes_of(read_frames(clips / "open.mp4", info, 101, 161), info, encode)
        encode_segment(chunks, tmp_path / "a.mp4", info, encode, info.width, info.height)
        assert numbers(read_frames(tmp_path / "a.mp4", probe(tmp_path / "a.mp4"), 0, 60)) == list(range(101, 161))
