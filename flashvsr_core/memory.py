"""Peak memory and time of a step, foreseen from sizes alone: what can be counted is counted, the rest was fitted.

All that a stream carries and all weights are counted exactly. What layers need while they compute is counted in
tensors of their widest kind; those numbers stand in `assets/memory.json` with the tables they were fitted to.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any, Literal

import torch
from torch import nn

from flashvsr_core.config import UpscaleParams
from flashvsr_core.geometry import WINDOW_PIXELS, Geometry, TileSize
from flashvsr_core.models.dit import Dit
from flashvsr_core.models.lq_proj import LqProj, projected_at_once
from flashvsr_core.models.tcdecoder import TcDecoder
from flashvsr_core.models.wan_vae import WanVaeDecoder
from flashvsr_core.offload import at_least
from flashvsr_core.registry import ModelSpec, TcDecoderSpec, VaeSpec
from flashvsr_core.relief import Placement
from flashvsr_core.segments import FIRST_READ, LOOKAHEAD, STEP
from flashvsr_core.tiling import decoder_tiles, dit_tiles

DeviceType = Literal["cuda", "cpu"]
ELEMENT = {"fp32": 4, "bf16": 2, "fp16": 2}
GIB = 2**30
# Bytes of float32 pictures that are enlarged or corrected at once, at most; less where decoding is done in parts too.
_PIXELS_BYTES = 2**28
_FEW_PIXELS_BYTES = 2**26
_LAUNCHED = 0.02  # of the DiT's time that recording saves
# Strips of so many windows take twice the time: 1.8 times with 17 windows, 4 times with 8, measured on an H200.
_STRIP_WINDOWS = 15
_FIRST_SLICES = 3  # token slices of a stream's first step
_TOKENS_PER_PIXEL = 1 / WINDOW_PIXELS  # of one slice: 128 tokens for 128 x 128 pixels
_PICTURE = 3 * 4  # bytes of one pixel of a float32 picture
_HELD = 2  # tensors of all tokens that are held where blocks work on strips: the residual stream, and queries or norms
_EMBEDDING = 3  # and while latents and the LQ projection's tokens become one
_PATCHES = 2 * 9 * 4  # of the LQ projection in fp8: 2 frames' at once, of 3x3 pixels and 4 frames


@dataclass(frozen=True)
class Estimate:
    """What a stream is expected to take. Bytes exclude the CUDA context; seconds are of one step on an H100."""

    device_bytes: int
    host_bytes: int
    step_seconds: float
    stages: tuple[tuple[str, int], ...]  # device bytes at the peak of each part of a step


@dataclass(frozen=True)
class Sizes:
    """What is counted: bytes of weights and, for the tiling, of all that is carried from step to step."""

    blocks: int  # weights of the DiT's blocks
    largest_block: int
    other_weights: int
    past: int  # keys and values of one tile
    stays: int  # those of all tiles that are on the device between steps
    slots: int  # slices that `past` has room for, the one being made among them
    tile_pixels: int
    tiles: int
    pixels: int  # of the padded picture
    streams: int
    region_pixels: int  # of the largest part that is decoded at once
    regions_pixels: int  # of all of them
    memory_per_pixel: float  # of the decoder
    element: int


def coefficients(name: str) -> dict[str, Any]:
    """The fitted numbers for `cuda`, `cpu` or `time`."""
    found = _coefficients()[name]
    assert isinstance(found, dict)
    return found


@lru_cache(maxsize=1)
def _coefficients() -> dict[str, Any]:
    return dict(json.loads((resources.files("flashvsr_core") / "assets" / "memory.json").read_text()))


def estimate(
    spec: ModelSpec,
    params: UpscaleParams,
    geometry: Geometry,
    device: DeviceType,
    placement: Placement,
    tile: TileSize | None,
    overlap: int,
    streams: int = 1,
) -> Estimate:
    """Expected peak of a stream of this geometry: its first step, which reads 25 frames. Precision must be resolved.

    streams: how many are open on the model in turn: 2 where transparency is a picture of its own.
    """
    sizes = _sizes(spec, params, geometry, placement, tile, overlap, streams, _is_rounded(params, device))
    stages = _stages(spec, params, sizes, device, placement)
    peak = int(max(stages.values()) * coefficients(device)["overhead"])
    return Estimate(
        peak, _host(sizes, device, placement), _seconds(sizes, params, placement, device), tuple(stages.items())
    )


def _stages(
    spec: ModelSpec, params: UpscaleParams, sizes: Sizes, device: DeviceType, placement: Placement
) -> dict[str, int]:
    fitted, e, level, pixels = coefficients(device), sizes.element, placement.offload, sizes.pixels
    batch = min(placement.batch, sizes.tiles)
    hosted = at_least(level, "kv")
    cut = placement.decoder_tile is not None
    fetched = sizes.memory_per_pixel * sizes.region_pixels * fitted[f"{params.mode}_regions"]  # of the decoder's parts
    memory = 0.0 if hosted and cut else sizes.memory_per_pixel * sizes.regions_pixels
    source = (FIRST_READ + LOOKAHEAD) * _PICTURE * pixels
    made_again = (source - 2 * LOOKAHEAD * _PICTURE * pixels) if placement.strips > 1 else 0
    always = sizes.other_weights + source + sizes.stays + (sizes.streams - 1) * _resting(sizes, placement)
    blocks = 2 * sizes.largest_block if level == "weights" else sizes.blocks
    at_once = min(FIRST_READ, frames_at_once(pixels, placement)) * _PICTURE * pixels
    out = STEP * 3 * 3 * e * pixels  # the first step's 24 frames
    outs = fitted["outs_in_parts"] if cut else 2.0  # what parts make goes into the picture one by one
    resting = 0 if at_least(level, "dit") else sizes.blocks
    fast = _is_rounded(params, device)
    tokens = batch * sizes.tile_pixels * _TOKENS_PER_PIXEL * _FIRST_SLICES
    tensor = int(tokens * spec.dit.dim * e)  # of all tokens of a stream's first step
    layers = batch * dit_activations(spec, sizes.tile_pixels, _FIRST_SLICES, e, device)
    if fast:  # and what the feed-forward layers round
        layers += int(tokens * spec.dit.ffn_dim)
    patches = _PATCHES * spec.lq.hidden[0] / 256 * sizes.tile_pixels if fast else 0.0
    return {
        "enlarge": int(always + resting + memory + at_once * fitted["pixel_floats"] / 2),
        "lq": int(always + blocks + memory
                  + max(tensor + fitted["lq_tensors"] * _lq_bytes(spec, sizes, batch) + batch * patches, 2 * tensor)),
        "dit": int(always - made_again + blocks + memory + _dit_bytes(sizes, spec, placement, batch, tensor, layers)),
        "decoder": int(always + resting + (fetched if hosted and cut else memory) + outs * out
                       + _decoder_values(spec, params, device) * e * sizes.region_pixels),
        "color": int(always + resting + memory + out + at_once * fitted["pixel_floats"]),
    }  # fmt: skip


def _dit_bytes(sizes: Sizes, spec: ModelSpec, placement: Placement, batch: int, tensor: int, layers: int) -> int:
    """What the DiT needs while it computes: `layers` for a stream's first step at once, whose tokens are a `tensor`
    each time all of them are held; and keys and values of blocks that are not kept on the device."""
    past = batch * sizes.past // spec.dit.num_layers if at_least(placement.offload, "kv") else 0
    if placement.strips == 1:
        return 2 * past + layers  # two blocks': at work and on its way
    part = layers // (_FIRST_SLICES * placement.strips)
    spilled = 2 * tensor if sizes.slots <= _FIRST_SLICES else 0  # keys and values of a first step that are not all kept
    opening = max(past + _HELD * tensor + spilled + part, _EMBEDDING * tensor)
    return max(opening, 2 * past + _HELD * tensor // _FIRST_SLICES + part)


def _is_rounded(params: UpscaleParams, device: DeviceType) -> bool:
    """Whether layers are computed in fp8."""
    return params.profile == "fast" and device == "cuda"


def _resting(sizes: Sizes, placement: Placement) -> int:
    """Bytes of a stream on the device while another one computes; its frames wait to be fetched, in 8 bits."""
    hosted = at_least(placement.offload, "kv")
    cut = placement.decoder_tile is not None
    memory = 0 if hosted and cut else int(sizes.memory_per_pixel * sizes.regions_pixels)
    return sizes.stays + memory + (LOOKAHEAD * _PICTURE + FIRST_READ * 3) * sizes.pixels


def frames_at_once(pixels: int, placement: Placement) -> int:
    """Frames of so many pixels that are enlarged or corrected at once."""
    return max(1, (_PIXELS_BYTES if placement.decoder_tile is None else _FEW_PIXELS_BYTES) // (_PICTURE * pixels))


def dit_activations(spec: ModelSpec, pixels: int, slices: int, element: int, device: DeviceType) -> int:
    """Bytes the DiT needs beside weights and keys and values for a tile of so many pixels."""
    tokens = slices * pixels * _TOKENS_PER_PIXEL
    width = coefficients(device)["dit_tensors"] + max(0.0, spec.dit.ffn_dim / spec.dit.dim - 6)
    return int(tokens * spec.dit.dim * element * width)


def available_bytes(device: torch.device) -> int | None:
    """What can still be allocated on a GPU within this process's limit; None on the CPU, where nobody counts."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    allocated = torch.cuda.memory_allocated(device)
    unused = torch.cuda.memory_reserved(device) - allocated
    allowed = int(torch.cuda.get_per_process_memory_fraction(device) * total)
    return max(0, min(free + unused, allowed - allocated))


def _sizes(
    spec: ModelSpec,
    params: UpscaleParams,
    geometry: Geometry,
    placement: Placement,
    tile: TileSize | None,
    overlap: int,
    streams: int,
    rounded: bool,
) -> Sizes:
    e = ELEMENT[params.precision]
    tiles = dit_tiles(geometry, tile, overlap)
    tile_pixels = tiles[0].height * tiles[0].width
    height, width = geometry.padded_height, geometry.padded_width
    regions = decoder_tiles(geometry, placement.decoder_tile)
    *counts, reach = _weights(spec, params.mode)
    blocks, largest, others = (e * count for count in counts)
    if rounded:  # one byte takes the place of a number, and for the LQ projection it is there too
        saved = (e - 1) * _rounded(spec)
        blocks, largest, others = blocks - spec.dit.num_layers * saved, largest - saved, others + _lq_weights(spec)
    if len(regions) > 1:
        regions = tuple(region.grown(reach, height, width) for region in regions)
    pixels = [region.height * region.width for region in regions]
    share = placement.resident / spec.dit.num_layers if at_least(placement.offload, "kv") else 1.0
    slots = int(params.kv_ratio) + 1
    per_token = 2 * spec.dit.dim * e + spec.dit.dim * 4 / (WINDOW_PIXELS)
    past = int(spec.dit.num_layers * slots * tile_pixels * _TOKENS_PER_PIXEL * per_token)
    lq_caches = 2 * (768 + spec.lq.hidden[0]) / 256 * e * tile_pixels * len(tiles) * streams
    return Sizes(
        blocks, largest, int(others + lq_caches), past, int(share * past * len(tiles)), slots, tile_pixels,
        len(tiles), height * width, streams, max(pixels), sum(pixels), _memory_values(spec, params.mode) * e, e,
    )  # fmt: skip


@lru_cache(maxsize=16)
def _weights(spec: ModelSpec, mode: str) -> tuple[int, int, int, int]:
    """Numbers of weights: of the DiT's blocks, of its largest block, of all else; and the decoder's reach, pixels."""
    with torch.device("meta"):
        dit, lq = Dit(spec.dit), LqProj(spec.lq, spec.dit.dim)
        decoder = WanVaeDecoder(spec.vae) if mode == "full" and spec.vae is not None else TcDecoder(spec.tcdecoder)
    blocks = [_count(block) for block in dit.blocks]
    prompt = 2 * spec.prompt_tokens * spec.dit.dim * spec.dit.num_layers  # keys and values, made once
    return sum(blocks), max(blocks), _count(dit) - sum(blocks) + _count(lq) + _count(decoder) + prompt, decoder.reach


def _rounded(spec: ModelSpec) -> int:
    """Numbers of one block's weights that profile fast has in fp8: q, k, v, cross-attention's q, feed-forward."""
    return spec.dit.dim * (4 * spec.dit.dim + 2 * spec.dit.ffn_dim)


def _lq_weights(spec: ModelSpec) -> int:
    """Numbers of the LQ projection's convolutions, which profile fast has in fp8 as well."""
    first, second = spec.lq.hidden
    return 4 * 9 * first * (768 + second)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _lq_bytes(spec: ModelSpec, sizes: Sizes, batch: int) -> float:
    """What the LQ projection holds while its second convolution folds: patches, what the first made, that with two past
    frames and padded, that folded (4 taps in time as channels), and the result."""
    frames = projected_at_once(sizes.tile_pixels)
    first, second = (width / 256 for width in spec.lq.hidden)
    values = 3 * frames + first * (frames / 2 + (frames / 2 + 2) + frames) + second * frames / 4
    return batch * values * sizes.element * sizes.tile_pixels


def _decoder_values(spec: ModelSpec, params: UpscaleParams, device: DeviceType) -> float:
    """Numbers per pixel that a decoder holds while it computes, on top of its memory."""
    fitted = coefficients(device)
    if params.mode == "full" and spec.vae is not None:
        return float(fitted["full_tensors"] * spec.vae.dim)
    tiny = spec.tcdecoder
    if tiny.shuffle:  # widest at half the size: 4 time steps of 8 frames
        return float(fitted["shuffle_tensors"] * (tiny.channels[2] + 8 * 3))
    tensors = fitted["tiny_fast_tensors" if _is_rounded(params, device) else "tiny_tensors"]
    return float(tensors * fitted["tiny_frames"] * tiny.channels[3])


def _memory_values(spec: ModelSpec, mode: str) -> float:
    """Numbers per pixel that a decoder carries from step to step."""
    if mode == "full" and spec.vae is not None:
        return _vae_memory(spec.vae)
    return _tiny_memory(spec.tcdecoder)


def _tiny_memory(spec: TcDecoderSpec) -> float:
    """One time step of each memory block's input."""
    return sum(count * width / side**2 for count, width, side in zip(spec.blocks, spec.channels, (8, 4, 2)))


def _vae_memory(spec: VaeSpec) -> float:
    """Two frames of the input of every convolution over time."""
    d = spec.dim
    at_8 = spec.z_dim + 4 * 4 * d + 6 * 4 * d + 4 * d
    at_4 = 2 * d + 5 * 4 * d + 4 * d
    at_2, at_1 = 6 * 2 * d, 7 * d
    return 2 * (at_8 / 64 + at_4 / 16 + at_2 / 4 + at_1)


def _host(sizes: Sizes, device: DeviceType, placement: Placement) -> int:
    """Memory of the host: frames on their way, and what is kept off the device."""
    frames = 4 * FIRST_READ * 3 * sizes.pixels  # emitted chunks in the queues to the encoder, 8 bits
    weights = _pinned(sizes.blocks) if at_least(placement.offload, "dit") else 0
    kept = 0
    if at_least(placement.offload, "kv"):
        kept += _pinned(sizes.past * sizes.tiles - sizes.stays)
        kept += _pinned(int(sizes.memory_per_pixel * sizes.regions_pixels)) if placement.decoder_tile else 0
    return int(coefficients(device)["process_bytes"] + weights + sizes.streams * (frames + kept))


def _pinned(size: int) -> int:
    """PyTorch rounds pinned memory up to powers of two, piece by piece: up to twice the size, on average 1.4."""
    return int(1.4 * size)


def _seconds(sizes: Sizes, params: UpscaleParams, placement: Placement, device: DeviceType) -> float:
    """One steady step. What travels beside the computation counts as far as it takes longer, and a little for being
    there; where things travel, steps are not recorded either."""
    fitted = coefficients("time")
    if _is_rounded(params, device):
        fitted = fitted | fitted["fast"]
    computed = sizes.tile_pixels * sizes.tiles
    rate = fitted["host_gb_per_second"] * 1e9
    dit = fitted["dit"] * computed / 1e9
    if placement.strips > 1:
        dit *= 1 + (_STRIP_WINDOWS * placement.strips * WINDOW_PIXELS**2 / sizes.tile_pixels) ** 2
    runs = -(-sizes.tiles // placement.batch)
    moved = (sizes.past * sizes.tiles - sizes.stays) * (sizes.slots - 1) / sizes.slots  # the newest goes the other way
    if at_least(placement.offload, "dit"):
        moved += sizes.blocks * (runs if placement.offload == "weights" else 1)
    waiting = max(fitted["unhidden"] * moved / rate, moved / rate - dit) + (_LAUNCHED * dit if moved else 0.0)
    decoder = fitted[params.mode] * sizes.regions_pixels / 1e9
    if at_least(placement.offload, "kv") and placement.decoder_tile is not None:
        decoder += 2 * sizes.memory_per_pixel * sizes.regions_pixels / rate
    return float(dit + waiting + decoder + fitted["lq"] * computed / 1e9 + fitted["pixels"] * sizes.pixels / 1e9)
