"""The subflow that computes segments: one GPU-tagged task each, on the configured runner."""

from pathlib import Path

from prefect import flow
from prefect.states import State

from flashvsr_core.config import ComputeParams
from flashvsr_core.errors import FlashvsrError
from tasks.events import SegmentFailed, tell
from tasks.plan import read_plan
from tasks.storage.jobs import Job, SegmentResult
from tasks.upscale import upscale_segment


class SegmentsFailed(FlashvsrError):
    """Some segments could not be made; those that were are kept. `exit_code` is that of the gravest cause."""

    def __init__(self, failures: dict[int, BaseException]) -> None:
        self.failures = failures
        first = failures[min(failures)]
        others = f" (and {len(failures) - 1} more segments failed)" if len(failures) > 1 else ""
        super().__init__(f"segment {min(failures)}: {first}{others}")
        self.exit_code = max(getattr(error, "exit_code", 1) for error in failures.values())


@flow(name="upscale-segments", flow_run_name="segments-{job.slug}", log_prints=False, persist_result=False, retries=0)
def upscale_segments(job: Job, indices: list[int], compute: ComputeParams, cache_dir: Path) -> list[SegmentResult]:
    """Make the segments `indices` of a planned job. Each is stored as it finishes; one failure costs no other."""
    segments = read_plan(job).segments
    futures = {
        index: upscale_segment.with_options(refresh_cache=not job.holds(index)).submit(
            job, segments[index], compute, cache_dir
        )
        for index in indices
    }
    states: dict[int, State] = {}
    for index, future in futures.items():
        future.wait()
        states[index] = future.state
    failures = {i: _error(state) for i, state in states.items() if not state.is_completed()}
    if failures:
        for index, error in failures.items():
            tell(SegmentFailed(index, str(error)))
        raise SegmentsFailed(failures)
    return [states[index].result() for index in indices]


def _error(state: State) -> BaseException:
    found = state.result(raise_on_failure=False)
    return found if isinstance(found, BaseException) else FlashvsrError(f"task ended as {state.name}: {state.message}")
