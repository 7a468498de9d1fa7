"""The C library's heap, which keeps what threads have freed."""

import ctypes
import sys


def trim() -> None:
    """Give freed memory back to the system: every segment has threads of its own, and glibc keeps for each arena what
    its threads freed, so that a run's memory would grow with the number of its segments. Nothing elsewhere than glibc.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)
