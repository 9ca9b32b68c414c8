"""The part of the page that goes through the run step by step: state, notes, figures, settings, output of what failed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ioptim.core.record import NodeRecord, RunRecord
from ioptim.core.step import Level, Note
from ioptim.report import marks, placement
from ioptim.report.drawing import Tones, drawn
from ioptim.report.figures import moment, number, seconds, shown, size
from ioptim.report.html import Child, Html, el, text
from ioptim.report.plot import figure
from ioptim.report.tables import titled

LOG_LINES = 30


def steps(run: RunRecord, tones: Tones) -> Html:
    """How long each took, then one fold for each."""
    times = marks.where_time_went(run)
    card = el("div", el("h3", "Time of each step"), times, class_="card") if times else None
    return text(card, [_node(node, tones) for node in run.nodes])


def _node(node: NodeRecord, tones: Tones) -> Html:
    warnings = sum(note.level is Level.WARNING for note in node.notes)
    end = [node.step if node.step != node.id else None, "added by the plan" if node.inserted else None]
    end += [
        f"cached, computed {moment(node.computed) if node.computed else 'earlier'}" if node.cached else None,
        seconds(node.seconds) if node.seconds else None,
    ]
    summary = el(
        "summary",
        el("span", node.id, class_="id"),
        el("span", node.status.value.replace("_", " "), class_=f"badge {node.status.value}"),
        el("span", f"{warnings} warning{'s' if warnings > 1 else ''}", class_="badge warning") if warnings else None,
        el("span", " · ".join(part for part in end if part), class_="end"),
    )
    unfolded = bool(node.error) or any(note.level is Level.WARNING for note in placement.own(node)[0])
    return el("details", summary, el("div", _body(node, tones)), id=marks.anchor(node.id), open=unfolded)


def _body(node: NodeRecord, tones: Tones) -> Iterator[Child]:
    yield error(node)
    if log := log_tail(node):
        yield el("details", el("summary", f"Last lines of its output ({node.log})"), el("div", el("pre", log, class_="wrap", tabindex="0")))
    shown_notes, tables, charts = placement.own(node)
    yield notes(shown_notes)
    if links := [el("a", placement.SECTIONS[name], href=f"#{name}") for name in placement.elsewhere(node)]:
        yield el("p", "Shown above: ", [text(", " if i else None, link) for i, link in enumerate(links)], class_="soft")
    if node.metrics:
        yield pairs({name: shown(name, value) for name, value in node.metrics.items()})
    yield from (figure(drawn(chart, tones)) for chart in charts)
    yield from (titled(table) for table in tables)
    if node.artifact:
        about = f"{node.artifact.format.value}, {size(node.artifact.size_bytes)}, "
        yield el("p", about, el("code", node.artifact.digest[:16]), class_="soft")
    for title, values in (("What really executed", node.facts), ("Settings", node.config)):
        kept = {key: value for key, value in values.items() if value not in (None, [], {}, ())}
        if kept:
            yield el("details", el("summary", title), el("div", pairs(kept)))


def error(node: NodeRecord) -> Html | None:
    return el("pre", node.error, class_="wrap", tabindex="0") if node.error else None


def notes(given: tuple[Note, ...]) -> Html | None:
    """Warnings first."""
    ordered = sorted(given, key=lambda note: note.level is Level.INFO)
    return el("ul", [_note(note) for note in ordered], class_="notes") if ordered else None


def _note(note: Note) -> Html:
    return el("li", el("strong", "Warning: ") if note.level is Level.WARNING else None, note.text, class_=note.level.value)


def log_tail(node: NodeRecord) -> str:
    """The last lines of what a failed node wrote; nothing for one that passed."""
    if not node.error or not node.log or not Path(node.log).is_file():
        return ""
    return "\n".join(Path(node.log).read_text(errors="replace").splitlines()[-LOG_LINES:])


def pairs(values: Mapping[str, Any]) -> Html:
    """Names and values, one below the other."""
    return el("dl", [text(el("dt", str(key)), el("dd", _plain(value))) for key, value in values.items()])


def _plain(value: Any) -> Child:
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, int | float):
        return number(value)
    return el("code", json.dumps(value, ensure_ascii=False, default=str))
