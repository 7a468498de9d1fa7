"""Image sequences: which files of a folder are the frames, in the order of their numbers. Reads names only."""

import fnmatch
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from flashvsr_core.errors import BadInput

IMAGES = ("png", "jpg", "jpeg", "tif", "tiff", "exr", "dpx", "webp", "bmp")
# fmt: off
VIDEOS = frozenset((
    "3g2", "3gp", "asf", "avi", "divx", "dv", "f4v", "flv", "m2ts", "m2v", "m4v", "mkv", "mov", "mp4", "mpeg",
    "mpg", "mts", "mxf", "nut", "ogm", "ogv", "ts", "vob", "webm", "wmv", "y4m",
))
# fmt: on
WILDCARDS = frozenset("*?[")
# The last number before the extension counts; what is around it must be the same in all names.
NUMBERED = re.compile(r"(?P<before>.*?)(?P<number>\d{1,18})(?P<after>\D*\.[^.]+)", re.DOTALL)


@dataclass(frozen=True)
class ImageSequence:
    """Frames as files, in order; the first has the number `first`."""

    files: tuple[Path, ...]
    first: int


def is_image(name: str) -> bool:
    """Whether a name ends as those of pictures do."""
    return Path(name).suffix[1:].lower() in IMAGES


def is_sequence(path: str | Path) -> bool:
    """Whether a source is a folder, or a pattern such as shot_*.png in its last part that is no file's name."""
    path = Path(path)
    return path.is_dir() or (bool(WILDCARDS & set(path.name)) and not path.exists())


def find_images(path: str | Path) -> ImageSequence:
    """The frames of a folder or pattern. Raises BadInput naming a gap, a double number, or another sequence beside."""
    path = Path(path)
    name = repr(str(path))
    folder, pattern = (path, None) if path.is_dir() else (path.parent, path.name)
    if not folder.is_dir():
        raise BadInput(f"{name} does not exist: {str(folder)!r} is no folder; check the path")
    there = [entry.name for entry in folder.iterdir() if entry.is_file()]
    names, first = in_order(name, there, pattern)
    return ImageSequence(tuple(folder / file for file in names), first)


def in_order(name: str, there: Iterable[str], pattern: str | None = None) -> tuple[tuple[str, ...], int]:
    """Of the files that are in a folder those that are the frames, in order, and the number of the first.

    `name` is the sequence's in messages; with a `pattern` only files of such names count.
    """
    found = [
        file
        for file in there
        if is_image(file) and not file.startswith(".") and (pattern is None or fnmatch.fnmatchcase(file, pattern))
    ]
    if not found:
        what = "images" if pattern is None else "images with such names"
        raise BadInput(f"{name} has no {what} ({', '.join(IMAGES)}); give a video file, or a folder of numbered images")
    numbers = _numbered(name, found)
    order = sorted(numbers)
    for before, after in pairwise(order):
        if after != before + 1:
            missing = f"number {before + 1} is" if after == before + 2 else f"numbers {before + 1} to {after - 1} are"
            raise BadInput(
                f"{name} has a gap: {missing} missing between {numbers[before]!r} and {numbers[after]!r}; add what is "
                "missing, or give a pattern that ends before it"
            )
    return tuple(numbers[number] for number in order), order[0]


def _numbered(name: str, names: list[str]) -> dict[int, str]:
    """Names by number; all must be alike but for the number."""
    found: dict[int, str] = {}
    if len(names) == 1 and not NUMBERED.fullmatch(names[0]):
        return {1: names[0]}
    shapes: dict[tuple[str, str], str] = {}
    for file in sorted(names):
        match = NUMBERED.fullmatch(file)
        if match is None:
            raise BadInput(
                f"{name} has {file!r} among its images, which has no number; give a pattern such as "
                "'shot_*.png' that names the frames only"
            )
        shapes.setdefault((match["before"], match["after"]), file)
        if len(shapes) > 1:
            one, other = list(shapes.values())[:2]
            raise BadInput(
                f"{name} has more than one sequence ({one!r} and {other!r}); give a pattern such as "
                "'shot_*.png' that names one of them"
            )
        number = int(match["number"])
        if number in found:
            raise BadInput(f"{name} has number {number} twice ({found[number]!r} and {file!r}); remove one")
        found[number] = file
    return found
