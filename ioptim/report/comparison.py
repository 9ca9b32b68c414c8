"""Several runs side by side: what each measured, how it was judged, and what differed around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from ioptim.core.base import Frozen
from ioptim.core.gate import GateResult
from ioptim.core.record import RunRecord
from ioptim.core.target import Hardware
from ioptim.intervals import Interval
from ioptim.report.board import Board, boards
from ioptim.report.estimates import Estimates, estimates
from ioptim.report.figures import Change, Quantity, change, number, quantity, seconds, shown, size
from ioptim.report.text import table
from ioptim.report.words import answer, tone
from ioptim.tracking.content import flatten

BEFORE = "the first run"
OTHER_HARDWARE = "the runs were made on different hardware: their times and throughputs do not compare"


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
    intervals: tuple[Interval | None, ...] = Field(description="at 0.95; None where the samples give none")
    higher_is_better: bool | None
    comparable: tuple[bool, ...] = Field(description="whether each run's value may be set against the first run's")

    def interval(self, i: int) -> str:
        """Run i's interval in words, empty where there is none."""
        ends = self.intervals[i]
        return f"[{number(ends[0])}, {number(ends[1])}]" if ends else ""

    def change(self, i: int) -> Change | None:
        """Run i's value against the first run's; None for the first itself and where one is missing."""
        if not i or self.values[i] is None or self.values[0] is None:
            return None
        if not self.comparable[i]:
            return Change("other hardware", None)
        moved = change(self.metric, self.values[i], self.values[0], self.higher_is_better)
        here, first = self.intervals[i], self.intervals[0]
        if moved and moved.text != "same" and here and first and here[0] <= first[1] and first[0] <= here[1]:
            return Change(f"{moved.text}, intervals overlap", None)
        return moved

    def cell(self, i: int) -> str:
        """All of it in one line."""
        moved = self.change(i)
        parts = (shown(self.metric, self.values[i]), self.interval(i), f"({moved.text})" if moved else "")
        return " ".join(part for part in parts if part)


class VerdictRow(Frozen):
    """One gate, a verdict for each run; None where it was not judged."""

    gate: str
    verdicts: tuple[GateResult | None, ...]


class Difference(Frozen):
    """Something around the runs that is not the same in all of them."""

    what: str
    values: tuple[str, ...]


class Axes(Frozen):
    """What a chart of the runs on one target has on its axes."""

    target: str | None
    quality: str
    speed: str


class Comparison(Frozen):
    """Runs side by side. A change is always against the first run."""

    runs: tuple[RunHead, ...]
    metrics: tuple[MetricRow, ...]
    verdicts: tuple[VerdictRow, ...]
    differences: tuple[Difference, ...]
    warnings: tuple[str, ...]
    axes: tuple[Axes, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude={"axes"})

    def to_text(self) -> str:
        """Tables for a terminal."""
        names = [f"[{i + 1}]" for i in range(len(self.runs))]
        lines = [f"{name} {run.run_id}  {run.answer}  ({seconds(run.seconds)})" for name, run in zip(names, self.runs, strict=True)]
        lines += ["", *(f"warning: {warning}" for warning in self.warnings)] if self.warnings else []
        columns = range(len(self.runs))
        parts = (
            ("Verdicts (estimate and its interval)", [[row.gate, *map(_verdict, row.verdicts)] for row in self.verdicts]),
            (
                f"Metrics [95 % interval] (against {BEFORE})",
                [[self.named(row), *map(row.cell, columns)] for row in self.metrics],
            ),
            ("What differs", [[each.what, *each.values] for each in self.differences]),
        )
        for title, rows in parts:
            lines += ["", title, *table(["", *names], rows)] if rows else []
        return "\n".join(lines)

    def named(self, row: MetricRow) -> str:
        """The row's model and metric, with the target where there are several."""
        where = f"{row.target}: " if len({each.target for each in self.metrics}) > 1 else ""
        return f"{where}{row.subject} {row.metric}"


def compare(runs: Sequence[RunRecord]) -> Comparison:
    """The candidates' metrics, the verdicts and the differences of any number of runs, in the order given."""
    found = [boards(run) for run in runs]
    warnings = []
    if len({run.hardware.fingerprint for run in runs}) > 1:
        warnings.append(OTHER_HARDWARE)
    unfinished = [run.run_id for run in runs if not any(node.subjects for node in run.nodes)]
    warnings += [f"{run_id} measured no model" for run_id in unfinished]
    return Comparison(
        runs=tuple(_head(run) for run in runs),
        metrics=_metrics(runs, found),
        verdicts=_verdicts(runs),
        differences=_differences(runs),
        warnings=tuple(warnings),
        axes=tuple(_axes(found)),
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


def _axes(found: Sequence[Sequence[Board]]) -> list[Axes]:
    """For each target the first run's headline of quality and of speed."""
    first: dict[str | None, Axes] = {}
    for board in (board for each in found for board in each):
        speed = board.latency or board.throughput
        if board.quality and speed:
            first.setdefault(board.target, Axes(target=board.target, quality=board.quality[0], speed=speed))
    return list(first.values())


def _metrics(runs: Sequence[RunRecord], found: Sequence[Sequence[Board]]) -> tuple[MetricRow, ...]:
    """Candidates match by name; where every run has one on a target, by being the candidate."""
    sure = [estimates(run) for run in runs]
    same = tuple(run.hardware.fingerprint == runs[0].hardware.fingerprint for run in runs)
    rows = []
    for target in dict.fromkeys(board.target for each in found for board in each):
        here = [next((board for board in each if board.target == target), None) for each in found]
        measured = [board for board in here if board is not None]
        single = all(len(board.candidates) == 1 for board in measured)
        subjects = ["candidate"] if single else list(dict.fromkeys(name for board in measured for name in board.candidates))
        for subject in subjects:
            names = [board.candidates[0] if board and single else subject for board in here]
            for metric in dict.fromkeys(metric for board in measured for metric in board.metrics):
                values = tuple(board.values.get(name, {}).get(metric) if board else None for board, name in zip(here, names, strict=True))
                if any(value is not None for value in values):
                    timed = quantity(metric) in (Quantity.TIME, Quantity.RATE)
                    rows.append(
                        MetricRow(
                            target=target,
                            subject=subject,
                            metric=metric,
                            values=values,
                            intervals=_intervals(sure, target, names, metric),
                            higher_is_better=next((board.higher[metric] for board in measured if metric in board.higher), None),
                            comparable=tuple(each or not timed for each in same),
                        )
                    )
    return tuple(rows)


def _intervals(sure: Sequence[Estimates], target: str | None, names: Sequence[str], metric: str) -> tuple[Interval | None, ...]:
    return tuple(each.get((target, name, metric)) for each, name in zip(sure, names, strict=True))


def _verdicts(runs: Sequence[RunRecord]) -> tuple[VerdictRow, ...]:
    """Gates match by metric, bound and the names judged; a bound's value may differ and is in the label."""
    by_label = [{_label(result): result for result in run.gates} for run in runs]
    labels = dict.fromkeys(label for each in by_label for label in each)
    return tuple(VerdictRow(gate=label, verdicts=tuple(each.get(label) for each in by_label)) for label in labels)


def _label(result: GateResult) -> str:
    kind, bound = result.gate.bound
    versus = f" against {result.baseline}" if result.baseline else ""
    by = f" in every slice by {result.gate.slices}" if result.gate.slices else ""
    return f"{result.candidate} {result.metric} {kind} {number(bound)}{versus}{by}"


def _verdict(result: GateResult | None) -> str:
    if result is None:
        return "–"
    if result.estimate is None:
        return result.verdict.value
    around = f" [{number(result.interval[0])}, {number(result.interval[1])}]" if result.interval else ""
    return f"{result.verdict.value} {number(result.estimate)}{around}"


def _differences(runs: Sequence[RunRecord]) -> tuple[Difference, ...]:
    """Recipe, overrides, code, hardware and libraries, as far as they differ."""
    columns = []
    for run in runs:
        column = {"recipe": f"{run.recipe} ({run.recipe_digest[:12]})", "git commit": run.git_sha or "none"}
        column |= {f"--set {key}": value for key, _, value in (each.partition("=") for each in run.overrides)}
        column |= {f"recipe {key}": value for key, value in flatten(run.recipe_config).items()}
        column |= _machine(run.hardware)
        columns.append(column | {f"library {name}": version for name, version in run.environment.items()})
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [Difference(what=name, values=tuple(column.get(name, "–") for column in columns)) for name in names]
    return tuple(row for row in rows if len(set(row.values)) > 1)


def _machine(hardware: Hardware) -> Mapping[str, str]:
    gpus = "; ".join(", ".join(f"{key} {value}" for key, value in gpu.items()) for gpu in hardware.gpus)
    return {
        "hardware": hardware.fingerprint,
        "processor": hardware.cpu_model,
        "cores and threads": f"{hardware.cores}, {hardware.threads}",
        "instruction sets": ", ".join(hardware.cpu_flags) or "none that matter",
        "memory": size(hardware.memory_bytes),
        "caches": ", ".join(f"{name} {size(value)}" for name, value in hardware.caches.items()) or "not known",
        "GPUs": gpus or "none",
        "system": hardware.system or "not known",
        "python": hardware.python or "not known",
    }
