"""The size a result is delivered in, and the pixel shape that keeps the picture's shape."""

import re
from fractions import Fraction

from flashvsr_core.errors import UserError
from tasks.media.probe import VideoInfo

TARGET = re.compile(r"(?P<width>\d{1,5})x(?P<height>\d{1,5})|(?P<lines>\d{1,5})p")
LARGEST = 32768  # pixels a side; codecs bound it further
# A target of whole pixels hardly ever has the source's exact shape: closer than this, pixels are called square.
SQUARE = Fraction(1, 200)


def parse_target(text: str) -> tuple[int | None, int] | None:
    """'3840x2160' -> (3840, 2160), '2160p' -> (None, 2160), '' -> None; raises UserError for anything else."""
    if not text:
        return None
    match = TARGET.fullmatch(text)
    if match is None:
        raise UserError(f"target size {text!r} is not WIDTHxHEIGHT such as 3840x2160, or HEIGHTp such as 2160p")
    width, height = (int(match["width"]), int(match["height"])) if match["width"] else (None, int(match["lines"]))
    if not 1 <= height <= LARGEST or not 1 <= (width or 1) <= LARGEST:
        raise UserError(f"target size {text!r} is out of range; sides are 1 to {LARGEST} pixels")
    return width, height


def target_pixels(info: VideoInfo, text: str) -> tuple[int, int] | None:
    """Width and height in pixels as coded (before rotation) of a target named as displayed; None: none was named.

    With HEIGHTp the width follows the displayed shape, pixels square, rounded to an even number.
    """
    target = parse_target(text)
    if target is None:
        return None
    width, height = target
    turned = info.rotation % 180 != 0
    if width is None:
        shape = Fraction(info.width, info.height) * Fraction(*info.sample_aspect_ratio)
        shape = 1 / shape if turned else shape
        width = max(2, 2 * round(height * shape / 2))
    return (height, width) if turned else (width, height)


def sample_aspect_ratio(info: VideoInfo, width: int, height: int) -> Fraction:
    """Width : height of one pixel such that an output of this size (as coded) is shown in the source's shape."""
    shape = Fraction(info.width, info.height) * Fraction(*info.sample_aspect_ratio)
    found = shape / Fraction(width, height)
    if (width % info.width or height % info.height) and abs(found - 1) <= SQUARE:
        return Fraction(1)
    return found.limit_denominator(10_000)
