"""Worker processes that outlive single calls, so that each loads its model once: one per GPU, or several on the CPU.

They are started with their GPU pinned, need no Prefect and no server, and end with the process that started them,
however that ends: each holds one end of a socket and leaves when the other end is closed. Their log records, progress
events included, come back and are handled here. This module imports no torch, which would have to wait for the pin.
"""

import bisect
import itertools
import logging
import os
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as StillRunning
from multiprocessing.connection import Connection
from typing import Any

from flashvsr_core.errors import TransientError
from tasks import stop

log = logging.getLogger(__name__)

LOGGERS = ("flashvsr_core", "tasks")  # whose records come back
_LOOK = 0.3  # seconds between looks whether this process was asked to stop
_PATIENCE = 20.0  # seconds a worker has to unwind when it was asked to stop now, before it is killed

Released = Callable[[], None]


class WorkerDied(TransientError):
    """A worker process ended while it computed: out of memory, killed, or crashed in a driver."""


class _Worker:
    """One process and the calls it is at."""

    def __init__(self, visible: str | None, on_free: Callable[["_Worker"], None]) -> None:
        self.visible = visible
        self.is_taken = True  # whether it is at work, so that nobody else may have it
        self.calls: dict[int, Future[Any]] = {}
        self._on_free = on_free
        self._guard = threading.Lock()
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-P", "-m", "tasks.worker", str(theirs.fileno())]
        env = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        if visible is not None:
            env["CUDA_VISIBLE_DEVICES"] = visible
        with theirs:
            # A session of its own: Ctrl-C is for the process that hands out the work.
            self.process = subprocess.Popen(
                command, env=env, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], start_new_session=True
            )
        self.connection = Connection(ours.detach())
        threading.Thread(target=self._listen, name=f"worker {self.process.pid}", daemon=True).start()

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def begin(self, number: int, function: Callable[..., Any], args: tuple[Any, ...]) -> Future[Any]:
        future: Future[Any] = Future()
        levels = {name: logging.getLogger(name).getEffectiveLevel() for name in LOGGERS}
        with self._guard:
            self.calls[number] = future
        try:
            self.send(("call", number, function, args, levels))
        except OSError:
            self._fail()
        return future

    def send(self, message: tuple[Any, ...]) -> None:
        with self._guard:
            self.connection.send(message)

    def _listen(self) -> None:
        """Until the process ends: what it says."""
        while True:
            try:
                kind, number, content = self.connection.recv()
            except (EOFError, OSError):
                self._fail()
                return
            if kind == "log":
                logger = logging.getLogger(content.name)
                if logger.isEnabledFor(content.levelno):
                    logger.handle(content)
            elif kind == "free":
                self._let_go()
            else:
                with self._guard:
                    future = self.calls.pop(number)
                if kind == "result":
                    future.set_result(content)
                else:
                    future.set_exception(content)

    def _fail(self) -> None:
        """The process has ended, or is as good as that: so have its calls."""
        self.process.kill()
        status = self.process.wait()
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        with self._guard:
            lost, self.calls = self.calls, {}
        for future in lost.values():
            future.set_exception(
                WorkerDied(
                    f"worker process {self.process.pid} {how}; if memory ran out, use fewer --workers; run again"
                )
            )
        self._let_go()

    def _let_go(self) -> None:
        with self._guard:
            was_taken, self.is_taken = self.is_taken, False
        if was_taken:
            self._on_free(self)


class Workers:
    """A fixed number of worker processes, started when first needed; a dead one is replaced and costs its calls only.

    `pins`: the CUDA_VISIBLE_DEVICES of each, or None where there is nothing to pin.
    """

    def __init__(self, pins: tuple[str | None, ...]) -> None:
        self._idle: deque[_Worker | str | None] = deque(pins)
        self._waiting: list[tuple[int, int]] = []
        self._changed = threading.Condition()
        self._numbers = itertools.count()
        self._everyone: set[_Worker] = set()

    def call(self, function: Callable[..., Any], *args: Any, weight: int = 0) -> Any:
        """`function(*args, released)` in a free worker, whose result or exception this is.

        Of the calls that wait for a worker the one of most `weight` comes first. The worker is given further work as
        soon as the function calls `released()`, before it returns.
        """
        worker = self._take(weight)
        future = worker.begin(next(self._numbers), function, args)
        waited = 0.0
        while True:
            try:
                return future.result(_LOOK)
            except StillRunning:
                if future.done():  # the function's own TimeoutError
                    raise
            if stop.asked() == "now":
                if waited == 0.0:
                    worker.send(("stop",))
                waited += _LOOK
                if waited > _PATIENCE:
                    worker.process.kill()

    def _take(self, weight: int) -> _Worker:
        ticket = (-weight, next(self._numbers))
        with self._changed:
            bisect.insort(self._waiting, ticket)
            try:
                while not self._idle or self._waiting[0] != ticket:
                    stop.before_segment()
                    self._changed.wait(_LOOK)
                stop.before_segment()
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()
            return self._ready(self._idle.popleft())

    def _put_back(self, worker: _Worker) -> None:
        with self._changed:
            self._idle.append(worker)
            self._changed.notify_all()

    def _ready(self, found: _Worker | str | None) -> _Worker:
        """The worker that was idle, or a new one in the place of one that is dead or was never started."""
        if isinstance(found, _Worker):
            if found.is_alive:
                found.is_taken = True
                return found
            self._everyone.discard(found)
            found = found.visible
        worker = _Worker(found, self._put_back)
        self._everyone.add(worker)
        return worker

    @property
    def is_idle(self) -> bool:
        with self._changed:
            return not self._waiting and not any(worker.is_taken or worker.calls for worker in self._everyone)

    def processes(self) -> list[int]:
        """The pids of those that run."""
        return [worker.process.pid for worker in self._everyone if worker.is_alive]

    def close(self) -> None:
        """End every worker, whatever it is at."""
        for worker in self._everyone:
            worker.connection.close()
            worker.process.kill()
            worker.process.wait()
        self._everyone.clear()


_pools: dict[tuple[str | None, ...], Workers] = {}
_making = threading.Lock()


def workers(pins: tuple[str | None, ...]) -> Workers:
    """This process's workers for `pins`; they stay, with their models, until other ones are needed."""
    with _making:
        if pins not in _pools:
            for other in [pins for pins, pool in _pools.items() if pool.is_idle]:
                _pools.pop(other).close()  # their models' memory is needed
            _pools[pins] = Workers(pins)
        return _pools[pins]
