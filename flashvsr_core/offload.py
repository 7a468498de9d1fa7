"""Keeping what is not needed at the moment off the device; no pixel changes by it.

Levels, each with what the ones before do: `dit`: the DiT's weights leave the device while frames are decoded; `kv`: the
keys and values of the past lie on the host, those of some blocks excepted, and so do decoders' memories of tiles;
`weights`: the DiT's weights come block by block. What a block needs travels while those before it compute.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast

import torch
from torch import Tensor

from flashvsr_core.models.dit import Block, Dit
from flashvsr_core.models.kv_ring import KvRing, RingBuffers, span
from flashvsr_core.transfer import pinned

Offload = Literal["none", "dit", "kv", "weights"]
LEVELS: tuple[Offload, ...] = ("none", "dit", "kv", "weights")
_ALIGNED = 256  # bytes: where tensors begin that lie one after the other, as in memory that PyTorch allocates
_AT_ONCE = 2  # blocks on the device: the one that computes and the one that arrives


Moment: TypeAlias = "torch.cuda.Event | None"
"""Of a stream of work; none where the host itself does everything in order."""


def at_least(level: Offload, other: Offload) -> bool:
    return LEVELS.index(level) >= LEVELS.index(other)


class _Side:
    """Copies beside the computation: streams of their own on a GPU, at once elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.up = self.down = None
        if device.type == "cuda":
            self.up, self.down = torch.cuda.Stream(device), torch.cuda.Stream(device)

    @contextmanager
    def bringing(self, free: Moment) -> Iterator[None]:
        """Within, copies to the device, begun when their place is free. They wait for nothing else: each way of the bus
        has enough to do while blocks compute."""
        if self.up is None:
            yield
            return
        if free is not None:
            self.up.wait_event(free)
        with torch.cuda.stream(self.up):
            yield

    def arrival(self) -> Moment:
        """Of what was brought so far."""
        return self.up.record_event() if self.up is not None else None

    def departure(self) -> Moment:
        """Of what was taken so far."""
        return self.down.record_event() if self.down is not None else None

    def computed(self) -> Moment:
        """When the work that was given to the device so far is done."""
        return torch.cuda.current_stream(self.device).record_event() if self.device.type == "cuda" else None

    def await_moment(self, moment: Moment) -> None:
        """Work given to the device from now on begins after it."""
        if moment is not None:
            torch.cuda.current_stream(self.device).wait_event(moment)

    @contextmanager
    def taking(self) -> Iterator[None]:
        """Within, copies from the device of what was computed so far."""
        if self.down is None:
            yield
            return
        self.down.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.down):
            yield


@dataclass
class _Place:
    """Where one block's past comes to on the device, after another's that was there before."""

    buffers: RingBuffers
    free: Moment


class Offloader:
    """Moves one loaded DiT's weights, and streams' keys and values, as `level` says."""

    def __init__(self, dit: Dit, device: torch.device) -> None:
        self.dit, self.device = dit, device
        self.level: Offload = "none"
        self.resident = 0
        self.blocks = cast(list[Block], list(dit.blocks))
        self._side = _Side(device)
        self._host: list[Tensor] = []  # the bytes of each block's weights
        self._slots: list[Tensor] = []  # where they come to on the device: one each, or two for all
        self._slots_free: list[Moment] = []  # when what was there before is not needed any more
        self._holds: list[int | None] = []  # the block whose weights a slot has, or will have when they arrive
        self._weights_arrivals: dict[int, Moment] = {}
        self._arrivals: dict[int, Moment] = {}
        self._places: list[_Place] = []  # used in turn by blocks whose past comes from the host
        self._turn = 0
        self._brought: dict[int, _Place] = {}

    def set_level(self, level: Offload, resident: int = 0) -> None:
        """From now on work at this level; streams that are open go on, unless `resident` grew: see Placement."""
        self.resident = resident
        if level == self.level:
            return
        with torch.inference_mode(False):
            if not self._host:
                self._pack()
            self._open_slots(_AT_ONCE if level == "weights" else len(self.blocks))
        self.level = level
        if level == "none":
            self._open_all()
            self._bring_weights(0, len(self.blocks))
        else:
            self.clear()

    @property
    def weight_bytes(self) -> int:
        """Of the DiT's blocks, on the device at this moment."""
        if self._slots:
            return sum(slot.untyped_storage().nbytes() for slot in self._slots)
        storages = {t.untyped_storage().data_ptr(): t for block in self.blocks for t in block.stored()}
        return sum(t.untyped_storage().nbytes() for t in storages.values())

    def prepare(self) -> None:
        """Before the DiT runs."""
        if self.level != "none" and not self._slots[0].untyped_storage().nbytes():
            self._open_all()
        if self.level == "dit":
            self._bring_weights(0, len(self.blocks))

    def clear(self) -> None:
        """The DiT is not needed for a while."""
        if self.level == "none":
            return
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # what is on its way must arrive before its place is given away
        for kept in (self._weights_arrivals, self._arrivals, self._brought, self._places):
            kept.clear()
        for slot in self._slots:
            slot.untyped_storage().resize_(0)

    @contextmanager
    def __call__(self, number: int, rings: list[KvRing]) -> Iterator[None]:
        """Around the work of block `number`: it and its ring are on the device."""
        if not at_least(self.level, "kv"):
            self._side.await_moment(self._weights_arrivals.pop(number, None))
            yield
            return
        coming = [n for n in range(number, len(self.blocks)) if not self._stays(n)]
        self._bring_weights(number, number + _AT_ONCE)
        for n in coming[:_AT_ONCE]:
            if n not in self._arrivals:
                self._bring(n, rings[n])
        self._side.await_moment(self._weights_arrivals.pop(number, None))
        ring, away = rings[number], not self._stays(number)
        place: _Place | None = None
        if away:
            self._side.await_moment(self._arrivals.pop(number))
            place = self._brought.pop(number, None)
            ring.buffers = None if place is None else place.buffers
        try:
            yield
            self._slots_free[number % len(self._slots)] = self._side.computed()
            if away:
                self._take(ring, place)
        except BaseException:
            self.clear()  # the next stream begins with the first block
            raise
        finally:
            if away:
                ring.buffers = None

    def _stays(self, number: int) -> bool:
        """Whether keys and values of this block stay on the device: `resident` blocks, evenly among the others, so that
        those of the others travel while they compute."""
        count = len(self.blocks)
        return (number + 1) * self.resident // count > number * self.resident // count

    def settle(self, rings: list[KvRing]) -> None:
        """Rings of an open stream go where this level keeps them."""
        if at_least(self.level, "kv"):
            for number, ring in enumerate(rings):
                if ring.buffers is not None and not self._stays(number):
                    slots = [_slot(ring, ring.buffers, place) for place in range(ring.filled)]
                    ring.host = [to_host(slot, self.device) for slot in slots]
                    ring.buffers = None

    def put_away(self, tensors: list[Tensor]) -> list[Tensor]:
        """The same on the host, to be there when the device is told to fetch them."""
        homes = [torch.empty_like(t, device="cpu", pin_memory=self.device.type == "cuda") for t in tensors]
        for home, tensor in zip(homes, tensors):
            home.copy_(tensor, non_blocking=True)
        return homes

    def _bring(self, number: int, ring: KvRing) -> None:
        """Start the way of a block's past to the device, where it has one."""
        if not ring.host:
            self._arrivals[number] = None
            return
        place = self._brought[number] = self._next_place(ring)
        with self._side.bringing(place.free):
            for at, source in enumerate(ring.host):
                if at != ring.next:  # the newest will be written there
                    _copy(source, _slot(ring, place.buffers, at))
            self._arrivals[number] = self._side.arrival()

    def _next_place(self, ring: KvRing) -> _Place:
        """For what a ring has on the host. Places stay until `clear`, unless a group of fewer tiles comes: memory that
        is given back and asked for again, block by block, makes whoever asks wait for the device."""
        assert ring.host
        windows, slices = ring.host[0][0].shape[2], ring.slots
        kept = self._places[0].buffers[0] if self._places else None
        if kept is not None and (kept.shape[0], kept.shape[2]) != (len(ring.host[0][0]), slices * windows):
            self._side.await_moment(self._side.departure())
            self._places.clear()
        if len(self._places) < _AT_ONCE:
            self._places.append(_Place(ring.room_for(self.device), self._side.computed()))
            self._turn = len(self._places) - 1
        else:
            self._turn = (self._turn + 1) % _AT_ONCE
        return self._places[self._turn]

    def _take(self, ring: KvRing, place: _Place | None) -> None:
        """What is new in a ring goes to the host, and leaves its place."""
        assert ring.buffers is not None
        if ring.host is None:
            ring.host = [to_host(_slot(ring, ring.buffers, at), self.device) for at in range(ring.filled)]
            return
        newest = (ring.next - 1) % ring.slots
        fresh = _slot(ring, ring.buffers, newest)
        if newest == len(ring.host):
            ring.host = [*ring.host, _like(fresh, self.device)]
        with self._side.taking():
            _copy(fresh, ring.host[newest])
        if place is not None:
            place.free = self._side.departure()

    def _pack(self) -> None:
        for block in self.blocks:
            self._host.append(pinned(_join(block.stored()).cpu(), self.device))
            _let_be(block, self._host[-1])
            for part in (block.cross_attn.k, block.cross_attn.v):
                part.cpu()
        # Modulation and the prompt's keys and values were computed when the model was loaded.
        for module in (self.dit.text_embedding, self.dit.time_embedding, self.dit.time_projection):
            module.cpu()

    def _open_slots(self, count: int) -> None:
        """Let blocks' parameters be views of `count` device tensors."""
        for block, host in zip(self.blocks, self._host):  # what they were views of is free then
            _let_be(block, host)
        self._slots = []
        self._slots = [torch.empty_like(self._host[0], device=self.device) for _ in range(count)]
        for number, block in enumerate(self.blocks):
            _let_be(block, self._slots[number % count])

    def _open_all(self) -> None:
        """Room on the device in every slot."""
        for slot in self._slots:
            slot.untyped_storage().resize_(slot.numel() * slot.element_size())
        self._slots_free = [self._side.computed()] * len(self._slots)  # by whatever used that memory before
        self._holds = [None] * len(self._slots)

    def _bring_weights(self, start: int, stop: int) -> None:
        """Start the way of these blocks' weights to the device; each block waits for its own. Not earlier than needed:
        what else the first blocks wait for would come after them."""
        for number in range(start, min(stop, len(self.blocks))):
            slot = number % len(self._slots)
            if self._holds[slot] != number:
                with self._side.bringing(self._slots_free[slot]):
                    self._slots[slot].copy_(self._host[number], non_blocking=True)
                    self._weights_arrivals[number] = self._side.arrival()
                self._holds[slot] = number


Slot = tuple[Tensor, Tensor, Tensor]


def to_host(tensors: Slot, device: torch.device) -> Slot:
    """The same in memory of the host that the device can reach by itself; waits until they are there."""
    homes = _like(tensors, device)
    for home, tensor in zip(homes, tensors):
        home.copy_(tensor)
    return homes


def _copy(source: Slot, target: Slot) -> None:
    """Between device and host, batch by batch and head by head: these lie together in memory, so that only the copy
    engine is needed. What does not is copied by a kernel first, which waits for a place among those that compute."""
    for origin, place in zip(source, target):
        for one, other in zip(origin.unbind(), place.unbind()):
            for head, room in zip(one.unbind(), other.unbind()):
                room.copy_(head, non_blocking=True)


def _like(tensors: Slot, device: torch.device) -> Slot:
    k, v, pooled = (torch.empty(t.shape, dtype=t.dtype, pin_memory=device.type == "cuda") for t in tensors)
    return k, v, pooled


def _slot(ring: KvRing, buffers: Slot, place: int) -> Slot:
    """Views of one slice's keys, values and pooled keys."""
    windows = buffers[0].shape[2] // ring.slots
    return span(buffers, place * windows, windows)


def _join(tensors: list[Tensor]) -> Tensor:
    """Bytes of all tensors, one after the other, where `_split` finds them."""
    parts = []
    for tensor in tensors:
        flat = tensor.detach().contiguous().flatten().view(torch.uint8)
        parts += [flat, flat.new_zeros(-len(flat) % _ALIGNED)]
    return torch.cat(parts)


def _split(flat: Tensor, like: list[Tensor]) -> list[Tensor]:
    """Tensors of these shapes and types, as views of `flat`."""
    begin, found = 0, []
    for tensor in like:
        count = tensor.numel() * tensor.element_size()
        found.append(flat[begin : begin + count].view(tensor.dtype).view(tensor.shape))
        begin += count + -count % _ALIGNED
    return found


def _let_be(block: Block, flat: Tensor) -> None:
    """Make what a block computes with views of `flat`."""
    block.restore(_split(flat, block.stored()))
