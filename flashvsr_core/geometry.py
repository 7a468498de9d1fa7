"""Sizes of one job: input, output and what the model computes on."""

import re
from dataclasses import dataclass

from flashvsr_core.errors import UserError

WINDOW_PIXELS = 128  # one attention window: 8 tokens of 16 output pixels
_TILE = re.compile(r"(\d+)(?:x(\d+))?")


@dataclass(frozen=True)
class Geometry:
    """Picture sizes in pixels. The model makes exactly `scale` x the input and sees it padded right and bottom.

    The output is that, unless a `target` (width, height) is named, to which the model's picture is then resized.
    """

    width: int
    height: int
    scale: int
    target: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise UserError(f"picture size {self.width}x{self.height} is empty; the smallest picture is 1x1")
        if self.scale not in (2, 3, 4):
            raise UserError(f"scale {self.scale} is not supported; choose 2, 3 or 4")

    @property
    def out_width(self) -> int:
        return self.target[0] if self.target else self.width * self.scale

    @property
    def out_height(self) -> int:
        return self.target[1] if self.target else self.height * self.scale

    @property
    def padded_width(self) -> int:
        return _round_up(self.width * self.scale)

    @property
    def padded_height(self) -> int:
        return _round_up(self.height * self.scale)

    @property
    def windows(self) -> tuple[int, int]:
        """Attention windows of one slice: (rows, columns)."""
        return self.padded_height // WINDOW_PIXELS, self.padded_width // WINDOW_PIXELS


@dataclass(frozen=True)
class TileSize:
    """Height and width of a tile in pixels."""

    height: int
    width: int

    @classmethod
    def parse(cls, text: str) -> "TileSize":
        """`512` or `512x1024` (height x width), multiples of 128."""
        match = _TILE.fullmatch(text)
        sizes = [int(match[1]), int(match[2] or match[1])] if match else []
        if not match or any(size % WINDOW_PIXELS or size < 2 * WINDOW_PIXELS for size in sizes):
            raise UserError(
                f"tile_size {text!r} is not a size or HEIGHTxWIDTH in multiples of {WINDOW_PIXELS} from "
                f"{2 * WINDOW_PIXELS} on; try 768 or 768x1280"
            )
        return cls(*sizes)

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"


def _round_up(size: int) -> int:
    return -(-size // WINDOW_PIXELS) * WINDOW_PIXELS
