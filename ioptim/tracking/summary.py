"""A run in one row: the numbers that two runs of two recipes are compared by, under the same names in every recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ioptim.core.metrics import Kind, Metric, read_samples
from ioptim.core.record import NodeRecord, RunRecord

SOURCE = "source"
BASELINES = (SOURCE, "runtime-fp32", "champion")
LATENCY = "latency_p50_ms"


@dataclass(frozen=True)
class Summary:
    """`candidate` is the model that `metrics` are of, `quality` the name of the metric that `quality` and `quality_drop` show.

    With several candidates the fastest stands under the plain names and every one under `<candidate>/<metric>`; `models` has each
    candidate's own numbers.
    """

    candidate: str | None = None
    quality: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    models: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def summarize(run: RunRecord) -> Summary:
    """The summary of a run; empty where nothing was measured."""
    subjects = _merged(run)
    candidates = [name for name in subjects if not _is_baseline(name)]
    if not candidates:
        return Summary(metrics=_run_metrics(run))
    headline = _headline(run)
    models = {name: _of(name, subjects, headline) for name in candidates}
    best = min(candidates, key=lambda name: models[name].get(LATENCY, float("inf")))
    named = {name: values for name, values in subjects.items() if _is_baseline(name)} | (models if len(models) > 1 else {})
    prefixed = {f"{name.replace('@', '/')}/{metric}": value for name, own in named.items() for metric, value in own.items()}
    return Summary(best, headline.name if headline else None, {**models[best], **prefixed, **_run_metrics(run)}, models)


def _merged(run: RunRecord) -> dict[str, dict[str, float]]:
    """What every measuring node says about each subject, and the size of a candidate from its files where nobody measured it."""
    merged: dict[str, dict[str, float]] = {}
    for node in run.nodes:
        for name, values in node.subjects.items():
            merged.setdefault(name, {}).update(values)
    for node in run.nodes:
        if node.id in merged and node.artifact is not None:
            merged[node.id].setdefault("size_bytes", node.artifact.size_bytes)
    return merged


def _of(candidate: str, subjects: Mapping[str, Mapping[str, float]], headline: Metric | None) -> dict[str, float]:
    """A candidate's numbers, what they say against its baselines first: pages show them in this order."""
    own = subjects[candidate]
    source, fp32 = _baseline(SOURCE, candidate, subjects), _baseline("runtime-fp32", candidate, subjects)
    derived: dict[str, float] = {}
    if headline is not None and headline.name in own:
        derived["quality"] = own[headline.name]
        if headline.name in source:
            sign = 1 if headline.higher_is_better else -1
            derived["quality_drop"] = sign * (source[headline.name] - own[headline.name])
    for baseline, name in ((source, "speedup"), (fp32, "speedup_over_runtime_fp32")):
        if own.get(LATENCY) and LATENCY in baseline:
            derived[name] = baseline[LATENCY] / own[LATENCY]
    if "size_bytes" in own and source.get("size_bytes"):
        derived["size_ratio"] = own["size_bytes"] / source["size_bytes"]
    return {**derived, **own}


def _baseline(name: str, candidate: str, subjects: Mapping[str, Mapping[str, float]]) -> Mapping[str, float]:
    """The baseline on the candidate's own target where there are several."""
    target = candidate.partition("@")[2]
    return subjects.get(f"{name}@{target}", subjects.get(name, {}))


def _is_baseline(subject: str) -> bool:
    return subject.partition("@")[0] in BASELINES


def _run_metrics(run: RunRecord) -> dict[str, float]:
    return {
        "run_seconds": run.seconds,
        "steps_seconds": sum(node.seconds for node in run.nodes),
        "steps_cached": sum(node.cached for node in run.nodes),
        "gates": len(run.gates),
        "gates_blocking": sum(gate.blocks for gate in run.gates),
    }


def _headline(run: RunRecord) -> Metric | None:
    """The first metric that was kept row by row: the headline of the task."""
    for node in run.nodes:
        if (metric := _first_paired(node)) is not None:
            return metric
    return None


def _first_paired(node: NodeRecord) -> Metric | None:
    if node.files is None:
        return None
    return next((samples.metric for samples in read_samples(Path(node.files)) if samples.kind is Kind.PAIRED_ROWS), None)
