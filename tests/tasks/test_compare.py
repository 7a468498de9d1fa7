"""`flashvsr compare`: numbers against a ground truth join the report of a finished output."""

import json
import shutil
from pathlib import Path

import pytest

from flashvsr_core.errors import UserError
from flows.cli.main import app
from tasks import html
from tasks.compare import compare_output
from tasks.recover import recover
from tasks.report import page_beside, report_beside
from tasks.storage import urls
from tests.flows.clips import make_clip
from tests.tasks.conftest import Made, made  # noqa: F401 - a fixture


@pytest.fixture(scope="module")
def output(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    path = tmp_path_factory.mktemp("compare") / "out.mp4"
    recover(made.job, str(path), made.cache_dir)
    return path


def test_numbers_join_report_and_page(output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = Path(page_beside(str(output))).read_text()
    assert ">PSNR<" not in before
    app(["compare", str(output), "--reference", str(output), "--json", f"--work-dir={tmp_path}"],
        result_action="return_value")  # fmt: skip
    said = json.loads(capsys.readouterr().out)
    assert (said["numbers"]["psnr"], said["numbers"]["ssim"], said["frames"]) == (100.0, 1.0, 40)
    report = urls.read_json(report_beside(str(output)))
    assert report["quality"]["reference"] == said["numbers"]
    assert report["quality"]["reference_file"] == str(output)
    assert urls.read_json(f"{report['job']}/report.json")["quality"]["reference"] == said["numbers"]
    page = Path(page_beside(str(output))).read_text()
    assert ">PSNR<" in page
    assert html.comparisons_of(page) == html.comparisons_of(before)
    assert len(html.comparisons_of(page)) == 4


def test_a_moved_output_keeps_its_report_beside_it(output: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved.mp4"
    for there, here in ((str(output), str(moved)), (report_beside(str(output)), report_beside(str(moved)))):
        shutil.copy(there, here)
    found = compare_output(str(moved), str(output), tmp_path)
    assert found.report == report_beside(str(moved))
    assert Path(page_beside(str(moved))).exists()


def test_what_has_no_report_is_scored_all_the_same(output: Path, tmp_path: Path) -> None:
    bare = shutil.copy(output, tmp_path / "bare.mp4")
    found = compare_output(str(bare), str(output), tmp_path)
    assert found.numbers["ssim"] == 1.0
    assert (found.report, found.note) == (None, f"there is no report at {report_beside(str(bare))}")
    changed = tmp_path / "changed.mp4"
    shutil.copy(report_beside(str(output)), report_beside(str(changed)))
    make_clip(changed, 40)
    assert "another file" in compare_output(str(changed), str(changed), tmp_path).note
    Path(report_beside(str(bare))).write_text('{"version": 2}')
    assert "is damaged" in compare_output(str(bare), str(output), tmp_path).note


def test_another_size_or_no_file_is_refused(output: Path, made: Made, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(UserError, match="give the true video in the result's size"):
        compare_output(str(output), str(made.source), tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        compare_output(str(tmp_path / "none.mp4"), str(output), tmp_path)
