"""Metrics: counted over processes, served over HTTP, and every one that the dashboard asks for exists."""

import json
import logging
import os
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from flows import metrics, settings
from flows.metrics import COUNTERS, GAUGES, RunMetrics, counted, read_values
from tasks.events import FramesDone, JobPlanned, RunEnded, SegmentComputed, SegmentFailed, SegmentStarted, tell

ROOT = Path(__file__).parents[2]


def run_of(path: Path, status: str = "done") -> None:
    logging.getLogger("tasks.events").setLevel(logging.DEBUG)
    with counted(path):
        tell(JobPlanned("job", 32, 2, 0, ((0, 16), (16, 32))))
        tell(SegmentStarted(0, 16, "GPU"))
        tell(FramesDone(0, 16, 1 << 30))
        tell(SegmentComputed(0, 16, 2.5, 1 << 30, "GPU"))
        tell(SegmentFailed(1, "no memory"))
        tell(RunEnded(status, 3.0))


def test_counters_add_up_over_runs_and_gauges_go(tmp_path: Path) -> None:
    path = tmp_path / "metrics" / "flashvsr.prom"
    run_of(path)
    run_of(path, "failed")
    values = read_values(path)
    assert values["flashvsr_frames", ("GPU",)] == 32
    assert values["flashvsr_segment_seconds", ("GPU",)] == 5.0
    assert values["flashvsr_segments", ("computed",)] == values["flashvsr_segments", ("failed",)] == 2
    assert values["flashvsr_runs", ("done",)] == values["flashvsr_runs", ("failed",)] == 1
    assert not any(name in GAUGES for name, _ in values)
    names = {family.name for family in text_string_to_metric_families(path.read_text())}
    assert names == COUNTERS.keys() | GAUGES.keys()


def test_gauges_of_a_process_at_work_are_there_and_those_of_a_dead_one_go(tmp_path: Path) -> None:
    path = tmp_path / "flashvsr.prom"
    at_work = RunMetrics(path)
    record = logging.LogRecord("tasks.events", logging.DEBUG, "", 0, "", (), None)
    record.event = JobPlanned("job", 32, 2, 0, ((0, 16), (16, 32)))
    at_work.emit(record)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    gone = f'flashvsr_segments_waiting{{process="{dead.pid}"}} 7.0\n'
    path.write_text("# TYPE flashvsr_segments_waiting gauge\n" + gone)
    at_work.write()
    assert read_values(path)["flashvsr_segments_waiting", (str(os.getpid()),)] == 2
    assert ("flashvsr_segments_waiting", (str(dead.pid),)) not in read_values(path)


def test_processes_side_by_side_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "flashvsr.prom"
    code = (
        "import sys; from pathlib import Path; from tests.flows.test_metrics import run_of; run_of(Path(sys.argv[1]))"
    )
    both = [subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=ROOT) for _ in range(2)]
    assert [process.wait(120) for process in both] == [0, 0]
    assert read_values(path)["flashvsr_frames", ("GPU",)] == 32


def test_a_damaged_file_costs_no_run(tmp_path: Path) -> None:
    path = tmp_path / "flashvsr.prom"
    path.write_text("}{ not metrics")
    run_of(path)
    assert path.read_text() == "}{ not metrics"


def test_the_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(settings.METRICS, raising=False)
    assert settings.metrics() is None
    monkeypatch.setenv(settings.METRICS, str(tmp_path / "x.prom"))
    assert settings.metrics() == tmp_path / "x.prom"


def test_the_endpoint(tmp_path: Path) -> None:
    path = tmp_path / "flashvsr.prom"
    run_of(path)
    command = [sys.executable, "-m", "flows.cli.main", "metrics", "--file", str(path), "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            found = httpx.get(server.stdout.readline().strip(), timeout=30)
            assert found.status_code == 200
            assert 'flashvsr_frames_total{device="GPU"} 16.0' in found.text
            run_of(path)
            assert 'flashvsr_frames_total{device="GPU"} 32.0' in httpx.get(found.url, timeout=30).text
        finally:
            server.terminate()


def test_the_dashboard_asks_only_for_metrics_that_exist() -> None:
    board = json.loads(files("deployments").joinpath("grafana", "flashvsr.json").read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    asked = set(re.findall(r"flashvsr_\w+", " ".join(queries)))
    exist = {f"{name}_total" for name in metrics.COUNTERS} | set(metrics.GAUGES)
    assert asked <= exist, asked - exist
    assert asked == exist, "the dashboard leaves metrics out"
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in board["panels"])
