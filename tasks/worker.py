"""The process behind `tasks.workers`: python -m tasks.worker FD. It makes calls and says what comes of them."""

import copy
import logging
import os
import pickle
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from flashvsr_core.errors import FlashvsrError
from tasks import stop


class _Home(logging.Handler):
    """Sends log records to the process that handed out the work."""

    def __init__(self, send: Callable[[str, int, Any], None]) -> None:
        super().__init__(logging.DEBUG)
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        told = copy.copy(record)
        told.msg, told.args, told.exc_info, told.exc_text = self.format(record), None, None, None
        self._send("log", 0, told)


class Worker:
    """Each call runs in a thread of its own: the next one computes while the one before it is checked and stored."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._guard = threading.Lock()
        self._home = _Home(self._send)

    def serve(self) -> None:
        """Until the other end is closed, which also happens when its process is killed: then leave at once."""
        while True:
            try:
                message = self._connection.recv()
            except (EOFError, OSError):
                os._exit(0)
            if message[0] == "stop":
                stop.ask("now")
                continue
            stop.forget()
            _, number, function, args, levels = message
            self._listen_to(levels)
            threading.Thread(target=self._call, args=(number, function, args), daemon=True).start()

    def _listen_to(self, levels: dict[str, int]) -> None:
        for name, level in levels.items():
            logger = logging.getLogger(name)
            logger.setLevel(level)
            logger.propagate = False
            logger.handlers[:] = [self._home]

    def _call(self, number: int, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        once = threading.Lock()

        def released() -> None:
            if once.acquire(blocking=False):
                self._send("free", number, None)

        try:
            kind, content = "result", function(*args, released)
        except BaseException as error:  # noqa: BLE001 - it is raised again where the call came from
            kind, content = "error", _portable(error)
        released()
        try:
            self._send(kind, number, content)
        except (TypeError, AttributeError, pickle.PicklingError) as error:
            self._send("error", number, FlashvsrError(f"a worker's result cannot be sent: {error}"))

    def _send(self, kind: str, number: int, content: Any) -> None:
        with self._guard:
            self._connection.send((kind, number, content))


def _portable(error: BaseException) -> BaseException:
    """The error, or where it does not survive the journey one that says the same."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - pickling runs the error's own code
        told = FlashvsrError(f"{type(error).__name__}: {error}")
        told.exit_code = getattr(error, "exit_code", 1)
        return told
    return error


if __name__ == "__main__":
    Worker(Connection(int(sys.argv[1]))).serve()
