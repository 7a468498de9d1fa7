"""A plan for merging where plan.json is gone: from the report, or from records, segments and source."""

import logging
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from flashvsr_core.config import ComputeParams, UpscaleParams
from flashvsr_core.errors import UserError
from flashvsr_core.segments import GRID, plan_segments
from tasks.media.encode import EncodeParams
from tasks.media.guard import describe
from tasks.media.images import is_images
from tasks.media.probe import VideoInfo, probe
from tasks.media.timestamps import Timestamps
from tasks.plan import PLAN, JobPlan, parse_plan
from tasks.report import read_report
from tasks.sources import fingerprint, first_number, localised
from tasks.storage import urls
from tasks.storage.jobs import Job, SegmentResult

log = logging.getLogger(__name__)

CODECS = {"hevc": "h265"}  # names of libavcodec that are not ours
SCALES = (4, 2, 3)  # in the order in which they are guessed where no source tells
LOST = "plan.json is gone: parameters are not known, segments were merged by their records"


def plan_without_plan(job: Job, source: str | None, cache_dir: Path, folder: Path) -> tuple[JobPlan, bool]:
    """A plan that says enough to merge, and whether it is certain where the video ends.

    `source` is the video that was upscaled, where it is still there: with it sound and the rest can be carried, and
    nothing can be missing unnoticed.
    """
    if (report := read_report(job)) is not None:
        return parse_plan(report.plan, job.report_url), True
    records = tuple(job.finished().values())
    if not records:
        raise UserError(f"{job.url} has neither a plan nor finished segments; nothing can be recovered from it")
    length = _segment_length(job, records)
    first = probe(job.fetch_segment(records[0].segment, folder))
    if source is None:
        frames = records[-1].stop
        info, scale = _info_of_segments(first, frames), _guessed_scale(first)
        certain = records[-1].frames < length
        place, digest = job.slug, ""
    else:
        source = urls.normalise(source)
        with localised(source, ComputeParams(), cache_dir) as path:
            info = describe(path)
        scale = _scale_between(source, info, first, records[-1].stop)
        certain, place, digest = True, source, fingerprint(source, cache_dir)
    plan = JobPlan(
        version=PLAN,
        key=job.key,
        source=place,
        fingerprint=digest,
        info=info if source else replace(info, width=first.width // scale, height=first.height // scale),
        params=UpscaleParams(scale=scale),  # type: ignore[arg-type]
        encode=_encode_of(first),
        digests={},
        device_type=records[0].device,
        segment_frames=length,
        allow_truncated=False,
        notes=(LOST,),
        versions={},
        first_number=first_number(source) if source else 1,
    )
    return plan, certain


def _encode_of(first: VideoInfo) -> EncodeParams:
    """What merging wants to know: the codec, and whether there is transparency."""
    if is_images(first.codec):  # a segment is a QuickTime file of the images themselves
        return EncodeParams(container=first.codec, pix_fmt=first.pix_fmt)  # type: ignore[arg-type]
    codec = CODECS.get(first.codec, first.codec)
    if codec == "prores" and "444" in first.pix_fmt:
        codec = "prores4444"
    pix_fmt = "yuva420p" if codec == "vp9" and first.has_alpha else first.pix_fmt.replace("yuvj", "yuv")
    return EncodeParams(codec=codec, pix_fmt=pix_fmt)  # type: ignore[arg-type]


def _segment_length(job: Job, records: tuple[SegmentResult, ...]) -> int:
    """Frames of a segment, from where the records say that segments begin."""
    lengths = {r.start // r.segment for r in records if r.segment} or {-(-records[0].stop // GRID) * GRID}
    length = min(lengths)
    frames = records[-1].stop
    planned = {s.index: (s.start, s.stop) for s in plan_segments(frames, length)} if length % GRID == 0 else {}
    if any(planned.get(r.segment) != (r.start, r.stop) for r in records):
        raise UserError(f"the records in {job.segments_url} are of different plans; remove those that do not belong")
    return length


def _info_of_segments(first: VideoInfo, frames: int) -> VideoInfo:
    """What the segments would be as one video: constant rate, picture only."""
    ticks = 1 / (Fraction(*first.frame_rate) * Fraction(*first.time_base))
    times = np.arange(frames, dtype=np.int64) * ticks.numerator // ticks.denominator
    return replace(
        first,
        frames=frames,
        timestamps=Timestamps.of(times),
        constant_rate=True,
        duration=float(frames / Fraction(*first.frame_rate)),
    )


def _guessed_scale(first: VideoInfo) -> int:
    found = [scale for scale in SCALES if first.width % scale == 0 and first.height % scale == 0]
    if not found:
        raise UserError(f"segments of {first.width}x{first.height} are no enlargement by 2, 3 or 4; name --source")
    return found[0]


def _scale_between(source: str, info: VideoInfo, first: VideoInfo, stop: int) -> int:
    scale = first.width // info.width
    if scale not in SCALES or (info.width * scale, info.height * scale) != (first.width, first.height):
        raise UserError(
            f"segments are {first.width}x{first.height}, {source} is {info.width}x{info.height}: it is not their source"
        )
    if info.frames < stop:
        raise UserError(f"{source} has {info.frames} frames, the segments reach to {stop}: it is not their source")
    return scale
