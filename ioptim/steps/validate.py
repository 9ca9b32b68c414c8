"""Quality of candidates and baselines on the same rows, row by row."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ioptim import intervals, non_finite, timing
from ioptim.core import slices
from ioptim.core.artifact import ModelArtifact
from ioptim.core.gate import Gate
from ioptim.core.metrics import Kind, Metric, Samples
from ioptim.core.step import Context, Level, MeasuringStep, Note, Outcome, TableFigure, Where
from ioptim.core.task import Table, Task
from ioptim.errors import StepError
from ioptim.steps import _fidelity as fidelity

if TYPE_CHECKING:
    import numpy as np

    from ioptim.core.runtime import Session
    from ioptim.core.task import Feeds, Outputs

SOURCE = "source"
_QUANTILES = {metric.name for metric in fidelity.METRICS if metric.quantile is not None}
_EXCERPT = 80
REPEATED_SHARE = 0.05
"""Share of rows that repeat another above which a reader is warned."""

Scores = dict[str, tuple[float | None, ...]]
"""One value per row by metric; None where there is no number."""


@dataclass(frozen=True)
class _Subject:
    """One model measured: its raw outputs in the order of the task's examples, and what executed them."""

    outputs: Sequence[Outputs]
    facts: Mapping[str, Any]


class Validate(MeasuringStep):
    """Run every candidate and baseline over the validation rows, each alone and at natural lengths, and score each row.

    With `batch_size: 1` every example is one call, as a single request is served. Above 1, only examples of the same shape share
    a batch, so nothing is ever padded; a model with dynamic int8 activations still answers slightly differently, for one scale
    is taken over the whole batch.

    Beside the task's metrics it measures fidelity to the source model, which needs no labels: `output_cosine_mean`,
    `output_cosine_p1` and, for classifiers, `top1_agreement` and `output_kl`. `files/rows.jsonl` keeps every row's value of every
    metric for every model. The samples say which slice each row is in, so that a gate with `slices` can be added later.

    Raises:
        StepError: an output holds NaN (names the model, the output, the row and the layer), a batch that the model does not take, a gate's
            `slices` that the rows do not have.
    """

    step: Literal["validate"] = "validate"
    per_target = True
    needs_baselines = True
    compares = True
    libraries = ("numpy",)
    uses_data = ("validation",)
    scores_rows = True
    batch_size: int = Field(1, ge=1, description="examples of equal shape that share a call; 1 is how single requests are served")
    changed_rows: int = Field(10, ge=0, le=100, description="rows whose score changed most, shown in the report with their text")

    def metric_names(self, task: Task) -> Sequence[str]:
        return [metric.name for metric in _metrics(task)]

    def check(self, where: Where) -> list[str]:
        """A gate on rows bounds a drop, a ratio or a value, never a speedup; on a quantile of rows a value; slices are those there are."""
        return [f"gate on {gate.metric}: {text}" for gate in self.gates for text in _objections(gate, where)]

    def check_rows(self, table: Table, task: Task) -> list[str]:
        """Objections to gates that rows so few can never decide, or rows so alike, or whose `slices` they do not have."""
        few = [f"gate on {gate.metric}: {text}" for gate in self.gates if (text := _undecidable(gate, table, task))]
        return [*few, *self._unfit(table, task)]

    def _unfit(self, table: Table, task: Task) -> list[str]:
        """Those of the objections that no verdict would tell."""
        asked = {gate.slices: gate.metric for gate in self.gates if gate.slices is not None}
        sliced = [f"gate on {metric}: {text}" for name, metric in asked.items() if (text := slices.objection(name, table, task))]
        if not self.gates or len(table) < 2 or table.different > 1:
            return sliced
        same = f"all {len(table)} rows of {table.origin} are the same"
        return [*sliced, f"{same}: one row repeated is the evidence of one row, and no gate can be judged"]

    def run(self, model: ModelArtifact, ctx: Context) -> Outcome:
        table = ctx.table("validation")
        if objections := self._unfit(table, ctx.task):
            raise StepError("; ".join(objections))  # before an hour of measuring, where the plan could not read the rows
        models = {**ctx.baselines, **ctx.candidates}
        subjects = _measured(models, table, self.batch_size, ctx)
        scores = {name: _scores(ctx.task, subjects[name], table, models[name]) for name in models}
        unlike = _add_fidelity(scores, subjects, ctx.task, len(table))
        samples = _samples(scores, ctx.task, table, _slicings(ctx.task, table, models))
        _keep_rows(ctx.out / "files", samples, table)
        means = _means(samples, list(models))
        return Outcome(
            metrics=_own_metrics(samples, means, list(ctx.candidates), list(ctx.baselines)),
            subjects=means,
            samples=samples,
            tables=(_overview(means, samples), *_changed(samples, list(ctx.candidates), table, self.changed_rows)),
            notes=(*_repeated(table), *_notes(samples, list(ctx.candidates), ctx.task.notes(table, _first(models))), *unlike),
            facts={"rows": len(table), "data": table.origin, "executed": {name: dict(s.facts) for name, s in subjects.items()}},
        )


def _metrics(task: Task) -> tuple[Metric, ...]:
    """The task's own, and the fidelity to the source model."""
    return *task.metrics, *fidelity.metrics_for(task)


def _undecidable(gate: Gate, table: Table, task: Task) -> str:
    """Why a gate that must be decided cannot be on these rows, whatever they come to; empty where it can."""
    metric = next((metric for metric in _metrics(task) if metric.name == gate.metric), None)
    if metric is None or gate.undecided != "fail":
        return ""
    least = intervals.fewest(gate.confidence, metric.quantile, binary=not metric.continuous)
    if len(table) >= least:
        return ""
    text = f"{len(table)} rows of {table.origin} can never decide at {gate.confidence * 100:.4g} % confidence; at least {least} can"
    return f"{text}. Take more rows, or say what undecided shall do (`undecided: warn`)"


def _objections(gate: Gate, where: Where) -> Iterator[str]:
    bound = gate.bound[0]
    if bound == "min_speedup":
        yield "min_speedup is for times and throughputs; on rows use max_drop, min_ratio or min_value"
    elif gate.metric in _QUANTILES and bound not in ("min_value", "max_value"):
        yield f"{bound} does not fit a quantile of rows; use min_value or max_value"
    if gate.slices == slices.INPUT_LENGTH and not where.task.length_unit:
        yield f"all inputs of {where.task.task} have the same size, so there is no input_length; slice by a column, for example label"


# --- running the models


def _measured(models: Mapping[str, ModelArtifact], table: Table, batch_size: int, ctx: Context) -> dict[str, _Subject]:
    """Every model in turn, alone in memory; one that has two names on a target runs once."""
    found: dict[str, _Subject] = {}
    ran: dict[tuple[str, str | None], _Subject] = {}
    for place, (name, model) in enumerate(models.items()):
        key = model.digest, model.target
        if not model.digest or key not in ran:
            ran[key] = _run_model(name, model, table, batch_size, ctx, place / len(models), 1 / len(models))
        found[name] = ran[key]
    ctx.progress(1.0, "scoring")
    return found


def _run_model(name: str, model: ModelArtifact, table: Table, batch_size: int, ctx: Context, done: float, share: float) -> _Subject:
    examples = list(ctx.task.examples(table, model))
    per_row, rest = divmod(len(examples), len(table))  # a row may need several: a query and a passage
    if not per_row or rest:
        raise StepError(f"the task {ctx.task.task} made {len(examples)} examples of {len(table)} rows; each row needs as many")
    outputs: list[Outputs] = [{}] * len(examples)
    session = ctx.open(model)
    try:
        _check_batch(name, session, batch_size)
        ran, told = 0, 0
        for places in _batches(examples, batch_size):
            batch = examples[places[0]] if len(places) == 1 else ctx.task.collate([examples[i] for i in places], model)
            for i, output in zip(places, _split(name, session.run(batch), len(places)), strict=True):
                _check_numbers(name, output, table.rows[i // per_row], model, batch)
                outputs[i] = output
            ran += len(places)
            if ran * 100 >= (told + 1) * len(examples):  # at most a hundred messages per model
                told = ran * 100 // len(examples)
                ctx.progress(done + share * ran / len(examples), f"{name}: {ran} of {len(examples)} examples")
        return _Subject(outputs, dict(session.facts))
    finally:
        session.close()


def _batches(examples: Sequence[Feeds], batch_size: int) -> Iterator[list[int]]:
    """Positions of the examples of each call: equal shapes only, so that no padding is needed."""
    if batch_size == 1:
        yield from ([i] for i in range(len(examples)))
        return
    alike: dict[tuple[Any, ...], list[int]] = {}
    for i, example in enumerate(examples):
        alike.setdefault(tuple((name, array.shape) for name, array in sorted(example.items())), []).append(i)
    for places in alike.values():
        yield from (places[start : start + batch_size] for start in range(0, len(places), batch_size))


def _check_batch(name: str, session: Session, batch_size: int) -> None:
    for spec in session.inputs:
        if spec.shape and isinstance(spec.shape[0], int) and spec.shape[0] != batch_size:
            raise StepError(
                f"{name} takes batches of {spec.shape[0]} only (input {spec.name!r} has shape {list(spec.shape)}), and batch_size"
                f" is {batch_size}. Export it with a varying batch axis" + (", or set batch_size: 1" if spec.shape[0] == 1 else "")
            )


def _split(name: str, outputs: Mapping[str, np.ndarray], count: int) -> Iterator[Outputs]:
    """The outputs of each example of a batch, batch axis 1 each."""
    for key, array in outputs.items():
        if array.ndim == 0 or array.shape[0] != count:
            shape = list(array.shape)
            raise StepError(f"{name}: the output {key!r} has shape {shape} for {count} examples; its first axis must be the batch")
    for i in range(count):
        yield {key: array if count == 1 else array[i : i + 1] for key, array in outputs.items()}


def _check_numbers(name: str, output: Outputs, row: str, model: ModelArtifact, feeds: Feeds) -> None:
    if said := non_finite.holes(output):
        raise StepError(f"{name}: {said} for {row}{non_finite.begins(model, feeds)}")


# --- scoring


def _scores(task: Task, subject: _Subject, table: Table, model: ModelArtifact) -> Scores:
    values = task.score(subject.outputs, table, model)
    return {metric.name: tuple(_or_none(v) for v in values[metric.name]) for metric in task.metrics}


def _or_none(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _add_fidelity(scores: Mapping[str, Scores], subjects: Mapping[str, _Subject], task: Task, rows: int) -> list[Note]:
    """Compare every model's outputs with the source model's; say whose cannot be compared."""
    notes = []
    for name, subject in subjects.items() if SOURCE in subjects else ():
        values = fidelity.compare(subject.outputs, subjects[SOURCE].outputs, task, rows)
        scores[name].update({metric: tuple(map(_or_none, column)) for metric, column in values.items()})
        if not values:
            text = f"the outputs of {name} have other shapes than the source model's: their fidelity was not measured"
            notes.append(Note(text=text, level=Level.WARNING))
    return notes


def _first(models: Mapping[str, ModelArtifact]) -> ModelArtifact:
    """The source model, where there is one; all have its tokenizer."""
    return models[next(iter(models))]


def _slicings(task: Task, table: Table, models: Mapping[str, ModelArtifact]) -> dict[str, tuple[str, ...]]:
    lengths = task.input_lengths(table, _first(models)) if task.length_unit else None
    return slices.slicings(table, lengths, task.length_unit)


def _samples(scores: Mapping[str, Scores], task: Task, table: Table, slicings: Mapping[str, tuple[str, ...]]) -> tuple[Samples, ...]:
    found = []
    for metric in (*task.metrics, *fidelity.metrics_for(task)):
        values = {name: mine[metric.name] for name, mine in scores.items() if metric.name in mine}
        if values:
            found.append(Samples(metric=metric, kind=Kind.PAIRED_ROWS, values=values, rows=table.rows, slices=slicings))
    return tuple(found)


# --- telling


def _means(samples: Sequence[Samples], names: Sequence[str]) -> dict[str, dict[str, float]]:
    """The metric of each model; left out where a row has no number, for a mean over the rest would flatter, or rows are too few."""
    means: dict[str, dict[str, float]] = {name: {} for name in names}
    for sample in samples:
        for name, column in sample.values.items():
            numbers = [value for value in column if value is not None]
            if numbers and len(numbers) == len(column) and not _too_few(sample):
                means[name][sample.metric.name] = sample.metric.of_rows(numbers)
    return means


def _too_few(sample: Samples) -> int:
    """How many rows a low quantile would need, where there are fewer; else 0."""
    needed = timing.fewest_for(1 - sample.metric.quantile) if sample.metric.quantile is not None else 0
    return needed if len(sample.rows) < needed else 0


def _own_metrics(
    samples: Sequence[Samples], means: Mapping[str, Mapping[str, float]], candidates: Sequence[str], baselines: Sequence[str]
) -> dict[str, float]:
    """Of a single candidate: its metrics and how much worse each is than a baseline's. Of several: nothing, they are subjects."""
    if len(candidates) != 1:
        return {}
    (candidate,) = candidates
    own = dict(means[candidate])
    for sample in samples:
        name, worse = sample.metric.name, 1 if sample.metric.higher_is_better else -1
        for baseline in baselines:
            if name in means[candidate] and name in means[baseline] and sample.metric not in fidelity.METRICS:
                own[f"{name}_drop_vs_{baseline}"] = worse * (means[baseline][name] - means[candidate][name])
    return own


def _repeated(table: Table) -> Iterator[Note]:
    """Every interval takes the rows to be independent."""
    if more := len(table) - table.different:
        level = Level.WARNING if more > REPEATED_SHARE * len(table) else Level.INFO
        text = f"{more} of {len(table)} rows repeat another: they are no further evidence, and intervals are narrower than they should be"
        yield Note(text=text, level=level)


def _notes(samples: Sequence[Samples], candidates: Sequence[str], from_task: Sequence[str]) -> Iterator[Note]:
    yield from (Note(text=text) for text in from_task)
    for sample in samples:
        name = sample.metric.name
        if needed := _too_few(sample):
            yield Note(text=f"{name} is not reported: it needs at least {needed} rows, and there are {len(sample.rows)}")
        for subject, column in sample.values.items():
            if holes := column.count(None):
                text = f"{name} of {subject} is not a number in {holes} of {len(column)} rows: it has no mean"
                yield Note(text=text, level=Level.WARNING)
        for candidate in candidates:
            if SOURCE in sample.values and candidate in sample.values and sample.metric not in fidelity.METRICS:
                worse, better = _moves(sample, candidate)
                text = f"{name} of {candidate} differs from source's in {worse + better} of {len(sample.rows)} rows"
                yield Note(text=f"{text}: {worse} worse, {better} better")


def _moves(sample: Samples, candidate: str) -> tuple[int, int]:
    """Rows on which the candidate is worse than the source model, and better."""
    sign = 1 if sample.metric.higher_is_better else -1
    differences = [sign * (a - b) for a, b in zip(*_columns(sample, candidate), strict=True) if a is not None and b is not None]
    return sum(d < 0 for d in differences), sum(d > 0 for d in differences)


def _columns(sample: Samples, candidate: str) -> tuple[Sequence[float | None], Sequence[float | None]]:
    return sample.values[candidate], sample.values[SOURCE]


def _overview(means: Mapping[str, Mapping[str, float]], samples: Sequence[Samples]) -> TableFigure:
    names = [sample.metric.name for sample in samples]
    rows = tuple((subject, *(metrics.get(name) for name in names)) for subject, metrics in means.items())
    return TableFigure(title="Quality on the same rows", columns=("model", *names), rows=rows)


def _changed(samples: Sequence[Samples], candidates: Sequence[str], table: Table, limit: int) -> Iterator[TableFigure]:
    """For each candidate, the rows whose headline metric moved most, losses first."""
    sample = samples[0]
    sign = 1 if sample.metric.higher_is_better else -1
    for candidate in candidates:
        if SOURCE not in sample.values or candidate not in sample.values or not limit:
            continue
        triples = zip(range(len(table)), *_columns(sample, candidate), strict=True)
        moved = [(sign * (a - b), i, a, b) for i, a, b in triples if a is not None and b is not None and a != b]
        moved.sort(key=lambda move: (move[0] > 0, -abs(move[0]), move[1]))
        if moved:
            yield TableFigure(
                title=f"Rows that changed in {candidate} ({min(limit, len(moved))} of {len(moved)})",
                columns=("row", *_texts(table, None), f"{sample.metric.name}, source", candidate),
                rows=tuple((table.rows[i], *_texts(table, i), b, a) for _, i, a, b in moved[:limit]),
            )


def _texts(table: Table, i: int | None) -> list[str]:
    """Names of the columns that hold text or a label, or an excerpt of them in row i."""
    names = [name for name, column in table.columns.items() if len(table) and isinstance(column[0], str | int)]
    if i is None:
        return names
    texts = (str(table.columns[name][i]) for name in names)
    return [text if len(text) <= _EXCERPT else text[: _EXCERPT - 1] + "…" for text in texts]


def _keep_rows(folder: Path, samples: Sequence[Samples], table: Table) -> None:
    """`rows.jsonl`: {"row": "test.tsv:2", "accuracy": {"source": 1.0, "compile": 0.0}, ...} for every row."""
    folder.mkdir(exist_ok=True)
    with (folder / "rows.jsonl").open("w") as file:
        for i, row in enumerate(table.rows):
            by_row = [s for s in samples if s.metric.quantile is None]  # a quantile is of values that stand there already
            values = {s.metric.name: {name: column[i] for name, column in s.values.items()} for s in by_row}
            file.write(json.dumps({"row": row, **values}) + "\n")
