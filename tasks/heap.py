"""The C library's heap, which keeps what threads have freed."""

import ctypes
import sys
from functools import cache

_M_ARENA_MAX = -8  # mallopt(3)
_ARENAS = 2  # the main thread's, and one for all others


@cache
def bound() -> None:
    """Have the threads of this process share a heap: every segment has threads of its own, and what each freed in an
    arena of its own would stay there, so that memory would grow with the number of segments. Nothing but on glibc."""
    if (library := _glibc()) is not None:
        library.mallopt(_M_ARENA_MAX, _ARENAS)


def trim() -> None:
    """Give freed memory back to the system. Nothing but on glibc."""
    if (library := _glibc()) is not None:
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
