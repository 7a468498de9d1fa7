"""Work of a thread beside a `with` block."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def beside(name: str, work: Callable[[threading.Event], object], longest_end: float | None = None) -> Iterator[None]:
    """Run `work(over)` in a thread named `name`; `over` is set as the block ends, which then waits for the thread.

    At most `longest_end` seconds, where that is given: work that stands still must not hold up the end of a run.
    """
    over = threading.Event()
    thread = threading.Thread(target=work, args=(over,), name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(longest_end)
