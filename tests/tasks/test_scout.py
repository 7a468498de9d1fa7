"""Cuts are found ahead of the work, within bounds, and a source that cannot be read is somebody else's to tell of."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from flashvsr_core.config import UpscaleParams
from tasks import events, scout
from tasks.events import CutsFound
from tasks.plan import JobPlan, Request, make_plan
from tasks.scout import find_cuts, scouting
from tests.tasks.conftest import COMPUTE

CLIP = Path(__file__).parents[2] / "assets" / "bbb.mp4"


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> JobPlan:
    folder = tmp_path_factory.mktemp("scout")
    params = UpscaleParams(scale=2, model="nano")
    _, found = make_plan(
        Request(str(CLIP), str(folder / "out.mp4"), params, compute=COMPUTE, segment_frames=32), folder / "cache"
    )
    return found


@pytest.fixture
def heard() -> Iterator[list[CutsFound]]:
    found: list[CutsFound] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if isinstance(event := getattr(record, "event", None), CutsFound):
                found.append(event)

    ear, level = Ear(), events.log.level
    events.log.addHandler(ear)
    events.log.setLevel(logging.DEBUG)
    yield found
    events.log.removeHandler(ear)
    events.log.setLevel(level)


@pytest.mark.parametrize(("first", "cuts"), [(0, (28, 64)), (28, (28, 64)), (32, (64,)), (72, ())])
def test_cuts_from_any_frame_on(plan: JobPlan, first: int, cuts: tuple[int, ...]) -> None:
    assert find_cuts(plan, CLIP, first) == CutsFound(first, 96, cuts)


def test_what_is_known_is_not_looked_for(plan: JobPlan) -> None:
    for scenes, cuts in (("off", ()), ((10, 20), (10, 20))):
        known = replace(plan, params=replace(plan.params, scenes=scenes))
        assert find_cuts(known, Path("/nowhere"), 40) == CutsFound(0, 96, cuts)


def test_it_gives_up_in_time(plan: JobPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_cuts(plan, CLIP, 0, seconds=0.0).stop == 1
    monkeypatch.setattr(scout, "LARGEST", 100)
    assert find_cuts(plan, CLIP, 8) == CutsFound(8, 8, ())


def test_it_begins_at_what_is_missing(plan: JobPlan, heard: list[CutsFound], tmp_path: Path,
                                      monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr(scout, "LONGEST_END", 60.0)
    found = find_cuts
    monkeypatch.setattr(scout, "find_cuts", lambda *args, over: found(*args))  # else it would end with the block
    with scouting(plan, frozenset({0, 1}), COMPUTE, tmp_path):
        pass
    assert heard == [CutsFound(32, 96, (64,))]
    with scouting(plan, frozenset({0, 1, 2}), COMPUTE, tmp_path):
        pass
    assert len(heard) == 1


def test_a_source_that_is_gone_is_no_fault_of_the_run(plan: JobPlan, heard: list[CutsFound], tmp_path: Path) -> None:
    with scouting(replace(plan, source=str(tmp_path / "gone.mp4")), frozenset(), COMPUTE, tmp_path):
        pass
    assert heard == []
