"""Prometheus metrics of a machine's workers: one text file, added to by every process that runs jobs there.

Prefect's workers run each flow in a process of its own, so what a process counts is added to what stands in the file
already. Node exporter's textfile collector reads it as it is; `flashvsr metrics` serves it over HTTP.
"""

import logging
import os
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from tasks.events import FramesDone, RunEnded, SegmentComputed, SegmentFailed, SegmentReused, SegmentStarted
from tasks.progress import RunProgress
from tasks.storage import local

log = logging.getLogger(__name__)

SECONDS = 10.0  # between two writes of the file

# name: labels, help. Counters add up over processes and runs.
COUNTERS = {
    "flashvsr_frames": (("device",), "Frames computed."),
    "flashvsr_segment_seconds": (("device",), "Seconds that finished segments took."),
    "flashvsr_segments": (("outcome",), "Segments: computed, reused or failed."),
    "flashvsr_runs": (("status",), "Runs: done, already done, busy or failed."),
    "flashvsr_run_seconds": ((), "Seconds that runs took."),
}
# Gauges are those of one process; it takes them away when its run ends.
GAUGES = {
    "flashvsr_frames_per_second": (("process",), "Speed over the last 30 seconds."),
    "flashvsr_memory_peak_bytes": (("process",), "Highest memory of the run's segments: the GPU's, or the process's."),
    "flashvsr_segments_waiting": (("process",), "Segments of the run that nobody computes yet."),
    "flashvsr_segments_running": (("process",), "Segments of the run that are being computed."),
    "flashvsr_time_left_seconds": (("process",), "Expected seconds to the end of the run."),
    "flashvsr_updated_seconds": (("process",), "When this process last wrote, in seconds since 1970."),
}

Key = tuple[str, tuple[str, ...]]  # name, values of the labels


class RunMetrics(logging.Handler):
    """Counts events; `write` adds them to the file."""

    def __init__(self, path: Path) -> None:
        super().__init__(logging.DEBUG)
        self.path = path
        self.guard = threading.Lock()
        self.counts: dict[Key, float] = defaultdict(float)
        self.devices: dict[int, str] = {}
        self.progress = RunProgress()

    def emit(self, record: logging.LogRecord) -> None:
        self.progress.emit(record)
        event = getattr(record, "event", None)
        with self.guard:
            if isinstance(event, SegmentStarted):
                self.devices[event.segment] = event.device
            elif isinstance(event, FramesDone):
                self.counts["flashvsr_frames", (self.devices.get(event.segment, ""),)] += event.frames
            elif isinstance(event, SegmentComputed):
                self.counts["flashvsr_segment_seconds", (event.device,)] += event.seconds
                self.counts["flashvsr_segments", ("computed",)] += 1
            elif isinstance(event, SegmentReused):
                self.counts["flashvsr_segments", ("reused",)] += 1
            elif isinstance(event, SegmentFailed):
                self.counts["flashvsr_segments", ("failed",)] += 1
            elif isinstance(event, RunEnded):
                self.counts["flashvsr_runs", (event.status,)] += 1
                self.counts["flashvsr_run_seconds", ()] += event.seconds

    def write(self, ended: bool = False) -> None:
        """Add what was counted since the last write; the file is replaced in one step, under a lock."""
        with self.guard:
            new, self.counts = self.counts, defaultdict(float)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with local.locked(f"{self.path}.lock"):
                values = read_values(self.path)
                for key, value in new.items():
                    values[key] = values.get(key, 0.0) + value
                gauges = {} if ended else self._gauges()
                local.write(str(self.path), text_of(_without_the_dead(values) | gauges), overwrite=True)
        except (OSError, ValueError) as error:
            with self.guard:
                for key, value in new.items():
                    self.counts[key] += value
            log.debug("metrics not written to %s: %s", self.path, error)

    def _gauges(self) -> dict[Key, float]:
        now = self.progress.snapshot()
        me = (str(os.getpid()),)
        found = {
            "flashvsr_frames_per_second": now.fps_now or 0.0,
            "flashvsr_memory_peak_bytes": float(now.memory_bytes),
            "flashvsr_segments_waiting": float(now.count("waiting", "failed")),
            "flashvsr_segments_running": float(now.count("running")),
            "flashvsr_updated_seconds": time.time(),
        }
        if now.left is not None:
            found["flashvsr_time_left_seconds"] = now.left
        return {(name, me): value for name, value in found.items()}


@contextmanager
def counted(path: Path | None) -> Iterator[None]:
    """Keep the metrics file at `path` up to date for the duration of a `with` block; None: nothing is counted."""
    if path is None:
        yield
        return
    metrics = RunMetrics(path)
    over = threading.Event()

    def keep_on() -> None:
        while not over.wait(SECONDS):
            metrics.write()

    loggers = [logging.getLogger(name) for name in ("tasks.events",)]
    for logger in loggers:
        logger.addHandler(metrics)
    thread = threading.Thread(target=keep_on, name="metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(metrics)
        over.set()
        thread.join()
        metrics.write(ended=True)


class FileCollector(Collector):
    """The metrics of a file, read at every scrape."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        yield from _families(_without_the_dead(read_values(self.path)))


def read_values(path: Path) -> dict[Key, float]:
    """What a metrics file holds of our metrics; nothing where it is not there yet."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return {}
    known = COUNTERS | GAUGES
    values = {}
    for family in text_string_to_metric_families(text):
        if family.name not in known:
            continue
        labels = known[family.name][0]
        for sample in family.samples:
            values[family.name, tuple(sample.labels.get(label, "") for label in labels)] = float(sample.value)
    return values


def text_of(values: dict[Key, float]) -> bytes:
    """Values in Prometheus' text format."""

    class Given(Collector):
        def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
            yield from _families(values)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Given())
    return generate_latest(registry)


def _families(values: dict[Key, float]) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
    for kinds, make in ((COUNTERS, CounterMetricFamily), (GAUGES, GaugeMetricFamily)):
        for name, (labels, text) in kinds.items():
            family = make(name, text, labels=labels)
            for (found, key), value in sorted(values.items()):
                if found == name:
                    family.add_metric(list(key), value)
            yield family


def _without_the_dead(values: dict[Key, float]) -> dict[Key, float]:
    """Gauges of processes that are gone say nothing any more."""
    return {
        (name, key): value
        for (name, key), value in values.items()
        if name not in GAUGES or (int(key[0]) != os.getpid() and psutil.pid_exists(int(key[0])))
    }
