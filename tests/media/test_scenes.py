"""Scene lists: what they may hold, and that errors name the line."""

from pathlib import Path

import pytest

from flashvsr_core.config import UpscaleParams
from flashvsr_core.cuts import mark_cuts
from flashvsr_core.errors import UserError
from tasks.media.probe import probe
from tasks.media.scenes import parse_scenes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10\n20\n30\n", (10, 20, 30)),
        ("0 10, 20 # two\n\n# nothing\n30", (10, 20, 30)),
        ("0:00:01.001\n2.002\n", (24, 48)),
        ("00:00:01:00 00:00:02:12", (24, 60)),
        ("1:30", ()),
        ("", ()),
        ("\n\r\n5\r\n", (5,)),
    ],
)
def test_entries(clips: Path, text: str, expected: tuple[int, ...]) -> None:
    info = probe(clips / "cfr.mp4")  # 96 frames at 24000/1001
    if text == "1:30":
        with pytest.raises(UserError, match="beyond the video's 96 frames"):
            parse_scenes(text, "list", info)
        return
    assert parse_scenes(text, "list", info) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("10\nsoon\n", "list line 2: 'soon' is no frame number"),
        ("20\n10\n", "line 2: '10' is frame 10, not behind frame 20"),
        ("10\n10\n", "not behind frame 10"),
        ("96", "beyond the video's 96 frames"),
        ("00:00:01:24", "frame 24 of a second that has 24"),
        ("00:00:01;02", "without dropped frames"),
        ("-5", "'-5' is no frame number"),
        ("x" * 500, "x" * 40 + "' is no"),
    ],
)
def test_errors_name_the_line(clips: Path, text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        parse_scenes(text, "list", probe(clips / "cfr.mp4"))


def test_a_file_is_read_when_a_job_is_planned() -> None:
    params = UpscaleParams(scenes="cuts.txt")
    assert params.scenes_file == "cuts.txt"
    assert not params.is_resolved
    assert UpscaleParams(scenes="off").scenes_file is None
    assert UpscaleParams(scenes="10,20").scenes == (10, 20)
    with pytest.raises(UserError, match="read when a job is planned"):
        list(mark_cuts(iter(()), 0, "cuts.txt"))
    with pytest.raises(UserError, match="is no choice"):
        UpscaleParams(scenes="")
