"""Comparisons of a source, enlarged by bicubic interpolation, with the result: frames, a video, a picture."""

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from flashvsr_core.errors import FlashvsrError, UserError
from flashvsr_core.geometry import Geometry
from flashvsr_core.pixels import enlarge, rgb_packer, yuv_packer
from tasks.media.decode import read_frames
from tasks.media.encode import EncodeParams, encode_segment, layout_of, resolve
from tasks.media.probe import VideoInfo, probe

Layout = Literal["side", "split"]
LINE = 2  # pixels of the line between the halves of a split
TILE = (480, 270)  # pixels of one tile of the picture
LABEL = 20  # pixels, height of letters
QUARTER = 90  # degrees
SEARCH = 4  # part of a tile by which the search for detail steps


@dataclass(frozen=True)
class Excerpt:
    """A few frames of the source, [start, stop), and what was made of them."""

    start: int
    stop: int
    info: VideoInfo  # of the source, trimmed to these frames
    result: Path


def choose(info: VideoInfo, excerpts: int, seconds: float) -> tuple[tuple[int, int], ...]:
    """Frames [start, stop) of excerpts, evenly spread and not overlapping."""
    if excerpts < 1 or seconds <= 0:
        raise UserError(f"{excerpts} excerpts of {seconds} s cannot be made; ask for at least 1 and more than 0 s")
    wanted = max(1, round(seconds * info.frame_rate[0] / info.frame_rate[1]))
    count = min(excerpts, info.frames)
    length = min(wanted, info.frames // count)
    middles = [info.frames * (2 * i + 1) / (2 * count) for i in range(count)]
    starts = [min(max(0, int(middle - length / 2)), info.frames - length) for middle in middles]
    return tuple((start, start + length) for start in starts)


def compared(source: Path, excerpt: Excerpt, scale: int) -> Generator[tuple[np.ndarray, np.ndarray], None, None]:
    """Pairs of pictures of one size, uint8 H W 3, turned as they are displayed: the source enlarged, the result."""
    geometry = Geometry(excerpt.info.width, excerpt.info.height, scale)
    pack = rgb_packer(8)
    made = probe(excerpt.result)
    if made.frames != excerpt.info.frames:
        raise FlashvsrError(f"{excerpt.result} has {made.frames} frames, expected {excerpt.info.frames}; run again")
    with (
        closing(read_frames(source, excerpt.info, 0, excerpt.info.frames)) as before,
        closing(read_frames(excerpt.result, made, 0, made.frames)) as after,
    ):
        for small, large in zip(before, after, strict=True):
            enlarged = pack(enlarge(torch.from_numpy(small), geometry))
            eight = large if large.dtype == np.uint8 else np.rint(large / 257).astype(np.uint8)
            for one, other in zip(enlarged, eight, strict=True):
                yield _upright(one, excerpt.info), _upright(other, excerpt.info)


def _upright(picture: np.ndarray, info: VideoInfo) -> np.ndarray:
    """A picture H W 3 turned as its rotation says."""
    return np.ascontiguousarray(np.rot90(picture, info.rotation // QUARTER))


def write_video(
    source: Path, excerpts: tuple[Excerpt, ...], scale: int, layout: Layout, labels: tuple[str, str], path: Path
) -> None:
    """One comparison after the other, as an mp4 without sound."""
    info = excerpts[0].info
    turned = info.rotation // QUARTER % 2 == 1
    shown = (info.height, info.width) if turned else (info.width, info.height)
    width, height = shown[0] * scale * (2 if layout == "side" else 1), shown[1] * scale
    plain = replace(
        info, width=width, height=height, bit_depth=8, matrix="bt709", full_range=False, colorspace="bt709",
        color_primaries=None, color_trc=None, mastering_display=None, content_light=None, display_matrix=None,
        pix_fmt="yuv420p",
        sample_aspect_ratio=info.sample_aspect_ratio[::-1] if turned else info.sample_aspect_ratio,
    )  # fmt: skip
    encode = resolve(EncodeParams(crf=14, preset="medium", pix_fmt="auto"), plain, width, height)
    pack = yuv_packer(layout_of(encode, plain))

    def chunks() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        for excerpt in excerpts:
            for one, other in compared(source, excerpt, scale):
                frame = _labelled(_join(one, other, layout), labels)
                x = torch.from_numpy(frame).permute(2, 0, 1)[None].float() * (2 / 255) - 1
                yield pack(x)  # type: ignore[misc]

    encode_segment(chunks(), path, plain, encode, width, height)


def write_picture(source: Path, excerpts: tuple[Excerpt, ...], scale: int, labels: tuple[str, str], path: Path) -> None:
    """A row for each excerpt's middle frame: the whole result, and where there is most detail both at full size."""
    rows = []
    for excerpt in excerpts:
        middle = excerpt.info.frames // 2
        with closing(compared(source, excerpt, scale)) as pairs:
            one, other = next(islice(pairs, middle, None))
        width, height = min(TILE[0], other.shape[1]), min(TILE[1], other.shape[0])
        whole = Image.fromarray(other)
        whole.thumbnail((width, height))
        box = _most_detailed(other)
        frame = excerpt.start + middle
        seconds = float(frame / Fraction(*excerpt.info.frame_rate))
        tiles = ((whole, f"frame {frame}, {seconds:.2f} s"), (Image.fromarray(one).crop(box), labels[0]),
                 (Image.fromarray(other).crop(box), labels[1]))  # fmt: skip
        row = Image.new("RGB", (len(tiles) * width, height))
        for column, (tile, text) in enumerate(tiles):
            row.paste(tile, (column * width, 0))
            _write(row, text, column * width)
        rows.append(row)
    sheet = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)))
    for number, row in enumerate(rows):
        sheet.paste(row, (0, number * row.height))
    sheet.save(path)


def _join(one: np.ndarray, other: np.ndarray, layout: Layout) -> np.ndarray:
    """Side by side, or the left half of the first with the right half of the second and a line between."""
    if layout == "side":
        return np.concatenate([one, other], axis=1)
    middle = one.shape[1] // 2
    both = np.concatenate([one[:, :middle], other[:, middle:]], axis=1)
    both[:, max(0, middle - LINE // 2) : middle + LINE // 2] = 255
    return both


def _labelled(frame: np.ndarray, labels: tuple[str, str]) -> np.ndarray:
    image = Image.fromarray(frame)
    for number, text in enumerate(labels):
        _write(image, text, number * image.width // 2)
    return np.array(image)


def _write(image: Image.Image, text: str, left: int) -> None:
    draw = ImageDraw.Draw(image)
    draw.text((left + 8, 6), text, "white", ImageFont.load_default(LABEL), stroke_width=2, stroke_fill="black")


def _most_detailed(picture: np.ndarray) -> tuple[int, int, int, int]:
    """Where a tile shows most: left, top, right, bottom in pixels."""
    grey = picture.mean(axis=2)
    detail = np.zeros_like(grey)
    detail[:, 1:] += np.abs(np.diff(grey, axis=1))
    detail[1:] += np.abs(np.diff(grey, axis=0))
    total = np.pad(detail.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    height, width = grey.shape
    w, h = min(width, TILE[0]), min(height, TILE[1])

    def inside(left: int, top: int) -> float:
        return float(total[top + h, left + w] - total[top, left + w] - total[top + h, left] + total[top, left])

    places = [
        (left, top)
        for top in range(0, height - h + 1, max(1, h // SEARCH))
        for left in range(0, width - w + 1, max(1, w // SEARCH))
    ]
    left, top = max(places, key=lambda place: inside(*place))
    return left, top, left + w, top + h
