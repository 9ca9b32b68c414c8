"""How far a shown figure can be trusted: intervals of the models' own values, from the kept samples."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from ioptim.core.metrics import Kind, Metric
from ioptim.core.record import RunRecord
from ioptim.intervals import Interval, quantile_interval, widened_z, wilson
from ioptim.report.board import samples_of

CONFIDENCE = 0.95

Estimates = Mapping[tuple[str | None, str, str], Interval]
"""By target, subject and metric."""


def estimates(run: RunRecord) -> Estimates:
    """Intervals of every sampled metric of every subject at 0.95; none where the samples are too few or were pruned.

    Of rows: of their mean (Wilson where each is 0 or 1, else Student's t) or quantile. Of blocks: of their median, exact. An
    interval that does not hold the figure shown beside it is of something else and is left out.
    """
    found = {}
    for node in run.nodes:
        for samples in samples_of(node):
            for subject, values in samples.values.items():
                interval = of_values(samples.metric, samples.kind, values)
                shown = node.subjects.get(subject, {}).get(samples.metric.name)
                if interval and shown is not None and interval[0] <= shown <= interval[1]:
                    found[node.target, subject, samples.metric.name] = interval
    return found


def of_values(metric: Metric, kind: Kind, values: Sequence[float | None]) -> Interval | None:
    """None for an exact value, too few values, or where one is missing."""
    numbers = [value for value in values if value is not None and math.isfinite(value)]
    if kind is Kind.EXACT or len(numbers) < max(len(values), 2):
        return None
    if kind is Kind.BLOCKS:
        return quantile_interval(numbers, 0.5, CONFIDENCE)
    if metric.quantile is not None:
        return quantile_interval(numbers, metric.quantile, CONFIDENCE)
    if set(numbers) <= {0.0, 1.0}:
        return wilson(sum(numbers), len(numbers), CONFIDENCE)
    half = widened_z(CONFIDENCE, len(numbers)) * statistics.pstdev(numbers) / math.sqrt(len(numbers))
    middle = statistics.fmean(numbers)
    return middle - half, middle + half
