"""What raw samples say about one candidate before one gate.

Rows of 0 and 1 use score intervals (Tango for a drop, Nam and Blackwelder for a ratio, Wilson for a value), other per-row scores the
BCa bootstrap, quantiles of rows and timing blocks exact order statistics (for a ratio: of the block-by-block ratios), exact values none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from statistics import fmean, median

from ioptim import intervals
from ioptim.core.gate import Gate, Verdict
from ioptim.core.metrics import Kind, Metric, Samples
from ioptim.intervals import Interval

Column = Sequence[float | None]


@dataclass(frozen=True)
class Case:
    """One candidate before one gate: all rows or blocks, or those of one slice."""

    gate: Gate
    sample: Samples
    names: tuple[str, str | None]
    """Candidate, and baseline unless the bound is on the candidate alone."""
    columns: tuple[Column, Column]
    """Their values; None where there is no number. The baseline's are empty for a bound on the candidate alone."""
    slice: str | None = None

    @property
    def metric(self) -> Metric:
        return self.sample.metric

    @property
    def kind(self) -> Kind:
        return self.sample.kind

    @property
    def n(self) -> int:
        return len(self.columns[0])

    @cached_property
    def candidate(self) -> list[float]:
        return numbers(self.columns[0])

    @cached_property
    def baseline(self) -> list[float]:
        return numbers(self.columns[1])

    @property
    def binary(self) -> bool:
        if self.kind is not Kind.PAIRED_ROWS or self.metric.continuous:
            return False
        return set(self.candidate) | set(self.baseline) <= {0.0, 1.0}

    @property
    def quantile(self) -> float | None:
        """The quantile that is judged; None for a mean and for an exact value."""
        return 0.5 if self.kind is Kind.BLOCKS else self.metric.quantile


@dataclass(frozen=True)
class Evidence:
    """The judged quantity, and the interval that so many rows or blocks would give at a confidence and the observed rate.

    `interval` is None for what is known without noise; `same` says that every row has the baseline's outcome.
    """

    estimate: float
    interval: Callable[[float, int], Interval] | None = None
    same: bool = False


def fewest(case: Case) -> int:
    """How many rows or blocks any verdict needs."""
    return 1 if case.kind is Kind.EXACT else intervals.fewest(case.gate.confidence, case.quantile, binary=case.binary)


def evidence(case: Case) -> Evidence:
    """Of a case whose columns are complete, paired and long enough."""
    if case.gate.bound[0] == "max_drop":
        return _drop(case)
    return _ratio(case) if case.baseline else _of_column(case, case.candidate)


def decide(gate: Gate, found: Evidence, n: int, confidence: float) -> Verdict:
    """Pass at the gate's confidence, fail at `confidence`, which is higher where several slices are asked at once.

    The same outcome on every row passes where its estimate meets the bound, whatever the interval leaves room for: `words` says so.
    """
    if (found.same and meets(gate, found.estimate)) or meets(gate, ends(gate, found, n, gate.confidence)[0]):
        return Verdict.PASS
    return Verdict.UNDECIDED if meets(gate, ends(gate, found, n, confidence)[1]) else Verdict.FAIL


def ends(gate: Gate, found: Evidence, n: int, confidence: float) -> tuple[float, float]:
    """The interval's bad end and its good one."""
    low, high = found.interval(confidence, n) if found.interval else (found.estimate, found.estimate)
    return (high, low) if gate.bound[0].startswith("max") else (low, high)


def meets(gate: Gate, value: float) -> bool:
    kind, bound = gate.bound
    return on_bound(gate, value) or (value < bound if kind.startswith("max") else value > bound)


def on_bound(gate: Gate, value: float) -> bool:
    return math.isclose(value, gate.bound[1], rel_tol=1e-9, abs_tol=1e-12)


def numbers(column: Iterable[float | None]) -> list[float]:
    return [float(value) for value in column if value is not None and not math.isnan(value)]


def _drop(case: Case) -> Evidence:
    """How much worse the candidate is, row by row, in the metric's unit; positive is worse."""
    worse = 1 if case.metric.higher_is_better else -1
    drops = [worse * (b - c) for c, b in zip(case.candidate, case.baseline, strict=True)]
    n, same = len(drops), not any(drops)
    if not case.binary:
        return _narrowing(fmean(drops), n, lambda confidence: intervals.bca([drops], lambda means: means[0], confidence), same)
    lost, won = drops.count(1.0), drops.count(-1.0)

    def interval(confidence: float, rows: int) -> Interval:
        return intervals.tango(lost * rows / n, won * rows / n, rows, confidence)

    return Evidence(fmean(drops), interval, same)


def _ratio(case: Case) -> Evidence:
    """Candidate ÷ baseline; for a speedup whichever way round makes faster the larger."""
    over, under = case.candidate, case.baseline
    if case.kind is Kind.PAIRED_ROWS:
        return _ratio_of_means(case)
    if case.gate.bound[0] == "min_speedup" and not case.metric.higher_is_better:
        over, under = under, over
    return _of_column(case, [a / b for a, b in zip(over, under, strict=True)])


def _ratio_of_means(case: Case) -> Evidence:
    """Of paired rows, whose own ratios have no mean where the baseline's value is 0."""
    over, under, n = case.candidate, case.baseline, case.n
    estimate, same = fmean(over) / fmean(under), over == under
    if not case.binary:
        return _narrowing(estimate, n, lambda confidence: intervals.bca([over, under], lambda m: m[0] / m[1], confidence), same)
    pairs = list(zip(over, under, strict=True))
    both, lost, won = (pairs.count(pair) for pair in ((1.0, 1.0), (0.0, 1.0), (1.0, 0.0)))

    def interval(confidence: float, rows: int) -> Interval:
        return intervals.nam_blackwelder(both * rows / n, lost * rows / n, won * rows / n, confidence)

    return Evidence(estimate, interval, same)


def _of_column(case: Case, column: Sequence[float]) -> Evidence:
    """Of one number per row or block, or of the only one."""
    if case.kind is Kind.EXACT:
        return Evidence(column[0])
    if case.quantile is not None:
        return _order_statistics(column, case.quantile, median(column) if case.kind is Kind.BLOCKS else case.metric.of_rows(column))
    if case.binary:
        return _narrowing(fmean(column), len(column), lambda confidence: intervals.wilson(sum(column), len(column), confidence))
    return _narrowing(fmean(column), len(column), lambda confidence: intervals.bca([column], lambda means: means[0], confidence))


def _order_statistics(column: Sequence[float], quantile: float, estimate: float) -> Evidence:
    """A quantile. `fewest` has made sure of an interval at the gate's confidence; at a corrected one the rows may leave everything open."""

    def interval(confidence: float, n: int) -> Interval:
        return intervals.quantile_interval(column, quantile, confidence, n) or (-math.inf, math.inf)

    return Evidence(estimate, interval)


def _narrowing(estimate: float, n: int, at: Callable[[float], Interval], same: bool = False) -> Evidence:
    """An interval that narrows with the square root of the rows."""
    known = cache(at)  # a bootstrap of ten thousand resamples, asked again for every number of rows

    def interval(confidence: float, rows: int) -> Interval:
        low, high = known(confidence)
        if rows == n:
            return low, high
        share = math.sqrt(n / rows)
        return estimate + (low - estimate) * share, estimate + (high - estimate) * share

    return Evidence(estimate, interval, same)
