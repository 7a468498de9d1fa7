"""Pictures in tiles: where they lie, how latents of overlapping ones become one picture, how much attention each gets.

Two tilings that know nothing of each other. Tiles of the DiT are streams of their own; their latents are blended by
weights that add up to 1. Tiles of a decoder are computed with as much of their neighbourhood as the decoder looks at,
so each pixel gets what it gets untiled.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from flashvsr_core.config import UpscaleParams
from flashvsr_core.errors import UserError
from flashvsr_core.geometry import WINDOW_PIXELS, Geometry, TileSize
from flashvsr_core.kernels.block_mask import local_window
from flashvsr_core.models.attention import Sparsity

LATENT_PIXELS = 8  # output pixels of one latent pixel
DEFAULT_TILE = 640
# Measured with the embedded model: tests/bench/tiling.md.
DEFAULT_OVERLAP = 256
# At a tile's edge that has no weight: one token, whose error is 1.4 times (tiles of 384) and 2.1 times (512) the tile's
# average. Everywhere else it is even, so the ramp between is as wide as it may be: it averages two errors
# (tests/bench/tiling.md).
EDGE_PIXELS = 16


@dataclass(frozen=True)
class Tile:
    """A rectangle of the padded output, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def crop(self, x: Tensor, unit: int = 1) -> Tensor:
        """Its part of `x` (... H W), one element of which stands for `unit` x `unit` pixels."""
        rows = slice(self.top // unit, (self.top + self.height) // unit)
        columns = slice(self.left // unit, (self.left + self.width) // unit)
        return x[..., rows, columns]

    def within(self, other: "Tile") -> "Tile":
        """The same rectangle seen from the corner of `other`."""
        return replace(self, top=self.top - other.top, left=self.left - other.left)

    def grown(self, by: int, height: int, width: int) -> "Tile":
        """`by` pixels more on each side, as far as the picture goes."""
        top, left = max(0, self.top - by), max(0, self.left - by)
        bottom, right = min(height, self.top + self.height + by), min(width, self.left + self.width + by)
        return Tile(top, left, bottom - top, right - left)

    @property
    def windows(self) -> tuple[int, int]:
        return self.height // WINDOW_PIXELS, self.width // WINDOW_PIXELS


def tiles_of(params: UpscaleParams) -> tuple[TileSize | None, int]:
    """Size (None: the whole picture) and overlap of the DiT's tiles, with the defaults where `auto` was left."""
    if params.tiled_dit != "on":
        return None, 0
    size = TileSize(DEFAULT_TILE, DEFAULT_TILE) if params.tile_size == "auto" else TileSize.parse(params.tile_size)
    if params.tile_overlap != "auto":
        return size, params.tile_overlap
    half = min(size.height, size.width) // (2 * WINDOW_PIXELS) * WINDOW_PIXELS
    return size, min(DEFAULT_OVERLAP, half)


def whole(geometry: Geometry) -> Tile:
    return Tile(0, 0, geometry.padded_height, geometry.padded_width)


def dit_tiles(geometry: Geometry, size: TileSize | None, overlap: int) -> tuple[Tile, ...]:
    """Tiles of equal size on the grid of attention windows, overlapping by at least `overlap` pixels; None: one."""
    if size is None:
        return (whole(geometry),)
    rows = _starts(geometry.padded_height, size.height, overlap)
    columns = _starts(geometry.padded_width, size.width, overlap)
    height, width = min(size.height, geometry.padded_height), min(size.width, geometry.padded_width)
    return tuple(Tile(top, left, height, width) for top in rows for left in columns)


def _starts(total: int, size: int, overlap: int) -> list[int]:
    if size >= total:
        return [0]
    if not 0 <= overlap <= size - WINDOW_PIXELS:
        raise UserError(
            f"tile overlap {overlap} leaves less than {WINDOW_PIXELS} new pixels of a tile of {size}; use at most "
            f"{size - WINDOW_PIXELS}, or larger tiles"
        )
    distance = (total - size) // WINDOW_PIXELS
    stride = (size - overlap) // WINDOW_PIXELS
    count = math.ceil(distance / stride) + 1
    return [i * distance // (count - 1) * WINDOW_PIXELS for i in range(count)]


def decoder_tiles(geometry: Geometry, size: int | None) -> tuple[Tile, ...]:
    """Tiles of at most `size` x `size` pixels side by side, about equal; None: one."""
    if size is None:
        return (whole(geometry),)
    rows = _cuts(geometry.padded_height, size)
    columns = _cuts(geometry.padded_width, size)
    return tuple(
        Tile(top, left, bottom - top, right - left)
        for top, bottom in pairwise(rows)
        for left, right in pairwise(columns)
    )


def _cuts(total: int, size: int) -> list[int]:
    windows, most = total // WINDOW_PIXELS, size // WINDOW_PIXELS
    count = math.ceil(windows / most)
    return [i * windows // count * WINDOW_PIXELS for i in range(count + 1)]


def ramps(starts: Sequence[int], size: int) -> list[Tensor]:
    """Weights along one axis of tiles at `starts` (in latent pixels, ascending): each `size`, float64, together 1.

    They go from 0 to 1 over each overlap but for `EDGE_PIXELS` at either end, so what lies at a tile's edge, where it
    lacks its surroundings, is not seen.
    """
    total = starts[-1] + size
    centres = torch.arange(total, dtype=torch.float64) + 0.5
    weights = []
    for number, start in enumerate(starts):
        weight = ((centres > start) & (centres < start + size)).double()
        if number:
            weight *= _ramp(centres, start, starts[number - 1] + size)
        if number + 1 < len(starts):
            weight *= 1 - _ramp(centres, starts[number + 1], start + size)
        weights.append(weight)
    together = torch.stack(weights).sum(0)
    return [(weight / together)[start : start + size] for weight, start in zip(weights, starts)]


def _ramp(centres: Tensor, low: int, high: int) -> Tensor:
    """0 to 1 over [low, high] without the edges; all at once where nothing overlaps."""
    if high <= low:
        return (centres >= low).double()
    edge = EDGE_PIXELS // LATENT_PIXELS
    return ((centres - low - edge) / (high - low - 2 * edge)).clamp(0, 1)


class Blend:
    """Sums latents of tiles, weighted so that they add up to one picture (a partition of unity), in float32."""

    def __init__(self, tiles: Sequence[Tile], device: torch.device) -> None:
        self.tiles = tiles
        tops, lefts = sorted({tile.top for tile in tiles}), sorted({tile.left for tile in tiles})
        down = _axis(tops, tiles[0].height, device)
        across = _axis(lefts, tiles[0].width, device)
        self.weights = {tile: down[tile.top][:, None] * across[tile.left] for tile in tiles} if len(tiles) > 1 else {}
        self.height = (tops[-1] + tiles[0].height) // LATENT_PIXELS
        self.width = (lefts[-1] + tiles[0].width) // LATENT_PIXELS

    def __call__(self, parts: Iterator[tuple[Sequence[Tile], Tensor]]) -> Tensor:
        """parts: tiles and their latents, B C F h w, one of the batch for each. Returns 1 C F h w of the picture.

        A single tile is the picture, and is passed on as it is.
        """
        picture: Tensor | None = None
        dtype = torch.float32
        for tiles, latents in parts:
            if len(self.tiles) == 1:
                return latents
            dtype = latents.dtype
            if picture is None:
                size = (1, *latents.shape[1:3], self.height, self.width)
                picture = torch.zeros(size, device=latents.device, dtype=torch.float32)
            for tile, one in zip(tiles, latents.split(1)):
                tile.crop(picture, LATENT_PIXELS).add_(one.float() * self.weights[tile])
        assert picture is not None, "there is at least one tile"
        return picture.to(dtype)


def _axis(starts: list[int], size: int, device: torch.device) -> dict[int, Tensor]:
    found = ramps([start // LATENT_PIXELS for start in starts], size // LATENT_PIXELS)
    return {start: weight.float().to(device) for start, weight in zip(starts, found)}


def tile_sparsity(picture: Sparsity, geometry: Geometry, tile: Tile, local_range: int) -> Sparsity:
    """Sparsity of a tile of `picture`: the same share of the blocks in local windows as in the whole picture."""
    if tile.windows == geometry.windows:
        return picture
    local = local_window(*tile.windows, local_range).to(picture.local.device)
    share = int(local.sum()) / int(picture.local.sum())
    return replace(picture, local=local, topk=max(1, round(picture.topk * share)))
