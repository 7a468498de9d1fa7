"""What the terminal says of runs and plans."""

from io import StringIO

from rich.console import Console

from flows.cli.facts import facts
from flows.cli.plan import _memory_rows


def test_long_paths_are_whole() -> None:
    """They were cut short with an ellipsis, and a path could not be copied."""
    path = "/" + "/".join(f"a folder {i}" for i in range(12)) + "/[final] film.report.html"
    console = Console(width=60, record=True, file=StringIO())
    console.print(facts([("frames", "8"), ("report", path)], "done"))
    shown = console.export_text()
    assert "".join(path.split()) in "".join(shown.split())
    assert all(len(line) <= 60 for line in shown.splitlines())


def test_a_plan_says_what_is_done_to_fit_into_memory() -> None:
    memory = {
        "limit_bytes": 8 << 30, "device_bytes": 7 << 30, "host_bytes": 80 << 30, "slowdown": 1.7, "tile_size": None,
        "tile_overlap": None, "tiles_at_once": 1, "decoder_tile": 512, "offload": "kv", "resident": 5, "strips": 2,
        "device_is_host": False,
    }  # fmt: skip
    rows = dict(_memory_rows(memory))
    assert rows["memory"] == "7.00 GiB on the device, 80.0 GiB here expected at the peak, limit 8.00 GiB"
    way = "untiled, in 2 strips that see each other, decoded in parts of 512, offload kv but for 5 blocks"
    assert rows["way"].startswith(way)
    assert "strips" not in dict(_memory_rows(memory | {"strips": 1}))["way"]
