"""Prefect's server on SQLite must not stand still: its connections close the cursors that are left open.

SQLAlchemy's aiosqlite dialect leaves a cursor open when its statement fails, as "database is locked" does under load,
or is cancelled (seen with SQLAlchemy 2.0.58, aiosqlite 0.22.1, Prefect 3.8.8). Such a cursor ends in the garbage
collector, on the server's only thread of requests. To reset its statement, that thread then waits for the mutex of the
cursor's connection; where another thread is inside that connection and waits for the database's lock, and the lock's
owner for the thread that stands still, the whole server hangs until SQLite gives up, after a minute, often twice in a
row. A connection that is closed with such a cursor keeps its locks, too, until that is collected.

Prefect's processes import this module as a collection (pyproject.toml, group prefect.collections): a server that runs
where flashvsr is installed has these connections.
"""

import functools
import sqlite3
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

import aiosqlite
from sqlalchemy import event
from sqlalchemy.engine import Dialect, Engine
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.pool import ConnectionPoolEntry, Pool


def _closing(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def closing(cursor: sqlite3.Cursor, *arguments: Any) -> Any:
        try:
            return method(cursor, *arguments)
        except sqlite3.Error:
            cursor.close()
            raise

    return closing


class ClosingCursor(sqlite3.Cursor):
    """A cursor that is closed, in the thread that uses it, when its statement fails."""

    execute = _closing(sqlite3.Cursor.execute)
    executemany = _closing(sqlite3.Cursor.executemany)
    fetchall = _closing(sqlite3.Cursor.fetchall)


class ClosingConnection(sqlite3.Connection):
    """A connection that closes its cursors before itself."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._cursors: WeakSet[sqlite3.Cursor] = WeakSet()

    def cursor(self, factory: Any = ClosingCursor) -> Any:
        made = super().cursor(factory)
        self._cursors.add(made)
        return made

    def close(self) -> None:
        for cursor in tuple(self._cursors):
            cursor.close()
        super().close()


def _connect(dialect: Dialect, entry: ConnectionPoolEntry | None, _arguments: Any, options: dict[str, Any]) -> None:
    if dialect.driver == "aiosqlite":
        options.setdefault("factory", ClosingConnection)
        if entry is not None:
            entry.info[ClosingConnection] = True


def _checkout(connection: Any, entry: ConnectionPoolEntry, _proxy: Any) -> None:
    """Has connections replaced that are older than this module's import, as that of a server's migrations is."""
    if isinstance(entry.driver_connection, aiosqlite.Connection) and ClosingConnection not in entry.info:
        cursor = connection.cursor()
        cursor.execute("PRAGMA database_list")
        _number, _name, file = cursor.fetchone()
        if file:  # else it is in memory: it would end with its only connection
            raise DisconnectionError


event.listen(Engine, "do_connect", _connect)
event.listen(Pool, "checkout", _checkout)
