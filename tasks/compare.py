"""A finished output against its ground truth: numbers, also into the report that stands beside it."""

import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from flashvsr_core.config import ComputeParams
from flashvsr_core.errors import FlashvsrError
from tasks import html
from tasks.media.guard import describe
from tasks.reference import check_reference, compare
from tasks.report import READABLE, RunReport, page_beside, parse_report, read_report, report_beside, write_report
from tasks.sources import required
from tasks.storage import urls
from tasks.storage.jobs import Job

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Compared:
    """PSNR (dB), SSIM and, where ffmpeg can, VMAF of `output` against `reference`."""

    output: str
    reference: str
    frames: int
    numbers: dict[str, float]
    report: str | None  # the report that now holds them
    note: str  # why no report does, else ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def compare_output(output: str, reference: str, cache_dir: Path) -> Compared:
    """Score a finished video. UserError where the two cannot be compared frame by frame.

    The report beside the output takes the numbers up, and its page and the job's copy with it, if it is this file's.
    """
    output, reference = urls.normalise(output), urls.normalise(reference)
    compute = ComputeParams()
    with required(output, compute, cache_dir) as made, required(reference, compute, cache_dir) as truth:
        info = describe(made)
        check_reference(truth, info.width, info.height, info.frames)
        numbers = compare(made, truth)
        digest = urls.digest(str(made))
    report, note = _report_of(output, digest)
    if report is None:
        return Compared(output, reference, info.frames, numbers, None, note)
    _take_up(replace(report, output=replace(report.output, url=output)), numbers, reference)
    return Compared(output, reference, info.frames, numbers, report_beside(output), "")


def _report_of(output: str, digest: str) -> tuple[RunReport | None, str]:
    """The report beside an output; None, and why, where it cannot take numbers up."""
    place = report_beside(output)
    try:
        report = parse_report(urls.read_json(place))
    except FileNotFoundError:
        return None, f"there is no report at {place}"
    except ValueError as error:
        return None, f"{place} is damaged: {' '.join(str(error).split())[:200]}"
    if report is None:
        return None, f"{place} is none of versions {', '.join(map(str, READABLE))}"
    if report.output.sha256 != digest:
        return None, f"{place} is about another file than {output}, whose content has changed"
    if report.quality is None:
        return None, f"{place} holds no numbers about quality that these could join"
    return report, ""


def _take_up(report: RunReport, numbers: dict[str, float], reference: str) -> None:
    assert report.quality is not None
    new = replace(report, quality=replace(report.quality, reference=numbers, reference_file=reference))
    try:
        page = urls.read_bytes(page_beside(report.output.url)).decode()
    except FileNotFoundError:
        page = ""
    places = [report_beside(report.output.url)]
    try:
        job = Job.of(report.job, "mp4")
        stored = read_report(job)
        if stored is not None and stored.output.sha256 == report.output.sha256:
            places.append(job.report_url)
    except (FlashvsrError, OSError, ValueError) as error:
        log.info("the job's copy of the report does not get the numbers: %s", error)
    write_report(new, html.comparisons_of(page), places)
