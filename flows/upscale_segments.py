"""The subflow that computes segments: one GPU-tagged task each, on the configured runner."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from prefect import flow
from prefect.exceptions import TerminationSignal
from prefect.futures import PrefectFuture
from prefect.states import State

from flashvsr_core.config import CLUSTERS, ComputeParams
from flashvsr_core.errors import FlashvsrError
from flashvsr_core.segments import SegmentPlan
from flows.patience import Patience, may_pass
from flows.runners import one_gpu_each
from tasks import halt, stop
from tasks.events import SegmentFailed, tell
from tasks.plan import read_plan
from tasks.storage.jobs import Job, SegmentResult
from tasks.upscale import upscale_segment
from tasks.workers import WorkerDied

log = logging.getLogger(__name__)

_LOOK = 0.3  # seconds between looks whether what runs shall be given up


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
    order = longest_first([segments[index] for index in indices])
    outcomes: dict[int, SegmentResult | BaseException] = {}
    patience = Patience()
    futures: dict[int, PrefectFuture[SegmentResult]] = {}
    with _stopping_on_signals(job, compute, futures):
        while order:
            futures.update(_handed_out(job, order, compute, cache_dir))
            outcomes |= {segment.index: _outcome(futures[segment.index]) for segment in order}
            # A server that gave a segment no slot of a limit, or took none back, says nothing about the segment.
            away = {i: found for i, found in outcomes.items() if isinstance(found, BaseException) and may_pass(found)}
            outcomes |= {index: made for index in away if (made := job.result(index)) is not None}
            order = [segment for segment in order if outcomes[segment.index] is away.get(segment.index)]
            if order:
                patience.wait(away[order[0].index])
    failures = {index: found for index, found in outcomes.items() if not isinstance(found, SegmentResult)}
    if failures:
        for index, error in failures.items():
            tell(SegmentFailed(index, str(error)))
        raise SegmentsFailed(failures)
    return [found for index in indices if isinstance(found := outcomes[index], SegmentResult)]


def _handed_out(
    job: Job, segments: Sequence[SegmentPlan], compute: ComputeParams, cache_dir: Path
) -> dict[int, PrefectFuture[SegmentResult]]:
    held = {segment.index: job.holds(segment.index) for segment in segments}
    with one_gpu_each(compute):
        return {
            segment.index: upscale_segment.with_options(refresh_cache=not held[segment.index]).submit(
                job, segment, compute, cache_dir
            )
            for segment in segments
        }


def longest_first(segments: Sequence[SegmentPlan]) -> list[SegmentPlan]:
    """The order in which segments are handed out: a long one begun last would leave the other devices idle."""
    return sorted(segments, key=lambda segment: (-segment.frames, segment.index))


@contextmanager
def _stopping_on_signals(
    job: Job, compute: ComputeParams, futures: dict[int, PrefectFuture[SegmentResult]]
) -> Iterator[None]:
    """Ctrl-C: running segments are finished, no other is begun. A termination signal: running ones are given up too.

    Said before Prefect waits, as it leaves the flow, for whatever still runs; for clusters, whose work Prefect gives up
    as it leaves, it is waited for here.
    """
    try:
        yield
    except KeyboardInterrupt:
        stop.ask("soon")
        log.warning("interrupted: finishing the segments that run; interrupt again to give them up")
        if compute.runner in CLUSTERS:
            _finish(job, tuple(futures.values()))
        raise
    except TerminationSignal:
        stop.ask("now")
        raise


def _finish(job: Job, futures: Sequence[PrefectFuture[SegmentResult]]) -> None:
    """Have workers elsewhere begin nothing more, and wait for what they are at, until it shall be given up.

    In this thread, and in short waits: a thread that is still inside `ray.get` while Prefect, leaving the flow, shuts
    Ray down is woken in a client that is being destroyed, which has ended the process with a segmentation fault.
    """
    halt.ask(job)
    try:
        for future in futures:
            while stop.asked() != "now" and not _ended(future, _LOOK):
                pass
    finally:
        halt.forget(job)


def _ended(future: PrefectFuture[SegmentResult], seconds: float) -> bool:
    """Whether a task, however it fared, comes to its end within some seconds."""
    try:
        future.result(seconds, raise_on_failure=False)
    except TimeoutError:
        return False
    except Exception:  # noqa: BLE001 - its worker was lost; Dask and Ray have many names for it
        return True
    return True


def _outcome(future: PrefectFuture[SegmentResult]) -> SegmentResult | BaseException:
    """What became of a task. A future that itself raises has lost its worker; its task could not say anything."""
    try:
        future.wait()
        state = future.state
        if not state.is_final():  # Dask's futures keep to themselves what failed around the task
            future.result()
    except Exception as error:  # noqa: BLE001 - Dask and Ray have many names for it
        if may_pass(error):
            return error
        return WorkerDied(f"the worker was lost ({type(error).__name__}: {error}); run again")
    return state.result() if state.is_completed() else _error(state)


def _error(state: State) -> BaseException:
    found = state.result(raise_on_failure=False)
    return found if isinstance(found, BaseException) else FlashvsrError(f"task ended as {state.name}: {state.message}")
