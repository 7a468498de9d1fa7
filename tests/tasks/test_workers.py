"""Worker processes: real ones, without a model."""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from flashvsr_core.errors import FlashvsrError, UserError
from tasks import stop
from tasks.events import FramesDone
from tasks.upscale import is_transient
from tasks.workers import WorkerDied, Workers, workers
from tests.tasks import worker_calls as calls

ROOT = Path(__file__).parents[2]


@pytest.fixture
def two() -> Iterator[Workers]:
    made = Workers((None, None))
    yield made
    pids = made.processes()
    made.close()
    assert not any(psutil.pid_exists(pid) for pid in pids)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_two_compute_at_once_and_are_kept(two: Workers, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(two.call, calls.meet, tmp_path, "a", "b")
        second = threads.submit(two.call, calls.meet, tmp_path, "b", "a")
        pids = {first.result(), second.result()}
    assert len(pids) == 2
    assert os.getpid() not in pids
    assert {two.call(calls.who)[0] for _ in range(3)} <= pids


def test_each_has_its_own_gpu_and_only_that() -> None:
    made = Workers(("3", "GPU-abc"))
    try:
        found = [made.call(calls.who) for _ in range(4)]
    finally:
        made.close()
    assert {visible for _, visible in found} == {"3", "GPU-abc"}
    assert len(set(found)) == 2


def test_errors_come_back(two: Workers) -> None:
    with pytest.raises(UserError, match="choose another"):
        two.call(calls.complain)
    with pytest.raises(FlashvsrError, match="Strange: cannot be sent"):
        two.call(calls.complain_strangely)


def test_events_and_log_records_come_back(two: Workers, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "tasks"):
        two.call(calls.talk)
    assert FramesDone(3, 8) in [getattr(record, "event", None) for record in caplog.records]
    assert "said there" in caplog.messages
    caplog.clear()
    with caplog.at_level(logging.WARNING, "tasks"):
        two.call(calls.talk)
    assert caplog.messages == []


def test_a_dead_worker_costs_its_call_only(two: Workers, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as threads:
        running = threads.submit(two.call, calls.meet, tmp_path, "a", "b")
        wait_for((tmp_path / "a").exists)
        with pytest.raises(WorkerDied, match="killed by signal 9"):
            two.call(calls.die)
        assert two.call(calls.meet, tmp_path, "b", "a") != running.result()


def test_a_dead_worker_is_not_tried_again_by_the_task_itself() -> None:
    from prefect.states import Failed

    assert not is_transient(None, None, Failed(data=WorkerDied("x")))


def test_a_worker_that_let_go_of_its_device_begins_the_next_call(tmp_path: Path) -> None:
    one = Workers((None,))
    try:
        with ThreadPoolExecutor(1) as threads:
            storing = threads.submit(one.call, calls.let_go_and_wait, tmp_path)
            pid, _ = one.call(calls.who)
            assert not storing.done()
            (tmp_path / "go").touch()
            assert storing.result() == pid
        assert one.call(calls.who)[0] == pid
        with pytest.raises(WorkerDied):
            one.call(calls.die)
        with ThreadPoolExecutor(2) as threads:  # still one at a time
            waiting = threads.submit(one.call, calls.meet, tmp_path, "a", "b")
            wait_for((tmp_path / "a").exists)
            late = threads.submit(one.call, calls.who)
            time.sleep(0.5)
            assert not late.done()
            (tmp_path / "b").touch()
            assert waiting.result() == late.result()[0]
    finally:
        one.close()


def test_the_heaviest_call_that_waits_comes_first(tmp_path: Path) -> None:
    one, lines, go = Workers((None,)), tmp_path / "lines", tmp_path / "go"
    try:
        with ThreadPoolExecutor(4) as threads:
            threads.submit(one.call, calls.note, lines, "first", go)
            wait_for(lambda: one.processes() != [])
            for weight in (8, 32, 16):
                threads.submit(one.call, calls.note, lines, f"{weight}", go, weight=weight)
            time.sleep(0.5)
            go.touch()
    finally:
        one.close()
    assert lines.read_text().split() == ["first", "32", "16", "8"]


def test_stopping_now_gives_up_what_runs(two: Workers, tmp_path: Path) -> None:
    try:
        with ThreadPoolExecutor(3) as threads:
            running = [threads.submit(two.call, calls.run_until_stopped, tmp_path) for _ in range(2)]
            wait_for(lambda: len(list(tmp_path.iterdir())) == 2)
            waiting = threads.submit(two.call, calls.run_until_stopped, tmp_path)
            stop.ask("soon")
            with pytest.raises(stop.Stopped, match="before"):
                waiting.result(60)
            assert not any(call.done() for call in running)
            stop.ask("now")
            for call in running:
                with pytest.raises(stop.Stopped, match="middle"):
                    call.result(60)
    finally:
        stop.forget()
    assert two.call(calls.who)[0] in two.processes()


def test_other_workers_end_unless_they_are_at_work(tmp_path: Path) -> None:
    busy = workers((None,))
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(busy.call, calls.meet, tmp_path, "a", "b")
        wait_for((tmp_path / "a").exists)
        other = workers(("7",))
        assert other.call(calls.who)[1] == "7"
        assert workers((None,)) is busy
        (tmp_path / "b").touch()
        running.result()
    pids = busy.processes() + other.processes()
    assert len(pids) == 2
    workers(("8",)).close()
    wait_for(lambda: not any(psutil.pid_exists(pid) for pid in pids))


def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from tests.tasks.worker_calls import work_for_ever\n"
    code += "work_for_ever(Path(sys.argv[1]), 2)"
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
    try:
        wait_for(lambda: len(list(tmp_path.iterdir())) == 2)
    finally:
        parent.kill()
        parent.wait()
    pids = [int(file.name.removeprefix("pid-")) for file in tmp_path.iterdir()]
    wait_for(lambda: not any(psutil.pid_exists(pid) for pid in pids))
