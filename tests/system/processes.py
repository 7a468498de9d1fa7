"""Servers and workers that tests start: free loopback ports, own directories, ended with the test."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def running(command: list[str], env: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is terminated (then killed) at the end; its output is kept in `log`."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, env=env, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def prefect_env(home: Path, port: int) -> dict[str, str]:
    return os.environ | {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "PYTHONPATH": str(ROOT),
    }


@contextmanager
def prefect_server(home: Path) -> Iterator[dict[str, str]]:
    """Prefect's own server on a free port; yields the environment for its clients."""
    env = prefect_env(home, free_port())
    with prefect_server_of(env, home / "server.log"):
        yield env


@contextmanager
def prefect_server_of(env: dict[str, str], log: Path) -> Iterator[None]:
    """The server that an environment names: the same one again, if it ran before."""
    url = httpx.URL(env["PREFECT_API_URL"])
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", url.host, "--port", str(url.port)]
    with running(command, env, log) as process:
        wait_for(lambda: httpx.get(f"{url}/health").status_code == 200, process, log)
        yield


def wait_for(condition, process: subprocess.Popen[bytes], log: Path, seconds: float = 300) -> None:  # type: ignore[no-untyped-def]
    """Wait until `condition()` is true; fails with the log if the process ends or the time runs out."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text(errors="replace")
        try:
            if condition():
                return
        except httpx.TransportError:
            pass  # not listening yet
        time.sleep(0.3)
    raise AssertionError(f"not ready after {seconds} s: {log.read_text(errors='replace')[-2000:]}")
