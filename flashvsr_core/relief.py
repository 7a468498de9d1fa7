"""What is done when the device runs out of memory: a step is undone and made again with less of it on the device.

Only measures that change no pixel are taken here, each for the part of a step that needs it; where none is left,
`OutOfMemory` says so, and whoever drives the segment may make it anew in tiles.
"""

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import torch

from flashvsr_core.errors import OutOfMemory
from flashvsr_core.geometry import WINDOW_PIXELS
from flashvsr_core.offload import LEVELS, Offload, Offloader, at_least
from flashvsr_core.picture import Group, Painter, PictureState, mark, restore
from flashvsr_core.tiling import Tile

log = logging.getLogger(__name__)

Stage = Literal["enlarge", "noise", "dit", "decoder", "color"]
Result = TypeVar("Result")
_LEAST_TILE = 2 * WINDOW_PIXELS
# With more, what all strips attend to is nearly all that is left.
STRIPS = (1, 2, 4, 8)
LEAST_WINDOWS = 32  # of a strip: with fewer, blocks take longer than what is saved is worth (tests/bench/memory.md)


@dataclass(frozen=True)
class Placement:
    """Where things are while one picture is computed, and how much of it at once; no pixel depends on it."""

    offload: Offload = "none"
    decoder_tile: int | None = None
    """Pixels a side of the parts that are decoded one after the other; None: the whole picture."""
    batch: int = 1
    """Tiles of the DiT that are computed at once, at most."""
    resident: int = 0
    """Blocks of the DiT whose keys and values stay on the device although `offload` is "kv"."""
    strips: int = 1
    """Parts of a picture, or tile, that a block of the DiT works on one after the other. They see each other's keys and
    values, so that they do not show."""


class Relief:
    """Carries out the parts of steps, and finds a way when memory runs out. `placement` is what works at present."""

    def __init__(self, painter: Painter, placement: Placement, frames_at_once: int) -> None:
        self.painter, self.placement, self.frames_at_once = painter, placement, frames_at_once
        self.taken: list[str] = []  # sentences, in order
        painter.strips = placement.strips

    @property
    def offloader(self) -> Offloader:
        return self.painter.offloader

    def run(self, stage: Stage, state: PictureState, work: Callable[[], Result]) -> Result:
        """What `work` returns; on failure `state` is put back and `work` called again."""
        # Another stream of the same model, that of the transparency, may have sent more away.
        self.placement = replace(self.placement, offload=self.offloader.level, resident=self.offloader.resident)
        while True:
            before = mark(state)
            try:
                return work()
            except torch.OutOfMemoryError as error:
                reason = str(error).split(". ")[0]
            # Outside of the handler: the error holds the frames it came through, and they hold tensors.
            if state.halfway:
                raise OutOfMemory(stage, f"{reason}; the decoder's memory was half overwritten")
            restore(state, before)
            self.offloader.clear()
            measure = next(self._measures(stage, state), None)
            if measure is None:
                raise OutOfMemory(stage, reason)
            what, take = measure
            take()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self.taken.append(f"out of memory in {stage}: {what} (no pixel changes)")
            log.warning("%s: %s", reason, self.taken[-1])

    def _measures(self, stage: Stage, state: PictureState) -> Iterator[tuple[str, Callable[[], None]]]:
        """What may be done, the mildest first."""
        if stage == "dit" and (most := state.at_once) > 1:
            yield f"{most // 2} tiles at once instead of {most}", lambda: self._halve(state, most // 2)
        most = strips_of(self.painter.tiles[0])[-1]
        if stage == "dit" and self.placement.strips < most:
            yield f"blocks of the DiT work on {most} strips one by one", lambda: self._cut_blocks(most)
        if stage in ("enlarge", "color") and self.frames_at_once > 1:
            yield f"{self.frames_at_once // 2} frames at once", self._halve_frames
        if stage != "dit" and self.placement.offload == "none":
            yield "the DiT leaves the device while frames are decoded", lambda: self.offload("dit")
        largest = max(max(tile.height, tile.width) for tile in state.decoder_tiles)
        size = half_side(largest)
        finer = f"frames are decoded in parts of {size} pixels", lambda: self._cut(state, size)
        if stage == "decoder" and len(state.decoder_tiles) == 1 and largest > _LEAST_TILE:
            yield finer
        if self.placement.resident:
            yield "the last keys and values of the past go to the host", lambda: self.offload("kv")
        for level, what in (("kv", "keys and values of the past go to the host"),
                            ("weights", "the DiT's weights come block by block")):  # fmt: skip
            if LEVELS.index(self.placement.offload) < LEVELS.index(level):
                yield what, lambda level=level: self.offload(level)  # type: ignore[misc]
        if stage == "dit" and self.placement.strips > 1 and self.frames_at_once > 1:  # they are enlarged there then
            yield f"{self.frames_at_once // 2} frames at once", self._halve_frames
        if stage == "decoder" and largest > _LEAST_TILE:  # the slower the smaller they are, so this comes last
            yield finer

    def _halve(self, state: PictureState, most: int) -> None:
        """Compute at most `most` tiles at once from now on, in streams to come too."""
        self.split(state, most)
        self.placement = replace(self.placement, batch=most)

    def split(self, state: PictureState, most: int) -> None:
        """Compute at most `most` tiles at once in this stream, until `join`."""
        while state.at_once > most:
            split: list[Group] = []
            for group in state.groups:
                split += group.halves() if len(group.tiles) > most else [group]
            state.groups = split

    def join(self, state: PictureState, most: int) -> None:
        """Compute neighbouring groups at once again, at most `most` tiles. Where keys and values are on the host, the
        groups stay: to copy them would take longer than it gains."""
        if at_least(self.offloader.level, "kv"):
            return
        joined: list[Group] = []
        try:
            for group in state.groups:
                fits = joined and len(joined[-1].tiles) + len(group.tiles) <= most
                joined.append(joined.pop().joined(group) if fits else group)
        except torch.OutOfMemoryError as error:
            log.info("tiles are not joined: %s", error)
            return
        state.groups = joined

    def offload(self, level: Offload) -> None:
        self.offloader.set_level(level)
        self.placement = replace(self.placement, offload=level, resident=0)

    def _cut_blocks(self, strips: int) -> None:
        self.painter.strips = strips
        self.placement = replace(self.placement, strips=strips)

    def _halve_frames(self) -> None:
        self.frames_at_once //= 2

    def _cut(self, state: PictureState, size: int) -> None:
        self.painter.cut_decoder(state, size)
        self.placement = replace(self.placement, decoder_tile=size)


def strips_of(tile: Tile) -> list[int]:
    """Numbers of strips that a picture, or a tile of it, may be worked on in."""
    windows = math.prod(tile.windows)
    return [strips for strips in STRIPS if strips == 1 or windows // strips >= LEAST_WINDOWS]


def half_side(pixels: int) -> int:
    """Side of decoder tiles that cut so many pixels in two."""
    return max(_LEAST_TILE, -(-pixels // (2 * WINDOW_PIXELS)) * WINDOW_PIXELS)
