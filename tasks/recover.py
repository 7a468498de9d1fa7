"""Recovery: what is finished of a job becomes a file, without the process, server or database that made it."""

import logging
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from flashvsr_core.config import ComputeParams
from flashvsr_core.errors import FlashvsrError, UserError
from flashvsr_core.segments import SegmentPlan
from tasks.catalogue import finished_segments
from tasks.images import foreign_image, publish_images, unpacked, whole_of
from tasks.media import check
from tasks.media.codecs import Container, spec_of
from tasks.media.images import is_images
from tasks.media.mux import merge
from tasks.media.probe import VideoInfo
from tasks.media.timecode import later
from tasks.media.timestamps import Timestamps
from tasks.outputs import Outputs, outputs_of
from tasks.plan import JobPlan, read_plan
from tasks.replan import LOST, plan_without_plan
from tasks.report import Look, OutputFile, announce_output, look_at, make_report, report_beside
from tasks.sources import fingerprint, localised
from tasks.storage import urls
from tasks.storage.jobs import DamagedSegment, Job, SegmentResult
from tasks.storage.lease import Lease, hold
from tasks.verify import Depth

log = logging.getLogger(__name__)

RECOVERY = 1  # version of NAME.recovery.json
NAMED = 20  # missing segments that an error names


@dataclass(frozen=True)
class Recovery:
    """What was recovered; frames are those of the source, half-open."""

    version: int
    key: str
    source: str
    output: OutputFile
    whole: bool
    start: int
    stop: int
    frames: int
    source_frames: int
    segments: tuple[int, ...]
    gaps: tuple[tuple[int, int], ...]  # frames of the source that no finished segment holds
    left_out: tuple[tuple[int, int], ...]  # frames that are finished but lie outside the recovered range
    video_only: bool
    notes: tuple[str, ...]
    report: str  # where this, or for a whole recovery the report of the run, was written

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class _Part:
    """Segments that are merged, and the video they make."""

    segments: tuple[SegmentPlan, ...]
    info: VideoInfo
    source: Path | None  # None: sound and the rest cannot be had


def recover(
    job: Job,
    output: str,
    cache_dir: Path,
    partial: bool = False,
    force: bool = False,
    verify: Depth = "joins",
    source: str | None = None,
) -> Recovery:
    """Merge what a job finished into `output`, verified and published whole; nothing is computed.

    An incomplete job is a UserError unless `partial` allows its longest finished range. The segments stay. Where
    plan.json is gone, records and segments tell what to merge; `source` then names the video they were made of.
    """
    plan = _plan(job, source, partial, cache_dir)
    if plan.key != job.key:
        raise UserError(f"{job.plan_url} is the plan of job {plan.key}; give the directory back its name")
    outputs = outputs_of(plan.source, output, plan.params.scale, plan.encode.container)
    plan = replace(plan, encode=replace(plan.encode, container=_container(plan, outputs)))
    if not force:
        _spare_what_is_there(outputs, plan)
    urls.check_writable(outputs.url)
    work = cache_dir / "work"
    work.mkdir(parents=True, exist_ok=True)
    with (
        hold(job.lease_url, owner=f"recover {plan.source}") as lease,
        tempfile.TemporaryDirectory(prefix=job.work_prefix, dir=work) as name,
        ExitStack() as used,
    ):
        chosen, files = _fetch(job, plan, partial, Path(name))
        whole = len(chosen) == len(plan.segments)
        if is_images(plan.encode.container):
            return _recover_images(job, plan, chosen, files, outputs, Path(name), verify, lease, cache_dir)
        path, why = _source(plan, cache_dir, used) if whole else (None, "only a part of the video was recovered")
        part = _Part(chosen, plan.info if path else _silent(plan.info, chosen), path)
        merged, notes = _merge(plan, part, files, Path(name), why)
        _verify(merged, plan, part, verify)
        look = look_at(merged, part.source, plan, 0.0) if part.source and LOST not in plan.notes else Look()
        lease.check()
        complete = path is not None and LOST not in plan.notes
        published = _publish(job, merged, outputs.url, announce=complete)
        return _report(job, plan, part, published, notes, look, complete, video_only=path is None)


def _container(plan: JobPlan, outputs: Outputs) -> Container:
    """What the output's name asks for, where the job's segments can become that; UserError else."""
    made, wanted = plan.encode.container, outputs.container
    if is_images(made) or is_images(wanted):
        if made != wanted:
            what = f"{made} images" if is_images(made) else f"{plan.encode.codec} video"
            able = f"x_%06d.{made}" if is_images(made) else f"x.{made}"
            raise UserError(f"the segments hold {what}, which do not become {wanted}; name an output such as {able}")
        return wanted
    spec = spec_of(plan.encode.codec, plan.encode.encoder)
    if spec is None or wanted not in spec.containers:
        able = ", ".join(f".{name}" for name in (spec.containers if spec else ()))
        raise UserError(f"{wanted} does not hold {plan.encode.codec}; choose an output ending in {able}")
    return wanted


def _spare_what_is_there(outputs: Outputs, plan: JobPlan) -> None:
    """UserError where something is in the way, be it this job's own: a part must not replace the whole unasked."""
    taken = outputs.url if urls.exists(outputs.url) else None
    if outputs.pattern is not None and taken is None and (name := foreign_image(outputs, plan)):
        taken = urls.join(urls.parent(outputs.url), name)
    if taken:
        raise UserError(f"{taken} exists; choose another OUTPUT, or use --force to replace it")


def _recover_images(
    job: Job,
    plan: JobPlan,
    chosen: tuple[SegmentPlan, ...],
    files: list[Path],
    outputs: Outputs,
    folder: Path,
    verify: Depth,
    lease: Lease,
    cache_dir: Path,
) -> Recovery:
    """The images of the chosen segments, named by their frames, and a manifest of them. Images carry nothing of the
    source, so that they lack nothing where it is gone."""
    outputs.check_frames(sum(segment.frames for segment in chosen))
    images = unpacked(zip(files, chosen, strict=True), plan, folder, verify)
    complete = len(chosen) == len(plan.segments) and LOST not in plan.notes
    look = Look()
    if complete:
        with ExitStack() as used:
            path, _ = _source(plan, cache_dir, used)
            look = look_at(whole_of(images), path, plan, 0.0) if path else look
    lease.check()
    if outputs.pattern is None:
        published = _publish(job, images[0], outputs.url, announce=complete)
    else:
        published = publish_images(job, plan, images, outputs, chosen[0].start, complete)
    part = _Part(chosen, plan.info, None)
    return _report(job, plan, part, published, (), look, complete, video_only=False)


def _plan(job: Job, source: str | None, partial: bool, cache_dir: Path) -> JobPlan:
    if job.read_plan() is not None:
        return read_plan(job)
    with tempfile.TemporaryDirectory(prefix="flashvsr-plan-") as folder:
        plan, certain = plan_without_plan(job, source, cache_dir, Path(folder))
    log.warning("%s: %s", job.url, LOST)
    if not certain and not partial:
        raise UserError(
            f"{job.plan_url} is gone, and segments do not tell whether the video went on after frame "
            f"{plan.info.frames - 1}; name the video with --source, or take what is there with --partial"
        )
    return plan


def missing_segments(plan: JobPlan, results: tuple[SegmentResult, ...]) -> tuple[SegmentPlan, ...]:
    done = {result.segment for result in results}
    return tuple(segment for segment in plan.segments if segment.index not in done)


def longest_range(plan: JobPlan, results: tuple[SegmentResult, ...]) -> tuple[SegmentPlan, ...]:
    """The finished segments in one piece that hold the most frames; of equals the first."""
    done = {result.segment for result in results}
    runs: list[list[SegmentPlan]] = [[]]
    for segment in plan.segments:
        if segment.index in done:
            runs[-1].append(segment)
        elif runs[-1]:
            runs.append([])
    return tuple(max(runs, key=lambda run: sum(segment.frames for segment in run)))


def _fetch(job: Job, plan: JobPlan, partial: bool, folder: Path) -> tuple[tuple[SegmentPlan, ...], list[Path]]:
    """The segments to merge and local files of them, digests checked; a damaged one counts as missing."""
    while True:
        results = finished_segments(job, plan)
        missing = missing_segments(plan, results)
        if not results:
            raise UserError(f"{job.url} has no finished segment; nothing can be recovered from it")
        if missing and not partial:
            names = ", ".join(str(segment.index) for segment in missing[:NAMED])
            more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
            raise UserError(
                f"{job.url} lacks segments {names}{more} of {len(plan.segments)}; compute them with "
                "'flashvsr jobs resume', or merge the longest finished range with --partial"
            )
        chosen = longest_range(plan, results)
        try:
            return chosen, [job.fetch_segment(segment.index, folder) for segment in chosen]
        except DamagedSegment as error:  # its record is gone now, so this ends
            log.warning("%s", error)


def _source(plan: JobPlan, cache_dir: Path, used: ExitStack) -> tuple[Path | None, str]:
    """The source if it still is the one that was planned, else why not; it stays until `used` is closed."""
    if not plan.fingerprint:
        return None, "plan.json is gone and no --source was named"
    try:
        if fingerprint(plan.source, cache_dir) != plan.fingerprint:
            return None, f"{plan.source} is not the file any more that the job was planned for"
        return used.enter_context(localised(plan.source, ComputeParams(), cache_dir)), ""
    except FileNotFoundError:
        return None, f"{plan.source} is gone"
    except FlashvsrError as error:
        return None, str(error)


def _silent(info: VideoInfo, segments: tuple[SegmentPlan, ...]) -> VideoInfo:
    """What the range would be as a video of its own: its frames and their times from zero, nothing but the picture."""
    start, stop = segments[0].start, segments[-1].stop
    times = info.timestamps.array[start:stop]
    rate = Fraction(*info.frame_rate)
    return replace(
        info,
        frames=stop - start,
        timestamps=Timestamps.of(times - times[0]),
        duration=float(int(times[-1] - times[0]) * Fraction(*info.time_base) + 1 / rate),
        start_time=0.0,
        timecode=info.timecode
        and later(info.timecode, rate, int(times[0] - info.timestamps.pts(0)) * Fraction(*info.time_base)),
        audio_start=None,
        streams=tuple(stream for stream in info.streams if stream.index == info.stream_index),
        chapters=0,
        skipped=0,
        excerpt=None,
    )


def _merge(plan: JobPlan, part: _Part, files: list[Path], folder: Path, why: str) -> tuple[Path, tuple[str, ...]]:
    merged = folder / f"merged.{plan.encode.container}"
    parts = [(file, segment.frames) for file, segment in zip(files, part.segments)]
    # Without a source a segment stands in for it: merging takes metadata and chapters from there, and it has none.
    notes = merge(parts, part.source or files[0], part.info, plan.encode, merged)
    if part.source is None:
        notes = (f"VIDEO ONLY: sound, subtitles, chapters and metadata are not in the output, because {why}", *notes)
    return merged, notes


def _verify(merged: Path, plan: JobPlan, part: _Part, depth: Depth) -> None:
    geometry = plan.geometry
    facts = check.check_against(merged, part.info, geometry.out_width, geometry.out_height)
    if depth == "full":
        check.decode_all(merged, facts.info)
    else:
        check.decode_ranges(merged, check.joins([segment.frames for segment in part.segments]), facts.info)


def _publish(job: Job, merged: Path, output: str, announce: bool) -> OutputFile:
    """`announce`: a later run shall know the output as its own. Only one that lacks nothing may pass for that."""
    if announce:
        published = announce_output(job, merged, output)
    else:
        published = OutputFile(output, merged.stat().st_size, urls.digest(str(merged)))
    urls.publish(merged, output, overwrite=True, sha256=published.sha256, consume=True)
    return published


def _report(
    job: Job,
    plan: JobPlan,
    part: _Part,
    output: OutputFile,
    notes: tuple[str, ...],
    look: Look,
    complete: bool,
    video_only: bool,
) -> Recovery:
    """Write the report: that of a finished run if nothing is missing, else one of what was recovered.

    A report says how its output was made, so that one without a plan is not `complete`: nobody knows.
    """
    results = finished_segments(job, plan)
    segments = part.segments
    start, stop = segments[0].start, segments[-1].stop
    outside = tuple((r.start, r.stop) for r in results if not start <= r.start < stop)
    stem = urls.name(output.url).rpartition(".")[0].removesuffix(".manifest")
    beside = urls.join(urls.parent(output.url), urls.fitting(stem, ".recovery.json"))
    recovery = Recovery(
        version=RECOVERY,
        key=job.key,
        source=plan.source,
        output=output,
        whole=len(segments) == len(plan.segments),
        start=start,
        stop=stop,
        frames=stop - start,
        source_frames=plan.info.frames,
        segments=tuple(segment.index for segment in segments),
        gaps=_joined((s.start, s.stop) for s in missing_segments(plan, results)),
        left_out=_joined(outside),
        video_only=video_only,
        notes=plan.notes + notes,
        report=report_beside(output.url) if complete else beside,
    )
    if complete:
        seconds = sum(result.seconds for result in results)
        notes = (*recovery.notes, "merged by 'flashvsr jobs recover'; seconds are those of the segments")
        make_report.fn(job, plan, output, results, frozenset(), seconds, notes, look)
    else:
        urls.write_json(recovery.report, recovery.to_json())
    return recovery


def _joined(ranges: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Ranges in order, those that touch made one."""
    joined: list[tuple[int, int]] = []
    for start, stop in ranges:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    return tuple(joined)
