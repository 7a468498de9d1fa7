"""The embedded model in tiles on real footage: close to the untiled picture, and no worse where tiles meet."""

from dataclasses import replace

import numpy as np
import pytest

from flashvsr_core.geometry import TileSize
from tests.bench import memory as memory_bench
from tests.bench.tiling import CLIP, PARAMS, frames_of, seams, upscaled


def test_a_seam_is_found() -> None:
    """Guards the test below: an error along one line is told from one that is everywhere."""
    size, noise = TileSize(384, 384), np.random.default_rng(0).integers(0, 3, (1, 432, 768, 3))
    whole = np.full((1, 432, 768, 3), 100, np.uint8)
    even = (whole + noise).astype(np.uint8)
    assert seams(even, whole, size, 128).ratio < 1.1
    even[:, :, 380:388] += 8
    assert seams(even, whole, size, 128).ratio > 1.5


@pytest.mark.system
def test_no_seam_is_seen_in_real_footage() -> None:
    frames = frames_of(CLIP, 5, 108, 192)
    tiled = upscaled(replace(PARAMS, tiled_dit="on", tile_size="384", tile_overlap=128), frames)
    found = seams(tiled, upscaled(PARAMS, frames), TileSize(384, 384), 128)
    assert found.psnr > 40
    assert found.ratio < 1.2


def test_the_memory_bench_has_enough_cases_and_reads_its_own_table() -> None:
    names = [case.name for case in memory_bench.gpu_cases()]
    assert len(names) == len(set(names)) >= 20
    row = f"| {names[0]} | gpu | way | 1.00 | 0.98 | +2.0 | 9.00 | 0 | 0.50 |"
    failed = f"| {names[1]} | failed: x | | | | | | | |"
    assert memory_bench.errors(f"{memory_bench.HEAD}{row}\n{failed}\n") == [2.0]
