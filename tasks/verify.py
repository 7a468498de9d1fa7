"""Verification of a merged file before anybody sees it."""

from pathlib import Path
from typing import Literal

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.events import StageEntered, tell
from tasks.media import check
from tasks.plan import JobPlan

Depth = Literal["joins", "full"]


@task(name="verify", task_run_name="verify", cache_policy=NO_CACHE)
def verify_output(merged: Path, plan: JobPlan, depth: Depth) -> None:
    """Raise unless `merged` has the planned frames, size and times, and decodes around every join (or throughout)."""
    tell(StageEntered("verify"), "verifying the merged file")
    geometry = plan.geometry
    facts = check.check_against(merged, plan.info, geometry.out_width, geometry.out_height)
    if depth == "full":
        check.decode_all(merged, facts.info)
    else:
        check.decode_ranges(merged, check.joins([segment.frames for segment in plan.segments]), facts.info)
