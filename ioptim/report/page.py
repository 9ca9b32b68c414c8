"""The HTML page of one run: the answer first, then what it rests on, then how to get it again. No script, nothing fetched."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ioptim.core.gate import GateResult, Verdict
from ioptim.core.record import NodeRecord, RunRecord
from ioptim.core.step import Level, Note, TableFigure
from ioptim.report import charts, models
from ioptim.report.board import boards
from ioptim.report.figures import moment, number, seconds, shown, size
from ioptim.report.html import Child, Html, el, raw_css, scroll, text
from ioptim.report.style import CSS
from ioptim.report.words import answer, nothing_judged, tolerated, tone, unsafe, without_login

LOG_LINES = 30
SHORT_TABLE = 12
"""Rows of a table that is shown unfolded."""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def page(run: RunRecord) -> str:
    """The whole document."""
    found = boards(run)
    body = (
        el("a", "Skip to the verdicts", href="#verdicts", class_="skip"),
        el(
            "main",
            _hero(run),
            _callouts(run),
            _section("verdicts", "Verdicts", _verdicts(run)),
            [_section(f"models-{i}", models.title(board, found), models.side_by_side(board, run)) for i, board in enumerate(found)],
            _section("steps", "Steps", _steps(run)),
            _section("environment", "Hardware and environment", _environment(run)),
            _section("artifacts", "Artifacts", _artifacts(run)),
            _section("recipe", "Recipe, and how to reproduce", _recipe(run)),
            el("footer", f"ioptim · run {run.run_id} · raw samples and logs lie beside this file; run.json holds all of it"),
        ),
    )
    return document(f"{run.recipe}: {answer(run)}", *body)


def document(title: str, *body: Child) -> str:
    """A page that may load nothing, not even from its own folder."""
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        el("meta", name="referrer", content="no-referrer"),
        el("title", title),
        raw_css(CSS),
    )
    return f"<!doctype html>\n{el('html', head, el('body', *body), lang='en')}\n"


def _section(name: str, title: str, *children: Child) -> Html:
    return el("section", el("h2", title, id=name), *children)


# --- the answer


def _hero(run: RunRecord) -> Html:
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
        el("div", "ioptim run", class_="soft small"),
        el("h1", run.recipe),
        el("p", answer(run), class_="answer"),
        el("p", str(description)) if description else None,
        el("ul", [el("li", fact) for fact in facts if fact], class_="meta"),
        class_=f"hero {tone(run)}",
    )


def _callouts(run: RunRecord) -> Iterator[Html]:
    for key, risk in unsafe(run):
        yield el("div", el("p", el("strong", f"{key} was on. "), risk), class_="callout bad", role="note")
    for node in run.nodes:
        if node.error:
            lines = [el("strong", el("a", node.id, href=f"#{charts.anchor(node.id)}"), ": ", node.status.value), _error(node)]
            yield el("div", lines, class_="callout bad", role="alert")
    shown_already = [key for key, _ in unsafe(run)]
    rest = [warning for warning in run.warnings if not any(key in warning for key in shown_already)]
    if rest:
        yield el("div", [el("p", warning) for warning in rest], class_="callout mixed", role="note")


def _error(node: NodeRecord) -> Html:
    return el("pre", node.error, class_="wrap", tabindex="0")


# --- verdicts


def _verdicts(run: RunRecord) -> Html:
    if not run.gates:
        return el("p", nothing_judged(run))
    return el("ul", [_verdict(result) for result in sorted(run.gates, key=_worst_first)], class_="verdicts")


def _worst_first(result: GateResult) -> int:
    return [Verdict.FAIL, Verdict.UNDECIDED, Verdict.PASS].index(result.verdict)


def _verdict(result: GateResult) -> Html:
    versus = f" against {result.baseline}" if result.baseline else ""
    let = tolerated(result)
    return el(
        "li",
        el("div", el("span", result.verdict.value, class_=f"badge {result.verdict.value}")),
        el(
            "div",
            el("p", f"{result.metric} of {result.candidate}{versus}", class_="what"),
            el("p", result.reason),
            el("p", f"{let[0].upper()}{let[1:]}.", class_="soft small") if let else None,
        ),
        charts.interval(result),
        class_="verdict",
    )


# --- steps


def _steps(run: RunRecord) -> Html:
    times = charts.where_time_went(run)
    return text(el("div", el("h3", "Time of each step"), times, class_="card") if times else None, [_node(node) for node in run.nodes])


def _node(node: NodeRecord) -> Html:
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
    return el("details", summary, el("div", _node_body(node)), id=charts.anchor(node.id), open=bool(node.error or warnings or node.tables))


def _node_body(node: NodeRecord) -> Iterator[Child]:
    if node.error:
        yield _error(node)
    if log := log_tail(node):
        yield el("details", el("summary", f"Last lines of its output ({node.log})"), el("div", el("pre", log, class_="wrap", tabindex="0")))
    if node.notes:
        yield el("ul", [_note(note) for note in sorted(node.notes, key=lambda note: note.level is Level.INFO)], class_="notes")
    if node.metrics:
        yield _pairs({name: shown(name, value) for name, value in node.metrics.items()})
    yield from (_table(table) for table in node.tables)
    if node.artifact:
        yield el(
            "p", f"{node.artifact.format.value}, {size(node.artifact.size_bytes)}, ", el("code", node.artifact.digest[:16]), class_="soft"
        )
    for title, values in (("What really executed", node.facts), ("Settings", node.config)):
        kept = {key: value for key, value in values.items() if value not in (None, [], {}, ())}
        if kept:
            yield el("details", el("summary", title), el("div", _pairs(kept)))


def _note(note: Note) -> Html:
    return el("li", el("strong", "Warning: ") if note.level is Level.WARNING else None, note.text, class_=note.level.value)


def _table(table: TableFigure) -> Html:
    numeric = [all(isinstance(row[i], int | float | None) for row in table.rows) for i in range(len(table.columns))]
    head = [el("th", name, scope="col", class_="num" if numeric[i] else None) for i, name in enumerate(table.columns)]
    rows = [
        el("tr", [el("td", _cell(table.columns[i], value), class_="num" if numeric[i] else None) for i, value in enumerate(row)])
        for row in table.rows
    ]
    grid = scroll(el("table", el("thead", el("tr", head)), el("tbody", rows)), table.title)
    if len(rows) <= SHORT_TABLE:
        return text(el("h3", table.title), grid)
    return el(
        "details", el("summary", el("span", table.title, class_="id"), el("span", f"{len(rows)} rows", class_="end")), el("div", grid)
    )


def _cell(column: str, value: str | float | int | None) -> str:
    if value is None:
        return "–"
    return shown(column, value) if isinstance(value, float) else number(value) if isinstance(value, int) else value


def log_tail(node: NodeRecord) -> str:
    """The last lines of what a failed node wrote; nothing for one that passed."""
    if not node.error or not node.log or not Path(node.log).is_file():
        return ""
    return "\n".join(Path(node.log).read_text(errors="replace").splitlines()[-LOG_LINES:])


# --- where, and how again


def _environment(run: RunRecord) -> Html:
    hardware = run.hardware
    return el(
        "div",
        _pairs(
            {
                "processor": f"{hardware.cpu_model}, {hardware.cores} cores, {hardware.threads} threads",
                "instruction sets": ", ".join(hardware.cpu_flags) or "none that matter",
                "caches": ", ".join(f"{name} {size(value)}" for name, value in hardware.caches.items()) or "not known",
                "memory": size(hardware.memory_bytes),
                "GPUs": "; ".join(", ".join(f"{k} {v}" for k, v in gpu.items()) for gpu in hardware.gpus) or "none",
                "system": hardware.system or "not known",
                "python": hardware.python or "not known",
                "fingerprint": f"{hardware.fingerprint} (timings compare only where it is the same)",
            }
        ),
        el("h3", "Libraries"),
        _pairs(run.environment) if run.environment else el("p", "none recorded"),
        el("h3", "Tracking"),
        _tracking(run),
        class_="card",
    )


def _tracking(run: RunRecord) -> Html:
    tracking = run.tracking
    link: Child = None
    if tracking.url:
        url = without_login(tracking.url)
        link = el("p", el("a", url, href=url, rel="noreferrer") if url.startswith(("http://", "https://")) else url)
    where = {
        "state": tracking.state,
        "server": without_login(tracking.uri or ""),
        "run": tracking.run_id or "",
        "problem": tracking.problem or "",
    }
    return text(_pairs({key: value for key, value in where.items() if value}), link)


def _artifacts(run: RunRecord) -> Html:
    """Every model that was made, at the step that made it; a step that only measures passes its model on."""
    made: dict[str, NodeRecord] = {}
    for node in run.nodes:
        if node.artifact:
            made.setdefault(node.artifact.digest, node)
    if not made:
        return el("p", "No artifact was made.")
    head = [el("th", name, scope="col") for name in ("step", "from", "format", "size", "digest (SHA-256)", "where")]
    rows = [el("tr", el("th", node.id, scope="row"), [el("td", cell) for cell in _artifact_cells(node)]) for node in made.values()]
    return el("div", scroll(el("table", el("thead", el("tr", head)), el("tbody", rows)), "artifacts"), class_="card")


def _artifact_cells(node: NodeRecord) -> Iterator[Child]:
    if node.artifact:
        yield ", ".join(node.parents) or "–"
        yield node.artifact.format.value
        yield el("span", size(node.artifact.size_bytes), class_="was")
        yield el("code", node.artifact.digest)
        yield el("code", node.artifact.path)


def _recipe(run: RunRecord) -> Html:
    command = shlex.join(run.command) if run.command else f"ioptim run {shlex.quote(run.recipe_path or 'recipe.yaml')}"
    return el(
        "div",
        el("p", "The command, from the folder it was started in:"),
        el("pre", command, class_="wrap", tabindex="0"),
        el("p", "Overrides: ", [text(el("code", each), " ") for each in run.overrides]) if run.overrides else None,
        _pairs({"recipe file": run.recipe_path or "–", "recipe digest": run.recipe_digest or "–", "git commit": run.git_sha or "none"}),
        el("h3", "The recipe as read"),
        el("pre", run.recipe_text or "not recorded", tabindex="0"),
        el("details", el("summary", "Resolved, with every default"), el("div", el("pre", _json(run.recipe_config), tabindex="0"))),
        class_="card",
    )


def _pairs(values: Mapping[str, Any]) -> Html:
    return el("dl", [text(el("dt", str(key)), el("dd", _plain(value))) for key, value in values.items()])


def _plain(value: Any) -> Child:
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, int | float):
        return number(value)
    return el("code", json.dumps(value, ensure_ascii=False, default=str))


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)
