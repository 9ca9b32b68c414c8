"""The report as Markdown: what a tracker or a pull request shows."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Sequence

from ioptim.core.record import NodeRecord, RunRecord
from ioptim.core.step import Level
from ioptim.report.board import Board, boards
from ioptim.report.figures import change, seconds, shown, size
from ioptim.report.words import answer, nothing_judged, unsafe


def markdown(run: RunRecord) -> str:
    """Verdicts, models side by side, steps, warnings, environment."""
    return "\n".join(_lines(run)) + "\n"


def _lines(run: RunRecord) -> Iterator[str]:
    yield f"# {plain(run.recipe)}"
    yield f"\n**{plain(answer(run))}** ({seconds(run.seconds)}, run {plain(run.run_id)})"
    for key, risk in unsafe(run):
        yield f"\n**{key} was on.** {risk}"
    for warning in run.warnings:
        yield f"\n> {plain(warning)}"
    yield "\n## Verdicts\n"
    verdicts = [(gate.verdict.value, gate.reason) for gate in run.gates]
    yield from _table(("verdict", "reason"), verdicts) if verdicts else [nothing_judged(run)]
    found = boards(run)
    for board in found:
        where = f" on {plain(board.target)}" if board.target and len(found) > 1 else ""
        yield f"\n## Models side by side{where}\n"
        yield from _models(board)
    yield "\n## Steps\n"
    yield from _table(("step", "state", "time", "model"), [_step(node) for node in run.nodes])
    for node in run.nodes:
        if node.error:
            yield f"\n**{plain(node.id)}**: {plain(node.error)}"
    notes = [(node.id, note.text) for node in run.nodes for note in node.notes if note.level is Level.WARNING]
    if notes:
        yield "\n## Warnings\n"
        yield from (f"- {plain(node)}: {plain(note)}" for node, note in notes)
    yield "\n## Hardware and environment\n"
    machine = run.hardware
    yield f"- {plain(machine.cpu_model)}, {machine.cores} cores, {size(machine.memory_bytes)}; fingerprint {machine.fingerprint}"
    yield from (f"- {plain(name)} {plain(version)}" for name, version in run.environment.items())
    yield f"- command: {plain(shlex.join(run.command))}"


def _models(board: Board) -> Iterator[str]:
    single = board.candidates[0] if len(board.candidates) == 1 else None
    rows = []
    for metric in board.headline:
        cells = []
        for subject in board.subjects:
            value = board.values[subject].get(metric)
            moved = None
            if single and subject in board.baselines:
                moved = change(metric, board.values[single].get(metric), value, board.higher.get(metric))
            cells.append(shown(metric, value) + (f" ({moved.text})" if moved else ""))
        rows.append((metric, *cells))
    yield from _table(("metric", *board.subjects), rows)
    if single:
        yield f"\nIn parentheses: {plain(single)} against that baseline."


def _step(node: NodeRecord) -> tuple[str, ...]:
    model = f"{node.artifact.format.value}, {size(node.artifact.size_bytes)}" if node.artifact else ""
    state = node.status.value.replace("_", " ") + (", cached" if node.cached else "")
    return (node.id, state, seconds(node.seconds), model)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(map(plain, head))} |"
    yield "|" + "---|" * len(head)
    yield from (f"| {' | '.join(map(plain, row))} |" for row in rows)


def plain(given: str) -> str:
    """The text and nothing but the text: no markup, no table cell, no line of its own."""
    escaped = re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", given)
    return " ".join(escaped.split())
