"""The HTML page of one run: the answer first, then what it rests on, then how to get it again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ioptim.core.record import RunRecord
from ioptim.core.step import Level
from ioptim.report import marks, models, origins
from ioptim.report.board import Board, boards
from ioptim.report.document import document, without_charts
from ioptim.report.drawing import Tones, drawn
from ioptim.report.estimates import estimates
from ioptim.report.figures import moment, seconds
from ioptim.report.html import Html, el, text
from ioptim.report.placement import SECTIONS, Placed, placed
from ioptim.report.plot import figure
from ioptim.report.steps import error, notes, steps
from ioptim.report.tables import titled
from ioptim.report.verdicts import verdicts
from ioptim.report.words import answer, tone, unsafe

Section = tuple[str, str, Html]
"""Anchor, title, content."""


def page(run: RunRecord) -> str:
    """The whole document."""
    found = boards(run)
    sections = list(_sections(run, found))
    rest = text([_section(*section) for section in sections])
    body = (
        el("a", "Skip to the verdicts", href="#verdicts", class_="skip"),
        el(
            "main",
            _hero(run, found),
            _callouts(run),
            _section("verdicts", "Verdicts", verdicts(run)),
            _contents(sections),
            without_charts(rest),
            rest,
            el("footer", f"ioptim · run {run.run_id} · raw samples and logs lie beside this file; run.json holds all of it"),
        ),
    )
    return document(f"{run.recipe}: {answer(run)}", *body)


def _sections(run: RunRecord, found: Sequence[Board]) -> Iterator[Section]:
    """Everything below the verdicts, in the order of the page."""
    tones = {name: board.subjects.index(name) for board in reversed(found) for name in board.subjects}
    sure = estimates(run)
    for i, board in enumerate(found):
        yield f"models-{i}", models.title(board, found), models.side_by_side(board, run, sure)
    parts = placed(run)
    timed = [] if any(part.charts for part in parts.get("latency", [])) else list(models.blocks(found, run))
    for name, title in SECTIONS.items():
        extra = [figure(drawn(chart, tones)) for chart in timed] if name == "latency" else []
        if name in parts or extra:
            yield name, title, el("div", extra, _parts(parts.get(name, []), title, tones), class_="card")
    yield "steps", "Steps", steps(run, tones)
    yield "environment", "Hardware and environment", origins.environment(run)
    yield "artifacts", "Artifacts, and what they were made from", origins.artifacts(run)
    yield "recipe", "Recipe, and how to reproduce", origins.recipe(run)


def _parts(parts: Sequence[Placed], title: str, tones: Tones) -> Iterator[Html]:
    """What each step brings; named after the step where several do."""
    for part in parts:
        if len(parts) > 1:
            where = f" on {part.node.target}" if part.node.target else ""
            yield el("h3", el("a", part.node.id, href=f"#{marks.anchor(part.node.id)}"), where, class_="of")
        yield text(notes(part.notes))
        yield from (figure(drawn(chart, tones), heading=chart.title != title) for chart in part.charts)
        yield from (titled(table) for table in part.tables)


def _section(name: str, title: str, content: Html) -> Html:
    return el("section", el("h2", title, id=name), content)


def _contents(sections: Sequence[Section]) -> Html:
    return el("nav", el("ul", [el("li", el("a", title, href=f"#{name}")) for name, title, _ in sections]), aria_label="Contents")


def _hero(run: RunRecord, found: Sequence[Board]) -> Html:
    hardware = run.hardware
    facts = [
        f"started {moment(run.started)}" if run.started else None,
        f"took {seconds(run.seconds)}",
        f"{hardware.cpu_model}, {hardware.cores} cores",
        *(str(gpu.get("name", "GPU")) for gpu in hardware.gpus),
        f"engine {run.engine}",
        f"{sum(node.cached for node in run.nodes)} of {len(run.nodes)} steps from the cache",
        f"run {run.run_id}",
    ]
    description = run.recipe_config.get("description")
    return el(
        "header",
        el("h1", run.recipe),
        el("p", answer(run), class_="answer"),
        el("p", str(description)) if description else None,
        [models.glance(board, found) for board in found],
        el("ul", [el("li", fact) for fact in (*facts, _warnings(run)) if fact], class_="meta"),
        class_=f"hero {tone(run)}",
    )


def _warnings(run: RunRecord) -> Html | None:
    """How many warnings the steps have, and the way to the first."""
    warned = [node for node in run.nodes for note in node.notes if note.level is Level.WARNING]
    count = f"{len(warned)} warning{'s' if len(warned) > 1 else ''} of the steps"
    return el("a", count, href=f"#{marks.anchor(warned[0].id)}") if warned else None


def _callouts(run: RunRecord) -> Iterator[Html]:
    for key, risk in unsafe(run):
        yield el("div", el("p", el("strong", f"{key} was on. "), risk), class_="callout bad", role="note")
    for node in run.nodes:
        if node.error:
            lines = [el("strong", el("a", node.id, href=f"#{marks.anchor(node.id)}"), ": ", node.status.value), error(node)]
            yield el("div", lines, class_="callout bad", role="alert")
    shown_already = [key for key, _ in unsafe(run)]
    rest = [warning for warning in run.warnings if not any(key in warning for key in shown_already)]
    if rest:
        yield el("div", [el("p", warning) for warning in rest], class_="callout mixed", role="note")
