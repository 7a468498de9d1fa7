"""`flashvsr listen`: what its options mean, and that nothing listens to the world, or without a token, by mistake."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import flows.listen
from flashvsr_core.errors import UserError
from flows.cli.listen import _address, listen
from flows.cli.main import app
from tasks.listen.notices import Watched
from tests.test_imports import ROOT


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the command hands on."""
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(flows.listen, "listen", lambda *given: calls.append(given))
    return calls


def test_places_come_from_options_or_the_environment(
    asked: list[tuple[Any, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLASHVSR_INBOX", "s3://videos/my in")
    monkeypatch.setenv("FLASHVSR_OUTBOX", "s3://videos/my in/out")
    monkeypatch.setenv("FLASHVSR_LISTEN_TOKEN", "from the environment")
    app(["listen", "--http", "8080"], result_action="return_value")
    (tmp_path / "token").write_text("from a file\n")
    options = ["--inbox", "s3://a/in", "--inbox", "s3://b", "--outbox", "/media/out", "--sqs", "https://sqs/1/q"]
    app(["listen", *options, "--token-file", str(tmp_path / "token")], result_action="return_value")
    first, second = asked
    places = Watched(("s3://videos/my in",), ("s3://videos/my in/out",))
    assert first == (places, None, ("127.0.0.1", 8080), "from the environment")
    assert second == (Watched(("s3://a/in", "s3://b")), "https://sqs/1/q", None, "from a file")


def test_addresses() -> None:
    assert _address("8080", False) == ("127.0.0.1", 8080)
    assert _address("[::1]:81", False) == ("::1", 81)
    assert _address("0.0.0.0:81", True) == ("0.0.0.0", 81)
    for text in ("0.0.0.0:81", "192.0.2.1:81", "localhost", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536", ""):
        with pytest.raises(UserError):
            _address(text, False)


def test_what_is_missing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLASHVSR_LISTEN_TOKEN", raising=False)
    with pytest.raises(UserError, match="need a token"):
        listen(inbox=["s3://videos/in"], http="8080")
    with pytest.raises(UserError, match="nothing to listen to"):
        listen(inbox=["s3://videos/in"])
    with pytest.raises(UserError, match="cannot read the token"):
        listen(inbox=["s3://videos/in"], http="8080", token_file=tmp_path / "none")
    with pytest.raises(UserError, match="not in a bucket"):
        listen(inbox=["/media/in"], http="8080")


def test_without_an_inbox_the_command_says_so() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli.main", "listen", "--http", "8080"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "--inbox" in done.stderr
