"""The key/value cache of one block of the DiT."""

import torch
from torch import Tensor

from flashvsr_core.kernels.block_mask import pool

RingBuffers = tuple[Tensor, Tensor, Tensor]
"""Keys, values and pooled keys of all slots of a ring."""


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
        start = self.next * windows
        k, v, pooled = (buffer[:, :, start : start + windows] for buffer in self.buffers)
        return k, v, pooled

    def advance(self, windows: int) -> tuple[Tensor, Tensor, Tensor]:
        """Count the slice that was written into `room`; return all visible keys, values and pooled keys."""
        assert self.buffers is not None
        self.count()
        visible = self.filled * windows
        keys, values, pooled = (buffer[:, :, :visible] for buffer in self.buffers)
        return keys, values, pooled

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
