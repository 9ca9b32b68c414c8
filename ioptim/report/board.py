"""Candidates beside their baselines: the metrics of every measuring step of one target, put together."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ioptim.core.gate import Verdict
from ioptim.core.metrics import Samples, read_samples
from ioptim.core.record import NodeRecord, RunRecord

_BASELINE = re.compile(r"^(source|runtime-fp32|champion)(@.*)?$")
_HEADLINE = re.compile(r"latency_p50|latency_p99|throughput_per_s|size_bytes|peak.*bytes|memory.*bytes")
_MOST = 12


@dataclass(frozen=True)
class Board:
    """`values[subject][metric]`; candidates and baselines are the subjects, in the order to show them."""

    target: str | None
    candidates: tuple[str, ...]
    baselines: tuple[str, ...]
    values: Mapping[str, Mapping[str, float]]
    quality: tuple[str, ...]
    """Metrics of quality, the task's headline first."""
    higher: Mapping[str, bool]
    """Whether higher is better, where the samples say so."""
    order: tuple[str, ...]
    """Every metric, in the order of those of equal weight."""
    judged: tuple[str, ...]
    """Metrics that a gate is on."""
    passed: frozenset[tuple[str, str]]
    """(candidate, metric) whose every gate passed: what was lost there was allowed."""

    @property
    def subjects(self) -> tuple[str, ...]:
        return (*self.candidates, *self.baselines)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Every metric, those that matter most first: judged ones, quality, then latency, throughput and size."""
        every = {metric for subject in self.subjects for metric in self.values[subject]}
        return tuple(sorted(every, key=lambda metric: (self._rank(metric), self.order.index(metric))))

    @property
    def headline(self) -> tuple[str, ...]:
        """The metrics to show first."""
        return tuple(metric for metric in self.metrics if self._rank(metric) < 3)[:_MOST] or self.metrics[:_MOST]

    @property
    def glance(self) -> tuple[str, ...]:
        """The few that say what was won and what it cost: the headline of quality, latency, throughput and size, then what gates are on."""
        wanted = (*self.quality[:1], self.latency, self.throughput, "size_bytes", *self.judged)
        return tuple(dict.fromkeys(metric for metric in wanted if metric in self.metrics))

    def _rank(self, metric: str) -> int:
        if metric in self.quality:
            return 0
        if metric in self.judged:
            return 1
        return 2 if _HEADLINE.search(metric) else 3

    def tone(self, subject: str) -> str:
        """The colour class of a subject, the same in every table and chart: t0 to t7 of `style.py`."""
        return f"t{self.subjects.index(subject) % 8}"

    @property
    def latency(self) -> str | None:
        """The metric that a chart of quality against speed has on its axis."""
        return next((metric for metric in self.metrics if "latency_p50" in metric), None)

    @property
    def throughput(self) -> str | None:
        return next((metric for metric in self.metrics if metric.startswith("throughput_per_s")), None)


def boards(run: RunRecord) -> tuple[Board, ...]:
    """One for each target that something was measured on, in the order of the run."""
    measured = [node for node in run.nodes if node.subjects]
    targets = dict.fromkeys(node.target for node in measured)
    place = {node.id: i for i, node in enumerate(run.nodes)}
    return tuple(_board(target, [node for node in measured if node.target == target], place) for target in targets)


def _board(target: str | None, nodes: Sequence[NodeRecord], place: Mapping[str, int]) -> Board:
    """`place` is that of each node in the run, which models are shown by: a record read from its file has its keys sorted."""
    values: dict[str, dict[str, float]] = {}
    for node in nodes:
        for subject, metrics in node.subjects.items():
            values.setdefault(subject, {}).update(metrics)
    values = {name: values[name] for name in sorted(values, key=lambda name: place.get(name, len(place)))}
    gates = [gate for node in nodes for gate in node.gates]
    judged = {gate.candidate for gate in gates}
    baselines = {gate.baseline for gate in gates} - judged
    candidates = [name for name in values if name in judged or not (_BASELINE.match(name) or name in baselines)]
    samples = {node.id: [sample.metric for sample in samples_of(node)] for node in nodes}
    higher = {metric.name: metric.higher_is_better for metrics in samples.values() for metric in metrics}
    # Metrics come in the order that the task and the step gave, which the samples keep.
    scoring = [node for node in nodes if node.step == "validate"]
    quality = [metric.name for node in scoring for metric in samples[node.id]]
    quality += [metric for node in scoring for metrics in node.subjects.values() for metric in metrics]
    every = dict.fromkeys([*higher, *(metric for metrics in values.values() for metric in metrics)])
    return Board(
        target=target,
        candidates=tuple(candidates),
        baselines=tuple(sorted((name for name in values if name not in candidates), key=lambda name: name != "source")),
        values=values,
        quality=tuple(dict.fromkeys(quality)),
        higher=higher,
        order=tuple(every),
        judged=tuple(dict.fromkeys(gate.metric for gate in gates)),
        passed=frozenset(
            {(gate.candidate, gate.metric) for gate in gates}
            - {(gate.candidate, gate.metric) for gate in gates if gate.verdict is not Verdict.PASS}
        ),
    )


def samples_of(node: NodeRecord) -> tuple[Samples, ...]:
    """The node's raw samples; empty when it kept none or they were pruned from the store."""
    return read_samples(Path(node.files)) if node.files else ()
