"""Ways to compute a picture, the best first, and the choice of the first that fits into memory.

Tilings come in the order of what they do to pixels: the whole picture, then tiles, large ones first. Within a tiling
stand the ways that change no pixel (strips that see each other, parts to decode, offloading), the fastest first. So
nothing that changes pixels is chosen while a way that does not would fit, however slow.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from flashvsr_core.config import ComputeParams, UpscaleParams
from flashvsr_core.errors import UserError
from flashvsr_core.geometry import WINDOW_PIXELS, Geometry, TileSize
from flashvsr_core.memory import GIB, DeviceType, Estimate, estimate
from flashvsr_core.offload import LEVELS, Offload, at_least
from flashvsr_core.registry import ModelSpec
from flashvsr_core.relief import Placement, half_side, strips_of
from flashvsr_core.tiling import dit_tiles, tiles_of

# Measured one by one: tests/bench/tiling.md. Larger ones are closer to the untiled picture, but most of their error
# lies on the lines between them.
_TILES = (640, 512, 384)
_DECODER_TILES = (1024, 512, 384, 256)
_MOST_AT_ONCE = 16  # tiles; more make no better use of a GPU
_TRAVELLING = 1.05  # what a way whose past travels must gain; a guess
_SHARES = 6  # steps in which keys and values go to the host


@dataclass(frozen=True)
class Rung:
    """One way: tiles (in `params`), the rest (in `placement`), and what it takes."""

    params: UpscaleParams
    placement: Placement
    estimate: Estimate

    def bytes(self, device: DeviceType) -> int:
        """What a limit is compared with: memory of the device, which on the CPU is all there is."""
        extra = self.estimate.host_bytes if device == "cpu" else 0
        return self.estimate.device_bytes + extra

    @property
    def tiles(self) -> str:
        return "untiled" if self.params.tiled_dit != "on" else f"tiles of {self.params.tile_size}"


def ladder(
    spec: ModelSpec,
    params: UpscaleParams,
    compute: ComputeParams,
    geometry: Geometry,
    device: DeviceType,
    streams: int = 1,
) -> Iterator[Rung]:
    """Every way that the user's own choices leave, the best first. Precision must be resolved.

    streams: as for `estimate`.
    """
    for tiling in _tilings(params, geometry):
        size, overlap = tiles_of(tiling)
        strips = strips_of(dit_tiles(geometry, size, overlap)[0])
        ways = [
            Rung(tiling, placement, estimate(spec, tiling, geometry, device, placement, size, overlap, streams))
            for placement in _placements(spec, compute, geometry, device, strips)
        ]
        yield from sorted(ways, key=_cost)


def choose(
    spec: ModelSpec,
    params: UpscaleParams,
    compute: ComputeParams,
    geometry: Geometry,
    device: DeviceType,
    limit: int | None,
    host_limit: int | None = None,
    streams: int = 1,
) -> Rung:
    """The best way within `limit` bytes (None: the best), with as many tiles at once as fit.

    Ways that would take more than `host_limit` bytes of the host are left out. Raises UserError with the smallest
    limit that some way fits into.
    """
    least: Rung | None = None
    hosts: list[int] = []  # what ways would take that this machine is too small for
    for rung in ladder(spec, params, compute, geometry, device, streams):
        if host_limit is not None and rung.estimate.host_bytes > host_limit:
            hosts.append(rung.estimate.host_bytes)
            continue
        if limit is None or rung.bytes(device) <= limit:
            return _with_batch(rung, spec, geometry, device, limit, streams)
        least = rung if least is None or rung.bytes(device) < least.bytes(device) else least
    if least is None or limit is None:
        raise UserError(
            f"the host would need {min(hosts) / GIB:.1f} GiB of memory and has {(host_limit or 0) / GIB:.1f} GiB; use "
            "a smaller --scale, --kv-ratio 1 or another machine"
        )
    needed = -(-least.bytes(device) * 100 // GIB) / 100
    raise UserError(
        f"{geometry.padded_width}x{geometry.padded_height} with {params.model} {params.mode} does not fit into "
        f"{limit / GIB:.2f} GiB of memory in any way; the smallest limit that works is --memory-limit {needed:.2f}GiB "
        f"({least.tiles}), or choose a smaller --scale" + _host_text(hosts, host_limit)
    )


def _host_text(hosts: list[int], host_limit: int | None) -> str:
    if not hosts or host_limit is None:
        return ""
    return (
        f"; {len(hosts)} ways that keep more on the host were left out: they take from {min(hosts) / GIB:.1f} GiB on, "
        f"and it has {host_limit / GIB:.1f} GiB"
    )


def _cost(rung: Rung) -> float:
    """Seconds; more where the past travels: memory of the host, and a bus that others use too, must be worth it."""
    return rung.estimate.step_seconds * (_TRAVELLING if at_least(rung.placement.offload, "kv") else 1.0)


def _tilings(params: UpscaleParams, geometry: Geometry) -> Iterator[UpscaleParams]:
    if params.tiled_dit != "on":
        yield replace(params, tiled_dit="off", tile_size="auto", tile_overlap="auto")
    if params.tiled_dit == "off":
        return
    asked = replace(params, tiled_dit="on")
    if params.tile_size != "auto":
        size, overlap = tiles_of(asked)
        yield replace(asked, tile_size=str(size), tile_overlap=overlap)
        return
    for side in _TILES:
        size = TileSize(side, side)
        overlap = tiles_of(replace(asked, tile_size=str(size)))[1]
        if overlap > side - WINDOW_PIXELS:
            continue
        if params.tiled_dit == "on" or len(dit_tiles(geometry, size, overlap)) > 1:
            yield replace(asked, tile_size=str(size), tile_overlap=overlap)


def _placements(
    spec: ModelSpec, compute: ComputeParams, geometry: Geometry, device: DeviceType, strips: list[int]
) -> Iterator[Placement]:
    largest = max(geometry.padded_height, geometry.padded_width)
    sides = sorted({half_side(largest), *_DECODER_TILES}, reverse=True)
    tiles: list[int | None] = [side for side in sides if side < largest]
    if compute.tiled_vae == "off" or not tiles:
        tiles = [None]
    elif compute.tiled_vae == "auto":
        tiles = [None, *tiles]
    for level in _levels(compute, device):
        for tile in tiles:
            for resident in _residents(spec, compute, level):
                yield from (Placement(level, tile, resident=resident, strips=count) for count in strips)


def _residents(spec: ModelSpec, compute: ComputeParams, level: Offload) -> Iterator[int]:
    """Blocks whose keys and values may stay: none where the user asked for `kv`, else up to five sixths."""
    shares = _SHARES if level == "kv" and compute.offload == "auto" else 1
    yield from (share * spec.dit.num_layers // _SHARES for share in range(shares))


def _levels(compute: ComputeParams, device: DeviceType) -> tuple[Offload, ...]:
    """Levels that the user's choice leaves; by themselves only GPUs use them: on the CPU nothing is gained."""
    if compute.offload != "auto":
        least: Offload = compute.offload
        return ("dit",) if compute.unload_dit and least == "none" else (least,)
    first = 1 if compute.unload_dit else 0
    return LEVELS[first:] if device == "cuda" else LEVELS[first : first + 1]


def _with_batch(
    rung: Rung, spec: ModelSpec, geometry: Geometry, device: DeviceType, limit: int | None, streams: int
) -> Rung:
    """As many tiles at once as fit; on the CPU one, since there more are no faster."""
    size, overlap = tiles_of(rung.params)
    count = len(dit_tiles(geometry, size, overlap))
    batch = 1 if device == "cpu" else min(count, _MOST_AT_ONCE)
    while batch > 1:
        placement = replace(rung.placement, batch=batch)
        expected = estimate(spec, rung.params, geometry, device, placement, size, overlap, streams)
        found = Rung(rung.params, placement, expected)
        if limit is None or found.bytes(device) <= limit:
            return found
        batch //= 2
    return rung


def after(rungs: Iterator[Rung], current: Rung, device: DeviceType) -> Rung | None:
    """The next way with other tiles and a smaller peak, when memory ran out in spite of the estimate."""
    for rung in rungs:
        other = (rung.params.tile_size, rung.params.tile_overlap) != (
            current.params.tile_size,
            current.params.tile_overlap,
        )
        if other and rung.params.tiled_dit == "on" and rung.bytes(device) < current.bytes(device):
            return rung
    return None
