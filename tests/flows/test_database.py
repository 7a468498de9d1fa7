"""Prefect's SQLite database: cursors that failed or were left open hold up neither the server nor the database."""

import asyncio
import gc
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from prefect.plugins import load_prefect_collections
from prefect.server.database.configurations import AioSqliteConfiguration
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from flows.database import ClosingConnection


def insert(number: int) -> Any:
    return text(f"INSERT INTO t VALUES ({number})")


async def opened(engine: AsyncEngine, busy: int) -> AsyncConnection:
    connection = await engine.connect()
    await connection.execute(text(f"PRAGMA busy_timeout = {busy}"))
    return connection


async def left_open(connection: AsyncConnection) -> None:
    """A statement that fails at once, as Prefect's do under load; the garbage collector alone frees what it leaves."""
    with pytest.raises(OperationalError, match="database is locked") as found:
        await connection.execute(insert(0))
    found.value.cycle = found.value  # type: ignore[attr-defined]


async def waits_in_vain(folder: Path) -> bool:
    """Whether one connection's wait for the lock ends in a fault because the garbage collector held up its owner."""
    configuration = AioSqliteConfiguration(f"sqlite+aiosqlite:///{folder}/prefect.db")
    engine = await configuration.engine()
    owner, waiter = await opened(engine, 0), await opened(engine, 0)
    gc.disable()
    try:
        await owner.execute(text("CREATE TABLE t (x)"))
        await owner.execute(text("BEGIN IMMEDIATE"))
        await owner.execute(insert(1))
        await left_open(waiter)
        await waiter.execute(text("PRAGMA busy_timeout = 2000"))
        waiting = asyncio.create_task(waiter.execute(insert(2)))
        await asyncio.sleep(0.3)  # it is inside SQLite by now
        gc.collect()  # as it comes to the server, at any moment
        await owner.execute(text("COMMIT"))
        try:
            await waiting
        except OperationalError:
            return True
        return False
    finally:
        gc.enable()
        await owner.close()
        await waiter.close()
        await engine.dispose()


def test_what_a_failed_statement_leaves_holds_nobody_up(tmp_path: Path) -> None:
    load_prefect_collections()
    assert not asyncio.run(waits_in_vain(tmp_path))


@pytest.mark.parametrize("place", ["old.db", ":memory:"])
def test_older_connections_are_replaced_but_not_those_whose_database_is_in_memory(tmp_path: Path, place: str) -> None:
    load_prefect_collections()
    url = f"sqlite+aiosqlite:///{place if place == ':memory:' else tmp_path / place}"

    async def main() -> tuple[bool, list[Any]]:
        engine = await AioSqliteConfiguration(url).engine()
        async with engine.connect() as old:
            (await old.get_raw_connection()).info.clear()  # as one has none that was made before the import
            await old.execute(text("CREATE TABLE t (x)"))
            await old.execute(insert(1))
            first = (await old.get_raw_connection()).driver_connection
        async with engine.connect() as found:
            second = (await found.get_raw_connection()).driver_connection
            rows = (await found.execute(text("SELECT x FROM t"))).all()
        await engine.dispose()
        return first is second, [tuple(row) for row in rows]

    assert asyncio.run(main()) == (place == ":memory:", [(1,)])


def test_a_closed_connection_keeps_no_lock(tmp_path: Path) -> None:
    file = tmp_path / "some.db"
    with sqlite3.connect(file, isolation_level=None, timeout=0) as other:
        other.execute("PRAGMA journal_mode = WAL")
        other.execute("CREATE TABLE t (x)")
        closed = sqlite3.connect(file, isolation_level=None, factory=ClosingConnection)
        closed.execute("BEGIN IMMEDIATE")
        unread = closed.cursor().execute("INSERT INTO t VALUES (1), (2) RETURNING x")
        closed.close()
        other.execute("INSERT INTO t VALUES (3)")
        assert other.execute("SELECT x FROM t").fetchall() == [(3,)]
    other.close()
    del unread
