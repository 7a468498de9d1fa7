"""What bounds one worker to N: python -m tests.bench.scaling stages|media|requests|workers; tables for scaling*.md.

stages   seconds of each stage of one segment, measured alone on this machine's CPU
media    the same without the model, at a size that only a GPU computes: what the CPU beside one has to do; printed
requests how often a run asks Prefect's server, per run and per segment; printed
workers  the same job with each list of --devices (or numbers of CPU --workers), models loaded, from the start of the
         first segment to the end of the last; two GPUs against one: --published --size 352x192 --devices 0 0,1
"""

import argparse
import logging
import os
import platform
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
import torch
from prefect.settings import PREFECT_API_URL, temporary_settings

from flashvsr_core.config import ComputeParams, UpscaleParams
from flashvsr_core.pixels import enlarge, yuv_packer
from flashvsr_core.segments import reading_range
from flows.cli.server import prefect_api
from tasks.assemble import assemble
from tasks.events import SegmentComputed, SegmentStarted
from tasks.gpu import device_name, devices_of, loaded_upscaler
from tasks.media.decode import read_frames
from tasks.media.encode import EncodeParams, check_segment, encode_segment, layout_of
from tasks.plan import JobPlan, Request, make_plan
from tasks.storage.jobs import Job
from tasks.verify import verify_output
from tests.flows.clips import make_clip
from tests.media.clips import run as ffmpeg

HERE = Path(__file__)
DEMO = HERE.parents[2] / "assets" / "bbb.mp4"
RATE = 24
ENCODE = EncodeParams(preset="veryfast")
PARAMS = UpscaleParams(scale=4, scenes="off")
WARM = 4  # segments of the clip that loads the models: one and more for each worker


@dataclass(frozen=True)
class Stage:
    name: str
    seconds: float
    cpu: float


@contextmanager
def timed(name: str, into: list[Stage]) -> Iterator[None]:
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    into.append(Stage(name, time.perf_counter() - wall, time.process_time() - cpu))


def after_model(made: list[Any], job: Job, plan: JobPlan, folder: Path, found: list[Stage]) -> Path:
    """Encode, check, store, merge and verify a job's only segment; its file."""
    segment, geometry, file = plan.segments[0], plan.geometry, folder / "segment.mp4"
    with timed("encode", found):
        encode_segment(iter(made), file, plan.info, plan.encode, geometry.out_width, geometry.out_height)
    with timed("check", found):
        check_segment(file, segment.frames, geometry.out_width, geometry.out_height)
    with timed("store (local disk)", found):
        job.record_segment(
            0, 0, segment.stop, file, frames=segment.frames, seconds=1.0, peak_memory_bytes=0, device="cpu"
        )
    with timed("merge", found):
        merged, _ = assemble.fn(job, plan, folder, folder / "cache")
    with timed("verify", found):
        verify_output.fn(merged, plan, "joins")
    return file


def stages(size: str, frames: int, folder: Path) -> tuple[list[Stage], int]:
    """The stages of one segment, one after the other, each fed from memory; and the bytes of the segment."""
    source = make_clip(folder / "clip.mp4", frames, size, str(RATE))
    compute = ComputeParams(devices="cpu")
    request = Request(str(source), str(folder / "out.mp4"), PARAMS, EncodeParams(), compute, segment_frames=frames)
    found: list[Stage] = []
    with timed("plan", found):
        job, plan = make_plan(request, folder / "cache")
    job.write_plan(plan.to_json())
    segment = plan.segments[0]
    upscaler = loaded_upscaler(plan.params, plan.digests, compute, torch.device("cpu"))
    first, end = reading_range(segment, 0, 0, plan.info.frames)
    with timed("decode", found):
        chunks = list(read_frames(source, plan.info, first, end))
    pack = yuv_packer(layout_of(plan.encode, plan.info))
    with timed("model", found):
        made = list(upscaler.stream(iter(chunks), emit=(segment.start, segment.stop), pack=pack))
    file = after_model(made, job, plan, folder, found)
    return found, file.stat().st_size


def media(size: str, folder: Path) -> tuple[list[Stage], int, int]:
    """The stages beside the model, of the demo clip at `size`, enlarged 4 times by interpolation; frames and bytes."""
    source = folder / "clip.mp4"
    ffmpeg("-i", DEMO, "-vf", f"scale={size.replace('x', ':')}", "-crf", "12", source)
    request = Request(str(source), str(folder / "out.mp4"), PARAMS, EncodeParams(), ComputeParams(devices="cpu"))
    found: list[Stage] = []
    with timed("plan", found):
        job, plan = make_plan(request, folder / "cache")
    job.write_plan(plan.to_json())
    segment, geometry = plan.segments[0], plan.geometry
    with timed("decode", found):
        chunks = list(read_frames(source, plan.info, 0, segment.stop))
    pack = yuv_packer(layout_of(plan.encode, plan.info))
    made = [pack(enlarge(torch.from_numpy(chunk), geometry)) for chunk in chunks]  # a GPU's work, and so no stage here
    file = after_model(made, job, plan, folder, found)
    return found, segment.frames, file.stat().st_size


def write_media(size: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        found, frames, size_bytes = media(size, Path(name))
    lines = [
        f"Input {size}, scale 4, {frames} frames in one segment of {size_bytes / 1e6:.1f} MB,",
        f"{os.cpu_count()} cores ({platform.machine()}), load average when it ended {os.getloadavg()[0]:.0f}.",
        "",
        *table_of(found, frames),
    ]
    print("\n".join(lines))


class Requests:
    """Counts what this process asks Prefect's server, and the events it sends."""

    def __init__(self) -> None:
        self.count: Counter[str] = Counter()

    def note(self, request: httpx.Request) -> None:
        if request.url.path.endswith("/health"):
            return  # of a second server, which the thread of artifacts starts: settings do not follow into threads
        path = re.sub(r"/[0-9a-f]{8}-[0-9a-f-]{27}", "/ID", request.url.path.removeprefix("/api"))
        self.count[f"{request.method} {path}"] += 1

    @contextmanager
    def counting(self) -> Iterator[None]:
        from prefect.events.clients import PrefectEventsClient

        one, many = httpx.HTTPTransport.handle_request, httpx.AsyncHTTPTransport.handle_async_request
        emit = PrefectEventsClient._emit

        def handle(transport: httpx.HTTPTransport, request: httpx.Request) -> httpx.Response:
            self.note(request)
            return one(transport, request)

        async def handle_async(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
            self.note(request)
            return await many(transport, request)

        async def sent(client: Any, event: Any) -> None:
            self.count["event (websocket)"] += 1
            await emit(client, event)

        with (
            patch.object(httpx.HTTPTransport, "handle_request", handle),
            patch.object(httpx.AsyncHTTPTransport, "handle_async_request", handle_async),
            patch.object(PrefectEventsClient, "_emit", sent),
        ):
            yield


@contextmanager
def server_of_environment() -> Iterator[None]:
    """Prefect, imported before the server was there, looks for it where it is."""
    with temporary_settings({PREFECT_API_URL: os.environ["PREFECT_API_URL"]}):
        yield


def write_requests(few: int, many: int) -> None:
    """Two runs of a different number of tiny segments: what both ask is the run's, the difference the segments'."""
    found = []
    with tempfile.TemporaryDirectory() as name, prefect_api(), server_of_environment():
        from flows.upscale_video import upscale_video

        for segments in (few, many):
            source = make_clip(Path(name) / f"{segments}.mp4", segments * 8, "64x36", sound=False)
            params = UpscaleParams(scale=2, model="nano", preroll=8)
            requests = Requests()
            with requests.counting():
                output = str(Path(name) / f"{segments}_out.mp4")
                upscale_video(str(source), output, params, compute=ComputeParams(devices="cpu"), segment_frames=8)
                time.sleep(3)  # events are sent from a thread
            found.append(requests.count)
    first, second = found
    print(f"| request | run of {few} segments | run of {many} | per segment |\n| --- | --- | --- | --- |")
    for what in sorted(first | second):
        print(f"| {what} | {first[what]} | {second[what]} | {(second[what] - first[what]) / (many - few):.1f} |")
    total = [sum(count.values()) for count in found]
    print(f"| all | {total[0]} | {total[1]} | {(total[1] - total[0]) / (many - few):.1f} |")


def table_of(found: list[Stage], frames: int) -> list[str]:
    lines = ["| stage | seconds | CPU seconds | CPU ms per frame |", "| --- | --- | --- | --- |"]
    return lines + [f"| {s.name} | {s.seconds:.2f} | {s.cpu:.2f} | {1000 * s.cpu / frames:.1f} |" for s in found]


def write_stages(size: str, frames: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        found, size_bytes = stages(size, frames, Path(name))
    lines = [
        "# Stages of one segment on a CPU",
        "",
        f"Input {size}, scale 4, model nano, {frames} frames in one segment of {size_bytes / 1e6:.1f} MB,",
        f"{os.cpu_count()} cores ({platform.machine()}), PyTorch {torch.__version__}, each stage alone.",
        f"Load average when it ended: {os.getloadavg()[0]:.0f}. CPU seconds are those of all threads of the process",
        "(ffmpeg, a process of its own, is not in them) and say more than seconds on a machine that others use.",
        f"Command: `python -m tests.bench.scaling stages --size {size} --frames {frames}`",
        "",
        *table_of(found, frames),
    ]
    HERE.with_name("scaling_stages.md").write_text("\n".join(lines) + "\n")


class Span(logging.Handler):
    """From the start of the first segment to the end of the last one's computation."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.first, self.last = float("inf"), 0.0

    def emit(self, record: logging.LogRecord) -> None:
        event = getattr(record, "event", None)
        if isinstance(event, SegmentStarted):
            self.first = min(self.first, time.monotonic())
        elif isinstance(event, SegmentComputed):
            self.last = time.monotonic()


def measure(
    run: Callable[..., Any],
    sources: tuple[Path, Path],
    folder: Path,
    compute: ComputeParams,
    segment: int,
    model: dict[str, Any],
) -> tuple[float, float]:
    """Seconds of the segments and of the whole run on the second source; the first, a short one, loads the models."""
    span, log = Span(), logging.getLogger("tasks.events")
    log.setLevel(logging.DEBUG)
    wall = 0.0
    params = UpscaleParams(scale=4, scenes="off", **model)
    for measured, source in zip((False, True), sources):
        if measured:
            log.addHandler(span)
        begun = time.monotonic()
        target = str(folder / "out.mp4")
        run(str(source), target, params, ENCODE, compute, segment_frames=segment, fresh=True, force=True)
        wall = time.monotonic() - begun
    log.removeHandler(span)
    return span.last - span.first, wall


def write_workers(
    choices: list[ComputeParams], size: str, segments: int, segment: int, words: str, published: bool
) -> None:
    rows, device, model = [], device_name(devices_of(choices[0])[0]), dict[str, Any](model="nano")
    with tempfile.TemporaryDirectory() as name, prefect_api(), server_of_environment():
        from flows.upscale_video import upscale_video

        if published:
            from tests.bench.full_size import write_model  # on a GPU only

            folder = Path(name) / "models"
            folder.mkdir()
            write_model(folder)
            torch.cuda.empty_cache()
            choices = [replace(compute, models_dir=str(folder)) for compute in choices]
            model = {"model": "v1.1", "allow_unknown_weights": True, "lq_projection": "causal"}
        source = make_clip(Path(name) / "clip.mp4", segments * segment, size, str(RATE), sound=False)
        warm = make_clip(Path(name) / "warm.mp4", WARM * segment, size, str(RATE), sound=False)
        for number, compute in enumerate(choices):
            folder = Path(name) / str(number)
            folder.mkdir()
            rows.append((compute, *measure(upscale_video, (warm, source), folder, compute, segment, model)))
            print(rows[-1], flush=True)
    base = rows[0][1]
    weights = "v1.1 with random weights" if published else "nano"
    lines = [
        f"# Workers on one machine: {device}",
        "",
        f"Input {size}, scale 4, {segments} segments of {segment} frames, x264 veryfast, {os.cpu_count()} cores,",
        f"{weights}, PyTorch {torch.__version__}, load average when it ended {os.getloadavg()[0]:.0f}.",
        f"Command: `python -m tests.bench.scaling workers {words}`",
        "",
        "| devices | workers | seconds, first segment start to last segment end | ratio | seconds of the run |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [f"| {c.devices} | {c.workers} | {s:.1f} | {base / s:.2f} | {wall:.1f} |" for c, s, wall in rows]
    kind = "cpu" if choices[0].devices == "cpu" else "gpus"
    HERE.with_name(f"scaling_{kind}.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("stages", "media", "requests", "workers"))
    parser.add_argument("--size", default="96x64")
    parser.add_argument("--frames", type=int, default=96, help="stages: frames of the segment")
    parser.add_argument("--segments", type=int, default=16)
    parser.add_argument("--segment-frames", type=int, default=64)
    parser.add_argument("--devices", nargs="+", help="GPU lists to compare, such as 0 0,1")
    parser.add_argument("--published", action="store_true", help="workers on GPUs: v1.1's size, with random weights")
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2], help="numbers of CPU workers to compare")
    given = parser.parse_args()
    if given.what == "stages":
        write_stages(given.size, given.frames)
        return
    if given.what == "media":
        write_media(given.size)
        return
    if given.what == "requests":
        write_requests(2, 5)
        return
    words = f"--size {given.size} --segments {given.segments} --segment-frames {given.segment_frames}"
    if given.devices:
        choices = [ComputeParams(devices=devices, runner="processes") for devices in given.devices]
        words += f" --devices {' '.join(given.devices)}" + (" --published" if given.published else "")
    else:
        choices = [ComputeParams(devices="cpu", runner="processes", workers=count) for count in given.workers]
        words += f" --workers {' '.join(map(str, given.workers))}"
    write_workers(choices, given.size, given.segments, given.segment_frames, words, given.published)


if __name__ == "__main__":
    main()
