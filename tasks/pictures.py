"""Pictures for the report: source, enlarged the plain way, and result, small enough to be carried in a page."""

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from tasks.quality import Sight

WIDEST = 1600  # pixels; wider results are shown smaller
DETAIL = (480, 300)  # pixels of the detail that is shown as it is
LARGEST = 300_000  # bytes of one picture
QUALITIES = (86, 76, 62, 45, 30)


@dataclass(frozen=True)
class Pair:
    """The same picture before and after, as data URIs, `width` x `height`."""

    before: str
    after: str
    width: int
    height: int


@dataclass(frozen=True)
class Comparison:
    """One frame: the whole of it, and its most detailed part pixel by pixel."""

    frame: int
    whole: Pair
    detail: Pair | None


def comparison(sight: Sight) -> Comparison:
    """The source enlarged by bicubic interpolation against the result."""
    result = Image.fromarray(sight.result)
    source = Image.fromarray(sight.source).resize(result.size, Image.Resampling.BICUBIC)
    wide = min(1.0, WIDEST / result.width)
    size = (max(1, round(result.width * wide)), max(1, round(result.height * wide)))
    whole = _pair(source.resize(size, Image.Resampling.LANCZOS), result.resize(size, Image.Resampling.LANCZOS))
    detail = None
    if result.width > DETAIL[0] and result.height > DETAIL[1]:
        left, top = liveliest(np.asarray(source.convert("L")), DETAIL)
        box = (left, top, left + DETAIL[0], top + DETAIL[1])
        detail = _pair(source.crop(box), result.crop(box))
    return Comparison(sight.frame, whole, detail)


def liveliest(luma: np.ndarray, size: tuple[int, int]) -> tuple[int, int]:
    """Left and top of the part of `size` (width, height) in which H W `luma` varies most."""
    width, height = size
    edges = (
        np.abs(np.diff(luma.astype(np.float32), axis=1))[:-1] + np.abs(np.diff(luma.astype(np.float32), axis=0))[:, :-1]
    )
    total = np.pad(edges.cumsum(0, dtype=np.float64).cumsum(1), ((1, 0), (1, 0)))
    rows, columns = edges.shape
    tops = np.arange(0, max(1, rows - height), 8)[:, None]
    lefts = np.arange(0, max(1, columns - width), 8)[None]
    bottoms, rights = np.minimum(tops + height, rows), np.minimum(lefts + width, columns)
    sums = total[bottoms, rights] - total[tops, rights] - total[bottoms, lefts] + total[tops, lefts]
    row, column = np.unravel_index(int(sums.argmax()), sums.shape)
    return int(lefts[0, column]), int(tops[row, 0])


def _pair(before: Image.Image, after: Image.Image) -> Pair:
    return Pair(_data_uri(before), _data_uri(after), after.width, after.height)


def _data_uri(picture: Image.Image) -> str:
    """WebP, of falling quality until it is small enough."""
    data = b""
    for quality in QUALITIES:
        file = io.BytesIO()
        picture.save(file, "WEBP", quality=quality, method=2)
        data = file.getvalue()
        if len(data) <= LARGEST:
            break
    return f"data:image/webp;base64,{base64.b64encode(data).decode()}"
