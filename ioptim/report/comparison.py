"""Several runs side by side: what each measured, how it was judged, and what differed around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from ioptim.core.base import Frozen
from ioptim.core.gate import GateResult
from ioptim.core.record import RunRecord
from ioptim.report.board import Board, boards
from ioptim.report.figures import change, moment, number, seconds, shown
from ioptim.report.html import el, text
from ioptim.report.page import document
from ioptim.report.text import table
from ioptim.report.words import answer, tone

_BEFORE = "the first run"


class RunHead(Frozen):
    """A column of the comparison."""

    run_id: str
    recipe: str
    status: str
    answer: str
    tone: str
    started: str
    seconds: float
    hardware: str = Field(description="fingerprint; timings compare only where it is the same")


class MetricRow(Frozen):
    """One metric of one model, a value for each run; None where it was not measured."""

    target: str | None
    subject: str
    metric: str
    values: tuple[float | None, ...]
    higher_is_better: bool | None


class VerdictRow(Frozen):
    """One gate, a verdict for each run; None where it was not judged."""

    gate: str
    verdicts: tuple[GateResult | None, ...]


class Difference(Frozen):
    """Something around the runs that is not the same in all of them."""

    what: str
    values: tuple[str, ...]


class Comparison(Frozen):
    """Runs side by side. A change is always against the first run."""

    runs: tuple[RunHead, ...]
    metrics: tuple[MetricRow, ...]
    verdicts: tuple[VerdictRow, ...]
    differences: tuple[Difference, ...]
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json")

    def to_text(self) -> str:
        """Tables for a terminal."""
        names = [f"[{i + 1}]" for i in range(len(self.runs))]
        lines = [f"{name} {run.run_id}  {run.answer}  ({seconds(run.seconds)})" for name, run in zip(names, self.runs, strict=True)]
        lines += ["", *(f"warning: {warning}" for warning in self.warnings)] if self.warnings else []
        for title, head, rows in self._tables(names):
            lines += ["", title, *table(head, rows)]
        return "\n".join(lines)

    def to_html(self) -> str:
        """The same as one page that needs nothing else."""
        names = [f"{i + 1} · {run.run_id}" for i, run in enumerate(self.runs)]
        heads = [
            el(
                "li",
                el("p", el("strong", name)),
                el("p", run.answer, class_="answer"),
                el("p", f"{run.recipe}, {moment(run.started)}, hardware {run.hardware}", class_="soft"),
                class_=f"hero {run.tone}",
            )
            for name, run in zip(names, self.runs, strict=True)
        ]
        parts = []
        for title, head, rows in self._tables([f"{i + 1}" for i in range(len(self.runs))]):
            top = el("tr", [el("th", cell, scope="col") for cell in head])
            body = [el("tr", el("th", row[0], scope="row"), [el("td", cell) for cell in row[1:]]) for row in rows]
            grid = el("table", el("thead", top), el("tbody", body))
            parts.append(text(el("h2", title), el("div", el("div", grid, class_="scroll", tabindex="0"), class_="card")))
        warned = [el("div", el("p", warning), class_="callout mixed", role="note") for warning in self.warnings]
        title = f"{len(self.runs)} runs side by side"
        return document(title, el("main", el("h1", title), el("ul", heads, class_="verdicts"), warned, parts))

    def _tables(self, names: Sequence[str]) -> list[tuple[str, list[str], list[list[str]]]]:
        """(title, head, rows) of every table that has rows."""
        targets = {row.target for row in self.metrics}
        metrics = []
        for row in self.metrics:
            where = f"{row.target}: " if len(targets) > 1 else ""
            metrics.append([f"{where}{row.subject} {row.metric}", *_against_first(row)])
        verdicts = [[row.gate, *(_verdict(result) for result in row.verdicts)] for row in self.verdicts]
        differences = [[each.what, *each.values] for each in self.differences]
        parts = [
            (f"Metrics (in parentheses: against {_BEFORE})", metrics),
            ("Verdicts (estimate and its interval)", verdicts),
            ("What differs", differences),
        ]
        return [(title, ["", *names], rows) for title, rows in parts if rows]


def compare(runs: Sequence[RunRecord]) -> Comparison:
    """The candidates' metrics, the verdicts and the differences of any number of runs, in the order given."""
    found = [boards(run) for run in runs]
    warnings = []
    if len({run.hardware.fingerprint for run in runs}) > 1:
        warnings.append("the runs were made on different hardware: their times and throughputs do not compare")
    unfinished = [run.run_id for run in runs if not any(node.subjects for node in run.nodes)]
    warnings += [f"{run_id} measured no model" for run_id in unfinished]
    return Comparison(
        runs=tuple(_head(run) for run in runs),
        metrics=_metrics(found),
        verdicts=_verdicts(runs),
        differences=_differences(runs),
        warnings=tuple(warnings),
    )


def _head(run: RunRecord) -> RunHead:
    return RunHead(
        run_id=run.run_id,
        recipe=run.recipe,
        status=run.status.value,
        answer=answer(run),
        tone=tone(run),
        started=run.started,
        seconds=run.seconds,
        hardware=run.hardware.fingerprint,
    )


def _metrics(found: Sequence[Sequence[Board]]) -> tuple[MetricRow, ...]:
    """Candidates match by name; where every run has one on a target, by being the candidate."""
    rows = []
    for target in dict.fromkeys(board.target for each in found for board in each):
        here = [next((board for board in each if board.target == target), None) for each in found]
        measured = [board for board in here if board is not None]
        single = all(len(board.candidates) == 1 for board in measured)
        subjects = ["candidate"] if single else list(dict.fromkeys(name for board in measured for name in board.candidates))
        for subject in subjects:
            columns = [_column(board, subject if not single else None) for board in here]
            for metric in dict.fromkeys(metric for board in measured for metric in board.metrics):
                values = tuple(column.get(metric) for column in columns)
                higher = next((board.higher[metric] for board in measured if metric in board.higher), None)
                if any(value is not None for value in values):
                    rows.append(MetricRow(target=target, subject=subject, metric=metric, values=values, higher_is_better=higher))
    return tuple(rows)


def _column(board: Board | None, subject: str | None) -> Mapping[str, float]:
    if board is None:
        return {}
    return board.values.get(subject if subject is not None else board.candidates[0], {})


def _verdicts(runs: Sequence[RunRecord]) -> tuple[VerdictRow, ...]:
    """Gates match by metric, bound and the names judged; a bound's value may differ and is in the label."""
    by_label = [{_label(result): result for result in run.gates} for run in runs]
    labels = dict.fromkeys(label for each in by_label for label in each)
    return tuple(VerdictRow(gate=label, verdicts=tuple(each.get(label) for each in by_label)) for label in labels)


def _label(result: GateResult) -> str:
    kind, bound = result.gate.bound
    versus = f" against {result.baseline}" if result.baseline else ""
    return f"{result.candidate} {result.metric} {kind} {number(bound)}{versus}"


def _verdict(result: GateResult | None) -> str:
    if result is None:
        return "–"
    if result.estimate is None:
        return result.verdict.value
    around = f" [{number(result.interval[0])}, {number(result.interval[1])}]" if result.interval else ""
    return f"{result.verdict.value} {number(result.estimate)}{around}"


def _against_first(row: MetricRow) -> list[str]:
    cells = [shown(row.metric, row.values[0])]
    for value in row.values[1:]:
        moved = change(row.metric, value, row.values[0], row.higher_is_better)
        cells.append(shown(row.metric, value) + (f" ({moved.text})" if moved else ""))
    return cells


def _differences(runs: Sequence[RunRecord]) -> tuple[Difference, ...]:
    """Recipe, overrides, code, hardware and libraries, as far as they differ."""
    columns = []
    for run in runs:
        column = {
            "recipe": f"{run.recipe} ({run.recipe_digest[:12]})",
            "git commit": run.git_sha or "none",
            "processor": run.hardware.cpu_model,
            "hardware": run.hardware.fingerprint,
            "python": run.hardware.python,
        }
        column |= {f"--set {key}": value for key, _, value in (each.partition("=") for each in run.overrides)}
        columns.append(column | {f"library {name}": version for name, version in run.environment.items()})
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [Difference(what=name, values=tuple(column.get(name, "–") for column in columns)) for name in names]
    return tuple(row for row in rows if len(set(row.values)) > 1)
