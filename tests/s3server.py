"""A real S3 server for tests: SeaweedFS on loopback, from its package on PyPI."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pytest

BUCKET = "media"
START_SECONDS = 60
PORTS = ("master.port", "volume.port", "filer.port", "s3.port", "admin.port")


@dataclass(frozen=True)
class S3Server:
    endpoint: str

    @property
    def options(self) -> dict[str, Any]:
        """What fsspec's configuration needs to reach the server (also as the variable FSSPEC_S3)."""
        return {
            "key": "testkey",
            "secret": "testsecret",
            "endpoint_url": self.endpoint,
            "client_kwargs": {"region_name": "us-east-1"},
        }


class Weed:
    """A SeaweedFS with a folder and ports of its own, which can be killed and started again."""

    def __init__(self, home: Path, webhook: str = "") -> None:
        """`webhook`: what notification.toml says about one, if anything."""
        self.home, self.log = home, home / "weed.log"
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        keys = [{"accessKey": "testkey", "secretKey": "testsecret"}]
        config = home / "s3.json"
        config.write_text(json.dumps({"identities": [{"name": "test", "credentials": keys, "actions": actions}]}))
        if webhook:
            (home / "notification.toml").write_text(webhook)
        with ExitStack() as stack:
            ports = free_ports(stack, 2 * len(PORTS))
        command = [str(Path(sys.executable).with_name("weed")), "-logtostderr=true", "mini", f"-dir={home}"]
        command += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false"]
        command += ["-admin.ui=false", "-master.telemetry=false", f"-s3.config={config}"]
        for i, name in enumerate(PORTS):
            command += [f"-{name}={ports[2 * i]}", f"-{name}.grpc={ports[2 * i + 1]}"]
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._before = dict(fsspec.config.conf.get("s3", {}))  # where another server of this process is reached
        self.server = S3Server(f"http://127.0.0.1:{ports[2 * PORTS.index('s3.port')]}")

    def start(self) -> None:
        """Start it, and wait until it takes objects; s3:// of this process then leads there, until `end`."""
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command, cwd=self.home, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        fsspec.config.conf["s3"] = dict(self.server.options)
        _wait_until_writable(self._process, self.log)

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)  # a polite end takes seconds
            self._process.wait()

    def end(self) -> None:
        """Kill it for good; s3:// of this process leads where it did before."""
        self.kill()
        fsspec.config.conf["s3"] = self._before


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A SeaweedFS on loopback with one bucket; s3:// of this process leads there."""
    weed = Weed(tmp_path_factory.mktemp("seaweed"))
    try:
        weed.start()
        yield weed.server
    finally:
        weed.end()


def _wait_until_writable(process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    store = fsspec.filesystem("s3", use_listings_cache=False)
    while True:
        try:
            if not store.exists(BUCKET):
                store.mkdir(BUCKET)
            store.pipe_file(f"{BUCKET}/ready", b"1")
            return
        except FileExistsError:
            time.sleep(0.1)
        except Exception as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"SeaweedFS did not start: {log.read_text()[-2000:]}") from error
            time.sleep(0.2)


def free_ports(stack: ExitStack, count: int) -> list[int]:
    sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    return [each.getsockname()[1] for each in sockets]
