"""The time grid of the model, and the plan that cuts a video into segments on it."""

from dataclasses import dataclass

from flashvsr_core.errors import UserError

GRID = 8  # every stream starts on a multiple of 8 frames, so step boundaries, noise and phases agree everywhere
FIRST_READ = 25  # input frames of a stream's first step ...
FIRST_EMIT = 21  # ... and the frames it emits
STEP = 8  # input and output frames of every later step
LOOKAHEAD = FIRST_READ - FIRST_EMIT  # emission lags reading by this many frames


@dataclass(frozen=True)
class SegmentPlan:
    """One segment: frames [start, stop) of the video are emitted by it."""

    index: int
    start: int
    stop: int

    def __post_init__(self) -> None:
        if self.start % GRID or not 0 <= self.start < self.stop:
            raise UserError(
                f"segment {self.index} [{self.start}, {self.stop}) must not be empty and must start on a multiple "
                f"of {GRID}; plan segments with plan_segments()"
            )

    @property
    def frames(self) -> int:
        return self.stop - self.start


def plan_segments(frames: int, segment_frames: int) -> tuple[SegmentPlan, ...]:
    """Cut a video of `frames` frames into ranges of `segment_frames` (a multiple of 8); the last may be shorter."""
    if frames < 1:
        raise UserError(f"the video has {frames} frames; at least 1 is needed")
    if segment_frames < GRID or segment_frames % GRID:
        raise UserError(
            f"segment length {segment_frames} must be a multiple of {GRID}, at least {GRID}; "
            f"try {max(GRID, round(segment_frames / GRID) * GRID)}"
        )
    starts = range(0, frames, segment_frames)
    return tuple(SegmentPlan(i, start, min(start + segment_frames, frames)) for i, start in enumerate(starts))


def reading_range(segment: SegmentPlan, preroll: int, context: int, frames: int) -> tuple[int, int]:
    """Input frames [first, end) a worker may read to emit `segment`.

    It streams from `preroll` frames before the segment; `context` more frames either side let it decide locally where
    scenes are cut. The end is a bound, not a demand: it suits a stream that a cut restarts at the segment's last frame.
    """
    first = max(0, segment.start - preroll - context)
    last_restart = (segment.stop - 1) // GRID * GRID
    return first, min(frames, last_restart + FIRST_READ + context)
