"""Names of colour tags (as ffmpeg spells them) for the numbers of ITU-T H.273 that files carry."""

from typing import Literal

Matrix = Literal["bt601", "bt709", "bt2020"]

PRIMARIES = {
    "bt709": 1, "bt470m": 4, "bt470bg": 5, "smpte170m": 6, "smpte240m": 7, "film": 8, "bt2020": 9, "smpte428": 10,
    "smpte431": 11, "smpte432": 12, "ebu3213": 22,
}  # fmt: skip
TRANSFERS = {
    "bt709": 1, "gamma22": 4, "gamma28": 5, "smpte170m": 6, "smpte240m": 7, "linear": 8, "log100": 9, "log316": 10,
    "iec61966-2-4": 11, "bt1361e": 12, "iec61966-2-1": 13, "bt2020-10": 14, "bt2020-12": 15, "smpte2084": 16,
    "smpte428": 17, "arib-std-b67": 18,
}  # fmt: skip
COLORSPACES = {
    "gbr": 0, "bt709": 1, "fcc": 4, "bt470bg": 5, "smpte170m": 6, "smpte240m": 7, "ycgco": 8, "bt2020nc": 9,
    "bt2020c": 10, "smpte2085": 11, "chroma-derived-nc": 12, "chroma-derived-c": 13, "ictcp": 14, "ipt-c2": 15,
    "ycgco-re": 16, "ycgco-ro": 17,
}  # fmt: skip
RANGES = {"tv": 1, "pc": 2}

# Which of our three matrices a tag means. SMPTE 240M differs from BT.709 by less than one level of 8 bits in most
# colours, FCC from BT.601 likewise; anything else (YCgCo, ICtCp, constant luminance) is another kind of coding.
MATRIX_OF_TAG: dict[str, Matrix] = {
    "bt709": "bt709", "smpte240m": "bt709", "bt470bg": "bt601", "smpte170m": "bt601", "fcc": "bt601",
    "bt2020nc": "bt2020",
}  # fmt: skip
# What is written where the source says nothing: the output is larger, so a player's guess by size would differ.
TAG_OF_MATRIX: dict[Matrix, str] = {"bt601": "smpte170m", "bt709": "bt709", "bt2020": "bt2020nc"}


def name_of(table: dict[str, int], number: int) -> str | None:
    """Name of a tag, None where the file says nothing (2) or something unknown."""
    return next((name for name, value in table.items() if value == number), None)


def guess_matrix(width: int, height: int) -> Matrix:
    """What players assume for an untagged video of this size in pixels."""
    return "bt709" if height >= 720 or width >= 1280 else "bt601"
