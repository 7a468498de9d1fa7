"""Images as results: transparency, target size, deliveries, trimming and deinterlacing meet there."""

from pathlib import Path

import numpy as np
import pytest

from flashvsr_core.config import ComputeParams, UpscaleParams
from flashvsr_core.errors import UserError
from tasks import upscale
from tasks.images import publish_images, unpack_images, whole_of
from tasks.media.decode import read_frames
from tasks.media.encode import EncodeParams
from tasks.media.guard import describe
from tasks.media.probe import VideoInfo
from tasks.media.trim import Trim
from tasks.outputs import container_wanted, outputs_of
from tasks.plan import JobPlan, Request, bytes_needed, make_plan
from tasks.report import look_at
from tests.media.clips import run
from tests.tasks.enlarging import COMPUTE, PARAMS, Enlarger


def made(
    monkeypatch: pytest.MonkeyPatch,
    source: Path,
    output: Path,
    encode: EncodeParams = EncodeParams(),
    params: UpscaleParams = PARAMS,
    trim: Trim = Trim(),
) -> tuple[JobPlan, list[Path]]:
    """The pipeline's own steps but for the model: the plan, and the images in order."""
    monkeypatch.setattr(upscale, "loaded_upscaler", lambda params, *_: Enlarger(params.scale))
    folder = output.parent / "work"
    folder.mkdir(parents=True)
    request = Request(
        str(source), str(output), params, encode, COMPUTE, str(folder / "store"), segment_frames=8, trim=trim
    )
    job, plan = make_plan(request, folder / "cache")
    job.write_plan(plan.to_json())
    for segment in plan.segments:
        upscale.upscale_segment.fn(job, segment, ComputeParams(devices="cpu"), folder / "cache")
    files = unpack_images.fn(job, plan, folder, "full")
    if request.outputs.pattern is None:
        files[0].rename(output)
        return plan, [output]
    publish_images(job, plan, files, request.outputs)
    numbers = range(plan.first_number, plan.first_number + len(files))
    return plan, [Path(request.outputs.image_url(number)) for number in numbers]


def clear(path: Path, frames: int = 10, pix_fmt: str = "rgba") -> Path:
    """A disc of colour that is opaque in the middle and clear at the edge, over nothing."""
    alpha = "clip(255*(1.4-hypot(X-32,Y-24)/20),0,255)"
    picture = f"nullsrc=s=64x48:r=25,format=rgba,geq=r='40+N*8':g='3*X':b='200-2*Y':a='{alpha}'"
    run("-f", "lavfi", "-i", picture, "-pix_fmt", pix_fmt, "-frames:v", str(frames), path)
    return path


def both(path: Path) -> tuple[VideoInfo, np.ndarray, np.ndarray]:
    """Colour and alpha of an image, in 0..1."""
    info = describe(path)
    peak = 255 if info.bit_depth <= 8 else 65535
    colour, alpha = (next(read_frames(path, info, 0, 1, channel=c))[0] / peak for c in ("colour", "alpha"))
    return info, colour, alpha[..., 0]


@pytest.mark.parametrize("kind", ["png", "tiff", "exr"])
@pytest.mark.parametrize("pix_fmt", ["rgba", "rgba64be"])
def test_transparency_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, pix_fmt: str) -> None:
    source = clear(tmp_path / "in_%03d.png", pix_fmt=pix_fmt).parent
    plan, files = made(monkeypatch, source, tmp_path / "out" / f"x_%04d.{kind}")
    assert not any("transparency" in note for note in plan.notes)
    assert [file.name for file in files] == [f"x_{n:04d}.{kind}" for n in range(1, 11)]
    _, colour, alpha = both(tmp_path / "in_007.png")
    info, large_colour, large_alpha = both(files[6])
    assert (info.width, info.height, info.has_alpha) == (128, 96, True)
    # Every second pixel's mean is the source's pixel, nearly; what is clear has no colour in EXR.
    small = large_alpha.reshape(48, 2, 64, 2).mean(axis=(1, 3))
    assert np.abs(small - alpha).max() < 0.05
    assert large_alpha.min() == 0
    assert large_alpha.max() > 0.99
    shown = (large_colour * large_alpha[..., None]).reshape(48, 2, 64, 2, 3).mean(axis=(1, 3))
    assert np.abs(shown - colour * alpha[..., None]).mean() < 0.02


def test_exr_holds_colours_multiplied_with_alpha(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As OpenEXR has it, read by ffmpeg, in linear light."""
    source = clear(tmp_path / "in_%03d.png", frames=1).parent
    _, (file,) = made(monkeypatch, source, tmp_path / "out" / "x_%04d.exr")
    run("-i", file, "-pix_fmt", "gbrapf32le", "-f", "rawvideo", tmp_path / "raw")
    green, _, _, alpha = np.fromfile(tmp_path / "raw", "<f4").reshape(4, 96, 128)
    assert green[alpha == 0].max() == 0
    half = np.abs(alpha - 0.5) < 0.1
    assert half.any()
    coded = (np.arange(128) * 1.5 / 255)[None].repeat(96, 0)  # as large as the source's 3 * X
    straight = np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)
    assert np.abs(green - straight * alpha)[half].max() < 0.03


def test_what_cannot_be_transparent_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = clear(tmp_path / "in_%03d.png", frames=2).parent
    plan, files = made(monkeypatch, source, tmp_path / "out" / "x_%04d.dpx")
    assert any("left out: dpx as gbrp10be does not hold it; png, tiff, exr do" in note for note in plan.notes)
    assert not describe(files[0]).has_alpha


def test_one_transparent_image_among_others_counts(tmp_path: Path) -> None:
    run("-f", "lavfi", "-i", "testsrc2=s=64x48", "-pix_fmt", "rgb24", "-frames:v", "3", tmp_path / "in_%d.png")
    assert not describe(tmp_path).has_alpha
    clear(tmp_path / "c.tmp.png", frames=1).rename(tmp_path / "in_2.png")
    info = describe(tmp_path)
    assert info.has_alpha
    alphas = [frame for chunk in read_frames(tmp_path, info, 0, 3, channel="alpha") for frame in chunk]
    assert [int(alpha.min()) for alpha in alphas] == [255, 0, 255]


def test_transparent_video_becomes_transparent_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "in.webm"
    clear(tmp_path / "in_%03d.png")
    run("-i", tmp_path / "in_%03d.png", "-c:v", "libvpx-vp9", "-pix_fmt", "yuva420p", "-auto-alt-ref", "0", source)
    plan, files = made(monkeypatch, source, tmp_path / "out" / "x_%04d.png")
    assert plan.encode.pix_fmt == "rgba"
    assert len(files) == 10
    alpha = both(files[3])[2]
    assert alpha.max() > 0.95
    assert alpha.min() < 0.05


def test_images_have_the_target_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = clear(tmp_path / "in_%03d.png", frames=3).parent
    encode = EncodeParams(target_size="100x75")
    plan, files = made(monkeypatch, source, tmp_path / "out" / "x_%04d.png", encode)
    assert plan.encode.target_size == "100x75"
    for file in files:
        info = describe(file)
        assert (info.width, info.height) == (100, 75)


def test_images_are_measured_for_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = clear(tmp_path / "in_%03d.png", frames=9).parent
    plan, files = made(monkeypatch, source, tmp_path / "out" / "x_%04d.png")
    look = look_at(whole_of(tuple(files)), source, plan, 1)
    assert look.notes == ()
    assert look.quality is not None
    assert look.quality.color_drift < 2
    assert look.comparisons


def test_trimmed_and_interlaced_into_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames of the part only, each of them whole pictures: those of the whole video, where both neighbours are in."""
    source = tmp_path / "in.mp4"
    fields = "tinterlace=interleave_top,fieldorder=tff"
    run("-f", "lavfi", "-i", "testsrc2=s=64x48:r=50:d=1", "-vf", fields, "-c:v", "libx264", "-flags", "+ildct+ilme",
        "-pix_fmt", "yuv420p", source)  # fmt: skip
    whole = describe(source)
    pictures = np.concatenate(list(read_frames(source, whole, 0, whole.frames, deinterlace="auto")))
    plan, files = made(monkeypatch, source, tmp_path / "out" / "x_%04d.png", trim=Trim(start="6f", frames=12))
    assert any("made progressive" in note for note in plan.notes)
    assert len(files) == plan.info.frames == 12
    for index in range(1, 11):
        large = both(files[index])[1].reshape(48, 2, 64, 2, 3).mean(axis=(1, 3))
        differences = [np.abs(large - other / 255).mean() for other in pictures]
        assert int(np.argmin(differences)) == 6 + index
        assert min(differences) < 0.02


def test_fields_in_images_are_taken_out_when_asked(tmp_path: Path) -> None:
    fields = "tinterlace=interleave_top,fieldorder=tff"
    run("-f", "lavfi", "-i", "testsrc2=s=64x48:r=50:d=0.4", "-vf", fields, "-pix_fmt", "rgb24", tmp_path / "in_%d.png")
    info = describe(tmp_path)
    plain, whole = (
        np.concatenate(list(read_frames(tmp_path, info, 0, info.frames, deinterlace=mode)))  # type: ignore[arg-type]
        for mode in ("off", "on")
    )
    assert plain.shape == whole.shape
    assert not np.array_equal(plain, whole)
    assert np.abs(plain.astype(int) - whole).mean() < 30


@pytest.mark.parametrize(
    "encode",
    [
        EncodeParams(delivery="web"),
        EncodeParams(codec="h265"),
        EncodeParams(encoder="nvenc"),
        EncodeParams(bitrate=500),
        EncodeParams(codec_args="bframes=2"),
    ],
)
def test_choices_of_videos_are_refused(tmp_path: Path, encode: EncodeParams) -> None:
    source = clear(tmp_path / "in_%03d.png", frames=1).parent
    request = Request(str(source), str(tmp_path / "out" / "x_%04d.png"), PARAMS, encode, COMPUTE)
    with pytest.raises(UserError, match="is for videos, and the output is png images"):
        make_plan(request, tmp_path / "cache")


def test_formats_of_images_are_refused_for_videos(tmp_path: Path) -> None:
    source = clear(tmp_path / "in_%03d.png", frames=1).parent
    request = Request(str(source), str(tmp_path / "x.mp4"), PARAMS, EncodeParams(pix_fmt="rgb24"), COMPUTE)
    with pytest.raises(UserError, match="pixel format rgb24 is for images"):
        make_plan(request, tmp_path / "cache")


def test_a_plan_of_images_made_again_is_the_same(tmp_path: Path) -> None:
    source = clear(tmp_path / "in_%03d.png", frames=1).parent
    request = Request(str(source), str(tmp_path / "x_%04d.png"), PARAMS, EncodeParams(target_size="50p"), COMPUTE)
    job, plan = make_plan(request, tmp_path / "cache")
    again = Request(str(source), str(tmp_path / "x_%04d.png"), PARAMS, plan.encode, COMPUTE)
    assert make_plan(again, tmp_path / "cache")[0] == job
    assert bytes_needed(plan) == 2 * plan.geometry.out_width * plan.geometry.out_height * 4


@pytest.mark.parametrize(
    ("source", "encode", "expected"),
    [
        ("/a/clip.mov", EncodeParams(), "/a/clip_2x.mp4"),
        ("/a/clip.mov", EncodeParams(delivery="archive"), "/a/clip_2x.mkv"),
        ("/a/clip.mov", EncodeParams(delivery="edit"), "/a/clip_2x.mov"),
        ("/a/clip.mov", EncodeParams(delivery="web", container="mkv"), "/a/clip_2x.mkv"),
        ("/a/clip.mov", EncodeParams(container="webm"), "/a/clip_2x.webm"),
        ("/a/still.jpg", EncodeParams(), "/a/still_2x.png"),
        ("/a/still.tif", EncodeParams(), "/a/still_2x.tiff"),
        ("/a/still.jpg", EncodeParams(container="exr"), "/a/still_2x.exr"),
        ("/a/still.jpg", EncodeParams(delivery="archive"), "/a/still_2x.mkv"),
    ],
)
def test_default_outputs(source: str, encode: EncodeParams, expected: str) -> None:
    found = outputs_of(source, None, 2, container_wanted(encode))
    assert found.url == expected
    assert Request(source, None, PARAMS, encode, COMPUTE).output_url == expected
