"""Where our log records go during a run: Prefect's run logs, the job's log file, and whoever listens to events."""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prefect.exceptions import MissingContextError
from prefect.logging.handlers import APILogHandler

from flashvsr_core.errors import FlashvsrError
from tasks.storage import urls
from tasks.storage.jobs import Job

log = logging.getLogger(__name__)

OURS = ("flashvsr_core", "tasks", "flows")
LARGEST_LOG = 4 << 20  # bytes of a job's log; beyond, its older half goes


class RunLog(APILogHandler):
    """Sends our records to the log of the Prefect run that they come from; those of no run are not for it."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)

    def handleError(self, record: logging.LogRecord) -> None:
        import sys

        if not isinstance(sys.exc_info()[1], MissingContextError):
            super().handleError(record)


class _Echo(logging.Handler):
    """Passes records on to the root logger's handlers as before, but no events without a message."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)

    def emit(self, record: logging.LogRecord) -> None:
        root = logging.getLogger()
        if root.handlers:
            root.callHandlers(record)


@contextmanager
def listening(*handlers: logging.Handler, echo: bool) -> Iterator[None]:
    """Have `handlers` hear everything our packages say, events too, for the duration of a `with` block.

    With `echo` handlers of the root logger hear messages from INFO on; without it nothing.
    """
    loggers = [logging.getLogger(name) for name in OURS]
    before = [(logger.level, logger.propagate) for logger in loggers]
    added = []
    for logger in loggers:
        logger.setLevel(logging.DEBUG)
        mine = [*handlers, _Echo()] if echo and logger.propagate else list(handlers)
        logger.propagate = False
        for handler in mine:
            logger.addHandler(handler)
            added.append((logger, handler))
    try:
        yield
    finally:
        for logger, handler in added:
            logger.removeHandler(handler)
        for logger, (level, propagate) in zip(loggers, before):
            logger.setLevel(level)
            logger.propagate = propagate


@contextmanager
def job_log(job: Job) -> Iterator[None]:
    """Add what is said during a `with` block to `job.log` in the job's directory, however the block ends.

    On a local store it is written line by line, elsewhere uploaded at the end, behind what earlier runs left there.
    """
    with tempfile.TemporaryDirectory(prefix="flashvsr-log-") as folder:
        local = urls.is_local(job.url)
        path = urls.local_path(job.log_url) if local else Path(folder) / "job.log"
        try:
            _begin(job, path)
            handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
        except (FlashvsrError, OSError) as error:
            log.warning("%s cannot be written: %s", job.log_url, error)
            yield
            return
        handler.setLevel(logging.INFO)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
        loggers = [logging.getLogger(name) for name in OURS]
        for logger in loggers:
            logger.addHandler(handler)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeHandler(handler)
            handler.close()
            if not local:
                _upload(job, path)


def _begin(job: Job, path: Path) -> None:
    try:
        before = urls.read_bytes(job.log_url)
    except FileNotFoundError:
        return
    if len(before) > LARGEST_LOG:
        before = b"(older lines were removed)\n" + before[-LARGEST_LOG // 2 :].partition(b"\n")[2]
        path.write_bytes(before)
    elif not urls.is_local(job.url):
        path.write_bytes(before)


def _upload(job: Job, path: Path) -> None:
    try:
        urls.write_bytes(job.log_url, path.read_bytes())
    except (FlashvsrError, OSError) as error:
        log.warning("%s was not uploaded: %s", job.log_url, error)
