"""Whether this process was asked to stop: `soon` begins no further segment, `now` also gives up those that run.

Set by signal handlers, so it is a plain number: a lock could be held by the very code that the signal interrupted.
"""

from typing import Literal

from flashvsr_core.errors import FlashvsrError

Urgency = Literal["soon", "now"]

_ORDER = {"": 0, "soon": 1, "now": 2}
_asked = ""


class Stopped(FlashvsrError):
    """This run was asked to stop; finished segments are kept."""

    exit_code = 130


def ask(urgency: Urgency) -> None:
    """Ask this process to stop; a `now` is not taken back by a later `soon`."""
    global _asked
    if _ORDER[urgency] > _ORDER[_asked]:
        _asked = urgency


def asked() -> Urgency | None:
    return _asked or None  # type: ignore[return-value]


def forget() -> None:
    """A new run begins."""
    global _asked
    _asked = ""


def before_segment() -> None:
    """Stopped if no further segment may begin."""
    if _asked:
        raise Stopped("stopped before this segment was begun; run the same command again to go on")


def within_segment() -> None:
    """Stopped if a running segment must be given up."""
    if _asked == "now":
        raise Stopped("stopped in the middle of this segment; run the same command again to go on")
