"""Ages and sizes as people write them, and as they read them."""

import re

from flashvsr_core.errors import UserError

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
BYTES = {"": 1, "B": 1} | {
    f"{letter}{suffix}": base**power
    for power, letter in enumerate("KMGT", 1)
    for suffix, base in (("", 1000), ("B", 1000), ("iB", 1024))
}
_BYTES_BY_NAME = {name.upper(): factor for name, factor in BYTES.items()}
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")


def parse_age(text: str) -> float:
    """Seconds: `90s`, `30m`, `12h`, `7d`, `2w`."""
    match = _QUANTITY.fullmatch(text.strip())
    if match is None or match[2] not in SECONDS:
        raise UserError(f"age {text!r} is not a number with s, m, h, d or w; write for example 7d")
    return float(match[1]) * SECONDS[match[2]]


def parse_bytes(text: str) -> int:
    """Bytes: `500MB`, `10GB`, `1.5GiB`; case does not matter."""
    match = _QUANTITY.fullmatch(text.strip())
    if match is None or match[2].upper() not in _BYTES_BY_NAME:
        raise UserError(f"size {text!r} is not a number with kB, MB, GB, TB or KiB ... TiB; write for example 10GB")
    return int(float(match[1]) * _BYTES_BY_NAME[match[2].upper()])


def age_text(seconds: float) -> str:
    for unit in ("w", "d", "h", "m"):
        if seconds >= 2 * SECONDS[unit]:
            return f"{seconds / SECONDS[unit]:.0f}{unit}"
    return f"{seconds:.0f}s"


def bytes_text(number: int) -> str:
    for unit in ("TB", "GB", "MB", "kB"):
        if number >= (factor := _BYTES_BY_NAME[unit.upper()]):
            return f"{number / factor:.1f} {unit}"
    return f"{number} B"
