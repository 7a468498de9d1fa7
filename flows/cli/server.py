"""Prefect's own server for one command: quiet, on a free loopback port, and gone however the command ends."""

import json
import logging
import os
import secrets
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import platformdirs
import psutil

from flashvsr_core.errors import FlashvsrError
from tasks.storage.local import locked

_SETTINGS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_CLI_PROMPT": "false",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    # Failures reach the user as one line of ours, not as tracebacks of tasks.
    "PREFECT_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_SERVER_LEVEL": "ERROR",
    # Two minutes in all (2 + 4 + ... + 64 s) in which a server that was there may be restarted.
    "PREFECT_CLIENT_MAX_RETRIES": "6",
}

# Prefect's senders of events and logs, by the names of their loggers: where they are slow they warn of what is left
# to send, which says nothing to a user and breaks into the live view.
SENDERS = ("EventsWorker", "APILogWorker")


@contextmanager
def prefect_api() -> Iterator[None]:
    """Make a Prefect API available to this process; must be entered before anything of `prefect` is imported.

    Where PREFECT_API_URL is set, that server is used. Otherwise one is started as a child, with a database of its own
    that is thrown away, so that commands side by side never wait for each other's database.
    """
    for name in SENDERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    if os.environ.get("PREFECT_API_URL"):
        for name in ("PREFECT_LOGGING_LEVEL", "DO_NOT_TRACK", "PREFECT_CLIENT_MAX_RETRIES"):
            os.environ.setdefault(name, _SETTINGS[name])
        yield
        return
    home = platformdirs.user_cache_path("flashvsr") / f"prefect-{version('prefect')}"
    home.mkdir(parents=True, exist_ok=True)
    # A profile of the user's must not send this command to some other server.
    os.environ |= _SETTINGS | {"PREFECT_HOME": str(home), "PREFECT_PROFILES_PATH": str(home / "profiles.toml")}
    database = home / f"run-{os.getpid()}-{secrets.token_hex(4)}.db"
    try:
        with _template(home) as template:
            shutil.copyfile(template, database)
        with _serving(database) as url:
            os.environ["PREFECT_API_URL"] = url
            with _no_heartbeats():
                yield
    finally:
        _remove(database)


@contextmanager
def _no_heartbeats() -> Iterator[None]:
    """Flow runs send none: on a server that ends with the command nobody listens, and every run and subflow would wait
    up to a second, as it ends, for the thread that sends them."""
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield


@contextmanager
def _template(home: Path) -> Iterator[Path]:
    """An empty, migrated database of this Prefect version: making one takes 5 to 15 seconds, copying it none."""
    template = home / "template.db"
    with locked(str(home / "template.lock")):
        _sweep(home)
        if not template.exists():
            fresh = home / "fresh.db"
            _remove(fresh)
            with _serving(fresh):
                pass
            _checkpoint(fresh)
            fresh.rename(template)
        yield template


@contextmanager
def _serving(database: Path) -> Iterator[str]:
    """Run the server on `database`; yields its API URL. It ends when its standard input is closed, so also with us."""
    errors = database.with_suffix(".log")
    env = os.environ | {"PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{database}"}
    with errors.open("wb") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "flows.cli.serve_child"],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for this command: the server must stay until the flow has said goodbye
        )
    try:
        assert child.stdout is not None
        line = child.stdout.readline()
        if not line:
            raise FlashvsrError(f"Prefect's server did not start: {errors.read_text(errors='replace')[-2000:]}")
        yield json.loads(line)["url"]
    finally:
        assert child.stdin is not None
        child.stdin.close()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        errors.unlink(missing_ok=True)


def _checkpoint(database: Path) -> None:
    """Fold the write-ahead log into the file, so that the file alone can be copied."""
    connection = sqlite3.connect(database)
    try:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        connection.close()


def _remove(database: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{database}{suffix}").unlink(missing_ok=True)


def _sweep(home: Path) -> None:
    """Remove databases of commands that were killed."""
    for database in home.glob("run-*.db"):
        pid = int(database.name.split("-")[1])
        if not psutil.pid_exists(pid):
            _remove(database)
            database.with_suffix(".log").unlink(missing_ok=True)
