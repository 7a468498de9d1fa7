"""The one call that measures everything: what it writes, also where sections fail or are left out."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.bench import alternatives, speed
from tests.bench.alternatives import ALTERNATIVES, Measurer, Row, measure_all

CPU = torch.device("cpu")
ROW = {"fps": 61.0, "step_ms": 131.0, "reserved_gib": 13.5}


class Sections:
    """A bench that measures nothing."""

    model, size, device = "nano", (128, 128), CPU

    def exact(self) -> dict[str, Any]:
        return {"fps": 60.0, "peak_gib": 13.0}

    def alternatives(self) -> dict[str, Any]:
        slower = ROW | {"fps": 60.5}
        return {"exact: today": slower, "exact: decoder": ROW, "exact: graph": {"failed": "out of memory"}}

    def cold(self) -> dict[str, Any]:
        raise RuntimeError("no disk")


def test_every_section_has_its_part_of_the_table(tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    speed.measure(Sections(), target, 1000.0)  # type: ignore[arg-type]
    found = json.loads(target.read_text())
    assert found["cold"] == {"failed": "RuntimeError: no disk"}
    assert found["tiles"] == {"left out": "needs a GPU"}
    table = target.with_suffix(".md").read_text()
    assert "nano at 128x128" in table
    assert "| exact, best alternative | 60 fps | 75 fps | 61.0 fps, 13.5 GiB reserved (exact: decoder) |" in table
    assert "| fast | 80 fps | 100 fps | not measured |" in table
    assert "exact: graph failed | out of memory" in table


def test_sections_that_would_end_too_late_are_left_out(tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    speed.measure(Sections(), target, 1.0)  # type: ignore[arg-type]
    assert "it takes up to" in json.loads(target.read_text())["exact"]["left out"]


def test_alternatives_go_on_where_one_fails_or_ended_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "rows.json"
    first, second, third, *_ = (a.name for a in ALTERNATIVES)
    target.write_text(json.dumps({first: ROW, second: {"failed": "ended its process"}}))
    measured = []

    def measure(self: Measurer, alternative: alternatives.Alternative) -> Row:
        measured.append(alternative.name)
        if alternative.name == third:
            raise RuntimeError("does not compile")
        return Row(*[1.0] * 7)

    monkeypatch.setattr(Measurer, "measure", measure)
    measure_all("nano", (128, 128), CPU, target, 100.0)
    found = json.loads(target.read_text())
    assert measured[0] == third
    assert found[first] == ROW
    assert found[second] == {"failed": "ended its process"}
    assert found[third] == {"failed": "RuntimeError: does not compile"}
    assert {found[a.name].get("fps") for a in ALTERNATIVES[3:] if a.size is None} == {1.0}


def test_names_of_alternatives_differ() -> None:
    assert len({a.name for a in ALTERNATIVES}) == len(ALTERNATIVES)
