"""What a container's own size fields say about its end: finds files cut short without decoding anything."""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

EBML = b"\x1a\x45\xdf\xa3"
SEGMENT = b"\x18\x53\x80\x67"
EXR = b"\x76\x2f\x31\x01"
EXR_OTHER_KINDS = 0x1A00  # tiles, deep pixels, several parts: without the table of lines that is looked at here
EXR_LINES = (1, 1, 1, 16, 32, 16, 32, 32, 32, 256)  # in a block, by kind of compression
EXR_NAME = 256  # bytes of a name in a header, at most
TS_SYNC = 0x47
FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")  # old QuickTime files have no ftyp


def cut_short(path: str | Path) -> str | None:
    """A finding such as "box 'mdat' ends at byte 900, the file at byte 500", or None where nothing is missing."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        head = file.read(12)
        if head[4:8] in FIRST_BOXES:
            parts = _boxes(file, size)
        elif head[:4] == EBML:
            parts = _matroska(file)
        elif head[:4] == b"RIFF":
            parts = _riff(file, size)
        elif head[:4] == EXR:
            parts = _exr(file, size)
        elif head[:1] == bytes([TS_SYNC]):
            return _transport_stream(file, size)
        else:
            return None
        for name, end in parts:
            if end > size:
                return f"{name} ends at byte {end}, the file at byte {size}"
    return None


def has_movie_index(path: str | Path) -> bool | None:
    """Whether an mp4 or mov file has its moov box; None for other files."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        if file.read(8)[4:8] not in FIRST_BOXES:
            return None
        return any(name == "box 'moov'" and end <= size for name, end in _boxes(file, size))


def states_its_size(path: str | Path) -> bool:
    """Whether a Matroska file says where it ends (live recordings do not)."""
    with open(path, "rb") as file:
        return file.read(4) != EBML or any(True for _ in _matroska(file))


def _boxes(file: BinaryIO, size: int) -> Iterator[tuple[str, int]]:
    """Top-level boxes of mp4 and mov with the byte where each ends."""
    at = 0
    while at + 8 <= size:
        file.seek(at)
        head = file.read(16)
        length, kind = struct.unpack(">I4s", head[:8])
        if length == 1 and len(head) == 16:
            length = struct.unpack(">Q", head[8:])[0]
        elif length == 0:  # to the end of the file
            length = size - at
        if length < 8 or not kind.isascii():  # padding or garbage after the last box
            return
        yield f"box {kind.decode('ascii')!r}", at + length
        at += length


def _matroska(file: BinaryIO) -> Iterator[tuple[str, int]]:
    """The Segment element, unless its size is unknown."""
    file.seek(4)
    header = _vint(file)
    if header is None:
        return
    file.seek(header, os.SEEK_CUR)
    if file.read(4) == SEGMENT:
        length = _vint(file)
        if length is not None:
            yield "the Matroska segment", file.tell() + length


def _vint(file: BinaryIO) -> int | None:
    """EBML variable-length integer; None for "unknown" (all ones)."""
    first = file.read(1)
    if not first or first[0] == 0:
        return None
    length = 9 - first[0].bit_length()
    value = int.from_bytes(bytes([first[0] & (0xFF >> length)]) + file.read(length - 1), "big")
    return None if value == (1 << 7 * length) - 1 else value


def _riff(file: BinaryIO, size: int) -> Iterator[tuple[str, int]]:
    """RIFF chunks of an AVI (large ones have several)."""
    at = 0
    while at + 8 <= size:
        file.seek(at)
        kind, length = struct.unpack("<4sI", file.read(8))
        if kind != b"RIFF":
            return
        yield "the RIFF chunk", at + 8 + length
        at += 8 + length + length % 2


def _exr(file: BinaryIO, size: int) -> Iterator[tuple[str, int]]:
    """The last block of lines of an OpenEXR image (ffmpeg leaves black what is missing)."""
    file.seek(4)
    if struct.unpack("<I", file.read(4))[0] & EXR_OTHER_KINDS:
        return
    values: dict[bytes, bytes] = {}
    while name := _text(file):
        _text(file)  # its type
        length = struct.unpack("<I", file.read(4).ljust(4, b"\0"))[0]
        if file.tell() + length > size:
            yield "the header", file.tell() + length
            return
        values[name] = file.read(length)
    window, compression = values.get(b"dataWindow", b""), values.get(b"compression", b"")
    if len(window) != 16 or len(compression) != 1 or compression[0] >= len(EXR_LINES):
        return
    _, top, _, bottom = struct.unpack("<4i", window)
    blocks = max(0, -(-(bottom - top + 1) // EXR_LINES[compression[0]]))
    if (end := file.tell() + 8 * blocks) > size:
        yield "the table of lines", end
        return
    last = max(struct.unpack(f"<{blocks}Q", file.read(8 * blocks)), default=0)
    if last + 8 > size:
        yield "the last block", last + 8
        return
    file.seek(last + 4)
    yield "the last block", last + 8 + struct.unpack("<I", file.read(4))[0]


def _text(file: BinaryIO) -> bytes:
    """Bytes up to a zero byte, which is read as well."""
    data = file.read(EXR_NAME)
    end = data.find(b"\0")
    end = len(data) if end < 0 else end
    file.seek(end + 1 - len(data), os.SEEK_CUR)
    return data[:end]


def _transport_stream(file: BinaryIO, size: int) -> str | None:
    """A transport stream says nothing about its length; a last packet that is not whole shows a cut."""
    file.seek(0)
    head = file.read(188 * 3)
    if len(head) == 188 * 3 and all(head[i] == TS_SYNC for i in (0, 188, 376)) and size % 188:
        return f"the last packet has {size % 188} of 188 bytes"
    return None


def header_bytes(path: str | Path, limit: int = 1 << 20) -> bytes:
    """At most `limit` bytes of what describes the streams: the moov box of mp4 and mov, else the file's beginning."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        if file.read(8)[4:8] in FIRST_BOXES:
            start = 0
            for name, end in _boxes(file, size):
                if name == "box 'moov'":
                    file.seek(start)
                    return file.read(min(limit, end - start))
                start = end
            return b""
        file.seek(0)
        return file.read(limit)


def foreign_media(path: str | Path) -> str | None:
    """How an mp4 or mov file says that its media lies elsewhere (data references, reference movies); None if not."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        if file.read(8)[4:8] not in FIRST_BOXES:
            return None
        for kind, start, stop in _walk(file, 0, size, 0):
            if kind == b"rmra":
                return "is a reference movie, which only names other files"
            if kind == b"dref":
                file.seek(start + 8)  # version, flags, number of entries
                for entry, body, end in _children(file, start + 8, stop):
                    file.seek(body)
                    own = file.read(4)[3:] == b"\x01"
                    if not own and end - body > 4:
                        return f"keeps its media in another file (data reference {entry!r})"
    return None


def _walk(file: BinaryIO, start: int, stop: int, depth: int) -> Iterator[tuple[bytes, int, int]]:
    """Boxes on the way to data references, with where their content starts and ends."""
    way = (b"moov", b"trak", b"mdia", b"minf", b"dinf")
    for kind, body, end in _children(file, start, stop):
        if (depth == 1 and kind == b"rmra") or (depth == len(way) and kind == b"dref"):
            yield kind, body, end
        elif depth < len(way) and kind == way[depth]:
            yield from _walk(file, body, end, depth + 1)


def _children(file: BinaryIO, start: int, stop: int) -> Iterator[tuple[bytes, int, int]]:
    """Boxes between two positions: kind, where the content starts, where it ends."""
    at = start
    while at + 8 <= stop:
        file.seek(at)
        head = file.read(16)
        if len(head) < 8:
            return
        length, kind = struct.unpack(">I4s", head[:8])
        body = 8
        if length == 1 and len(head) == 16:
            length, body = struct.unpack(">Q", head[8:])[0], 16
        elif length == 0:
            length = stop - at
        if length < body:
            return
        yield kind, at + body, min(at + length, stop)
        at += length
