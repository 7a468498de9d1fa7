"""One run per job: `lease.json` says who works on it, is renewed while they do, and expires when they stop.

Clocks of machines may differ by half a lease's time to live: that long after its expiry a lease is taken over by
another machine. On the same host a lease whose process has ended is taken over at once.
"""

import json
import logging
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime

from flashvsr_core.errors import AlreadyRunning, FlashvsrError, TransientError
from tasks.storage import urls
from tasks.storage.process import ProcessId, this_process

log = logging.getLogger(__name__)

TTL = 120.0  # seconds; renewed every third of it, so that two renewals in a row may fail
LATEST = 1e11  # seconds since 1970; what lies beyond is not a time but damage
POLL = 1.0  # seconds between looks while another run is waited for


class LeaseLost(TransientError):
    """This run no longer holds its job: it must stop writing."""


@dataclass(frozen=True)
class Holder:
    """The content of `lease.json`."""

    token: str
    owner: str
    hostname: str
    process: ProcessId
    acquired: float
    expires: float
    ttl: float

    def encode(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode()

    @property
    def is_over(self) -> bool:
        """Whether another run may take over."""
        return self.process.is_gone or time.time() > self.expires + self.ttl / 2

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.acquired).astimezone().isoformat(sep=" ", timespec="seconds")
        return f"since {since} by {self.owner} (process {self.process.pid} on {self.hostname})"


class Lease:
    """A lease this run holds; made by `hold`."""

    def __init__(self, url: str, holder: Holder) -> None:
        self.url = url
        self.holder = holder
        self._stopped = threading.Event()
        self._renewing = threading.Lock()
        self._lost = ""
        self._thread = threading.Thread(target=self._keep, name=f"lease {urls.name(url)}", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """LeaseLost if another run took over; asks the store only when no renewal has been possible in time."""
        if not self._lost and time.time() >= self.holder.expires:
            self._renew()
        if self._lost:
            raise LeaseLost(f"this run lost {self.url}: {self._lost}; nothing more is written, run again to go on")

    def release(self) -> None:
        """Stop renewing and remove the lease, if it is still ours."""
        self._stopped.set()
        self._thread.join()
        # Renewed first: for the time to live nobody else may touch it, so what is removed next is certainly ours.
        if not self._lost:
            self._renew()
        if self._lost:
            log.warning("lease %s was lost: %s", self.url, self._lost)
        else:
            urls.remove(self.url, missing_ok=True)

    def _keep(self) -> None:
        while not self._stopped.wait(self.holder.ttl / 3) and not self._lost:
            try:
                self._renew()
            except FlashvsrError as error:
                log.warning("lease not renewed, trying again: %s", error)

    def _renew(self) -> None:
        with self._renewing:
            found = urls.read_version(self.url)
            current = _parse(found[0]) if found else None
            if found is None or current is None or current.token != self.holder.token:
                self._lost = f"it is held {current}" if current else "it is gone or damaged"
                return
            renewed = replace(self.holder, expires=time.time() + self.holder.ttl)
            # A write whose answer got lost is tried again below us and then fails on its own first attempt.
            if urls.replace_version(self.url, found[1], renewed.encode()) or _is_stored(self.url, renewed):
                self.holder = renewed
            else:
                self._lost = "another run took it over"


@contextmanager
def hold(url: str, owner: str, ttl: float = TTL, wait: float = 0.0) -> Iterator[Lease]:
    """Hold the lease at `url` for the duration of a `with` block, renewed by a thread.

    Waits up to `wait` seconds for another run to end, then raises AlreadyRunning. Call `check()` before writing.
    """
    lease = Lease(url, _acquire(url, owner, ttl, wait))
    try:
        yield lease
    finally:
        try:
            lease.release()
        except FlashvsrError as error:
            # The work itself is done or has failed for a reason of its own, which must not be hidden.
            log.warning("lease left to expire: %s", error)


def holder_of(url: str) -> Holder | None:
    """Who holds the lease at `url` now; None if nobody does, or it has ended without being released."""
    found = urls.read_version(url)
    current = _parse(found[0]) if found else None
    return None if current is None or current.is_over else current


def _acquire(url: str, owner: str, ttl: float, wait: float) -> Holder:
    deadline = time.monotonic() + wait
    token = secrets.token_hex(8)
    told = False
    while True:
        now = time.time()
        mine = Holder(token, owner, socket.gethostname(), this_process(), now, now + ttl, ttl)
        found = urls.read_version(url)
        current = _parse(found[0]) if found else None
        if found is None:
            if urls.create_exclusive(url, mine.encode()) or _is_stored(url, mine):
                return mine
        elif current is None or current.is_over:
            if urls.replace_version(url, found[1], mine.encode()) or _is_stored(url, mine):
                log.warning("took over a lease that ended without being released: %s", current or "unreadable")
                return mine
        elif time.monotonic() >= deadline:
            raise AlreadyRunning(f"already running {current}; wait for it to end, or if it certainly has, delete {url}")
        elif not told:
            log.info("waiting for another run of this job: %s", current)
            told = True
        time.sleep(max(0.0, min(POLL, ttl / 10, deadline - time.monotonic())))


def _is_stored(url: str, holder: Holder) -> bool:
    found = urls.read_version(url)
    return found is not None and found[0] == holder.encode()


def _parse(data: bytes) -> Holder | None:
    """A lease as written by this or a later version; None if it is damaged."""
    try:
        found = json.loads(data)
        process = found["process"]
        return Holder(
            token=str(found["token"]),
            owner=str(found["owner"]),
            hostname=str(found["hostname"]),
            process=ProcessId(str(process["host"]), int(process["pid"]), float(process["started"])),
            acquired=_seconds(found["acquired"]),
            expires=_seconds(found["expires"]),
            ttl=_seconds(found["ttl"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        log.warning("a lease is not readable: %r", error)
        return None


def _seconds(value: object) -> float:
    if not isinstance(value, int | float) or not 0 <= value < LATEST:
        raise ValueError(f"{value!r} is not a time")
    return float(value)
