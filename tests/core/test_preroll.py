"""Pre-roll makes a segment agree with the uncut stream; without it there is a clear difference."""

from flashvsr_core.upscaler import DEFAULT_PREROLL
from tests.bench.preroll import curve
from tests.core.formula import formula_weights, moving_clip


def test_preroll_makes_segments_agree() -> None:
    found = curve(formula_weights(), moving_clip(72, 32, 48), cuts=(56,), prerolls=(0, DEFAULT_PREROLL))
    without, default = found[0][0], found[DEFAULT_PREROLL][0]
    assert without < 40
    assert default > 45
