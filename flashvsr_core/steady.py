"""Steady steps that are recorded once and then replayed: on GPUs as CUDA graphs, which the host launches in one call.

A stream's later steps differ in numbers only, and in the slot of the ring that they write: one recording per slot.
Recordings read and write the same tensors every time, so one stream at a time may use them; any other computes as ever.
"""

import gc
import logging
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from flashvsr_core.models.dit import RingBuffers
from flashvsr_core.stream import StreamState

log = logging.getLogger(__name__)

Body = Callable[[StreamState, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(state, pixels T H W 3, noise B C F h w) -> (frames T 3 H W, bool per frame): a whole step on one device."""


class Recorder(Protocol):
    """Notes what is launched, without running it."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """What is returned runs what `work` launched, on the tensors that it was launched on."""


class CudaGraphs:
    """Recorder of one GPU. All its graphs share their working memory, for they run one after the other."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        # Threads beside this one draw noise and pin memory; what they do must not end the recording.
        with (
            torch.cuda.device(self.device),
            torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"),
        ):
            work()
        return cast(Callable[[], None], graph.replay)


@dataclass(frozen=True)
class _Fixed:
    """The tensors that recordings read and write."""

    rings: list[RingBuffers]
    carried: list[Tensor]
    pixels: Tensor
    noise: Tensor
    position: Tensor
    frames: Tensor
    finite: Tensor


class Steady:
    """Steps of streams of one geometry, by `body`: recorded and replayed where that is possible, else computed anew.

    `replayed` counts; `failed` says why nothing is recorded any more.
    """

    def __init__(self, body: Body, recorder: Recorder) -> None:
        self.body, self.recorder = body, recorder
        self.replayed = 0
        self.failed: str | None = None
        self._replays: dict[int, Callable[[], None]] = {}
        self._fixed: _Fixed | None = None
        self._warm: tuple[Tensor, Tensor] | None = None  # results of a step of the shapes that are recorded
        self._owner: Callable[[], StreamState | None] = lambda: None

    def begin(self, state: StreamState) -> None:
        """A new stream may use the recordings, unless another that does is still alive."""
        if self._owner() is not None:
            return
        self._owner = weakref.ref(state)
        if self._fixed is not None:
            for ring, buffers in zip(state.rings, self._fixed.rings):
                ring.spare = buffers

    def step(self, state: StreamState, pixels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """As `body`. The frames are overwritten by the next step."""
        if self.failed is not None or self._owner() is not state or not _is_steady(state):
            return self.body(state, pixels, noise)
        if self._warm is None:  # compiles and chooses algorithms, which cannot be recorded
            self._warm = self.body(state, pixels, noise)
            return self._warm
        fixed = self._fix(state, pixels, noise)
        if fixed is None:
            return self.body(state, pixels, noise)
        fixed.pixels.copy_(pixels)
        fixed.noise.copy_(noise)
        fixed.position.fill_(state.next_latent)
        slot = state.rings[0].next
        if slot in self._replays:
            _count(state, noise.shape[2])
        elif not self._record(state, fixed, slot):
            return self.body(state, pixels, noise)
        self._replays[slot]()
        self.replayed += 1
        return fixed.frames, fixed.finite.clone()

    def _fix(self, state: StreamState, pixels: Tensor, noise: Tensor) -> _Fixed | None:
        """The recordings' tensors, holding this stream's state; None where it has other buffers or shapes."""
        if self._fixed is None:
            assert self._warm is not None
            frames, finite = self._warm
            rings = [cast(RingBuffers, ring.buffers) for ring in state.rings]
            position = torch.zeros((), dtype=torch.int64, device=pixels.device)
            self._fixed = _Fixed(rings, _carried(state), pixels.clone(), noise.clone(), position, frames, finite)
            return self._fixed
        fixed = self._fixed
        own = _carried(state)
        if any(ring.buffers is not buffers for ring, buffers in zip(state.rings, fixed.rings)):
            return None
        pairs = [*zip(fixed.carried, own, strict=True), (fixed.pixels, pixels), (fixed.noise, noise)]
        if any(place.shape != tensor.shape or place.dtype != tensor.dtype for place, tensor in pairs):
            return None
        for place, tensor in zip(fixed.carried, own):
            if place is not tensor:
                place.copy_(tensor)
        _carry(state, fixed.carried)
        return fixed

    def _record(self, state: StreamState, fixed: _Fixed, slot: int) -> bool:
        """Record the step that writes `slot`; the state is counted on, its tensors are not touched. Whether it was
        possible."""

        def work() -> None:
            frames, finite = self.body(state, fixed.pixels, fixed.noise)
            results = [*zip(fixed.carried, _carried(state)), (fixed.frames, frames), (fixed.finite, finite)]
            for place, tensor in results:
                if place.data_ptr() != tensor.data_ptr():
                    place.copy_(tensor)

        before = state.next_latent, [(ring.filled, ring.next) for ring in state.rings]
        state.position = fixed.position
        try:
            self._replays[slot] = self.recorder.record(work)
        except RuntimeError as error:  # out of memory is one; what cannot be recorded is computed as ever
            self.failed = f"{type(error).__name__}: {error}".splitlines()[0]
            log.warning("steps are launched one kernel after the other, for they cannot be recorded: %s", self.failed)
            state.next_latent, counts = before
            for ring, (filled, following) in zip(state.rings, counts):
                ring.filled, ring.next = filled, following
        finally:
            state.position = None
            _carry(state, fixed.carried)
        if self.failed is not None:
            self._replays.clear()
            gc.collect()  # the error held what was being recorded
        return self.failed is None


def _is_steady(state: StreamState) -> bool:
    """Whether the step to come is like all that follow it: not a stream's first, and its slice fills the rings."""
    return (
        state.waiting is not None
        and isinstance(state.decoder, list)
        and all(max(ring.filled, ring.next + 1) == ring.slots for ring in state.rings)
    )


def _count(state: StreamState, latents: int) -> None:
    """What a step does to the state beside its tensors."""
    for ring in state.rings:
        ring.count()
    state.next_latent += latents


def _carried(state: StreamState) -> list[Tensor]:
    """Every tensor of the state but the rings'."""
    assert state.lq is not None
    assert state.waiting is not None
    return [*state.lq, state.waiting, *state.decoder]


def _carry(state: StreamState, tensors: list[Tensor]) -> None:
    first, second, state.waiting, *memory = tensors
    state.lq, state.decoder = (first, second), cast(Any, memory)
