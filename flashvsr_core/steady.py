"""Steady steps that are recorded once and then replayed: on GPUs as CUDA graphs, which the host launches in one call.

A stream's later steps differ in numbers only, and in the slot of the ring that they write: one recording per slot.
Recordings read and write the same tensors every time, so one stream at a time may use them; any other computes as ever.
"""

import gc
import logging
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor

from flashvsr_core.models.kv_ring import RingBuffers
from flashvsr_core.picture import PictureState
from flashvsr_core.stream import StreamState

log = logging.getLogger(__name__)

Body = Callable[[PictureState, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(state, pixels T H W 3, noise 1 C F h w) -> (decoded, condition), both 1 3 T H W: a step of one picture."""


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
    decoded: Tensor
    condition: Tensor


class Steady:
    """Steps of streams of one geometry. What is recorded of `body` is replayed where that is possible: in pictures that
    are one tile, with everything on the device.

    `replayed` counts; `failed` says why nothing is recorded any more.
    """

    def __init__(self, body: Body, recorder: Recorder) -> None:
        self.body, self.recorder = body, recorder
        self.replayed = 0
        self.failed: str | None = None
        self._replays: dict[int, Callable[[], None]] = {}
        self._fixed: _Fixed | None = None
        self._warm: tuple[Tensor, Tensor] | None = None  # results of a step of the shapes that are recorded
        self._owner: Callable[[], PictureState | None] = lambda: None

    def begin(self, state: PictureState) -> None:
        """A new stream may use the recordings, unless another that does is still alive."""
        if self._owner() is not None:
            return
        self._owner = weakref.ref(state)
        if self._fixed is not None and self.failed is None and state.is_whole:
            for ring, buffers in zip(_stream(state).rings, self._fixed.rings):
                ring.spare = buffers

    def step(self, state: PictureState, pixels: Tensor, noise: Tensor, compute: Body) -> tuple[Tensor, Tensor]:
        """As `compute`, which does what `body` does and is used where nothing can be replayed. What is returned is
        overwritten by the next step."""
        if self.failed is not None or self._owner() is not state or not _is_steady(state):
            return compute(state, pixels, noise)
        if self._warm is None:  # compiles and chooses algorithms, which cannot be recorded
            made = compute(state, pixels, noise)
            self._warm = made if self.failed is None else None
            return made
        if not self._replay(state, pixels, noise):
            return compute(state, pixels, noise)
        assert self._fixed is not None
        self.replayed += 1
        return self._fixed.decoded, self._fixed.condition

    def stop(self, reason: str) -> None:
        """Let go of all recordings; every step is computed from now on."""
        self.failed = reason
        self._replays.clear()
        self._fixed = self._warm = None
        gc.collect()  # an error may hold what was being recorded

    def _replay(self, state: PictureState, pixels: Tensor, noise: Tensor) -> bool:
        """Make a steady step by a recording, which is made if there is none. Whether it was possible."""
        try:
            fixed = self._fix(state, pixels, noise)
            if fixed is None:
                return False
            stream = _stream(state)
            fixed.pixels.copy_(pixels)
            fixed.noise.copy_(noise)
            fixed.position.fill_(stream.next_latent)
            slot = stream.rings[0].next
            if slot in self._replays:
                _count(stream, noise.shape[2])
            else:
                self._replays[slot] = self._record(state, fixed)
        except RuntimeError as error:  # out of memory is one; what cannot be recorded is computed as ever
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
        else:
            self._replays[slot]()
            return True
        log.warning("steps are launched one kernel after the other, for they cannot be recorded: %s", reason)
        self.stop(reason)
        return False

    def _fix(self, state: PictureState, pixels: Tensor, noise: Tensor) -> _Fixed | None:
        """The recordings' tensors, holding this stream's state; None where it has other buffers or shapes."""
        if self._fixed is None:
            assert self._warm is not None
            rings = [cast(RingBuffers, ring.buffers) for ring in _stream(state).rings]
            position = torch.zeros((), dtype=torch.int64, device=pixels.device)
            self._fixed = _Fixed(rings, _carried(state), pixels.clone(), noise.clone(), position, *self._warm)
            return self._fixed
        fixed = self._fixed
        own = _carried(state)
        if any(ring.buffers is not buffers for ring, buffers in zip(_stream(state).rings, fixed.rings)):
            return None
        pairs = [*zip(fixed.carried, own, strict=True), (fixed.pixels, pixels), (fixed.noise, noise)]
        if any(place.shape != tensor.shape or place.dtype != tensor.dtype for place, tensor in pairs):
            return None
        for place, tensor in zip(fixed.carried, own):
            if place is not tensor:
                place.copy_(tensor)
        _carry(state, fixed.carried)
        return fixed

    def _record(self, state: PictureState, fixed: _Fixed) -> Callable[[], None]:
        """Record the step to come; the state is counted on, its tensors are not touched. On failure it is as before."""
        stream = _stream(state)

        def work() -> None:
            decoded, condition = self.body(state, fixed.pixels, fixed.noise)
            results = [*zip(fixed.carried, _carried(state)), (fixed.decoded, decoded), (fixed.condition, condition)]
            for place, tensor in results:
                if place.data_ptr() != tensor.data_ptr():
                    place.copy_(tensor)

        before = stream.next_latent, [(ring.filled, ring.next) for ring in stream.rings]
        stream.position = fixed.position
        try:
            return self.recorder.record(work)
        except RuntimeError:
            stream.next_latent, counts = before
            for ring, (filled, following) in zip(stream.rings, counts):
                ring.filled, ring.next = filled, following
            raise
        finally:
            stream.position = None
            _carry(state, fixed.carried)


def _stream(state: PictureState) -> StreamState:
    """That of the one tile."""
    return state.groups[0].stream


def _is_steady(state: PictureState) -> bool:
    """Whether the step to come is like all that follow it: not a stream's first, and its slice fills the rings."""
    return (
        state.is_whole
        and state.waiting is not None
        and state.memories[0] is not None
        and all(
            ring.buffers is not None and max(ring.filled, ring.next + 1) == ring.slots for ring in _stream(state).rings
        )
    )


def _count(stream: StreamState, latents: int) -> None:
    """What a step does to the stream beside its tensors."""
    for ring in stream.rings:
        ring.count()
    stream.next_latent += latents


def _carried(state: PictureState) -> list[Tensor]:
    """Every tensor of the state but the rings'."""
    lq, memory = _stream(state).lq, state.memories[0]
    assert lq is not None
    assert state.waiting is not None
    assert memory is not None
    return [*lq, state.waiting, *memory]


def _carry(state: PictureState, tensors: list[Tensor]) -> None:
    first, second, state.waiting, *memory = tensors
    _stream(state).lq, state.memories[0] = (first, second), memory
