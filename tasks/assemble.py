"""Merging: finished segments become one file with everything else the source carries, still under a temporary name."""

from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from flashvsr_core.config import ComputeParams
from tasks.events import StageEntered, tell
from tasks.media.mux import merge
from tasks.plan import JobPlan
from tasks.sources import check_unchanged, unchanged
from tasks.storage.jobs import Job


@task(name="assemble", task_run_name="assemble", cache_policy=NO_CACHE)
def assemble(
    job: Job, plan: JobPlan, folder: Path, cache_dir: Path, compute: ComputeParams = ComputeParams()
) -> tuple[Path, tuple[str, ...]]:
    """Fetch every segment (digests checked) and merge by stream copy. Returns the merged file and what was not carried.

    Raises `DamagedSegment` if a stored segment is not what its record says; its record is gone then.
    """
    tell(StageEntered("merge"), f"merging {len(plan.segments)} segments")
    parts = [(job.fetch_segment(segment.index, folder), segment.frames) for segment in plan.segments]
    merged = folder / f"merged.{plan.encode.container}"
    with unchanged(plan.source, plan.fingerprint, compute, cache_dir) as source:
        notes = merge(parts, source, plan.info, plan.encode, merged)
    check_unchanged(plan.source, plan.fingerprint, cache_dir)
    return merged, notes
