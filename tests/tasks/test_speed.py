"""What a machine remembers of its speed."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tasks.forecast import Costs
from tasks.report import LEAST_LOOK
from tasks.speed import _FIXED_TAIL, estimate_seconds, expected_costs, remember_costs
from tests.tasks.conftest import COMPUTE, Made, made  # noqa: F401 - a fixture


def test_costs_are_remembered_and_the_newest_weigh_most(made: Made, tmp_path: Path) -> None:  # noqa: F811
    before = expected_costs(made.plan, COMPUTE, tmp_path)
    assert (before.latent, before.start) == (None, None)
    assert before.tail > _FIXED_TAIL
    first, mean, second = (share * before.tail for share in (1.5, 2.0, 2.5))
    remember_costs(made.plan, COMPUTE, Costs(0.5, 4.0, first), tmp_path)
    assert expected_costs(made.plan, COMPUTE, tmp_path) == Costs(pytest.approx(0.5), 4.0, pytest.approx(first))
    remember_costs(made.plan, COMPUTE, Costs(1.5, 4.0, second), tmp_path)
    assert expected_costs(made.plan, COMPUTE, tmp_path) == Costs(pytest.approx(1.0), 4.0, pytest.approx(mean))
    remember_costs(made.plan, COMPUTE, Costs(), tmp_path)  # nothing was computed
    assert expected_costs(made.plan, COMPUTE, tmp_path) == Costs(pytest.approx(1.0), 4.0, pytest.approx(mean))


def test_an_end_that_hung_once_is_not_expected_again(made: Made, tmp_path: Path) -> None:  # noqa: F811
    """Seen: a first run whose end took a minute more; runs of 15 s were then foreseen four times as long."""
    usual = expected_costs(made.plan, COMPUTE, tmp_path).tail
    remember_costs(made.plan, COMPUTE, Costs(0.5, 4.0, 1.1 * usual), tmp_path)
    remember_costs(made.plan, COMPUTE, Costs(0.5, 4.0, 60 * usual), tmp_path)
    assert expected_costs(made.plan, COMPUTE, tmp_path).tail == pytest.approx(2.2 * usual)
    for _ in range(8):  # now it is what this machine takes
        remember_costs(made.plan, COMPUTE, Costs(0.5, 4.0, 60 * usual), tmp_path)
    assert expected_costs(made.plan, COMPUTE, tmp_path).tail == pytest.approx(60 * usual, rel=0.2)


def test_the_end_counts_what_looks_at_the_result(made: Made, tmp_path: Path) -> None:  # noqa: F811
    plain = expected_costs(made.plan, COMPUTE, tmp_path).tail
    looks = {"musiq": 40.0, "reference": 10.0}
    assert expected_costs(made.plan, COMPUTE, tmp_path, looks).tail == pytest.approx(plain + 50)
    # Scores took 30 s of it: the rest and each look have factors of their own.
    rest = 2 * plain
    remember_costs(made.plan, COMPUTE, Costs(0.5, 4.0, 30 + rest), tmp_path, looks, {"musiq": 25.0, "reference": 5.0})
    assert expected_costs(made.plan, COMPUTE, tmp_path).tail == pytest.approx(rest)
    both = expected_costs(made.plan, COMPUTE, tmp_path, looks)
    assert (both.tail, dict(both.looks)) == (pytest.approx(30 + rest), {"musiq": pytest.approx(25), "reference": 5.0})
    assert expected_costs(made.plan, COMPUTE, tmp_path, {"musiq": 80.0}).tail == pytest.approx(rest + 50)


def test_the_end_counts_what_is_looked_at_until_the_time_for_it_is_over(made: Made, tmp_path: Path) -> None:  # noqa: F811
    """Of 1080p that was once less than half of what it takes; of 8K a place takes long, and is the last one."""
    hd, large = (replace(made.plan.info, width=width, height=height) for width, height in ((960, 540), (3840, 2160)))
    few = replace(made.plan, info=hd, segment_frames=48)
    assert 1.0 + LEAST_LOOK < expected_costs(few, COMPUTE, tmp_path).tail < 1.0 + 2 * LEAST_LOOK
    assert expected_costs(replace(few, info=large), COMPUTE, tmp_path).tail < 1.0 + 10 * LEAST_LOOK


def test_the_estimate_counts_the_steps_of_what_is_missing(made: Made, tmp_path: Path) -> None:  # noqa: F811
    remember_costs(made.plan, COMPUTE, Costs(0.5), tmp_path)
    # Pre-roll 8: [0, 16) is one step; [16, 32) and [32, 40) stream 24 and 16 frames: 8 and 6 latent frames.
    seconds, basis = estimate_seconds(made.plan, made.plan.segments, COMPUTE, tmp_path)
    assert seconds == pytest.approx(0.5 * (6 + 8 + 6))
    assert "on this machine" in basis
    assert estimate_seconds(made.plan, made.plan.segments[2:], COMPUTE, tmp_path)[0] == pytest.approx(0.5 * 6)


def test_a_memory_of_another_version_is_forgotten(made: Made, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "speeds.json").write_text(json.dumps({"nano tiny fp32 sparse cpu": 3.0, "tail": 12.0}))
    assert expected_costs(made.plan, COMPUTE, tmp_path).latent is None
    remember_costs(made.plan, COMPUTE, Costs(0.5), tmp_path)
    assert expected_costs(made.plan, COMPUTE, tmp_path).latent == pytest.approx(0.5)
