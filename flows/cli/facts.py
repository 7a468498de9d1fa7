"""Facts of a run or plan on a terminal: a name and what it is, a line each."""

from collections.abc import Iterable

from rich.markup import escape
from rich.table import Table


def facts(rows: Iterable[tuple[str, str]], title: str | None = None) -> Table:
    """A table of plain texts. A long one goes on in the next line: a path that is cut short cannot be copied."""
    table = Table(box=None, show_header=False, title=title, title_justify="left")
    table.add_column()
    table.add_column(overflow="fold")
    for name, text in rows:
        table.add_row(name, escape(text))
    return table
