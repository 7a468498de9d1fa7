"""Scene cuts: found where they are, not at flashes or motion, and the same whoever looks."""

from pathlib import Path

import numpy as np
import pytest

from flashvsr_core.cuts import CONTEXT, _thumbnail, mark_cuts, sampled
from tasks.media.decode import read_frames
from tasks.media.probe import probe
from tests.core.formula import moving_clip

DEMO = Path(__file__).parents[2] / "assets" / "bbb.mp4"


def cuts(frames: np.ndarray, first: int = 0) -> list[int]:
    return [frame.index for frame in mark_cuts(frames, first, "auto") if frame.cut]


@pytest.fixture(scope="module")
def demo() -> np.ndarray:
    return np.concatenate(list(read_frames(DEMO, probe(DEMO), 0, 96)))


def test_cuts_of_the_demo_clip(demo: np.ndarray) -> None:
    assert cuts(demo) == [28, 64]


def test_depth_of_the_source_does_not_matter(demo: np.ndarray) -> None:
    assert cuts(demo.astype(np.uint16) * 257) == [28, 64]


@pytest.mark.parametrize("window", [(0, 60), (10, 50), (18, 39), (16, 96), (50, 80)])
def test_any_window_with_its_context_finds_the_same(demo: np.ndarray, window: tuple[int, int]) -> None:
    first, stop = window
    decided = range(first + CONTEXT if first else 0, stop - CONTEXT if stop < 96 else 96)
    expected = [cut for cut in (28, 64) if cut in decided]
    assert [cut for cut in cuts(demo[first:stop], first) if cut in decided] == expected


@pytest.mark.parametrize("at", [8, 9, 15, 16, 30])
def test_a_hard_cut_is_found_at_its_frame(at: int) -> None:
    assert cuts(np.concatenate([moving_clip(at), moving_clip(40 - at, scene=1)])) == [at]


@pytest.mark.parametrize("length", [1, 2])
def test_a_flash_is_no_cut(demo: np.ndarray, length: int) -> None:
    frames = demo[64:].copy()
    frames[14 : 14 + length] = 255
    assert cuts(frames) == []


def test_steady_motion_is_no_cut() -> None:
    rng = np.random.default_rng(0)
    wide = np.repeat(np.repeat(rng.integers(0, 255, (1, 12, 160, 3), dtype=np.uint8), 8, 1), 8, 2)[0]
    pan = np.stack([wide[:, 24 * i : 24 * i + 128] for i in range(40)])
    assert cuts(pan) == []


def test_two_cuts_within_the_radius_give_the_stronger_one() -> None:
    frames = np.concatenate([moving_clip(20), moving_clip(4, scene=1), np.full((16, 48, 64, 3), 255, np.uint8)])
    assert len(cuts(frames)) == 1


def test_given_scenes_and_off() -> None:
    frames = moving_clip(12)
    assert [f.index for f in mark_cuts(frames, 100, (104, 108)) if f.cut] == [104, 108]
    assert not any(f.cut for f in mark_cuts(frames, 0, "off"))


def test_every_frame_comes_out_once_and_in_order() -> None:
    frames = moving_clip(35)
    marked = list(mark_cuts(frames, 7, "auto"))
    assert [frame.index for frame in marked] == list(range(7, 42))
    assert all(np.array_equal(a.pixels, b) for a, b in zip(marked, frames))


def test_sampled_frames_have_the_same_cuts(demo: np.ndarray) -> None:
    large = demo.repeat(3, axis=1).repeat(2, axis=2)
    assert cuts(np.stack([sampled(frame) for frame in large])) == cuts(large)
    assert sampled(large[0]).shape == (128, 128, 3)
    assert (sampled(sampled(large[0])) == sampled(large[0])).all()


@pytest.mark.parametrize("size", [(108, 192), (17, 33), (700, 900), (2, 3)])
def test_means_of_bytes_are_exact(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    sample = sampled(pixels).astype(np.float64)
    y, x = (max(1, side // 32) for side in sample.shape[:2])
    sample = sample[: len(sample) // y * y, : sample.shape[1] // x * x]
    means = sample.reshape(len(sample) // y, y, sample.shape[1] // x, x, 3).mean(axis=(1, 3))
    assert (_thumbnail(pixels) == means.astype(np.float32)).all()
