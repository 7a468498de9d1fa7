"""Prefect's server as it is on a bad day, for the clients of this process: some requests to it are not answered."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import httpx
import pytest
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from flows import patience

Kind = Literal["locked", "refused", "cut"]

LOCKED = 503  # the status of Prefect's server while its database is locked
TRIES, PAUSE = 20, 0.5  # seconds


class Fault:
    """What happens to the first `times` requests that `concerned` picks; the others pass."""

    def __init__(self, kind: Kind, concerned: Callable[[httpx.Request], bool], times: int) -> None:
        self.kind, self.concerned, self.times = kind, concerned, times
        self.count = 0

    def answer(self, request: httpx.Request) -> httpx.Response | None:
        """The server's answer, an exception in its stead, or None for a request that passes."""
        if self.count == self.times or not self.concerned(request):
            return None
        self.count += 1
        if self.kind == "refused":
            raise httpx.ConnectError("All connection attempts failed", request=request)
        if self.kind == "cut":
            raise httpx.RemoteProtocolError("Server disconnected without sending a response.", request=request)
        return httpx.Response(LOCKED, json={"exception_message": "database is locked"}, request=request)


def asked_for(method: str, path: str) -> Callable[[httpx.Request], bool]:
    """Picks requests of a method whose path has this in it."""
    return lambda request: request.method == method and path in request.url.path


@contextmanager
def bad_day(
    monkeypatch: pytest.MonkeyPatch,
    concerned: Callable[[httpx.Request], bool],
    kind: Kind = "locked",
    times: int = 2,
) -> Iterator[Fault]:
    """The fault, while Prefect's clients repeat nothing themselves and our pauses are short.

    Where the real server's database is locked, which happens on a busy machine, its request is repeated here.
    """
    fault = Fault(kind, concerned, times)
    real, real_async = httpx.HTTPTransport.handle_request, httpx.AsyncHTTPTransport.handle_async_request

    def handle(transport: httpx.HTTPTransport, request: httpx.Request) -> httpx.Response:
        if (faulty := fault.answer(request)) is not None:
            return faulty
        for _ in range(TRIES):
            if (found := real(transport, request)).status_code != LOCKED:
                return found
            found.close()
            time.sleep(PAUSE)
        return real(transport, request)

    async def handle_async(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        if (faulty := fault.answer(request)) is not None:
            return faulty
        for _ in range(TRIES):
            if (found := await real_async(transport, request)).status_code != LOCKED:
                return found
            await found.aclose()
            await asyncio.sleep(PAUSE)
        return await real_async(transport, request)

    with monkeypatch.context() as patch, temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
        patch.setattr(httpx.HTTPTransport, "handle_request", handle)
        patch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", handle_async)
        patch.setattr(patience, "FIRST_PAUSE", 0.3)
        patch.setattr(patience, "LONGEST_PAUSE", 0.5)
        yield fault
