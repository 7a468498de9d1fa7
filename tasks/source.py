"""The source of a planned job, as long as it is what was planned."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flashvsr_core.config import ComputeParams
from flashvsr_core.errors import UserError
from tasks.plan import JobPlan, source_cache
from tasks.storage.fingerprint import fingerprint


@contextmanager
def planned_source(plan: JobPlan, compute: ComputeParams, cache_dir: Path) -> Iterator[Path]:
    """A local path with the source's content, which stays for the duration of a `with` block."""
    check_source(plan, cache_dir)  # before other content is fetched
    with source_cache(compute, cache_dir).localised(plan.source) as path:
        check_source(plan, cache_dir)
        yield path


def check_source(plan: JobPlan, cache_dir: Path) -> None:
    """UserError if the source is gone or has other content (on S3: another version or etag) than planned."""
    try:
        found = fingerprint(plan.source, cache_dir)
    except FileNotFoundError as error:
        raise UserError(f"{plan.source} has disappeared while it was processed; put it back and run again") from error
    if found != plan.fingerprint:
        raise UserError(f"{plan.source} changed while it was processed; run again to start on the new content")
