"""Tiles against the whole picture: weights that add up, decoders in parts, and a stream in tiles."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from flashvsr_core.config import UpscaleParams
from flashvsr_core.errors import UserError
from flashvsr_core.geometry import Geometry, TileSize
from flashvsr_core.kernels.block_attention import attend_torch
from flashvsr_core.kernels.block_mask import local_window
from flashvsr_core.models.attention import Sparsity
from flashvsr_core.models.tcdecoder import TcDecoder
from flashvsr_core.models.wan_vae import WanVaeDecoder
from flashvsr_core.registry import TcDecoderSpec, VaeSpec, model_spec
from flashvsr_core.relief import Placement
from flashvsr_core.tiling import Blend, Tile, decoder_tiles, dit_tiles, tile_sparsity
from flashvsr_core.upscaler import Upscaler
from flashvsr_core.weights import Weights
from tests.core.formula import LEAST, fill, formula_weights, moving_clip

PARAMS = UpscaleParams(scale=4, color_fix="adain", preroll=0, local_range=3, scenes="off")
TILED = replace(PARAMS, tiled_dit="on", tile_size="256", tile_overlap=128)


@pytest.fixture(scope="module")
def weights() -> Weights:
    return formula_weights(LEAST)


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    return moving_clip(29, 32, 128)


@pytest.fixture(scope="module")
def whole(weights: Weights, clip: np.ndarray) -> np.ndarray:
    return run(Upscaler.load(weights, PARAMS), clip)


@pytest.fixture(scope="module")
def tiled(weights: Weights, clip: np.ndarray) -> np.ndarray:
    return run(Upscaler.load(weights, TILED), clip)


def run(upscaler: Upscaler, frames: np.ndarray) -> np.ndarray:
    return np.concatenate([np.asarray(chunk) for chunk in upscaler.stream(iter([frames]))])


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.square(one.astype(float) - other).mean()))


@pytest.mark.parametrize("size", [(1080, 1920), (2160, 3840), (768, 1408), (640, 200)])
@pytest.mark.parametrize(("tile", "overlap"), [("512", 128), ("256x640", 128), ("1024", 256), ("8192", 256)])
def test_tiles_cover_the_picture_and_their_weights_add_up_to_one(
    size: tuple[int, int], tile: str, overlap: int
) -> None:
    geometry = Geometry(-(-size[1] // 4), -(-size[0] // 4), 4)
    tiles = dit_tiles(geometry, TileSize.parse(tile), overlap)
    assert {(t.height, t.width) for t in tiles} == {(tiles[0].height, tiles[0].width)}
    height, width = geometry.padded_height // 8, geometry.padded_width // 8
    one = torch.ones(1, 1, 1, tiles[0].height // 8, tiles[0].width // 8)
    blended = Blend(tiles, torch.device("cpu"))(((t,), one) for t in tiles)
    assert blended.shape == (1, 1, 1, height, width)
    assert (blended - 1).abs().max() < 1e-6
    for one_tile, following in itertools.pairwise(tiles):
        if following.top == one_tile.top:
            assert one_tile.left + one_tile.width - following.left >= overlap


@pytest.mark.parametrize(("width", "tile", "overlap"), [(160, 384, 128), (192, 512, 256)])
def test_edges_of_tiles_have_no_weight(width: int, tile: int, overlap: int) -> None:
    """A token's width at a tile's edge, where it lacks its surroundings, is its neighbour's alone, and no more is."""
    tiles = dit_tiles(Geometry(width, 64, 4), TileSize(256, tile), overlap)
    assert [t.left for t in tiles] == [0, tile - overlap]
    weights = Blend(tiles, torch.device("cpu")).weights
    left, right = (weights[tile][0] for tile in tiles)
    assert right[:2].abs().max() == 0 < right[2]
    assert left[-2:].abs().max() == 0 < left[-3]
    inside = overlap // 8 - 2
    assert right[inside] == 1 > right[inside - 1]
    steps = right[2:inside].diff()
    assert (steps - steps[0]).abs().max() < 1e-6


def test_one_tile_is_passed_on_as_it_is() -> None:
    tile = Tile(0, 0, 256, 256)
    latents = torch.zeros(1, 1, 1, 32, 32)
    assert Blend((tile,), torch.device("cpu"))(iter([((tile,), latents)])) is latents


def test_an_overlap_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="tile overlap 256 leaves less than 128"):
        dit_tiles(Geometry(480, 270, 4), TileSize(256, 256), 256)
    for bad in ("100", "128", "512x", "-1"):
        with pytest.raises(UserError, match="multiples of 128"):
            TileSize.parse(bad)


def test_tiles_get_the_same_share_of_blocks() -> None:
    geometry = Geometry(480, 270, 4)
    rows, columns = geometry.windows
    whole = Sparsity(local_window(rows, columns, 5), 1000, attend_torch)
    tile = tile_sparsity(whole, geometry, Tile(0, 0, 512, 512), 5)
    assert tile.topk == round(1000 * int(tile.local.sum()) / int(whole.local.sum()))
    assert tile.local.shape == (16, 16)
    assert tile_sparsity(whole, geometry, Tile(0, 0, 128 * rows, 128 * columns), 5) is whole


@pytest.mark.parametrize("name", ["published", "nano", "vae"])
def test_decoders_compute_parts_as_they_compute_the_whole(name: str) -> None:
    """With `reach` pixels of surroundings, over two calls; with less, the border differs: `reach` is not just large."""
    decoder: TcDecoder | WanVaeDecoder
    if name == "vae":
        decoder, channels = WanVaeDecoder(VaeSpec(dim=8, z_dim=16)), 16
    else:
        spec = TcDecoderSpec((8, 8, 8, 8)) if name == "published" else model_spec("nano").tcdecoder
        decoder, channels = TcDecoder(spec), spec.latent_channels
    fill(decoder, f"{name}.")
    size = decoder.reach + 64
    torch.manual_seed(0)
    latents = torch.randn(1, channels, 4, 4, 2 * size // 8)
    condition = torch.rand(1, 3, 13, 32, 2 * size) * 2 - 1
    whole, parts = _decode(decoder, latents, condition, slice(None)), []
    parts = [_decode(decoder, latents, condition, part) for part in (slice(0, size + decoder.reach),)]
    error = (parts[0][..., :size] - whole[..., :size]).abs().max()
    assert error < 1e-5 * whole.abs().max()
    border = (parts[0] - whole[..., : size + decoder.reach]).abs().amax(dim=(0, 1, 2, 3))
    assert border[-1] > 1e-3


def _decode(
    decoder: TcDecoder | WanVaeDecoder, latents: torch.Tensor, condition: torch.Tensor, part: slice
) -> torch.Tensor:
    columns = slice(None) if part.stop is None else slice(0, part.stop // 8)
    front = back = None
    frames = []
    with torch.inference_mode():
        for step, emitted in ((slice(0, 2), slice(0, 5)), (slice(2, 4), slice(5, 13))):
            x, front = decoder.front(latents[:, :, step], front)
            out, back = decoder.back(x[..., columns], condition[:, :, emitted, :, part], back)
            frames.append(out)
    return torch.cat(frames, dim=2)


def test_tiled_is_close_to_untiled_and_not_the_same(whole: np.ndarray, tiled: np.ndarray) -> None:
    assert tiled.shape == whole.shape
    assert not np.array_equal(tiled, whole)
    assert psnr(tiled, whole) > 30  # random weights make the DiT look far; nano's figures: tests/bench/tiling.md


@pytest.mark.parametrize("change", [{"tile_size": "256x384"}, {"tile_overlap": 0}])
def test_size_and_overlap_change_the_picture(
    weights: Weights, clip: np.ndarray, tiled: np.ndarray, change: dict[str, Any]
) -> None:
    assert not np.array_equal(run(Upscaler.load(weights, replace(TILED, **change)), clip), tiled)


def test_tiles_at_once_do_not_change_the_picture(weights: Weights, clip: np.ndarray, tiled: np.ndarray) -> None:
    both = Upscaler.load(weights, TILED)
    both.place(Placement(batch=2))
    assert np.abs(run(both, clip).astype(int) - tiled).max() <= 1  # sums of other shapes round otherwise


def test_decoding_in_parts_does_not_change_the_picture(weights: Weights, clip: np.ndarray, whole: np.ndarray) -> None:
    assert len(decoder_tiles(Geometry(128, 32, 4), 256)) == 2
    parts = Upscaler.load(weights, PARAMS)
    parts.place(Placement(decoder_tile=256))
    assert np.abs(run(parts, clip).astype(int) - whole).max() <= 1


def test_every_resolved_size_is_named() -> None:
    resolved = Upscaler.load(formula_weights(LEAST), replace(PARAMS, tiled_dit="on")).params
    assert (resolved.tile_size, resolved.tile_overlap) == ("640x640", 256)
