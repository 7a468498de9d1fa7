"""The key/value cache of one block of the DiT."""

import torch
from torch import Tensor

from flashvsr_core.kernels.block_mask import pool
from flashvsr_core.kernels.token_ops import WINDOW_TOKENS

RingBuffers = tuple[Tensor, Tensor, Tensor]
"""Keys, values and pooled keys of all slots of a ring."""


def span(buffers: RingBuffers, start: int, count: int) -> RingBuffers:
    """Views of `count` windows from `start` on."""
    k, v, pooled = (buffer[:, :, start : start + count] for buffer in buffers)
    return k, v, pooled


class KvRing:
    """Keys and values one block remembers: `slots - 1` past slices and the current one, never concatenated.

    Order does not matter to attention, so the newest slice overwrites the oldest in place.
    """

    def __init__(self, history: int) -> None:
        self.slots = history + 1
        self.filled = 0
        self.next = 0
        self.buffers: RingBuffers | None = None
        self.spare: RingBuffers | None = None  # to be used if they fit, instead of new ones
        self.host: list[RingBuffers] | None = None  # slices, while they are off the device

    def push(self, k: Tensor, v: Tensor, windows: int) -> tuple[Tensor, Tensor, Tensor]:
        """Add a step's slices (B heads (slices*windows) 128 d); return all visible keys, values and pooled keys.

        A stream's first step sees its own slices only (3 of them); every later step brings one.
        """
        new = (k, v, pool(k))
        if self.buffers is None:
            self._open(new, k.shape[2] // windows, windows)
            return new
        for place, tensor in zip(self.room(windows) or (), new):
            place.copy_(tensor)
        return self.advance(windows)

    def room(self, windows: int) -> tuple[Tensor, Tensor, Tensor] | None:
        """Where the next slice's keys, values and pooled keys go; None in a stream's first step."""
        if self.buffers is None:
            return None
        return span(self.buffers, self.next * windows, windows)

    def first_room(self, count: int, windows: int, heads: int, like: Tensor) -> RingBuffers:
        """Where a stream's first step may write its `count` windows, then to be told to `begin`: in the ring itself
        where all of them are remembered. like: B _ (heads d), of their type."""
        batch, _, channels = like.shape
        vectors = like.new_empty((batch, heads, 0, WINDOW_TOKENS, channels // heads))
        new = vectors, vectors, vectors.new_empty((batch, heads, 0, channels // heads), dtype=torch.float32)
        if count // windows < self.slots:
            self.buffers, self.spare = self._fitting(new, windows), None
            return span(self.buffers, 0, count)
        k, v, pooled = (tensor.new_empty((batch, heads, count, *tensor.shape[3:])) for tensor in new)
        return k, v, pooled

    def begin(self, written: RingBuffers, windows: int) -> RingBuffers:
        """A stream's first step was written into what `first_room` gave; returns what is visible: all of it."""
        slices = written[0].shape[2] // windows
        if self.buffers is None:
            self._open(written, slices, windows)
        else:
            self.filled, self.next = slices, slices % self.slots
        return written

    def advance(self, windows: int) -> tuple[Tensor, Tensor, Tensor]:
        """Count the slice that was written into `room`; return all visible keys, values and pooled keys."""
        assert self.buffers is not None
        self.count()
        return span(self.buffers, 0, self.filled * windows)

    def count(self) -> None:
        """One more slice was written."""
        self.filled = max(self.filled, self.next + 1)
        self.next = (self.next + 1) % self.slots

    def room_for(self, device: torch.device) -> RingBuffers:
        """Empty buffers on the device for what lies on the host."""
        assert self.host, "there are slices on the host"
        k, v, pooled = (
            torch.empty((*t.shape[:2], self.slots * t.shape[2], *t.shape[3:]), dtype=t.dtype, device=device)
            for t in self.host[0]
        )
        return k, v, pooled

    def _open(self, new: RingBuffers, slices: int, windows: int) -> None:
        kept = min(slices, self.slots - 1)
        self.buffers, self.spare = self._fitting(new, windows), None
        for buffer, tensor in zip(self.buffers or (), new):
            buffer[:, :, : kept * windows].copy_(tensor[:, :, (slices - kept) * windows :])
        self.filled, self.next = kept, kept % self.slots

    def _fitting(self, new: RingBuffers, windows: int) -> RingBuffers:
        shapes = [(*t.shape[:2], self.slots * windows, *t.shape[3:]) for t in new]
        if self.spare is not None and all(
            old.shape == shape and old.dtype == t.dtype for old, shape, t in zip(self.spare, shapes, new)
        ):
            return self.spare
        k, v, pooled = (t.new_empty(shape) for t, shape in zip(new, shapes))
        return k, v, pooled
