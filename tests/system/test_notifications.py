"""The documented notifications, made word for word on a real server: a failed and a finished run send their message."""

import http.server
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.flows.clips import make_clip
from tests.system.processes import ROOT, prefect_server

pytestmark = pytest.mark.system

OPTIONS = ("--segment-frames=16", "--scale=2", "--preset=ultrafast", "--preroll=8", "--devices=cpu", "--model=nano")


@pytest.fixture
def hook() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A web hook's URL, and the messages that came."""
    messages: list[dict[str, str]] = []

    class Receiver(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            messages.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Silent."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", messages
    server.shutdown()


def blocks() -> list[tuple[str, str]]:
    text = (ROOT / "docs" / "notifications.md").read_text()
    return re.findall(r"^```(python|sh) test=notifications\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_failed_and_finished_runs_are_told(hook: tuple[str, list[dict[str, str]]], tmp_path: Path) -> None:
    url, messages = hook
    clip = make_clip(tmp_path / "clip.mp4", 9)
    (tmp_path / "prefect").mkdir()
    with prefect_server(tmp_path / "prefect") as env:
        env = env | {"WEBHOOK": url, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"}
        assert [language for language, _ in blocks()] == ["python", "sh"]
        for language, text in blocks():
            line = [sys.executable, "-c", text] if language == "python" else ["bash", "-euc", text]
            done = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=200)
            assert done.returncode == 0, done.stdout + done.stderr
        run = [sys.executable, "-m", "flows.cli.main", "run", str(clip)]
        places = (str(tmp_path / "out.mp4"), *OPTIONS, f"--work-dir={tmp_path / 'work'}")
        assert subprocess.run([*run, *places], cwd=ROOT, env=env, timeout=400).returncode == 0
        (tmp_path / "other.mp4").write_bytes(b"somebody else's")
        refused = (str(tmp_path / "other.mp4"), *OPTIONS, f"--work-dir={tmp_path / 'work'}")
        assert subprocess.run([*run, *refused], cwd=ROOT, env=env, timeout=400).returncode == 2
        deadline = time.monotonic() + 60
        while len(messages) < 2 and time.monotonic() < deadline:
            time.sleep(0.5)
    texts = sorted(message["text"] for message in messages)
    assert len(texts) == 2, texts
    failed, finished = sorted(texts, key=lambda text: "finished" in text.partition("\n")[0])
    assert re.match(r"flashvsr: upscale-.*clip\.mp4 Failed\n", failed)
    assert "--force" in failed
    assert re.match(r"flashvsr: upscale-.*clip\.mp4 finished\n", finished)
    assert "/runs/flow-run/" in finished
