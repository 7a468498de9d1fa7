"""A Prefect server that runs beside this package."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.processes import ROOT, free_port, prefect_env

pytestmark = pytest.mark.system

# All that the server has open once it serves, by the types of SQLite's connections.
OPEN_CONNECTIONS = """
import asyncio, gc, os
import aiosqlite
from prefect.server.api.server import create_app
from prefect.server.database import provide_database_interface

async def main():
    app = create_app(ephemeral=True)
    async with app.router.lifespan_context(app):
        async with provide_database_interface().session_context():
            found = [one for one in gc.get_objects() if isinstance(one, aiosqlite.Connection)]
        print(*{type(one._connection).__qualname__ for one in found if one._connection is not None}, flush=True)
        os._exit(0)  # its services need not begin

asyncio.run(main())
"""


def test_every_connection_of_a_server_closes_what_is_left_open(tmp_path: Path) -> None:
    env = prefect_env(tmp_path, free_port())
    done = subprocess.run(
        [sys.executable, "-c", OPEN_CONNECTIONS], env=env, cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.split() == ["ClosingConnection"], done.stderr
