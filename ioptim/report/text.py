"""Plain text for a terminal: the end of a run, and tables of aligned columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ioptim.core.gate import GateResult
from ioptim.core.record import RunRecord, TrackingState
from ioptim.core.step import Level
from ioptim.report.board import Board, boards
from ioptim.report.figures import change, seconds, shown
from ioptim.report.words import answer, tolerated, tone, unsafe, without_login

_ANSI = {"good": "32", "pass": "32", "mixed": "33", "undecided": "33", "bad": "31", "fail": "31", "bold": "1", "dim": "2"}
_MOST_COLUMNS = 6
_MOST_WARNINGS = 5


def summary_text(run: RunRecord, colour: bool = False) -> str:
    """What a run says when it has ended: the answer, each verdict, the models side by side, warnings, where the report is."""
    return "\n".join(_lines(run, colour))


def _lines(run: RunRecord, colour: bool) -> Iterator[str]:
    yield painted(f"{run.recipe}: {answer(run)}", tone(run), colour) + f"  ({seconds(run.seconds)}, run {run.run_id})"
    for key, risk in unsafe(run):
        yield painted(f"  {key} was on. {risk}", "bad", colour)
    for node in run.nodes:
        if node.error:
            yield painted(f"  {node.id}: ", "bad", colour) + node.error.replace("\n", "\n    ")
    if run.gates:
        yield ""
        yield from (_verdict(gate, colour) for gate in run.gates)
    found = boards(run)
    for board in found:
        yield ""
        if len(found) > 1:
            yield painted(f"  on {board.target}", "bold", colour)
        yield from _models(board)
    warnings = [f"{node.id}: {note.text}" for node in run.nodes for note in node.notes if note.level is Level.WARNING]
    warnings = [*run.warnings, *warnings]
    if warnings:
        yield ""
        yield from (painted("  warning: ", "mixed", colour) + warning for warning in warnings[:_MOST_WARNINGS])
        if len(warnings) > _MOST_WARNINGS:
            yield f"  and {len(warnings) - _MOST_WARNINGS} more warnings, all in the report"
    yield ""
    if run.tracking.state != "off":
        yield f"  MLflow    {_tracked(run.tracking)}"
    if run.report:
        yield f"  report    {run.report}"


def _tracked(tracking: TrackingState) -> str:
    """Where the run is remembered and how to see it there."""
    if tracking.state == "pending":
        return "could not be reached; `ioptim sync` uploads the run later"
    if tracking.url:
        return f"{tracking.state}, {without_login(tracking.url)}"
    return f"{tracking.state}; `ioptim ui` shows its page"


def _verdict(gate: GateResult, colour: bool) -> str:
    let = f" ({tolerated(gate)})" if tolerated(gate) else ""
    return f"  {painted(f'{gate.verdict.value:<9}', gate.verdict.value, colour)}  {gate.reason}{let}"


def _models(board: Board) -> Iterator[str]:
    """One candidate: metrics down, models across, with what changed. Several: models down, what matters most across."""
    if len(board.candidates) != 1:
        metrics = board.glance[:_MOST_COLUMNS]
        yield from table(("model", *metrics), [(name, *(shown(m, board.values[name].get(m)) for m in metrics)) for name in board.subjects])
        return
    (candidate,) = board.candidates
    rows = []
    for metric in board.headline:
        row = [metric, shown(metric, board.values[candidate].get(metric))]
        for baseline in board.baselines:
            value = board.values[baseline].get(metric)
            moved = change(metric, board.values[candidate].get(metric), value, None)
            row += [shown(metric, value), f"({moved.text})" if moved else ""]
        rows.append(row)
    head = ["", candidate, *(name for baseline in board.baselines for name in (baseline, ""))]
    yield from table(head, rows)
    yield f"  (in parentheses: {candidate} against that baseline)"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns as wide as their longest cell, two spaces apart, indented by two."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    for row in (head, *rows):
        yield "  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()


def painted(given: str, tone: str, colour: bool) -> str:
    return f"\033[{_ANSI[tone]}m{given}\033[0m" if colour else given
