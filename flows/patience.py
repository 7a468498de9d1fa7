"""Prefect's server may be slow or away for a while (a restart, a locked database): then it is asked again.

Prefect's own client repeats requests, but not all: a client that never reached the server gives up at the first refused
connection, and its engine makes new clients within a run. None of that is a fault of the work.
"""

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import httpx
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, get_current_settings

from flashvsr_core.errors import FlashvsrError, TransientError
from flows import settings

log = logging.getLogger(__name__)

R = TypeVar("R")

FIRST_PAUSE = 1.0  # seconds; each further pause is twice as long
LONGEST_PAUSE = 15.0
CLIENT_RETRIES = 6  # of Prefect's client: 2 + 4 + ... + 64 s, two minutes in all
PASSING = (408, 429)  # HTTP statuses below 500 of requests that may be answered later


class ServerLost(TransientError):
    """Prefect's server cannot be reached, and was waited for: no file's fault, and no file can go on."""


class Patience:
    """The waiting of one piece of work for the server, which ends some time after the first fault."""

    def __init__(self) -> None:
        self._deadline: float | None = None
        self._pause = FIRST_PAUSE

    def wait(self, error: BaseException) -> bool:
        """Pause before another try. False where `error` is none that may pass; ServerLost if it lasted too long."""
        if not may_pass(error):
            return False
        patience, now = settings.server_patience(), time.monotonic()
        if self._deadline is None:
            self._deadline = now + patience
        if now >= self._deadline:
            raise lost(error) from error
        log.warning(
            "Prefect's server at %s does not answer (%s); trying for up to %g s", _url(), _said(error), patience
        )
        time.sleep(min(self._pause, max(0.0, self._deadline - now)))
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
        return True


def patiently(call: Callable[[], R]) -> R:
    """`call()`, again while Prefect's server does not answer: it must be harmless to repeat. ServerLost in the end."""
    patience = Patience()
    while True:
        try:
            return call()
        except Exception as error:
            if not patience.wait(error):
                raise


async def until_answered(call: Callable[[], Awaitable[R]]) -> R:
    """`await call()`, again while Prefect's server does not answer, without end: for what serves until it is ended."""
    pause, told = FIRST_PAUSE, False
    while True:
        try:
            found = await call()
        except Exception as error:
            if not may_pass(error):
                raise
            if not told or pause < LONGEST_PAUSE:  # not every time through a long night
                told = True
                log.warning(
                    "Prefect's server at %s does not answer (%s); asking again in %g s and until it does: start it, "
                    "or end this command and correct PREFECT_API_URL",
                    _url(),
                    _said(error),
                    pause,
                )
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        else:
            if told:
                log.warning("Prefect's server at %s answers again", _url())
            return found


def patient_environment() -> dict[str, str]:
    """What the process of a run needs, so that Prefect's engine in it outlasts a restart of the server."""
    return {PREFECT_CLIENT_MAX_RETRIES.name: str(CLIENT_RETRIES)}


def lost(error: BaseException) -> ServerLost:
    return ServerLost(
        f"Prefect's server at {_url()} does not answer ({_said(error)}); start it, or correct PREFECT_API_URL, and run "
        "again: finished segments are kept"
    )


def _url() -> str:
    """Where the server is, for people; without a password that may be in it."""
    return re.sub(r"//[^/@]*@", "//", str(get_current_settings().api.url))


def _said(error: BaseException) -> str:
    found = _request_error(error)
    if isinstance(found, httpx.HTTPStatusError):  # its message has the whole URL
        return f"{found.response.status_code} {found.response.reason_phrase}"
    return repr(found or error)


def of_server(error: BaseException) -> bool:
    """Whether an error is that of a request to Prefect's server."""
    return _request_error(error) is not None or _slot_refused(error)


def may_pass(error: BaseException) -> bool:
    """Whether an error is that of a request to Prefect's server which may be answered later."""
    found = _request_error(error)
    if isinstance(found, httpx.HTTPStatusError):
        status = found.response.status_code
        return status >= 500 or status in PASSING
    return isinstance(found, httpx.TransportError) or _slot_refused(error)


def _slot_refused(error: BaseException) -> bool:
    """No slot of a limit could be asked for, said by another process: the cause did not survive leaving it."""
    return isinstance(error, ConcurrencySlotAcquisitionError) and _request_error(error) is None


def _request_error(error: BaseException | None) -> httpx.HTTPError | None:
    """The failed request to Prefect's server behind an error, which Prefect may have wrapped."""
    while error is not None and not isinstance(error, httpx.HTTPError | FlashvsrError):
        error = error.__cause__
    if not isinstance(error, httpx.HTTPError):
        return None
    try:
        return error if str(error.request.url).startswith(str(get_current_settings().api.url)) else None
    except RuntimeError:  # how httpx says that the error knows no request
        return None
