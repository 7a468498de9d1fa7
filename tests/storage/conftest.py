"""A place to write to, of every kind; `s3` is a real SeaweedFS, only for tests marked `system`."""

import os
import secrets
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.s3server import BUCKET


@pytest.fixture(params=["local", "memory", pytest.param("s3", marks=pytest.mark.system)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty directory or prefix."""
    if request.param == "local":
        return str(tmp_path / "place")
    if request.param == "memory":
        return f"memory://{secrets.token_hex(6)}"
    request.getfixturevalue("seaweed")
    return f"s3://{BUCKET}/{secrets.token_hex(6)}"


@pytest.fixture
def file(tmp_path: Path) -> Callable[[bytes], Path]:
    """Make a local file with the given content."""

    def make(data: bytes) -> Path:
        path = tmp_path / f"made-{secrets.token_hex(4)}"
        path.write_bytes(data)
        return path

    return make


@pytest.fixture
def race() -> Callable[[int, Callable[[int], Any]], list[Any]]:
    """Run `act(i)` in `count` threads that start together; the results, exceptions included, in order."""

    def run(count: int, act: Callable[[int], Any]) -> list[Any]:
        barrier = threading.Barrier(count)

        def start(i: int) -> Any:
            barrier.wait()
            try:
                return act(i)
            except Exception as error:  # noqa: BLE001 - results of a race include what went wrong in it
                return error

        with ThreadPoolExecutor(count) as pool:
            return list(pool.map(start, range(count)))

    return run


@pytest.fixture
def unprivileged() -> Iterator[None]:
    """Permissions count: root becomes nobody for the time of the test."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield
    os.seteuid(user)
