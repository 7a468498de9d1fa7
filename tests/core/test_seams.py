"""The embedded model in tiles on real footage: close to the untiled picture, and no worse where tiles meet."""

import numpy as np
import pytest

from flashvsr_core import ladder
from flashvsr_core.config import UpscaleParams
from flashvsr_core.errors import OutOfMemory
from flashvsr_core.geometry import TileSize
from flashvsr_core.ladder import Rung
from flashvsr_core.relief import Placement
from flashvsr_core.tiling import tiles_of
from flashvsr_core.upscaler import Upscaler
from flashvsr_core.weights import Weights, embedded_weights
from tests.bench import memory as memory_bench
from tests.bench.tiling import CASES, PARAMS, Errors, errors, footage, measured, pooled, steepest, summed

SMALLEST, UNBLENDED = CASES[-2:]
TILES, LINE = SMALLEST.tiles, 320  # where two of them are even


def errors_of(column: np.ndarray) -> Errors:
    """Of a picture that is off by about as much as `column` says for each of its 640 columns."""
    noise = np.random.default_rng(0).normal(0, 1, (1, 432, 640, 3)) * column[None, None, :, None]
    whole = np.full((1, 432, 640, 3), 100, np.uint8)
    return errors((whole + noise.round()).astype(np.uint8), whole, TILES)


def test_a_seam_is_found() -> None:
    """Guards the test below: an error along one kind of line is told from one that is everywhere, or a broad one."""
    even = errors_of(np.full(640, 2.0))
    assert max(even.ratio(kind) for kind in even.bands) < 1.1
    for kind, line in (("edge", 256), ("edge", 384), ("turn", 272), ("turn", 368), ("even", LINE)):
        column = np.full(640, 2.0)
        column[line - 4 : line + 4] = 16
        seam = errors_of(column)
        assert seam.worst == kind
        assert seam.ratio(kind) > 1.5
        assert steepest([seam]) > 1.5
    broad = errors_of(2 + 2 * np.exp(-np.square((np.arange(640) - LINE) / 150)))
    assert broad.ratio("even") > 1.2 > 1.1 > steepest([broad])


def test_clips_weigh_the_same_however_large_their_errors_are() -> None:
    clips = [Errors(1.0, 1.0, {"edge": 4.0}, {}), Errors(100.0, 100.0, {"edge": 100.0}, {})]
    assert pooled(clips, "edge") == pytest.approx(2.5**0.5)
    assert summed(clips, "edge") == pytest.approx((104 / 101) ** 0.5)


def test_every_tile_that_may_be_chosen_is_measured() -> None:
    sizes = [TileSize(side, side) for side in ladder._TILES]
    chosen = {(str(size), tiles_of(UpscaleParams(tiled_dit="on", tile_size=str(size)))[1]) for size in sizes}
    assert chosen <= {(str(TileSize.parse(case.tile)), case.overlap) for case in CASES}


@pytest.mark.system
def test_no_seam_is_seen_in_real_footage() -> None:
    """The smallest tiles on what lies in `assets`, and one clip without blending, which shows a seam.

    On more footage, all that are chosen: tests/bench/tiling.md.
    """
    upscaler, clips = Upscaler.load(embedded_weights(), PARAMS), list(footage())
    found = [clip for _, _, clip in measured(upscaler, clips, [SMALLEST], places=1)]
    assert len(found) == 4
    assert min(clip.psnr for clip in found) > 50
    assert max(pooled(found, kind) for kind in found[0].bands) < 1.2
    assert steepest(found) < 1.2
    ((_, _, seam),) = measured(upscaler, clips[:1], [UNBLENDED], places=1)
    assert seam.ratio(seam.worst) > 1.5


def test_the_memory_bench_has_enough_cases_and_reads_its_own_table() -> None:
    names = [case.name for case in memory_bench.gpu_cases()]
    assert len(names) == len(set(names)) >= 20
    row = f"| {names[0]} | gpu | way | 1.00 | 0.98 | +2.0 | 9.00 | 0 | 0.50 |"
    failed = f"| {names[1]} | failed: x | | | | | | | |"
    assert memory_bench.errors(f"{memory_bench.HEAD}{row}\n{failed}\n") == [2.0]


def test_the_memory_bench_goes_on_in_tiles_as_a_job_does(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def stream(weights: Weights, rung: Rung, *_: object) -> tuple[float, Placement]:
        tried.append(rung.tiles)
        if rung.tiles == "untiled":
            raise OutOfMemory("dit", "the card is smaller than was thought")
        return 5.0, rung.placement

    monkeypatch.setattr(memory_bench, "_stream", stream)
    row = memory_bench.measure(memory_bench.Case("nano", "tiny", 320, 192, 4, limit_gib=8.0, steps=1), "cpu")
    assert (tried[0], len(tried)) == ("untiled", 2)
    cells = [cell.strip() for cell in row.split("|")]
    assert cells[3].startswith(tried[1].replace(" of", ""))
    assert cells[8] == "1"
