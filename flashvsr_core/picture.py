"""One picture's stream in tiles: what it carries between steps, and how a step is made of its tiles' steps.

The whole picture is one tile of each kind: then nothing is cropped, blended or copied.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor

from flashvsr_core.geometry import Geometry, TileSize
from flashvsr_core.models.attention import Sparsity
from flashvsr_core.models.kv_ring import KvRing
from flashvsr_core.offload import Offloader, at_least
from flashvsr_core.stream import Network, StreamState, denoise, emitted_input, open_stream, project
from flashvsr_core.tiling import LATENT_PIXELS, Blend, Tile, decoder_tiles, dit_tiles, tile_sparsity

Memory = list[Tensor]
Source = Callable[[], Tensor]
Tensors = TypeVar("Tensors", bound=tuple[Tensor, ...])


class Decoder(Protocol):
    """What both decoders have beside their call, which is `Decode`: a way to be computed part by part."""

    front_memories: int  # how many tensors of a whole picture's memory are those of `front`

    @property
    def reach(self) -> int: ...
    def front(self, latents: Tensor, memory: Memory | None) -> tuple[Tensor, Memory]: ...
    def back(self, latents: Tensor, condition: Tensor, memory: Memory | None) -> tuple[Tensor, Memory]: ...


@dataclass
class Group:
    """Tiles that are computed at once, and their stream: one of its batch for each tile."""

    tiles: tuple[Tile, ...]
    stream: StreamState

    def halves(self) -> "list[Group]":
        """Two of half as many tiles; they share their tensors with this one."""
        middle = len(self.tiles) // 2
        return [Group(self.tiles[part], _part(self.stream, part)) for part in (slice(0, middle), slice(middle, None))]

    def joined(self, other: "Group") -> "Group":
        """One of the tiles of both, which are at the same step; their tensors are copied."""
        return Group((*self.tiles, *other.tiles), _joined(self.stream, other.stream))


@dataclass
class PictureState:
    """All that a picture's stream carries: streams of tiles, memory of the decoder's tiles, frames not yet emitted."""

    groups: list[Group]
    decoder_tiles: tuple[Tile, ...]
    memories: list[Memory | None]
    front: Memory | None = None
    waiting: Tensor | None = field(default=None, repr=False)
    halfway: bool = False  # a decoder that overwrites its memory was interrupted: the stream cannot go on

    @property
    def next_latent(self) -> int:
        return self.groups[0].stream.next_latent

    @property
    def is_whole(self) -> bool:
        """Whether nothing is in tiles, neither in the DiT nor in the decoder."""
        return self.at_once == len(self.groups) == len(self.decoder_tiles) == 1

    @property
    def at_once(self) -> int:
        """Tiles that are computed at once, at most."""
        return max(len(group.tiles) for group in self.groups)

    @property
    def carried_bytes(self) -> int:
        """Keys and values on the device, which joining groups copies."""
        rings = (ring.buffers for group in self.groups for ring in group.stream.rings)
        return sum(tensor.nbytes for buffers in rings if buffers is not None for tensor in buffers)


Mark = tuple[Any, ...]


def mark(state: PictureState) -> Mark:
    """What `restore` needs to undo a step. Copies nothing: a step overwrites only what no later one reads."""
    streams = [
        (group.stream, group.stream.lq, group.stream.next_latent,
         [(ring, ring.filled, ring.next, ring.buffers, ring.host) for ring in group.stream.rings])
        for group in state.groups
    ]  # fmt: skip
    return streams, list(state.memories), state.front, state.waiting


def restore(state: PictureState, marked: Mark) -> None:
    streams, memories, state.front, state.waiting = marked
    state.memories = list(memories)
    for stream, lq, next_latent, rings in streams:
        stream.lq, stream.next_latent = lq, next_latent
        for ring, filled, following, buffers, host in rings:
            ring.filled, ring.next, ring.buffers, ring.host = filled, following, buffers, host


class Painter:
    """Computes one geometry's pictures: the tiles, the blend of their latents, and their attention."""

    def __init__(
        self,
        net: Network,
        offloader: Offloader,
        geometry: Geometry,
        sparsity: Sparsity,
        local_range: int,
        size: TileSize | None,
        overlap: int,
    ) -> None:
        self.net, self.offloader, self.geometry = net, offloader, geometry
        self.tiles = dit_tiles(geometry, size, overlap)
        self.sparsity = tile_sparsity(sparsity, geometry, self.tiles[0], local_range)
        self.blend = Blend(self.tiles, offloader.device)
        self.strips = 1  # see `Placement`
        # Any function can decode a whole picture (`Decode`); only our decoders know of parts.
        self._overwrites = getattr(net.decode, "front_memories", 0) > 0

    @property
    def is_recordable(self) -> bool:
        """Whether steady steps do the same to the same tensors each time: one tile, and a memory that is handed on."""
        return len(self.tiles) == 1 and not self._overwrites

    @property
    def decoder(self) -> Decoder:
        return cast(Decoder, self.net.decode)

    def open(self, kv_ratio: float, first_frame: int, batch: int, decoder_tile: int | None) -> PictureState:
        """State of a stream that starts at `first_frame`, of `batch` tiles at once."""
        parts = [self.tiles[i : i + batch] for i in range(0, len(self.tiles), batch)]
        tiles = decoder_tiles(self.geometry, decoder_tile)
        groups = [Group(part, open_stream(self.net, kv_ratio, first_frame)) for part in parts]
        return PictureState(groups, tiles, [None] * len(tiles))

    def latents(self, state: PictureState, source: Source, noise: Tensor) -> tuple[Tensor, Tensor]:
        """source: makes frames 1 3 T H W, noise: 1 C F h w of the padded picture. Returns the input to emit and its
        latents."""
        frames = [source()]
        # Where blocks work on strips, frames are made once more rather than kept beside them.
        emitted = emitted_input(state.waiting, frames[0]) if self.strips == 1 else None
        self.offloader.prepare()
        latents = self.blend(self._each(state, frames, noise))
        self.offloader.clear()
        condition, state.waiting = emitted or emitted_input(state.waiting, source())
        return condition, latents

    def _each(
        self, state: PictureState, frames: list[Tensor], noise: Tensor
    ) -> Iterator[tuple[tuple[Tile, ...], Tensor]]:
        """frames: one tensor, which is taken out of the list when the last tiles have seen it."""
        for group in state.groups:
            self.offloader.settle(group.stream.rings)
            tokens = project(self.net, group.stream, _crops(frames[0], group.tiles, 1))
            if group is state.groups[-1]:
                frames.clear()
            drawn = _crops(noise, group.tiles, LATENT_PIXELS)
            yield (
                group.tiles,
                denoise(self.net, group.stream, tokens, drawn, self.sparsity, self.offloader, self.strips),
            )

    def decode(self, state: PictureState, latents: Tensor, condition: Tensor) -> Tensor:
        """Frames 1 3 T H W of the padded picture, not clamped."""
        if len(state.decoder_tiles) == 1:
            state.halfway = self._overwrites and state.memories[0] is not None
            decoded, state.memories[0] = self.net.decode(latents, condition, state.memories[0])
            state.halfway = False
            return decoded
        # Given a copy, since one decoder overwrites what it is given.
        past = None if state.front is None else [tensor.clone() for tensor in state.front]
        x, state.front = self.decoder.front(latents, past)
        out: Tensor | None = None
        for number, tile in enumerate(state.decoder_tiles):
            region = self._grown(tile)
            part = self._decode_tile(state, number, region.crop(x, LATENT_PIXELS), region.crop(condition))
            if out is None:
                out = part.new_empty((*part.shape[:3], *condition.shape[3:]))
            tile.crop(out).copy_(tile.within(region).crop(part))
        assert out is not None, "there is at least one tile"
        return out

    def _decode_tile(self, state: PictureState, number: int, x: Tensor, condition: Tensor) -> Tensor:
        memory, away = state.memories[number], at_least(self.offloader.level, "kv")
        if memory is not None:
            state.halfway = self._overwrites and not away
            memory = [tensor.to(x.device, non_blocking=True, copy=away) for tensor in memory]
        decoded, memory = self.decoder.back(x, condition, memory)
        state.memories[number] = self.offloader.put_away(memory) if away else memory
        state.halfway = False
        return decoded

    def cut_decoder(self, state: PictureState, size: int) -> None:
        """From now on decode in tiles of at most this size: what is remembered of the picture is cut up anew."""
        memory = self._whole_memory(state)
        state.decoder_tiles = decoder_tiles(self.geometry, size)
        if memory is None:
            state.memories = [None] * len(state.decoder_tiles)
            return
        state.memories = [
            [self._grown(tile).crop(tensor, self._unit(tensor)).clone() for tensor in memory]
            for tile in state.decoder_tiles
        ]

    def _whole_memory(self, state: PictureState) -> Memory | None:
        """What `back` remembers of the whole picture, put together where it is in parts, without `front`'s."""
        first = state.memories[0]
        if first is None:
            return None
        if len(state.decoder_tiles) == 1:
            count = self.decoder.front_memories
            state.front = first[:count]
            return first[count:]
        height, width = self.geometry.padded_height, self.geometry.padded_width
        units = [self._grown(state.decoder_tiles[0]).width // tensor.shape[-1] for tensor in first]
        whole = [
            tensor.new_empty((*tensor.shape[:-2], height // unit, width // unit)) for tensor, unit in zip(first, units)
        ]
        for tile, memory in zip(state.decoder_tiles, state.memories):
            inner = tile.within(self._grown(tile))
            for place, unit, tensor in zip(whole, units, memory or ()):
                tile.crop(place, unit).copy_(inner.crop(tensor, unit))
        return whole

    def _grown(self, tile: Tile) -> Tile:
        return tile.grown(self.decoder.reach, self.geometry.padded_height, self.geometry.padded_width)

    def _unit(self, tensor: Tensor) -> int:
        """Pixels a side that one element of a whole picture's memory stands for."""
        return self.geometry.padded_width // tensor.shape[-1]


def _crops(x: Tensor, tiles: tuple[Tile, ...], unit: int) -> Tensor:
    if len(tiles) == 1:
        return tiles[0].crop(x, unit)
    return torch.cat([tile.crop(x, unit) for tile in tiles])


def _part(stream: StreamState, part: slice) -> StreamState:
    lq = None if stream.lq is None else (stream.lq[0][part], stream.lq[1][part])
    return StreamState([_ring_part(ring, part) for ring in stream.rings], stream.next_latent, lq)


def _joined(one: StreamState, other: StreamState) -> StreamState:
    rings = [_joined_ring(first, second) for first, second in zip(one.rings, other.rings, strict=True)]
    lq = None if one.lq is None or other.lq is None else _cat(one.lq, other.lq)
    return StreamState(rings, one.next_latent, lq)


def _joined_ring(one: KvRing, other: KvRing) -> KvRing:
    found = KvRing(one.slots - 1)
    found.filled, found.next = one.filled, one.next
    if one.buffers is not None and other.buffers is not None:
        found.buffers = _cat(one.buffers, other.buffers)
    return found


def _cat(one: Tensors, other: Tensors) -> Tensors:
    return cast(Tensors, tuple(torch.cat(pair) for pair in zip(one, other, strict=True)))


def _ring_part(ring: KvRing, part: slice) -> KvRing:
    found = KvRing(ring.slots - 1)
    found.filled, found.next = ring.filled, ring.next
    if ring.buffers is not None:
        k, v, pooled = (buffer[part] for buffer in ring.buffers)
        found.buffers = k, v, pooled
    if ring.host is not None:
        found.host = [(k[part], v[part], pooled[part]) for k, v, pooled in ring.host]
    return found
