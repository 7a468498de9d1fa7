"""One call of `Upscaler.stream`: how far it has come, and its steps from frames on the host to frames on the host."""

import logging
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, islice, repeat
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from flashvsr_core import memory
from flashvsr_core.color import CORRECTIONS
from flashvsr_core.cuts import MarkedFrame
from flashvsr_core.geometry import Geometry, TileSize
from flashvsr_core.layout import Planes
from flashvsr_core.noise import NoiseAhead
from flashvsr_core.picture import Painter, PictureState
from flashvsr_core.pixels import Pack, crop
from flashvsr_core.relief import Relief, Result, Stage
from flashvsr_core.segments import FIRST_READ, GRID, STEP
from flashvsr_core.steady import Steady
from flashvsr_core.stream import LATENT_PIXELS, latents_of
from flashvsr_core.tiling import tiles_of
from flashvsr_core.transfer import Arriving, send, to_device

if TYPE_CHECKING:
    from flashvsr_core.upscaler import Upscaler

log = logging.getLogger(__name__)

# A third more than a batch of tiles is expected to need must be free, or fewer are computed at once.
_ROOM = 4 / 3
_RECORDING_ROOM = 1.25  # of what a stream takes; recordings took 5 % more on an H100 (tests/bench/speed.md)


class Run:
    """Geometry, tiles, what works in this memory, and how far the call has come."""

    def __init__(
        self, upscaler: "Upscaler", geometry: Geometry, pack: Pack, on_fallback: Callable[[str], None] | None
    ) -> None:
        self.upscaler = upscaler
        self.params, self.device, self.dtype = upscaler.params, upscaler.device, upscaler.dtype
        self.geometry = geometry
        self.pack = pack
        self.on_fallback = on_fallback
        self.emitted_to = 0
        self.stage = upscaler.stage
        tile, overlap = tiles_of(self.params)
        sparsity = upscaler.sparsity(geometry)
        painter = Painter(upscaler.net, upscaler.offloader, geometry, sparsity, self.params.local_range, tile, overlap)
        at_once = memory.frames_at_once(geometry.padded_height * geometry.padded_width, upscaler.placement)
        self.relief = Relief(painter, upscaler.placement, at_once)
        self.steady: Steady | None = None
        if painter.is_recordable and upscaler.placement.offload == "none" and self._has_room(tile, overlap):
            self.steady = upscaler.steady(geometry, partial(bare_step, painter, at_once))
        latent_size = (geometry.padded_height // LATENT_PIXELS, geometry.padded_width // LATENT_PIXELS)
        shape = (upscaler.spec.dit.in_dim, *latent_size)
        self.noise = NoiseAhead(self.params.seed, shape, self.device)

    def _has_room(self, tile: TileSize | None, overlap: int) -> bool:
        """Whether recordings, whose working memory is their own, surely fit beside a stream."""
        available = memory.available_bytes(self.device)
        if available is None:
            return True
        upscaler = self.upscaler
        foreseen = memory.estimate(
            upscaler.spec, self.params, self.geometry, "cuda", upscaler.placement, tile, overlap
        ).device_bytes
        return available + torch.cuda.memory_allocated(self.device) >= _RECORDING_ROOM * foreseen

    def done(self, stop: int | None) -> bool:
        return stop is not None and self.emitted_to >= stop

    def shot(self, shot: Iterator[MarkedFrame], start: int, stop: int | None) -> Iterator[np.ndarray | Planes]:
        """Stream one scene from the grid point at or below its first frame; emit what lies in [start, stop)."""
        waiting: Arriving | None = None
        for emission in self._emissions(shot, start, stop):
            # A GPU works on this step while the frames of the one before are taken off it.
            if waiting is not None:
                yield waiting.take()
            waiting = emission
            if self.device.type != "cuda":
                yield waiting.take()
                waiting = None
        if waiting is not None:
            yield waiting.take()

    def _emissions(self, shot: Iterator[MarkedFrame], start: int, stop: int | None) -> Iterator[Arriving]:
        opening = next(shot)
        origin = opening.index // GRID * GRID
        lead = repeat(opening.pixels, opening.index - origin)
        pixels = chain(lead, [opening.pixels], (frame.pixels for frame in shot))
        start = max(start, opening.index)
        placement = self.relief.placement
        state = self.relief.painter.open(self.params.kv_ratio, origin, placement.batch, placement.decoder_tile)
        if self.steady is not None:
            self.steady.begin(state)
        position, end, last = origin, origin, opening.pixels
        want = FIRST_READ
        while True:
            read = list(islice(pixels, want))
            end += len(read)
            last = read[-1] if read else last
            read += [last] * (want - len(read))
            self._fit(state)
            decoded, condition = self._step(state, read)
            # The input may end with a full read; the next one is then empty and known to be the end.
            low, high = max(start, position), min(end, position + decoded.shape[2], stop or end)
            while low < high:
                count = min(high - low, self.relief.frames_at_once)
                part = slice(low - position, low - position + count)
                made, sent = self._send(state, decoded[:, :, part], condition[:, :, part], low)
                yield sent
                low += made  # fewer where memory ran out
            position += decoded.shape[2]
            del decoded, condition
            self.emitted_to = min(position, end)
            if position >= end or self.done(stop):
                return
            want = STEP

    @torch.inference_mode()
    def _step(self, state: PictureState, frames: list[np.ndarray]) -> tuple[Tensor, Tensor]:
        """One step: the decoded frames, 1 3 T H W of the padded picture, and the input they were made from. Nothing
        waits for the device."""
        run = self._run
        with self.stage("fetch"):
            pixels = run("enlarge", state, lambda: to_device(frames, self.device))
        with self.stage("noise"):
            count = latents_of(len(frames), first_step=state.waiting is None)
            following = latents_of(STEP, first_step=False)
            noise = run("noise", state, lambda: self.noise.take(state.next_latent, count, following).to(self.dtype))
        if self.steady is None or self.relief.offloader.level != "none":
            return self._computed(state, pixels, noise)
        return self.steady.step(state, pixels, noise, self._computed)

    def _computed(self, state: PictureState, pixels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """`bare_step`, made again where memory runs out."""
        run, painter = self._run, self.relief.painter

        def made() -> Tensor:
            return enlarged(pixels, painter, self.relief.frames_at_once)

        with self.stage("enlarge"):
            kept = run("enlarge", state, made) if painter.strips == 1 else None
        with self.stage("model"):
            condition, latents = run(
                "dit", state, lambda: painter.latents(state, made if kept is None else lambda: kept, noise)
            )
            return run("decoder", state, lambda: painter.decode(state, latents, condition)), condition

    @torch.inference_mode()
    def _send(self, state: PictureState, decoded: Tensor, condition: Tensor, first: int) -> tuple[int, Arriving]:
        """Frames from `first` on, colour-corrected and cropped, on their way to the host, and how many: the first of
        those given where memory suffices for fewer."""

        def made() -> tuple[int, Arriving]:
            most = self.relief.frames_at_once
            with self.stage("color"):
                out, reference = (
                    crop(x[0, :, :most].transpose(0, 1).float(), self.geometry) for x in (decoded, condition)
                )
                frames = CORRECTIONS[self.params.color_fix](out, reference)
                finite = _finite(out)
            with self.stage("send"):
                return len(frames), send(frames, finite, self.pack, first, self.params.precision)

        return self._run("color", state, made)

    def _run(self, stage: Stage, state: PictureState, work: Callable[[], Result]) -> Result:
        """`Relief.run`; what it had to do is told, and later streams begin with it."""
        before = len(self.relief.taken)
        try:
            return self.relief.run(stage, state, work)
        finally:
            if taken := self.relief.taken[before:]:
                self.upscaler.placement = self.relief.placement
                if self.steady is not None:  # recordings take memory too, and weights may have moved
                    self.steady.stop(taken[-1])
            for text in taken:
                if self.on_fallback is not None:
                    self.on_fallback(text)

    @torch.inference_mode()
    def _fit(self, state: PictureState) -> None:
        """Compute fewer tiles at once where other programs, or other streams, have taken memory, and as many as were
        planned when it is free again."""
        planned = self.relief.placement.batch
        available = memory.available_bytes(self.device) if planned > 1 and len(self.relief.painter.tiles) > 1 else None
        if available is None:
            return
        tile = self.relief.painter.tiles[0]
        slices = 3 if state.waiting is None else 1
        element = self.dtype.itemsize
        need = memory.dit_activations(self.upscaler.spec, tile.height * tile.width, slices, element, "cuda")
        fitting = min(planned, max(1, int(available / (need * _ROOM))))
        before = state.at_once
        if fitting < before:
            self.relief.split(state, fitting)
        elif fitting > before and state.carried_bytes <= available:
            self.relief.join(state, fitting)
        if state.at_once != before:
            log.info("%d tiles at once instead of %d: %d MiB are free", state.at_once, before, available >> 20)


def _finite(frames: Tensor) -> Tensor:
    """T 3 H W -> bool of each frame: a sum is NaN or infinite where one number is, and is found in one pass, without a
    picture of bools."""
    return frames.sum(dim=(1, 2, 3), dtype=torch.float32).isfinite()


def bare_step(
    painter: Painter, at_once: int, state: PictureState, pixels: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """One step from pixels T H W 3 on the device, `at_once` of which are enlarged at once. Returns the decoded frames,
    1 3 T H W of the padded picture, and the input they were made from."""
    condition, latents = painter.latents(state, lambda: enlarged(pixels, painter, at_once), noise)
    return painter.decode(state, latents, condition), condition


def enlarged(pixels: Tensor, painter: Painter, at_once: int) -> Tensor:
    """1 3 T H W float32 in [-1, 1], padded; some frames after the other where all at once would be large."""
    geometry, enlarge = painter.geometry, painter.sparsity.kernels.enlarge
    if len(pixels) <= at_once:
        return enlarge(pixels, geometry).transpose(0, 1)[None]
    out = torch.empty((len(pixels), 3, geometry.padded_height, geometry.padded_width), device=pixels.device)
    for target, part in zip(out.split(at_once), pixels.split(at_once)):
        target.copy_(enlarge(part, geometry))
    return out.transpose(0, 1)[None]
