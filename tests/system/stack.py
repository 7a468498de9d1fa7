"""Everything a deployment needs, started for tests: S3, Prefect's server, deployments, workers, the listener.

Only what the tests start is ever stopped or killed. Inbox and outbox are buckets; the outbox keeps every version, so
that whatever was written twice shows.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import httpx
import psutil

from tasks.storage import urls
from tests.s3server import BUCKET, Weed
from tests.system.api import Api
from tests.system.processes import ROOT, free_port, prefect_env, running, wait_for

FINISHED = "finished"  # the outbox's bucket
TOKEN = "a-long-token-for-tests"
INBOX, OUTBOX = f"s3://{BUCKET}/in", f"s3://{FINISHED}/out"
PIXELS = {
    "params": {"model": "nano", "scale": 2, "preroll": 8},
    "encode": {"preset": "ultrafast", "threads": 2},
    "compute": {"devices": "cpu"},
}
FLASHVSR = [sys.executable, "-m", "flows.cli.main"]
DEAD_AFTER = 45  # seconds; Prefect's runs beat every 30 at most


class Stack:
    """One set of services. Deployments are made once; tests use names of their own in the inbox."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.hook_port = free_port()
        for name in ("prefect", "weed", "work"):
            (home / name).mkdir()
        self.weed = Weed(
            home / "weed",
            f'[notification.webhook]\nenabled = true\nendpoint = "http://127.0.0.1:{self.hook_port}/"\n'
            f'bearer_token = "{TOKEN}"\nevent_types = ["create", "update"]\npath_prefixes = ["/buckets/{BUCKET}/in"]\n',
        )
        self.port = free_port()
        self.env = prefect_env(home / "prefect", self.port) | {
            "AWS_ENDPOINT_URL": self.weed.server.endpoint,
            "AWS_ACCESS_KEY_ID": "testkey",
            "AWS_SECRET_ACCESS_KEY": "testsecret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "FLASHVSR_WORK": str(home / "work"),
            "FLASHVSR_ROOTS": f"s3://{BUCKET},s3://{FINISHED}",
            "FLASHVSR_LISTEN_TOKEN": TOKEN,
            # Tiny clips gain nothing from threads, and on a busy machine threads wait for each other.
            "OMP_NUM_THREADS": "1",
        }
        self.api = Api(self.env, home)
        self._server: subprocess.Popen[bytes] | None = None

    # Services

    def start_server(self) -> None:
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port)]
        log = self.home / "server.log"
        with log.open("ab") as file:
            self._server = subprocess.Popen(
                command, env=self.env, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )
        wait_for(lambda: self.api.client.get("/health").status_code == 200, self._server, log, 240)

    def stop_server(self) -> None:
        if self._server is not None:
            kill_tree(self._server.pid)
            self._server.wait()
            self._server = None

    @contextmanager
    def worker(self, name: str = "worker") -> Iterator[subprocess.Popen[bytes]]:
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "flashvsr", "--limit", "1"]
        with running([*command, "--name", name], self.env, self.home / f"{name}.log") as process:
            try:
                yield process
            finally:
                kill_tree(process.pid)

    @contextmanager
    def listener(self) -> Iterator[None]:
        command = [*FLASHVSR, "listen", "--inbox", INBOX, "--http", str(self.hook_port)]
        log = self.home / "listener.log"
        with running(command, self.env, log) as process:
            url = f"http://127.0.0.1:{self.hook_port}/health"
            wait_for(lambda: httpx.get(url).status_code == 200, process, log)
            yield

    def deploy(self, *arguments: str) -> str:
        done = subprocess.run([*FLASHVSR, "deploy", *arguments], env=self.env, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    # The store

    @property
    def s3(self) -> Any:
        return fsspec.filesystem("s3", use_listings_cache=False)

    def put(self, name: str, content: bytes) -> str:
        url = f"{INBOX}/{name}"
        self.s3.pipe_file(urls.split(url)[1], content)
        return url

    def versions(self, prefix: str) -> dict[str, int]:
        """Outputs under a prefix of the outbox, and how often each was written."""
        found = self.s3.call_s3("list_object_versions", Bucket=FINISHED, Prefix=f"out/{prefix}")
        counted: dict[str, int] = {}
        for one in found.get("Versions", []):
            if one["Key"].endswith(".mp4"):
                name = one["Key"].removeprefix("out/")
                counted[name] = counted.get(name, 0) + 1
        return counted

    def attempts(self) -> dict[str, dict[str, Any]]:
        """Records of what failed, by source."""
        folder = f"{OUTBOX}/.flashvsr/inbox"
        names = [name for name in urls.list_names(folder) if not name.endswith(".done.json")]
        found = [urls.read_json(f"{folder}/{name}") for name in names]
        return {str(one["source"]): one for one in found}

    def clear_inbox(self) -> None:
        for path in self.s3.find(urls.split(INBOX)[1]):
            self.s3.rm_file(path)


@contextmanager
def stack(home: Path) -> Iterator[Stack]:
    """S3, Prefect's server and the deployments, without worker and listener; the sweep's schedule is off."""
    made = Stack(home)
    try:
        made.weed.start()
        made.s3.mkdir(FINISHED)
        versioning = {"Status": "Enabled"}
        made.s3.call_s3("put_bucket_versioning", Bucket=FINISHED, VersioningConfiguration=versioning)
        made.start_server()
        made.deploy("--inbox", INBOX, "--outbox", OUTBOX, "--dead-after", str(DEAD_AFTER))
        made.api.set_schedule("inbox-sweep/inbox-sweep", "0 0 1 1 *", active=False)
        made.api.set_parameters("inbox-sweep/inbox-sweep", PIXELS | {"min_age": 0, "look_again": 0.2})
        made.api.set_parameters("upscale-on-object/upscale-on-object", PIXELS)
        yield made
    finally:
        made.stop_server()
        made.weed.end()


def kill_tree(pid: int) -> None:
    """SIGKILL a process of ours and all its children, as a machine that loses power does."""
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in family:
        try:
            os.kill(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def message_of(run: dict[str, Any]) -> str:
    return json.dumps(run["state"])
