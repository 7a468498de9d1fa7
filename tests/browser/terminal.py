"""A terminal for tests: runs a command on a pty, and says what stood on its screen at any time."""

import fcntl
import os
import pty
import re
import struct
import termios
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.text import Text

_CONTROL = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])")


@dataclass(frozen=True)
class Recording:
    """What came, piece by piece: seconds and text; and how the command ended."""

    pieces: tuple[tuple[float, str], ...]
    columns: int
    status: int

    def screens(self) -> list[str]:
        """The screen, in colour, after every piece."""
        return [
            screen("".join(text for _, text in self.pieces[: n + 1]), self.columns) for n in range(len(self.pieces))
        ]


def recorded(command: Sequence[str], env: Mapping[str, str], columns: int = 100, rows: int = 30) -> Recording:
    """Run a command on a terminal of this size to its end."""
    child, descriptor = pty.fork()
    if child == 0:
        os.execvpe(command[0], list(command), {**env, "TERM": "xterm-256color"})
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    begun, pieces, rest = time.monotonic(), [], b""
    while data := _read(descriptor):
        rest += data
        whole = rest.rfind(b"\n") + 1 if rest[-1] >= 0x80 else len(rest)  # a character may be in two pieces
        pieces.append((time.monotonic() - begun, rest[:whole].decode(errors="replace")))
        rest = rest[whole:]
    os.close(descriptor)
    return Recording(tuple(pieces), columns, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # Linux says so where the other side was closed
        return b""


def screen(text: str, columns: int) -> str:
    """What stands there after `text`, with its colours; knows what rich's live views use, and refuses the rest."""
    lines: list[list[tuple[str, str]]] = [[]]
    row = column = at = 0
    style = ""
    while at < len(text):
        if (match := _CONTROL.match(text, at)) is not None:
            at = match.end()
            number, kind = match.groups()
            if kind == "m":
                style = "" if number in ("", "0") else style + match[0]
            elif kind == "A":
                row = max(0, row - int(number or 1))
            elif kind == "K":
                lines[row] = [] if number == "2" else lines[row][:column]
            else:
                assert kind in "hl", f"{match[0]!r} is not known here"
            continue
        character = text[at]
        at += 1
        if character == "\r":
            column = 0
        elif character == "\n" or column >= columns:
            row += 1
            column = column if character == "\n" else 0
            lines += [[] for _ in range(row + 1 - len(lines))]
        if character not in "\r\n":
            line = lines[row]
            line += [(" ", "")] * (column + 1 - len(line))
            line[column] = (character, style)
            column += 1
    return "\n".join("".join(f"{style}{c}\x1b[0m" if style else c for c, style in line) for line in lines)


def plain(shown: str) -> str:
    return _CONTROL.sub("", shown)


def picture(shown: str, columns: int, path: Path) -> None:
    """A screen as SVG."""
    console = Console(record=True, width=columns, file=StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text.from_ansi(shown))
    console.save_svg(str(path), title="flashvsr")
