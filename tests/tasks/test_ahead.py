"""Working ahead: order, bounds, errors and a reader that leaves early."""

import threading
from collections.abc import Iterator

import pytest

from tasks.ahead import Ahead, Stalled


def test_items_come_in_order() -> None:
    with Ahead(iter(range(100)), 3, "numbers") as numbers:
        assert list(numbers) == list(range(100))


def test_runs_no_further_ahead_than_allowed() -> None:
    made: list[int] = []
    third = threading.Event()

    def source() -> Iterator[int]:
        for number in range(10):
            made.append(number)
            if number == 2:
                third.set()
            yield number

    with Ahead(source(), 2, "bounded") as numbers:
        assert third.wait(10)  # two lie in the queue, the third waits for room
        assert made == [0, 1, 2]
        assert list(numbers) == list(range(10))
    assert numbers.blocked > 0


def test_an_error_is_raised_where_its_item_would_have_come() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise ValueError("broken source")

    seen: list[int] = []
    with Ahead(source(), 4, "broken") as numbers, pytest.raises(ValueError, match="broken source"):
        seen.extend(numbers)
    assert seen == [1]


def test_a_reader_that_leaves_ends_the_source() -> None:
    closed = threading.Event()

    def source() -> Iterator[int]:
        try:
            while True:
                yield 0
        finally:
            closed.set()

    with Ahead(source(), 1, "endless") as numbers:
        assert next(iter(numbers)) == 0
    assert closed.is_set()


def test_a_source_that_stands_still_is_left_behind() -> None:
    """As a decoder in an endless loop: nothing can end its thread, but the reader goes on."""
    for_ever = threading.Event()

    def source() -> Iterator[int]:
        yield 1
        for_ever.wait(60)
        yield 2

    with Ahead(source(), 2, "hanging", patience=0.05, first_patience=30) as numbers:
        items = iter(numbers)
        assert next(items) == 1
        with pytest.raises(Stalled, match="hanging: nothing came within 0 s"):
            next(items)
    for_ever.set()
