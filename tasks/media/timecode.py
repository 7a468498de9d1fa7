"""Timecode (SMPTE ST 12): the label of a later frame."""

import re
from fractions import Fraction

LABEL = re.compile(r"(\d{2}):(\d{2}):(\d{2})([:;.])(\d{2,3})")
DROPPED = 2  # labels left out at 30 frames per second, every minute but each tenth; twice as many at 60
DAY = 24 * 3600  # seconds


def later(timecode: str, rate: Fraction, seconds: Fraction) -> str | None:
    """The label of the frame so much later; `;` marks drop-frame counting. None where the label cannot be read."""
    match = LABEL.fullmatch(timecode)
    counted = round(rate)  # labels per second
    if match is None or not counted:
        return None
    hours, minutes, whole = (int(part) for part in match.groups()[:3])
    separator, frame = match[4], int(match[5])
    dropped = DROPPED * round(counted / 30) if separator != ":" else 0
    minute = hours * 60 + minutes
    number = (minute * 60 + whole) * counted + frame - dropped * (minute - minute // 10)
    number += round(seconds * rate)
    number %= DAY * counted - dropped * (24 * 60 - 24 * 6)
    if dropped:
        tens, rest = divmod(number, 600 * counted - 9 * dropped)
        number += 9 * dropped * tens + dropped * (max(0, rest - dropped) // (60 * counted - dropped))
    whole, frame = divmod(number, counted)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}{separator}{frame:02}"
