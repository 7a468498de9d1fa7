"""Seams: python -m tests.bench.tiling [--pictures FOLDER] appends to tests/bench/tiling.md.

The embedded model on a clip of real footage, in tiles against untiled. Besides the whole picture, the error is
measured in bands around the lines where seams could be: edges of tiles, and where blending begins, ends and is even.
`--pictures` writes the difference, amplified 16 times, of the worst frame. For tiles larger than the clip allows, the
source is the middle of the enlarged clip: `--enlarged --height 64 --width 448 --tiles 768 1024 --overlaps 256`.
"""

import argparse
import itertools
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image

from flashvsr_core.config import UpscaleParams
from flashvsr_core.geometry import WINDOW_PIXELS, Geometry, TileSize
from flashvsr_core.tiling import dit_tiles
from flashvsr_core.upscaler import Upscaler
from flashvsr_core.weights import embedded_weights

CLIP = Path(__file__).parents[2] / "assets" / "bbb.mp4"
PARAMS = UpscaleParams(model="nano", scenes="off", preroll=0)
BAND = 8  # pixels to either side of a line
BESIDE = 24  # pixels of its surroundings to either side of a band
OVERLAPS = (0, 128, 256, 384)
AMPLIFIED = 16
_LINES = (("edge", 0.0), ("blend begins", 0.25), ("blend even", 0.5), ("blend ends", 0.75), ("edge", 1.0))


@dataclass(frozen=True)
class Seams:
    """PSNR in dB of tiled against untiled, and the largest error in a band of lines against that of all the rest, and
    against what lies beside it. A seam raises both; an error that falls slowly with the distance only the first."""

    psnr: float
    ratio: float
    line: str
    beside: float
    beside_line: str


def frames_of(path: Path, count: int, height: int, width: int) -> np.ndarray:
    """The first frames, the middle of the picture: T height width 3, uint8."""
    with av.open(str(path)) as container:
        decoded = (frame.to_ndarray(format="rgb24") for _, frame in zip(range(count), container.decode(video=0)))
        clip = np.stack(list(decoded))
    return middle(clip, height, width)


def middle(clip: np.ndarray, height: int, width: int) -> np.ndarray:
    top, left = (clip.shape[1] - height) // 2, (clip.shape[2] - width) // 2
    return clip[:, top : top + height, left : left + width]


def upscaled(params: UpscaleParams, frames: np.ndarray) -> np.ndarray:
    upscaler = Upscaler.load(embedded_weights(), params)
    return np.concatenate([np.asarray(chunk) for chunk in upscaler.stream(iter([frames]))])


def seams(tiled: np.ndarray, whole: np.ndarray, size: TileSize, overlap: int) -> Seams:
    """Compare T H W 3; bands of each kind of line in either direction are taken together."""
    error = np.square(tiled.astype(np.float64) - whole).mean(axis=(0, 3))
    height, width = error.shape
    tiles = dit_tiles(Geometry(-(-width // 4), -(-height // 4), 4), size, overlap)
    rows = _lines(sorted({tile.top for tile in tiles}), tiles[0].height)
    columns = _lines(sorted({tile.left for tile in tiles}), tiles[0].width)
    kinds = sorted(rows.keys() | columns.keys())
    bands = {kind: _bands(error.shape, rows.get(kind, ()), columns.get(kind, ()), BAND) for kind in kinds}
    rest = ~np.any(list(bands.values()), axis=0)
    wide = {kind: _bands(error.shape, rows.get(kind, ()), columns.get(kind, ()), BAND + BESIDE) for kind in kinds}
    ratios = {kind: _ratio(error, bands[kind], rest) for kind in kinds}
    beside = {kind: _ratio(error, bands[kind], wide[kind] & rest) for kind in kinds}
    worst, steepest = (max(found, key=lambda kind: found[kind]) for found in (ratios, beside))
    psnr = float(10 * np.log10(255**2 / error.mean()))
    return Seams(psnr, ratios[worst], worst, beside[steepest], steepest)


def _bands(shape: tuple[int, ...], rows: Sequence[int], columns: Sequence[int], reach: int) -> np.ndarray:
    found = np.zeros(shape, bool)
    for line in rows:
        found[max(0, line - reach) : line + reach] = True
    for line in columns:
        found[:, max(0, line - reach) : line + reach] = True
    return found


def _ratio(error: np.ndarray, one: np.ndarray, other: np.ndarray) -> float:
    return float(np.sqrt(error[one].mean() / error[other].mean()))


def _lines(starts: Sequence[int], size: int) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for start, following in itertools.pairwise(starts):
        low, high = following, start + size
        for kind, share in _LINES:
            found.setdefault(kind, []).append(int(low + share * (high - low)))
    return found


def picture(tiled: np.ndarray, whole: np.ndarray) -> Image.Image:
    """The worst frame's difference around grey."""
    difference = tiled.astype(int) - whole
    worst = int(np.abs(difference).mean(axis=(1, 2, 3)).argmax())
    return Image.fromarray((128 + AMPLIFIED * difference[worst]).clip(0, 255).astype(np.uint8))


def rows(frames: np.ndarray, sizes: Sequence[str], overlaps: Sequence[int], pictures: Path | None) -> Iterator[str]:
    whole = upscaled(PARAMS, frames)
    shape = "x".join(map(str, whole.shape[1:3]))
    geometry = Geometry(frames.shape[2], frames.shape[1], PARAMS.scale)
    seen = set()
    for text, overlap in itertools.product(sizes, overlaps):
        size = TileSize.parse(text)
        if overlap > min(size.height, size.width) - WINDOW_PIXELS:
            continue
        tiles = dit_tiles(geometry, size, overlap)
        if tiles in seen:  # a smaller overlap led to the same: tiles share out what is left
            continue
        seen.add(tiles)
        tiled = upscaled(replace(PARAMS, tiled_dit="on", tile_size=text, tile_overlap=overlap), frames)
        found = seams(tiled, whole, size, overlap)
        if pictures is not None:
            picture(tiled, whole).save(pictures / f"tiling-{text}-{overlap}.png")
        area = sum(tile.height * tile.width for tile in tiles) / (geometry.padded_height * geometry.padded_width)
        yield (
            f"| nano | {shape}, {len(whole)} frames | {text} | {overlap} | {found.psnr:.1f} | {found.ratio:.2f} "
            f"({found.line}) | {found.beside:.2f} ({found.beside_line}) | {area:.2f} | "
            f"PyTorch {torch.__version__}, {platform.machine()} CPU |"
        )


HEAD = """# Tiles against the untiled picture

{doc}
"Ratio" is the root mean square error in the worst kind of band (16 pixels wide) against that outside of all bands;
"beside" is that of the steepest kind of band against the 24 pixels to either side of it. "Area": what is computed, in
pictures.

| model | output | tile | overlap | PSNR dB | ratio (where) | beside (where) | area | by |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=29)
    parser.add_argument("--height", type=int, default=108)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--tiles", nargs="*", default=["256", "384", "512"])
    parser.add_argument("--overlaps", nargs="*", type=int, default=list(OVERLAPS))
    parser.add_argument("--enlarged", action="store_true", help="take the middle of the enlarged clip as the source")
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".md"))
    chosen = parser.parse_args()
    if chosen.enlarged:
        frames = middle(upscaled(PARAMS, frames_of(CLIP, chosen.frames, 108, 192)), chosen.height, chosen.width)
    else:
        frames = frames_of(CLIP, chosen.frames, chosen.height, chosen.width)
    if not chosen.output.exists():
        chosen.output.write_text(HEAD.format(doc=__doc__))
    for row in rows(frames, chosen.tiles, chosen.overlaps, chosen.pictures):
        with chosen.output.open("a") as table:
            table.write(row + "\n")


if __name__ == "__main__":
    main()
