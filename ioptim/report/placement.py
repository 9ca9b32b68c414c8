"""Where in the report a step's charts and tables are shown: those that answer a question of every reader have a section of their own."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ioptim.core.record import NodeRecord, RunRecord
from ioptim.core.step import ChartFigure, Note, TableFigure

SECTIONS: Mapping[str, str] = {
    "latency": "Latency",
    "roofline": "Roofline",
    "time": "Where the time goes",
    "quantized": "What was quantized, and what was not",
    "sensitivity": "Sensitivity",
}
"""Title by name, in the order of the report."""


@dataclass
class Placed:
    """What one step brings to one section."""

    node: NodeRecord
    notes: tuple[Note, ...] = ()
    tables: list[TableFigure] = field(default_factory=list)
    charts: list[ChartFigure] = field(default_factory=list)


def section_of(step: str, title: str, chart: bool) -> str | None:
    """The section of a step's chart or table by its title; None where it is shown with the step."""
    words = title.lower()
    for word, section in (("sensitiv", "sensitivity"), ("roof", "roofline")):
        if word in words:
            return section
    if step == "quantize" or (step != "qat" and re.search(r"quantiz|\bint8\b", words)):
        return "quantized"
    if chart and step == "benchmark" and "warm-up" not in words:
        return "latency"
    return "time" if step == "profile" and (words == "advice" or (chart and "time" in words.split())) else None


def placed(run: RunRecord) -> dict[str, list[Placed]]:
    """Every section that has something to show, with what each step brings to it."""
    found: dict[str, dict[str, Placed]] = {name: {} for name in SECTIONS}
    for node in run.nodes:
        if node.step == "quantize" and node.notes:
            found["quantized"][node.id] = Placed(node, node.notes)
        for chart in node.charts:
            if section := section_of(node.step, chart.title, True):
                found[section].setdefault(node.id, Placed(node)).charts.append(chart)
        for table in node.tables:
            if section := section_of(node.step, table.title, False):
                found[section].setdefault(node.id, Placed(node)).tables.append(table)
    return {name: list(by_node.values()) for name, by_node in found.items() if by_node}


def own(node: NodeRecord) -> tuple[tuple[Note, ...], list[TableFigure], list[ChartFigure]]:
    """What is left to be shown with the step itself."""
    notes = () if node.step == "quantize" else node.notes
    tables = [table for table in node.tables if not section_of(node.step, table.title, False)]
    return notes, tables, [chart for chart in node.charts if not section_of(node.step, chart.title, True)]


def elsewhere(node: NodeRecord) -> Iterator[str]:
    """Names of the sections that show the rest of the step."""
    titles = [(chart.title, True) for chart in node.charts] + [(table.title, False) for table in node.tables]
    names = {section_of(node.step, title, is_chart) for title, is_chart in titles}
    names |= {"quantized"} if node.step == "quantize" and node.notes else set()
    yield from (name for name in SECTIONS if name in names)
