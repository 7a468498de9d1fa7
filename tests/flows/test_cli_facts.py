"""What the terminal says of runs and plans."""

from io import StringIO

from rich.console import Console

from flows.cli.facts import facts


def test_long_paths_are_whole() -> None:
    """They were cut short with an ellipsis, and a path could not be copied."""
    path = "/" + "/".join(f"a folder {i}" for i in range(12)) + "/[final] film.report.html"
    console = Console(width=60, record=True, file=StringIO())
    console.print(facts([("frames", "8"), ("report", path)], "done"))
    shown = console.export_text()
    assert "".join(path.split()) in "".join(shown.split())
    assert all(len(line) <= 60 for line in shown.splitlines())
