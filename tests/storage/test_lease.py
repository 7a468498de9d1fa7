"""One holder at a time, whatever ends the others."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from flashvsr_core.errors import AlreadyRunning, FlashvsrError, TransientError
from tasks.storage import lease as module
from tasks.storage import urls
from tasks.storage.lease import Holder, LeaseLost, hold
from tasks.storage.process import ProcessId, host_id, this_process

ROOT = Path(__file__).parents[2]


@pytest.fixture
def url(place: str) -> str:
    return urls.join(place, "job", "lease.json")


def stored(url: str) -> dict[str, Any]:
    found: dict[str, Any] = urls.read_json(url)
    return found


def foreign(expires: float, ttl: float = 60.0) -> Holder:
    """A lease of a run on another machine."""
    return Holder("other", "nina", "elsewhere", ProcessId("0" * 16, 1, 1.0), time.time() - 5, expires, ttl)


def test_held_and_released(url: str) -> None:
    with hold(url, "ann") as lease:
        found = stored(url)
        assert (found["owner"], found["process"]["pid"]) == ("ann", os.getpid())
        assert 100 < found["expires"] - time.time() <= 120
        lease.check()
        assert urls.list_names(urls.parent(url)) == ["lease.json"]
    assert urls.list_names(urls.parent(url)) == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_released_on_errors(url: str, error: type[BaseException]) -> None:
    with pytest.raises(error), hold(url, "ann"):
        raise error
    assert not urls.exists(url)


def test_refused(url: str) -> None:
    with hold(url, "ann"), pytest.raises(AlreadyRunning) as caught, hold(url, "bob"):
        pytest.fail("held twice")
    message = str(caught.value)
    for part in ("already running since 20", "by ann", f"process {os.getpid()}", "wait", url):
        assert part in message
    with hold(url, "bob"):
        assert stored(url)["owner"] == "bob"


def test_waiting(url: str, caplog: pytest.LogCaptureFixture) -> None:
    entered, leave = threading.Event(), threading.Event()

    def first() -> None:
        with hold(url, "ann"):
            entered.set()
            leave.wait()

    thread = threading.Thread(target=first)
    thread.start()
    entered.wait()
    start = time.monotonic()
    with pytest.raises(AlreadyRunning), hold(url, "bob", wait=0.3):
        pytest.fail("held twice")
    assert 0.3 <= time.monotonic() - start < 3
    threading.Timer(0.3, leave.set).start()
    with caplog.at_level(logging.INFO), hold(url, "bob", wait=20.0) as lease:
        assert leave.is_set()
        lease.check()
    thread.join()
    assert sum("waiting for another run" in r.message for r in caplog.records) == 1


def test_renewed(url: str) -> None:
    with hold(url, "ann", ttl=0.6) as lease:
        first = stored(url)
        time.sleep(1.2)
        second = stored(url)
        assert second["expires"] >= first["expires"] + 0.4
        assert (second["token"], second["acquired"]) == (first["token"], first["acquired"])
        lease.check()
        with pytest.raises(AlreadyRunning), hold(url, "bob"):
            pytest.fail("held twice")


def test_clocks_may_differ(url: str) -> None:
    urls.write_bytes(url, foreign(expires=time.time() - 25).encode())
    with pytest.raises(AlreadyRunning, match=r"nina .*elsewhere"), hold(url, "ann"):
        pytest.fail("held twice")
    urls.write_bytes(url, foreign(expires=time.time() - 35).encode())
    with hold(url, "ann"):
        assert stored(url)["owner"] == "ann"


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"null", b"\xff", b'{"token": 1}', foreign(1e300).encode(), foreign(float("nan")).encode()],
)
def test_damaged_lease_is_taken_over(url: str, data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    urls.write_bytes(url, data)
    with hold(url, "ann"):
        assert stored(url)["owner"] == "ann"
    assert "not readable" in caplog.text


def test_fields_of_later_versions_are_ignored(url: str) -> None:
    urls.write_json(url, json.loads(foreign(time.time() + 60).encode()) | {"later": 1})
    with pytest.raises(AlreadyRunning), hold(url, "ann"):
        pytest.fail("held twice")


def test_race_for_a_free_lease(url: str, race) -> None:
    overlap(url, race)


def test_race_for_an_expired_lease(url: str, race) -> None:
    urls.write_bytes(url, foreign(expires=time.time() - 1000).encode())
    overlap(url, race)


def overlap(url: str, race: Any) -> None:
    """Eight runs at once; the one that gets in stays until the seven others have been refused."""
    holders: list[int] = []
    refused = threading.Semaphore(0)

    def act(i: int) -> None:
        try:
            with hold(url, f"run {i}") as lease:
                holders.append(i)
                for _ in range(7):
                    assert refused.acquire(timeout=60)
                lease.check()
        except AlreadyRunning:
            refused.release()
            raise

    results = race(8, act)
    assert len(holders) == 1
    assert results[holders[0]] is None
    assert [type(r) for i, r in enumerate(results) if i != holders[0]] == [AlreadyRunning] * 7
    assert not urls.exists(url)


def test_many_runs_in_turn(place: str, race) -> None:
    """Never two inside at once, nobody left out."""
    url = urls.join(place, "lease.json")
    inside, most, turns = 0, 0, 0

    def act(_: int) -> None:
        nonlocal inside, most, turns
        with hold(url, "x", ttl=3.0, wait=60.0) as lease:
            inside += 1
            most = max(most, inside)
            time.sleep(0.01)
            lease.check()
            turns += 1
            inside -= 1

    assert race(4, act) == [None] * 4
    assert (most, turns) == (1, 4)


def test_lost(url: str, caplog: pytest.LogCaptureFixture) -> None:
    other = foreign(time.time() + 60)
    with hold(url, "ann", ttl=0.6) as lease:
        urls.write_bytes(url, other.encode())
        time.sleep(0.5)
        with pytest.raises(LeaseLost, match=r"held since .* by nina"):
            lease.check()
    assert urls.read_bytes(url) == other.encode(), "another run's lease must stay"
    assert "was lost" in caplog.text


def test_removed_by_hand(url: str) -> None:
    with hold(url, "ann", ttl=0.6) as lease:
        urls.remove(url)
        time.sleep(0.5)
        with pytest.raises(LeaseLost, match="gone"):
            lease.check()
    assert not urls.exists(url)


def test_late_renewal(url: str) -> None:
    """After a pause (a suspended machine) the store decides: still ours is renewed, taken over is lost."""
    with hold(url, "ann") as lease:
        lease.holder = replace(lease.holder, expires=time.time() - 1)
        lease.check()
        assert lease.holder.expires > time.time() + 60
        lease.holder = replace(lease.holder, expires=time.time() - 1)
        urls.write_bytes(url, foreign(time.time() + 60).encode())
        with pytest.raises(LeaseLost):
            lease.check()


def test_store_that_fails_for_a_while(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise TransientError("no answer; run again")

    with hold(url, "ann", ttl=0.9) as lease:
        with monkeypatch.context() as patch:
            patch.setattr(module.urls, "read_version", fail)
            time.sleep(0.4)
            lease.check()
            time.sleep(0.6)
            with pytest.raises(TransientError, match="no answer"):
                lease.check()
        time.sleep(0.4)
        lease.check()
        monkeypatch.setattr(module.urls, "read_version", fail)
    assert "trying again" in caplog.text
    assert "left to expire" in caplog.text


def test_release_does_not_hide_the_error(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str, missing_ok: bool) -> None:
        raise FlashvsrError("no answer")

    monkeypatch.setattr(module.urls, "remove", fail)
    with pytest.raises(RuntimeError, match="the reason"), hold(url, "ann"):
        raise RuntimeError("the reason")


def test_answer_lost_on_the_way(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A conditional write that worked, was tried again by the client, and failed on its own first attempt."""
    for name in ("create_exclusive", "replace_version"):
        original = getattr(urls, name)
        monkeypatch.setattr(module.urls, name, lambda *args, original=original: (original(*args), False)[1])
    with hold(url, "ann", ttl=0.6) as lease:
        time.sleep(0.5)
        lease.check()
    assert not urls.exists(url)


def start_holder(url: str, ttl: float, options: dict[str, str]) -> subprocess.Popen[str]:
    code = (
        "import signal, sys, time; from tasks.storage.lease import hold\n"
        # A test runner in the background of a shell ignores SIGINT, and its children inherit that.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "with hold(sys.argv[1], 'child', ttl=float(sys.argv[2])): print('held', flush=True); time.sleep(600)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | options
    command = [sys.executable, "-c", code, url, str(ttl)]
    child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    return child


@pytest.mark.parametrize("place", ["local", pytest.param("s3", marks=pytest.mark.system)], indirect=True)
def test_killed_holder(url: str, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> None:
    """A lease on this host goes with its process, even one whose parent has not yet looked."""
    options = {}
    if url.startswith("s3:"):
        options = {"FSSPEC_S3": json.dumps(request.getfixturevalue("seaweed").options)}
    child = start_holder(url, 600.0, options)
    try:
        with pytest.raises(AlreadyRunning, match="by child"), hold(url, "ann"):
            pytest.fail("held twice")
        child.send_signal(signal.SIGKILL)
        time.sleep(0.3)  # it is a zombie now
        with hold(url, "ann"):
            assert stored(url)["owner"] == "ann"
        assert "took over" in caplog.text
    finally:
        child.kill()
        child.wait()


def test_interrupted_holder(tmp_path: Path) -> None:
    child = start_holder(str(tmp_path / "lease.json"), 600.0, {})
    child.send_signal(signal.SIGINT)
    child.wait(20)
    assert os.listdir(tmp_path) == []


def test_race_of_processes(tmp_path: Path) -> None:
    """Separate processes, one dead lease, one winner."""
    url = str(tmp_path / "lease.json")
    urls.write_bytes(url, foreign(expires=time.time() - 1000).encode())
    code = (
        "import sys, time; from tasks.storage.lease import hold\n"
        "time.sleep(max(0, float(sys.argv[2]) - time.time()))\n"
        "with hold(sys.argv[1], 'child'): time.sleep(1.5); print('won')"
    )
    command = [sys.executable, "-c", code, url, str(time.time() + 2)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    children = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    ends = [child.communicate(timeout=60) for child in children]
    assert sorted(out for out, _ in ends) == ["", "", "", "won\n"], ends
    assert sum("AlreadyRunning" in err for _, err in ends) == 3
    assert os.listdir(tmp_path) == []


def test_processes() -> None:
    me = this_process()
    assert not me.is_gone
    assert replace(me, started=me.started - 100).is_gone, "the pid was used again"
    assert replace(me, pid=2**22 + 1).is_gone
    assert not replace(me, host="0" * 16, pid=2**22 + 1).is_gone, "another host's processes cannot be judged"
    assert me.host == host_id()
    assert not ProcessId(host_id(), 1, psutil.Process(1).create_time()).is_gone
