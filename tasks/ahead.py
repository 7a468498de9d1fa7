"""Work ahead of the reader: an iterator runs in a thread of its own, a bounded number of items before it."""

import queue
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar, cast

Item = TypeVar("Item")
_END = object()
_NOTICEABLE = 0.1  # share of the time that the model may wait for the encoder before it is worth a word
_POLL = 0.1  # seconds between looks whether the reader has gone away


class Stalled(Exception):
    """No item came within the reader's patience."""


def encoder_note(blocked: float, seconds: float) -> str | None:
    """A sentence where the model waited `blocked` of `seconds` for the encoder and that is worth one."""
    if blocked <= _NOTICEABLE * seconds:
        return None
    return f"the model waited {blocked:.1f} of {seconds:.1f} s for the encoder; a faster --preset would be quicker"


class Ahead(Generic[Item]):
    """Iterate over `source` from a thread, at most `depth` items ahead. A context manager, to be iterated once.

    An error of the source is raised where its item would have come. `patience` seconds without an item (the first may
    take `first_patience` instead) raise Stalled; the thread, which nothing can end, is then left behind.
    `blocked` says how long the source had to wait because nobody took what it made: then the reader is the slower side.
    """

    def __init__(
        self,
        source: Iterable[Item],
        depth: int,
        name: str,
        patience: float | None = None,
        first_patience: float | None = None,
    ) -> None:
        self.blocked = 0.0  # seconds
        self._patience = patience
        self._first_patience = first_patience or patience
        self._stalled = False
        self._source = source
        self._items: queue.Queue[object] = queue.Queue(depth)
        self._closed = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)

    def __enter__(self) -> "Ahead[Item]":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        if not self._stalled:
            self._thread.join()

    def __iter__(self) -> Iterator[Item]:
        patience = self._first_patience
        while (item := self._next(patience)) is not _END:
            yield cast(Item, item)
            patience = self._patience
        if self._error is not None:
            raise self._error

    def _next(self, patience: float | None) -> object:
        try:
            return self._items.get(timeout=patience)
        except queue.Empty:
            self._stalled = True
            raise Stalled(f"{self._thread.name}: nothing came within {patience:.0f} s") from None

    def _work(self) -> None:
        try:
            for item in self._source:
                if not self._put(item):
                    break
        except BaseException as error:  # noqa: BLE001  raised again by the reader
            self._error = error
        finally:
            close = getattr(self._source, "close", None)
            if close is not None:
                close()
        self._put(_END)

    def _put(self, item: object) -> bool:
        """Whether the item was taken over; False once the reader is gone."""
        begun = time.monotonic()
        while not self._closed.is_set():
            try:
                self._items.put(item, timeout=_POLL)
            except queue.Full:
                continue
            self.blocked += time.monotonic() - begun
            return True
        return False
