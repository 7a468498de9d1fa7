"""Quality numbers on made-up pictures whose faults are known, and full-reference numbers on real files."""

from pathlib import Path

import numpy as np
import pytest

from flashvsr_core.errors import UserError
from tasks.media.probe import probe
from tasks.quality import measure, sample_places, spread, summarise, window
from tasks.reference import check_reference, compare, has_vmaf
from tests.flows.clips import make_clip
from tests.media.clips import run


def moving(frames: int = 9, step: int = 1) -> np.ndarray:
    """uint8 T H W 3: a wave that moves."""
    x = np.arange(48)[None, None] - step * np.arange(frames)[:, None, None]
    wave = 128 + 60 * np.sin(x / 4)
    return np.repeat(np.broadcast_to(wave, (frames, 32, 48))[..., None], 3, axis=-1).astype(np.uint8)


def enlarged(frames: np.ndarray, scale: int = 2) -> np.ndarray:
    return frames.repeat(scale, axis=1).repeat(scale, axis=2)


def test_an_exact_enlargement_is_perfect() -> None:
    source = moving()
    found = summarise([window(4, 0, source, enlarged(source))], {4}, 0.0)
    assert found.stability == pytest.approx(1.0, abs=0.01)
    assert (found.flicker, found.color_drift, found.color_bias) == (0.0, 0.0, (0.0, 0.0, 0.0))
    assert (found.joins[0].frame, found.joins[0].excess, found.joins[0].cut) == (4, 0.0, False)


def test_a_step_at_a_join_is_found_and_one_elsewhere_is_not_its_fault() -> None:
    source = moving()
    result = enlarged(source).astype(np.int16)
    result[4:] += 3
    found = summarise([window(4, 0, source, result.astype(np.uint8))], {4}, 0.0)
    assert found.joins[0].excess == pytest.approx(3.0, abs=0.2)
    assert found.color_drift == pytest.approx(3.0, abs=0.2)
    other = summarise([window(5, 1, source[1:], result[1:].astype(np.uint8))], {5}, 0.0)
    assert other.joins[0].excess == pytest.approx(0.0, abs=0.1)


def test_flicker_shows_in_stability() -> None:
    source = np.full((9, 32, 48, 3), 100, np.uint8) + np.arange(9, dtype=np.uint8)[:, None, None, None]
    result = enlarged(source) + (np.arange(9, dtype=np.uint8) % 2 * 4)[:, None, None, None]
    found = summarise([window(4, 0, source, result)], set(), 0.0)
    assert found.stability is not None
    assert found.stability > 2
    assert found.flicker == pytest.approx(4.0, abs=0.1)


def test_a_still_source_has_no_ratio() -> None:
    still = np.full((5, 32, 48, 3), 90, np.uint8)
    assert summarise([window(2, 0, still, enlarged(still))], set(), 0.0).stability is None


def test_a_scene_cut_is_no_fault_of_the_join() -> None:
    source = moving()
    source[4:] = 255 - source[4:] // 2
    assert summarise([window(4, 0, source, enlarged(source))], {4}, 0.0).joins[0].cut


def test_places_are_bounded_and_spread() -> None:
    joins = list(range(512, 512 * 200, 512))
    places = sample_places(joins, 512 * 200)
    assert len(places) == 24
    assert (places[0], places[-1]) == (512, 512 * 199)
    assert len(sample_places([], 40)) == 4
    assert sample_places([], 1) == [0]
    assert sorted(spread(places)) == places
    assert spread([1, 2, 3, 4, 5])[0] == 3


def test_measure_reads_both_files(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mp4", 24, sound=False)
    big = tmp_path / "big.mp4"
    run("-i", source, "-vf", "scale=96:64:flags=neighbor", "-c:v", "libx264", "-qp", "0", "-pix_fmt", "yuv444p", big)
    found, sights = measure(big, source, probe(source), [8, 16], 60.0)
    assert [join.frame for join in found.joins] == [8, 16]
    assert found.color_drift < 1.5
    assert sights[0].result.shape == (64, 96, 3)
    assert sights[0].source.shape == (32, 48, 3)
    hurried, _ = measure(big, source, probe(source), [8, 16], 0.0)
    assert 0 < hurried.frames_measured < found.frames_measured


def test_reference_numbers(tmp_path: Path) -> None:
    truth = make_clip(tmp_path / "truth.mp4", 12, size="96x64", sound=False)
    worse = tmp_path / "worse.mp4"
    run("-i", truth, "-c:v", "libx264", "-crf", "40", "-pix_fmt", "yuv420p", worse)
    same, poor = compare(truth, truth), compare(worse, truth)
    assert (same["psnr"], same["ssim"]) == (100.0, 1.0)
    assert 15 < poor["psnr"] < 45
    assert poor["ssim"] < 0.999
    assert ("vmaf" in poor) == has_vmaf()
    if has_vmaf():
        assert poor["vmaf"] < same["vmaf"] <= 100
    check_reference(truth, 96, 64, 12)
    with pytest.raises(UserError, match=r"96x64 with 12 frames.*192x128 with 12"):
        check_reference(truth, 192, 128, 12)
