"""Tables of a record: numbers to the right, wide ones scroll by themselves, long ones are folded."""

from __future__ import annotations

from ioptim.core.step import TableFigure
from ioptim.report.figures import number, shown
from ioptim.report.html import Html, el, scroll, text

SHORT = 12
"""Rows of a table that is shown unfolded."""
LONG = 40
"""Letters of a cell that a column of a small screen has no room for: there each row stands as a list of its cells."""


def titled(table: TableFigure) -> Html:
    """A table under its title, folded when it is long."""
    return text(el("h3", table.title), grid(table)) if len(table.rows) <= SHORT else folded(table.title, table)


def folded(summary: str, table: TableFigure, unfolded: bool = False) -> Html:
    """A table behind a line that says what it is."""
    count = f"{len(table.rows)} row{'' if len(table.rows) == 1 else 's'}"
    head = el("summary", el("span", summary, class_="id"), el("span", count, class_="end"))
    return el("details", head, el("div", grid(table)), open=unfolded)


def grid(table: TableFigure) -> Html:
    """The table itself. A column of numbers is aligned by its digits."""
    numeric = [all(isinstance(row[i], int | float | None) for row in table.rows) for i in range(len(table.columns))]
    kinds = ["num" if each else None for each in numeric]
    head = [el("th", name, scope="col", class_=kind) for name, kind in zip(table.columns, kinds, strict=True)]
    body = []
    for row in table.rows:
        cells = zip(table.columns, kinds, row, strict=True)
        body.append(el("tr", [el("td", _cell(name, value), class_=kind, data_label=name) for name, kind, value in cells]))
    wordy = any(isinstance(value, str) and len(value) > LONG for row in table.rows for value in row)
    made = el("table", el("thead", el("tr", head)), el("tbody", body), class_="stacked" if wordy else None)
    return scroll(made, table.title)


def _cell(column: str, value: str | float | int | None) -> str:
    if value is None:
        return "–"
    return shown(column, value) if isinstance(value, float) else number(value) if isinstance(value, int) else value
