"""Frames to the device and back while it works: pinned memory, and copies out on a stream of their own."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from flashvsr_core.errors import FlashvsrError
from flashvsr_core.layout import Planes
from flashvsr_core.pixels import Pack


def to_device(frames: Sequence[np.ndarray], device: torch.device) -> Tensor:
    """Frames H W 3 of one type -> T H W 3 on the device; returns before they are there."""
    stacked = torch.from_numpy(np.stack(frames))
    return fetched(pinned(stacked, device), device)


def fetched(x: Tensor, device: torch.device) -> Tensor:
    """Pinned `x` on the device; returns before it is there. A GPU fetches it beside the work that is queued before."""
    if device.type != "cuda":
        return x.to(device)
    now, side = torch.cuda.current_stream(device), _side_stream(device, "in")
    with torch.cuda.stream(side):
        found = x.to(device, non_blocking=True)
    now.wait_stream(side)
    found.record_stream(now)
    return found


def pinned(x: Tensor, device: torch.device) -> Tensor:
    """A copy that `device` can fetch by itself, where that is a GPU."""
    if device.type != "cuda":
        return x
    with torch.cuda.device(device):  # otherwise it is the first GPU that is made to know the copy
        return x.pin_memory()


@dataclass(frozen=True)
class Arriving:
    """Emitted frames, the first of them number `first` of the video, that may still be on their way to the host."""

    first: int
    precision: str
    pack: Pack
    planes: tuple[Tensor, ...]  # on the host
    finite: Tensor  # on the host: bool per frame
    sources: tuple[Tensor, ...]  # what is being copied; must live until it has arrived
    arrived: torch.cuda.Event | None

    def take(self) -> np.ndarray | Planes:
        """Wait for the frames; raises FlashvsrError where the model gave NaN or infinity."""
        if self.arrived is not None:
            self.arrived.synchronize()
        if not self.finite.all():
            bad = self.first + int(self.finite.logical_not().nonzero()[0])
            raise FlashvsrError(
                f"frame {bad} came out of the model as NaN or infinity in {self.precision}; try --precision fp32"
            )
        return self.pack.arrange([plane.numpy() for plane in self.planes])


def send(frames: Tensor, finite: Tensor, pack: Pack, first: int, precision: str) -> Arriving:
    """Quantise float frames T 3 H W in [-1, 1] and start copying them to the host; `finite`: bool per frame."""
    planes = pack.quantise(frames)
    if not frames.is_cuda:
        return Arriving(first, precision, pack, planes, finite, (), None)
    sources = (*planes, finite)
    side = _side_stream(frames.device, "out")
    side.wait_stream(torch.cuda.current_stream(frames.device))
    with torch.cuda.stream(side):
        targets = [torch.empty(x.shape, dtype=x.dtype, pin_memory=True) for x in sources]
        for target, source in zip(targets, sources):
            target.copy_(source, non_blocking=True)
        arrived = torch.cuda.Event(blocking=True)  # whoever waits leaves the processor to the encoder
        arrived.record(side)
    return Arriving(first, precision, pack, tuple(targets[:-1]), targets[-1], sources, arrived)


@lru_cache(maxsize=32)
def _side_stream(device: torch.device, way: Literal["in", "out"]) -> torch.cuda.Stream:
    """One stream for each way, so that neither waits for the other."""
    return torch.cuda.Stream(device)
