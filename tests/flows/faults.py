"""Prefect's server as it is on a bad day, for the clients of this process: some requests to it are not answered."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import httpx
import pytest
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from flows import patience

Kind = Literal["locked", "refused", "cut"]


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
        return httpx.Response(503, json={"exception_message": "database is locked"}, request=request)


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
    """The fault, while Prefect's clients repeat nothing themselves and our pauses are short."""
    fault = Fault(kind, concerned, times)
    real, real_async = httpx.HTTPTransport.handle_request, httpx.AsyncHTTPTransport.handle_async_request

    def handle(transport: httpx.HTTPTransport, request: httpx.Request) -> httpx.Response:
        return fault.answer(request) or real(transport, request)

    async def handle_async(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        return fault.answer(request) or await real_async(transport, request)

    with monkeypatch.context() as patch, temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
        patch.setattr(httpx.HTTPTransport, "handle_request", handle)
        patch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", handle_async)
        patch.setattr(patience, "FIRST_PAUSE", 0.3)
        patch.setattr(patience, "LONGEST_PAUSE", 0.5)
        yield fault
