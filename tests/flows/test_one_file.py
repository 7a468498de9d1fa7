"""A run that ended well counts as such, also where Prefect's server answers without its result."""

import json
from pathlib import Path

import pytest
from prefect.exceptions import MissingResult
from prefect.states import Completed

from flows.one_file import outcome


def test_a_final_state_without_its_report_is_looked_up(tmp_path: Path) -> None:
    output = tmp_path / "a_2x.mp4"
    with pytest.raises(MissingResult):
        outcome(Completed(), "/in/a.mp4", str(output))
    output.write_bytes(b"12345")
    report = {"source": "/in/a.mp4", "frames": 9, "output": {"bytes": 5}}
    (tmp_path / "a_2x.report.json").write_text(json.dumps(report))
    assert outcome(Completed(), "/in/a.mp4", str(output)) == ("done", 9)
    with pytest.raises(MissingResult):  # somebody else's output
        outcome(Completed(), "/in/b.mp4", str(output))
