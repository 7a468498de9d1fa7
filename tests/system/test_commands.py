"""The commands of docs/deployments.md, as they stand there: from nothing to an object that came out of the outbox."""

import re
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import fsspec
import httpx
import pytest

from tasks.media.probe import probe
from tests.flows.clips import make_clip
from tests.s3server import PORTS, free_ports
from tests.system.processes import ROOT, running, wait_for
from tests.system.stack import kill_tree

pytestmark = [pytest.mark.system, pytest.mark.timeout(1800)]

PAGE = (ROOT / "docs" / "deployments.md").read_text()
PASSWORD, TOKEN = "correct-horse-battery", "a-long-token-for-tests"


def block(name: str) -> str:
    found = re.search(rf"^```\w+ {name}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None, name
    return found[1]


def test_five_commands_from_an_empty_machine(tmp_path: Path) -> None:
    commands = block("commands").splitlines()
    assert len(commands) <= 5
    with ExitStack() as stack:
        ports = free_ports(stack, 3 + 2 * len(PORTS))
    api, s3, hook = ports[:3]

    def moved(text: str) -> str:
        """The page's ports are free on an empty machine; here others may have them."""
        for old, new in ((4200, api), (8333, s3), (8080, hook)):
            text = text.replace(str(old), str(new))
        return text

    others = " ".join(
        f"-{name}={s3 if name == 's3.port' else ports[3 + 2 * i]} -{name}.grpc={ports[4 + 2 * i]}"
        for i, name in enumerate(PORTS)
    )
    extra = {"prefect server": f" --port {api}", "weed mini": f" {others} -s3.port.iceberg=0 -s3.port.lance=0"}
    notification = moved(block("notification")).replace("the token of FLASHVSR_LISTEN_TOKEN", TOKEN)
    (tmp_path / "notification.toml").write_text(notification)
    env = {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "HOME": str(tmp_path),
        "PASSWORD": PASSWORD,
        "TOKEN": TOKEN,
        "PYTHONPATH": str(ROOT),
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_WORKER_QUERY_SECONDS": "2",
    }
    url = f"http://127.0.0.1:{api}/api"
    options = {
        "key": "admin",
        "secret": PASSWORD,
        "endpoint_url": f"http://127.0.0.1:{s3}",
        "client_kwargs": {"region_name": "us-east-1"},
    }
    ready = {
        "prefect server": lambda: httpx.get(f"{url}/health", auth=("admin", PASSWORD)).status_code == 200,
        "weed mini": lambda: httpx.get(options["endpoint_url"]).status_code < 500,
        "flashvsr listen": lambda: httpx.get(f"http://127.0.0.1:{hook}/health").status_code == 200,
    }
    with ExitStack() as stack:
        for number, command in enumerate(commands):
            start = " ".join(command.split()[:2])
            line = f"cd {tmp_path}\n{moved(block('settings'))}\nexec {moved(command)}{extra.get(start, '')}"
            log = tmp_path / f"{number}.log"
            process = stack.enter_context(running(["bash", "-c", line], env, log))
            stack.callback(kill_tree, process.pid)
            if start == "flashvsr deploy":
                assert process.wait(600) == 0, log.read_text()
            elif start in ready:
                wait_for(ready[start], process, log, 600)
        assert httpx.post(f"{url}/flow_runs/filter", json={}).status_code == 401  # nobody without the password
        clip = make_clip(tmp_path / "clip.mp4", 9, "64x36")
        store = fsspec.filesystem("s3", **options, use_listings_cache=False, skip_instance_cache=True)
        store.put_file(str(clip), "media/in/deep/a.mov")
        output, deadline = "media/out/deep/a_4x.mp4", time.monotonic() + 600
        while not store.exists(output):
            logs = [f"{p.name}: {p.read_text(errors='replace')[-2000:]}" for p in sorted(tmp_path.glob("*.log"))]
            assert time.monotonic() < deadline, "\n".join(logs)
            time.sleep(0.5)
        store.get_file(output, str(tmp_path / "out.mp4"))
    found = probe(tmp_path / "out.mp4")
    assert (found.frames, found.width, found.height) == (9, 256, 144)
