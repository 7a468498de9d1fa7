"""The report: its documented form, the command it gives, and a page that runs nothing it was not written to run."""

import json
import re
from dataclasses import fields, replace
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest

from flashvsr_core.config import UpscaleParams
from flows.cli.main import app
from tasks import html, report
from tasks.media.encode import EncodeParams
from tasks.media.trim import Trim
from tasks.report import Look, OutputFile, RunReport, command_of, look_at, make_report, read_report
from tasks.storage import urls
from tasks.storage.jobs import SegmentResult
from tests.tasks.conftest import Made

ROOT = Path(__file__).parents[2]
EVIL = "a</script><script>alert(1)</script>\"'><img src=x onerror=alert(2)>.mp4"


@pytest.fixture(scope="module")
def made_report(made: Made, tmp_path_factory: pytest.TempPathFactory) -> RunReport:
    folder = tmp_path_factory.mktemp("report")
    from tasks.recover import recover

    recover(made.job, str(folder / "out.mp4"), made.cache_dir)
    look = look_at(folder / "out.mp4", made.source, made.plan, 1.0)
    results = tuple(made.job.finished().values())
    output = OutputFile(str(folder / "out.mp4"), 10, "0" * 64)
    plan = replace(made.plan, source=f"/in/{EVIL}")
    return make_report.fn(made.job, plan, output, results, frozenset({0, 1}), 9.0, (EVIL,), look, (EVIL,))


def test_report_meets_its_schema(made_report: RunReport) -> None:
    schema = json.loads(files("tasks").joinpath("schemas", "report-2.json").read_text())
    assert schema == report.schema(), (
        "the report's form changed: raise REPORT where readers would break, and write the new schema with "
        "python -c 'import json; from tasks.report import schema; print(json.dumps(schema(), indent=1))'"
    )
    written = urls.read_json(report.report_beside(made_report.output.url))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(written, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(written | {"frames": "many"}, schema)
    assert written["quality"]["joins_total"] == 2
    assert [result["attempts"] for result in written["results"]] == [1, 1, 1]


def test_every_field_is_documented() -> None:
    text = (ROOT / "docs" / "report.md").read_text()
    from tasks.quality import JoinQuality, Quality

    for kind in (RunReport, Quality, JoinQuality, SegmentResult):
        for field in fields(kind):
            assert f"`{field.name}`" in text, f"docs/report.md does not tell of {kind.__name__}.{field.name}"


def test_a_report_of_version_1_can_be_read(made: Made, made_report: RunReport) -> None:
    old = urls.read_json(made.job.report_url) | {"version": 1}
    for name in ("warnings", "created", "command", "versions", "computed", "quality"):
        del old[name]
    urls.write_json(made.job.report_url, old)
    found = read_report(made.job)
    assert found is not None
    assert (found.version, found.frames, found.quality) == (1, 40, None)
    urls.remove(made.job.report_url)


def test_the_command_makes_the_same(made: Made) -> None:
    import shlex

    plan = replace(
        made.plan, params=replace(made.plan.params, scenes=(8, 20)), trim=Trim("0.5", "20f"), fps="24000/1001"
    )
    words = shlex.split(command_of(plan, "/out dir/x.mp4"))
    assert words[:2] == ["flashvsr", "run"]
    _, bound, _ = app.parse_args(words[1:], exit_on_error=False, print_error=False)
    given = bound.arguments
    assert given["source"] == plan.source
    assert given["output"] == "/out dir/x.mp4"
    assert given["params"] == plan.params
    assert given["encode"] == plan.encode
    assert given["segment_frames"] == plan.segment_frames
    assert (given["trim"], given["fps"]) == (plan.trim, plan.fps)
    assert isinstance(given["params"], UpscaleParams)
    assert isinstance(given["encode"], EncodeParams)


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_page_is_whole_and_escapes_everything(made_report: RunReport) -> None:
    text = urls.read_bytes(report.page_beside(made_report.output.url)).decode()
    page = Page()
    page.feed(text)
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert "&lt;script&gt;alert(1)" in text
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        for name in ("src", "href"):
            if (value := attributes.get(name)) is not None:
                assert value.startswith("data:"), (tag, value)
    assert "default-src 'none'" in text
    assert not re.search(r"url\(|@import|https?://", text)
    assert len(text) < 5_000_000


def test_a_page_without_anything_measured(made_report: RunReport) -> None:
    bare = replace(made_report, quality=None, results=(), computed=(), fps=0.0, notes=(), warnings=())
    assert "Before and after" not in html.page(bare.to_json(), ())


def test_a_warning_that_is_a_note_too_stands_there_once(made_report: RunReport) -> None:
    found = replace(made_report, notes=("no chapters",), warnings=("no chapters", "slow disk")).to_json()
    text = html.page(found, ())
    assert (text.count("no chapters"), text.count("slow disk")) == (1, 1)


def test_joins_that_nobody_looked_at_are_told(made_report: RunReport) -> None:
    found = made_report.to_json()
    found["quality"] = {**found["quality"], "joins": found["quality"]["joins"][:1]}
    assert "at 1 of 2 joins" in html.page(found, ())


def test_what_cannot_be_measured_is_a_note(made: Made, tmp_path: Path) -> None:
    (tmp_path / "no.mp4").write_bytes(b"no video")
    look = look_at(tmp_path / "no.mp4", made.source, made.plan, 1.0)
    assert look == Look(notes=look.notes)
    assert "quality was not measured" in look.notes[0]


def test_the_page_says_what_to_look_at(made_report: RunReport) -> None:
    found = json.loads(json.dumps(made_report.to_json()))
    found["quality"] |= {"stability": 1.0, "color_drift": 0.5}
    for join in found["quality"]["joins"]:
        join["excess"] = 0.0
    assert "Nothing stands out" in html.page(found, ())
    found["quality"] |= {"stability": 1.4, "color_drift": 3.5}
    found["quality"]["joins"][0] |= {"excess": 0.7, "cut": False}
    text = html.page(found, ())
    for doubt in ("stability 1.40", "worst join +0.70", "colour drift 3.50"):
        assert f"<b>look closer:</b> {doubt}" in text
    assert "Nothing stands out" not in text
    assert "<td>None</td>" not in text


def test_an_encoder_that_holds_the_model_up_is_told(made: Made, tmp_path: Path) -> None:
    results = tuple(replace(r, seconds=10.0, encoder_wait=2.0) for r in made.job.finished().values())
    output = OutputFile(str(tmp_path / "out.mp4"), 10, "0" * 64)

    def notes(computed: set[int], *found: SegmentResult) -> str:
        made_now = make_report.fn(made.job, made.plan, output, found, frozenset(computed), 9.0, ())
        page = urls.read_bytes(report.page_beside(output.url)).decode()
        assert all(note in page for note in made_now.notes)
        return " ".join(made_now.notes)

    assert "waited 4.0 of 20.0 s for the encoder; a faster --preset" in notes({0, 1}, *results)
    assert "encoder" not in notes(set(), *results)  # what an earlier run waited is no news
    assert "encoder" not in notes({0}, replace(results[0], encoder_wait=0.5), *results[1:])
