"""Scene cuts of what comes next, looked for beside the work: with them the time left counts the model's steps exactly.

A cut begins another stream, whose first steps cost most. In a long film they average out; of a short one a scout of a
thread, which takes little time and then gives up, finds them all before the work gets there.
"""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from flashvsr_core.config import ComputeParams
from flashvsr_core.cuts import CONTEXT, mark_cuts, sampled
from flashvsr_core.errors import FlashvsrError
from tasks.beside import beside
from tasks.events import CutsFound, tell
from tasks.media.decode import read_frames
from tasks.plan import JobPlan
from tasks.sources import localised

log = logging.getLogger(__name__)

SECONDS = 2.0  # of processor time, decoder's threads not counted; some 400 frames of 1080p
LONGEST = 20.0  # seconds by the clock on the wall
LARGEST = 4e6  # pixels of a picture; the decoder's chunk of 8 would take too much memory beside the work
LONGEST_END = 1.0  # seconds that a decoder which stands still may hold up the end of a run


def find_cuts(
    plan: JobPlan, source: Path, first: int, seconds: float = SECONDS, over: threading.Event | None = None
) -> CutsFound:
    """The cuts from frame `first` on, as far as `seconds` of processor time reach or until `over` is set."""
    scenes = plan.params.scenes
    frames = plan.info.frames
    if not isinstance(scenes, str) or scenes == "off":
        return CutsFound(0, frames, () if isinstance(scenes, str) else scenes)
    begun, end = time.thread_time(), time.monotonic() + LONGEST
    read_from, seen, cuts = max(0, first - CONTEXT), first, []
    if plan.info.width * plan.info.height > LARGEST:
        return CutsFound(first, first, ())
    decoded = read_frames(source, plan.info, read_from, frames)
    with closing(decoded):
        for frame in mark_cuts((sampled(one) for chunk in decoded for one in chunk), read_from, "auto"):
            if frame.index < first:
                continue
            seen = frame.index + 1
            if frame.cut:
                cuts.append(frame.index)
            spent = time.thread_time() - begun > seconds or time.monotonic() > end
            if spent or (over is not None and over.is_set()):
                break
    return CutsFound(first, seen, tuple(cuts))


@contextmanager
def scouting(plan: JobPlan, finished: frozenset[int], compute: ComputeParams, cache_dir: Path) -> Iterator[None]:
    """Look for cuts from the first segment on that is not `finished`, for the duration of a `with` block at most."""
    missing = [segment for segment in plan.segments if segment.index not in finished]
    if not missing:
        yield
        return
    first = max(0, missing[0].start - int(plan.params.preroll))

    def look(over: threading.Event) -> None:
        try:
            with localised(plan.source, compute, cache_dir) as source:
                tell(find_cuts(plan, source, first, over=over))
        except (FlashvsrError, OSError) as error:
            log.debug("cuts were not looked for: %s", error)  # a faulty source is the workers' to tell of

    with beside("scout", look, LONGEST_END):
        yield
