"""Verdicts from raw samples: what a gate asks, what the samples say at its confidence, and the sentence that tells it. No I/O.

Every interval is two-sided at `gate.confidence`, so a pass at 0.95 leaves a one-sided risk of 2.5 %:

    pass        the interval's bad end meets the bound (a bound met exactly passes)
    fail        the whole interval misses it
    undecided   the interval holds the bound; the reason says how many rows or blocks would decide at the observed rate

Rows of 0 and 1 use score intervals (Tango for a drop, Wilson for a value), other per-row scores the BCa bootstrap, timing blocks
the exact interval of the median (for a ratio: of the block-by-block ratios), exact values none.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median

from ioptim import intervals
from ioptim.core.gate import Gate, GateResult, Verdict
from ioptim.core.metrics import Kind, Metric, Samples
from ioptim.errors import PlanError
from ioptim.intervals import Interval

FEWEST_ROWS = 10
"""Below this many rows there is no verdict: ten equal outcomes still leave room for a true difference of 0.28."""
MOST_ROWS = 10_000_000
"""Above this many rows the reason says "more than", for nobody has them."""

_NOUN = {Kind.PAIRED_ROWS: "rows", Kind.BLOCKS: "blocks", Kind.EXACT: "value"}
_FITS = {
    Kind.PAIRED_ROWS: ("max_drop", "max_ratio", "min_ratio", "min_value", "max_value"),
    Kind.BLOCKS: ("max_ratio", "min_ratio", "min_speedup", "min_value", "max_value"),
    Kind.EXACT: ("max_ratio", "min_ratio", "min_value", "max_value"),
}


@dataclass(frozen=True)
class _Case:
    """One candidate before one gate, with complete numbers."""

    gate: Gate
    metric: Metric
    kind: Kind
    names: tuple[str, str | None]
    candidate: list[float]
    baseline: list[float]
    """Empty for a bound on the candidate alone."""

    @property
    def binary(self) -> bool:
        return self.kind is Kind.PAIRED_ROWS and set(self.candidate) | set(self.baseline) <= {0.0, 1.0}


@dataclass(frozen=True)
class _Evidence:
    """What the samples say about the judged quantity; `at` is the interval that so many rows would give at the observed rate."""

    estimate: float
    interval: Interval | None
    at: Callable[[float], Interval] | None = None
    same: bool = False


def judge(gate: Gate, samples: Sequence[Samples], candidates: Sequence[str]) -> tuple[GateResult, ...]:
    """One verdict for each candidate that the gate names (for all when it names none), never for a model against itself.

    Raises:
        PlanError: the metric, candidate or baseline was not measured (lists those that were), or the bound does not fit it.
    """
    sample = _sample_of(gate, samples)
    kind, _ = gate.bound
    if kind not in _FITS[sample.kind]:
        raise _refused(gate, f"{kind} does not fit this metric; use one of {', '.join(_FITS[sample.kind])}")
    baseline = _baseline_of(gate, sample)
    judged = [_judge_one(gate, sample, name, baseline) for name in _candidates_of(gate, sample, candidates) if name != baseline]
    if not judged:
        raise _refused(gate, f"the only candidate is its own baseline, {gate.baseline!r}; name another baseline")
    return tuple(judged)


def _judge_one(gate: Gate, sample: Samples, candidate: str, baseline: str | None) -> GateResult:
    """The verdict on one candidate; every way to have none is told apart."""
    measured, compared = sample.values[candidate], sample.values[baseline] if baseline is not None else ()
    case = _Case(gate, sample.metric, sample.kind, (candidate, baseline), _numbers(measured), _numbers(compared))
    evidence = None
    if reason := _hole(case, measured, compared):
        verdict = Verdict.FAIL
    elif reason := _too_few(case) or _no_ratio(case):
        verdict = Verdict.UNDECIDED
    else:
        evidence = _evidence(case)
        verdict = Verdict.PASS if evidence.same else _decide(gate, evidence.estimate, evidence.interval)
        reason = _finding(case, evidence) + ": " + _conclusion(case, evidence, verdict)
    return GateResult(
        gate=gate,
        metric=gate.metric,
        candidate=candidate,
        baseline=baseline,
        candidate_value=_centre(case, case.candidate),
        baseline_value=_centre(case, case.baseline),
        estimate=evidence.estimate if evidence else None,
        interval=evidence.interval if evidence else None,
        verdict=verdict,
        reason=reason,
        n=len(measured),
    )


# --- who is judged against whom


def _sample_of(gate: Gate, samples: Sequence[Samples]) -> Samples:
    names = [sample.metric.name for sample in samples]
    if gate.metric not in names:
        raise PlanError(f"gate: no metric {gate.metric!r} was measured{_instead(gate.metric, names)}")
    return samples[names.index(gate.metric)]


def _candidates_of(gate: Gate, sample: Samples, candidates: Sequence[str]) -> list[str]:
    chosen = [name for name in candidates if gate.candidate in (None, name)]
    if not chosen:
        raise _refused(gate, f"no candidate {gate.candidate!r} was measured{_instead(gate.candidate or '', candidates)}")
    if missing := [name for name in chosen if name not in sample.values]:
        raise _refused(gate, f"it was not measured for {', '.join(missing)}, only for {', '.join(sample.values)}")
    return chosen


def _baseline_of(gate: Gate, sample: Samples) -> str | None:
    if not gate.needs_baseline:
        return None
    if gate.baseline not in sample.values:
        raise _refused(gate, f"no baseline {gate.baseline!r} was measured{_instead(gate.baseline, list(sample.values))}")
    return gate.baseline


def _refused(gate: Gate, why: str) -> PlanError:
    return PlanError(f"gate on {gate.metric}: {why}")


def _instead(wanted: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(wanted, names, n=1)
    return f"; there are {', '.join(names) or 'none'}" + (f" (did you mean {close[0]!r}?)" if close else "")


# --- when there is nothing to judge


def _hole(case: _Case, *columns: Sequence[float | None]) -> str:
    """Why the samples are not complete, or nothing. A gap fails: a model without an answer is not as good as one with."""
    for name, column in zip(case.names, columns, strict=True):
        holes = len(column) - len(_numbers(column))
        if holes:
            where = "" if case.kind is Kind.EXACT else f" in {holes} of {_count(len(column), case.kind)}"
            return f"{case.metric.name} of {name} is not a number{where}"
    return ""


def _too_few(case: _Case) -> str:
    n, confidence = len(case.candidate), case.gate.confidence
    if case.names[1] is not None and len(case.baseline) != n:
        there = f"{case.names[1]} has {_count(len(case.baseline), case.kind)}"
        return f"{case.metric.name} is not paired: {case.names[0]} has {_count(n, case.kind)}, {there}"
    fewest = {Kind.PAIRED_ROWS: FEWEST_ROWS, Kind.BLOCKS: intervals.fewest_for_median(confidence), Kind.EXACT: 1}[case.kind]
    if n >= fewest:
        return ""
    return f"{_count(n, case.kind)} of {case.metric.name} cannot decide at {_percent(confidence)} confidence: at least {fewest} can"


def _no_ratio(case: _Case) -> str:
    if case.gate.bound[0] not in ("max_ratio", "min_ratio", "min_speedup"):
        return ""
    for name, column in zip(case.names, (case.candidate, case.baseline), strict=True):
        if min(column) < 0 or fmean(column) == 0 or (case.kind is Kind.BLOCKS and min(column) == 0):
            return f"{case.metric.name} of {name} is zero or negative: it has no ratio"
    return ""


# --- what the samples say


def _evidence(case: _Case) -> _Evidence:
    confidence = case.gate.confidence
    if case.gate.bound[0] == "max_drop":
        return _drop(case, confidence)
    return _ratio(case, confidence) if case.baseline else _value(case, confidence)


def _drop(case: _Case, confidence: float) -> _Evidence:
    """How much worse the candidate is, row by row, in the metric's unit; positive is worse."""
    worse = 1 if case.metric.higher_is_better else -1
    drops = [worse * (b - c) for c, b in zip(case.candidate, case.baseline, strict=True)]
    n, estimate, same = len(drops), fmean(drops), not any(drops)
    if case.binary:
        lost, won = drops.count(1.0), drops.count(-1.0)

        def at(rows: float) -> Interval:
            return intervals.tango(lost * rows / n, won * rows / n, rows, confidence)

        return _Evidence(estimate, at(n), at, same)
    interval = intervals.bca([drops], lambda means: means[0], confidence)
    return replace(_narrowing(estimate, interval, n), same=same)


def _ratio(case: _Case, confidence: float) -> _Evidence:
    """Candidate ÷ baseline; for a speedup whichever way round makes faster the larger."""
    over, under = case.candidate, case.baseline
    if case.gate.bound[0] == "min_speedup" and not case.metric.higher_is_better:
        over, under = under, over
    if case.kind is Kind.PAIRED_ROWS:
        interval = intervals.bca([over, under], lambda means: means[0] / means[1], confidence)
        return _narrowing(fmean(over) / fmean(under), interval, len(over))
    ratios = [a / b for a, b in zip(over, under, strict=True)]
    return _middle(ratios, confidence) if case.kind is Kind.BLOCKS else _Evidence(ratios[0], None)


def _value(case: _Case, confidence: float) -> _Evidence:
    column = case.candidate
    if case.kind is Kind.EXACT:
        return _Evidence(column[0], None)
    if case.kind is Kind.BLOCKS:
        return _middle(column, confidence)
    if case.binary:
        interval = intervals.wilson(sum(column), len(column), confidence)
    else:
        interval = intervals.bca([column], lambda means: means[0], confidence)
    return _narrowing(fmean(column), interval, len(column))


def _middle(column: Sequence[float], confidence: float) -> _Evidence:
    """The median of blocks, of which `_too_few` has made sure that there are enough."""

    def at(blocks: float) -> Interval:
        found = intervals.median_interval(column, confidence, int(blocks))
        assert found is not None
        return found

    return _Evidence(median(column), at(len(column)), at)


def _narrowing(estimate: float, interval: Interval, n: int) -> _Evidence:
    """An interval that narrows with the square root of the rows."""
    low, high = interval

    def at(rows: float) -> Interval:
        return tuple(estimate + (end - estimate) * math.sqrt(n / rows) for end in (low, high))  # type: ignore[return-value]

    return _Evidence(estimate, interval, at)


# --- what follows


def _decide(gate: Gate, estimate: float, interval: Interval | None) -> Verdict:
    low, high = interval or (estimate, estimate)
    worst, best = (high, low) if gate.bound[0].startswith("max") else (low, high)
    if _meets(gate, worst):
        return Verdict.PASS
    return Verdict.UNDECIDED if _meets(gate, best) else Verdict.FAIL


def _meets(gate: Gate, value: float) -> bool:
    kind, bound = gate.bound
    if math.isclose(value, bound, rel_tol=1e-9, abs_tol=1e-12):
        return True
    return value < bound if kind.startswith("max") else value > bound


def _deciding(case: _Case, evidence: _Evidence) -> str:
    """The sample size that would decide at the observed rate, in words."""
    at, bound = evidence.at, case.gate.bound[1]
    if at is None or math.isclose(evidence.estimate, bound, rel_tol=1e-9, abs_tol=1e-12):
        return f"no number of {_NOUN[case.kind]} would decide, for the estimate sits on the bound"
    low = high = len(case.candidate)
    while _decide(case.gate, evidence.estimate, at(high)) is Verdict.UNDECIDED:
        low, high = high, high * 2
        if high > MOST_ROWS:
            return f"more than {_count(MOST_ROWS, case.kind)} would be needed at this rate"
    while high - low > 1:
        middle = (low + high) // 2
        if _decide(case.gate, evidence.estimate, at(middle)) is Verdict.UNDECIDED:
            low = middle
        else:
            high = middle
    coarse = 10 ** max(0, len(str(high)) - 2)
    return f"about {_count(-(-high // coarse) * coarse, case.kind)} would decide at this rate"


# --- in words


def _finding(case: _Case, evidence: _Evidence) -> str:
    """What was seen: metric, direction, both values, interval and sample size."""
    kind, _ = case.gate.bound
    metric, (name, baseline) = case.metric, case.names
    here, there = (_shown(_centre(case, column), metric) for column in (case.candidate, case.baseline))
    n = "" if case.kind is Kind.EXACT else f", {_count(len(case.candidate), case.kind)}"
    spread = "" if evidence.interval is None else f"{_percent(case.gate.confidence)} interval {_interval(evidence.interval)}{n}"
    if evidence.same:
        return f"{metric.name} of {name} is {baseline}'s on every row ({here}; {spread})"
    if kind == "max_drop":
        moved = evidence.estimate if metric.higher_is_better else -evidence.estimate
        way = "fell" if moved > 0 else "rose"
        change = f"{way} by {_number(abs(moved))}" if moved else "did not change"
        spread = spread.replace("interval", "interval of the drop")
        return f"{metric.name} of {name} {change} against {baseline} ({there} to {here}; {spread})"
    if not case.baseline:
        return f"{metric.name} of {name} is {here}" + (f" ({spread})" if spread else "")
    both = f"({here} against {there}" + (f"; {spread})" if spread else ")")
    if kind == "min_speedup":
        return f"{name} is {_number(evidence.estimate)} times as fast as {baseline} in {metric.name} {both}"
    return f"{metric.name} of {name} is {_number(evidence.estimate)} times {baseline}'s {both}"


def _conclusion(case: _Case, evidence: _Evidence, verdict: Verdict) -> str:
    kind, bound = case.gate.bound
    limit = f"{kind} {_shown(bound, case.metric) if kind.endswith('value') else _number(bound)}"
    if verdict is Verdict.UNDECIDED:
        return f"undecided against {limit}; {_deciding(case, evidence)}"
    if verdict is Verdict.FAIL:
        return f"{'outside' if kind.startswith('max') else 'misses'} {limit}"
    hidden = evidence.same and evidence.interval is not None and not _meets(case.gate, evidence.interval[1])
    caveat = f", though {_count(len(case.candidate), case.kind)} are too few to rule out more" if hidden else ""
    return f"{'inside' if kind.startswith('max') else 'meets'} {limit}{caveat}"


def _centre(case: _Case, column: Sequence[float]) -> float | None:
    """What the reader knows as the metric's value: the mean of rows, the median of blocks."""
    if not column:
        return None
    return median(column) if case.kind is Kind.BLOCKS else fmean(column)


def _numbers(column: Iterable[float | None]) -> list[float]:
    return [float(value) for value in column if value is not None and not math.isnan(value)]


def _shown(value: float | None, metric: Metric) -> str:
    if value is None:
        return "nothing"
    if metric.unit == "bytes":
        return f"{value / 1e6:.4g} MB"
    return f"{_number(value)} {metric.unit}".rstrip()


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}".replace(",", " ")


def _interval(interval: Interval) -> str:
    """Both ends with as many decimals as its width has meaning in."""
    low, high = interval
    if high == low or high - low >= 100:
        return f"{_number(low)} to {_number(high)}"
    decimals = max(0, 2 - math.floor(math.log10(high - low)))
    return f"{low:.{decimals}f} to {high:.{decimals}f}"


def _count(n: int, kind: Kind) -> str:
    noun = _NOUN[kind]
    return f"{n:,} {noun[:-1] if n == 1 and kind is not Kind.EXACT else noun}".replace(",", " ")


def _percent(confidence: float) -> str:
    return f"{confidence * 100:g} %"
