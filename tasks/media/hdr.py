"""What a frame says of its HDR: mastering display, light levels, and dynamic metadata that we cannot carry."""

import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from av.sidedata.sidedata import Type

from tasks.media.structure import header_bytes

CHROMA_UNIT = 50_000  # steps of a CIE coordinate in SMPTE ST 2086 as H.265 writes it
LUMINANCE_UNIT = 10_000  # steps of one candela per square metre, likewise
# AVMasteringDisplayMetadata and AVContentLightMetadata of libavutil: public, fixed structures.
_MASTERING = struct.Struct("=22i")
_LIGHT = struct.Struct("=2I")
_DYNAMIC = {
    Type.DOVI_METADATA: "Dolby Vision",
    Type.DOVI_RPU_BUFFER: "Dolby Vision",
    Type.DYNAMIC_HDR_PLUS: "HDR10+",
    Type.DYNAMIC_HDR_VIVID: "HDR Vivid",
}
_DOLBY_RECORD = re.compile(rb"dv[cvw]C")


@dataclass(frozen=True)
class MasteringDisplay:
    """SMPTE ST 2086. Coordinates (x, y) in 1/50000, luminance in 1/10000 cd/m2."""

    red: tuple[int, int]
    green: tuple[int, int]
    blue: tuple[int, int]
    white: tuple[int, int]
    max_luminance: int
    min_luminance: int


@dataclass(frozen=True)
class ContentLight:
    """CTA-861.3: brightest pixel and brightest frame average, cd/m2 (0: unknown)."""

    max_cll: int
    max_fall: int


def mastering_display(side_data: Iterable[Any]) -> MasteringDisplay | None:
    """The mastering display in a frame's side data, None where it names none."""
    for data in side_data:
        if data.type == Type.MASTERING_DISPLAY_METADATA and len(bytes(data)) >= _MASTERING.size:
            numbers = _MASTERING.unpack(bytes(data)[: _MASTERING.size])
            if not (numbers[20] and numbers[21]):  # has_primaries, has_luminance
                return None
            red, green, blue, white = (
                (_units(numbers[i : i + 2], CHROMA_UNIT), _units(numbers[i + 2 : i + 4], CHROMA_UNIT))
                for i in range(0, 16, 4)
            )
            darkest, brightest = (_units(numbers[i : i + 2], LUMINANCE_UNIT) for i in (16, 18))
            return MasteringDisplay(red, green, blue, white, brightest, darkest)
    return None


def content_light(side_data: Iterable[Any]) -> ContentLight | None:
    """MaxCLL and MaxFALL in a frame's side data, None where it names none."""
    for data in side_data:
        if data.type == Type.CONTENT_LIGHT_LEVEL and len(bytes(data)) >= _LIGHT.size:
            return ContentLight(*_LIGHT.unpack(bytes(data)[: _LIGHT.size]))
    return None


def dynamic_metadata(side_data: Iterable[Any], path: str | Path) -> tuple[str, ...]:
    """Names of the kinds of metadata that change from frame to frame; no encoder of ours can write them anew."""
    found = {_DYNAMIC[data.type] for data in side_data if data.type in _DYNAMIC}
    if dolby_vision_profile(path) is not None:
        found.add("Dolby Vision")
    return tuple(sorted(found))


def dolby_vision_profile(path: str | Path) -> int | None:
    """Profile in the configuration record of an mp4, mov or Matroska file; None where there is none."""
    header = header_bytes(path)
    for match in _DOLBY_RECORD.finditer(header):
        record = header[match.end() : match.end() + 32]
        # Matroska puts element heads between the name and the record: look for its version, 1.0 or 2.x.
        start = re.search(rb"[\x01\x02][\x00\x01]", record)
        if start and len(record) > start.end():
            return record[start.end()] >> 1
    return None


def _units(ratio: tuple[int, ...], unit: int) -> int:
    numerator, denominator = ratio
    return round(Fraction(numerator, denominator) * unit) if denominator else 0
