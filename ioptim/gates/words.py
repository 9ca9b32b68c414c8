"""The sentence that tells a verdict: what was seen, what it means for the bound, and which sample size would decide."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ioptim.core.gate import Gate, Verdict
from ioptim.core.metrics import Kind, Metric
from ioptim.gates.evidence import Case, Evidence, decide, ends, meets, numbers, on_bound
from ioptim.intervals import Interval

MOST_ROWS = 10_000_000
"""Above this many rows the reason says "more than", for nobody has them."""
VISIBLE = 0.01
"""How far a ratio may be from that of the two values beside it before the reason says why."""
_NAMED = 5
"""Slices that a reason names one by one."""
_NOUN = {Kind.PAIRED_ROWS: "rows", Kind.BLOCKS: "blocks", Kind.EXACT: "value"}


@dataclass(frozen=True)
class Finding:
    """The verdict on one case: with its evidence and the confidence that decided, or with the obstacle to having any."""

    case: Case
    verdict: Verdict
    obstacle: str
    evidence: Evidence | None = None
    confidence: float = 0.0

    @cached_property
    def interval(self) -> Interval | None:
        """What is shown; None where the value is exact or nothing was estimated."""
        if self.evidence is None or self.evidence.interval is None:
            return None
        return self.evidence.interval(self.shown_at, self.case.n)

    @cached_property
    def shown_at(self) -> float:
        """The confidence that decided, or the gate's own where the rows are too few for an interval at a corrected one."""
        gate, found = self.case.gate, self.evidence
        bounded = found is not None and all(map(math.isfinite, ends(gate, found, self.case.n, self.confidence)))
        return self.confidence if bounded else gate.confidence

    @property
    def values(self) -> tuple[float | None, float | None]:
        """What the reader knows as the metric's value, of candidate and baseline."""
        candidate, baseline = (self.case.sample.centre(numbers(column)) for column in self.case.columns)
        return candidate, baseline


def reason(findings: Sequence[Finding]) -> str:
    """One sentence about the worst finding, which stands first, and what a reader must know of the other slices."""
    worst = findings[0]
    said = worst.obstacle or f"{_seen(worst)}: {_conclusion(worst)}"
    if worst.case.slice is None:
        return said
    by = worst.case.gate.slices
    of = f"worst of {len(findings)} slices by {by}" if len(findings) > 1 else f"the only slice by {by}"
    return f"{of}, {worst.case.slice}: {said}{_corrected(worst, findings)}{_others(worst, findings)}"


def _corrected(worst: Finding, findings: Sequence[Finding]) -> str:
    m = sum(finding.evidence is not None for finding in findings)
    if worst.verdict is Verdict.PASS or worst.evidence is None or m < 2:
        return ""
    return f" ({percent(worst.case.gate.confidence)} corrected for {m} slices by Holm's method)"


def _others(worst: Finding, findings: Sequence[Finding]) -> str:
    """The other slices that fail, every one on which no verdict is possible, and the others that pass without proof."""
    fail = [f for f in findings[1:] if f.verdict is Verdict.FAIL]
    small = [f for f in findings if f.evidence is None and f.verdict is Verdict.UNDECIDED]
    unproved = [f for f in findings[1:] if _unproved(f)]
    parts = [f"; fails too: {_listed(fail)}"] if fail else []
    parts += [f"; no verdict is possible on {_listed(small)}"] if small else []
    parts += [f"; the same on every row, though {_too_few(worst.case.gate)}: {_listed(unproved)}"] if unproved else []
    return "".join(parts)


def _unproved(finding: Finding) -> bool:
    """Whether it passes only because every row seen has the baseline's outcome: the interval leaves room for a miss."""
    case, found = finding.case, finding.evidence
    if finding.verdict is not Verdict.PASS or found is None or not found.same:
        return False
    return not meets(case.gate, ends(case.gate, found, case.n, finding.confidence)[0])


def _too_few(gate: Gate) -> str:
    return f"too few to rule out {'more' if gate.bound[0].startswith('max') else 'less'}"


def _listed(findings: Sequence[Finding]) -> str:
    named = [f"{finding.case.slice} ({count(finding.case.n, finding.case.kind)})" for finding in findings[:_NAMED]]
    more = f" and {len(findings) - _NAMED} more" if len(findings) > _NAMED else ""
    return ", ".join(named) + more


def _seen(finding: Finding) -> str:
    """Metric, direction, both values, interval and sample size."""
    case, found = finding.case, finding.evidence
    assert found is not None
    kind, _ = case.gate.bound
    metric, (name, baseline) = case.metric, case.names
    here, there = (_shown(value, metric) for value in finding.values)
    n = "" if case.kind is Kind.EXACT else f", {count(case.n, case.kind)}"
    spread = "" if finding.interval is None else f"{percent(finding.shown_at)} interval {_interval(finding.interval)}{n}"
    if found.same:
        spread = spread.replace("interval", f"interval of the {'drop' if kind == 'max_drop' else 'ratio'}")
        return f"{metric.name} of {name} is {baseline}'s on every row ({here}; {spread})"
    if kind == "max_drop":
        moved = found.estimate if metric.higher_is_better else -found.estimate
        way = "fell" if moved > 0 else "rose"
        change = f"{way} by {_number(abs(moved))}" if moved else "did not change"
        spread = spread.replace("interval", "interval of the drop")
        return f"{metric.name} of {name} {change} against {baseline} ({there} to {here}; {spread})"
    if not case.baseline:
        return f"{metric.name} of {name} is {here}" + (f" ({spread})" if spread else "")
    both = f"{_by_blocks(finding)} ({here} against {there}" + (f"; {spread})" if spread else ")")
    if kind == "min_speedup":
        return f"{name} is {_number(found.estimate)} times as fast as {baseline} in {metric.name}{both}"
    return f"{metric.name} of {name} is {_number(found.estimate)} times {baseline}'s{both}"


def _by_blocks(finding: Finding) -> str:
    """Said where the median of the blocks' ratios is not the ratio of the two medians shown: the machine had good and bad moments."""
    case, found, (candidate, baseline) = finding.case, finding.evidence, finding.values
    if case.kind is not Kind.BLOCKS or found is None or not candidate or not baseline:
        return ""
    turned = case.gate.bound[0] == "min_speedup" and not case.metric.higher_is_better
    ratio = baseline / candidate if turned else candidate / baseline
    return "" if math.isclose(ratio, found.estimate, rel_tol=VISIBLE) else ", block by block"


def _conclusion(finding: Finding) -> str:
    case, found = finding.case, finding.evidence
    assert found is not None
    kind, bound = case.gate.bound
    limit = f"{kind} {_shown(bound, case.metric) if kind.endswith('value') else _number(bound)}"
    if finding.verdict is Verdict.UNDECIDED:
        return f"undecided against {limit}; {_deciding(finding)}"
    if finding.verdict is Verdict.FAIL:
        return f"{'outside' if kind.startswith('max') else 'misses'} {limit}"
    caveat = f", though {count(case.n, case.kind)} are {_too_few(case.gate)}" if _unproved(finding) else ""
    return f"{'inside' if kind.startswith('max') else 'meets'} {limit}{caveat}"


def _deciding(finding: Finding) -> str:
    """The sample size that would decide at the observed rate, in words."""
    case, found = finding.case, finding.evidence
    assert found is not None
    of_it = " of it" if case.slice is not None else ""
    if found.interval is None or on_bound(case.gate, found.estimate):
        return f"no number of {_NOUN[case.kind]} would decide, for the estimate sits on the bound"

    def undecided(n: int) -> bool:
        return decide(case.gate, found, n, finding.confidence) is Verdict.UNDECIDED

    low = high = case.n
    while undecided(high):
        low, high = high, high * 2
        if high > MOST_ROWS:
            return f"more than {count(MOST_ROWS, case.kind)}{of_it} would be needed at this rate"
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if undecided(middle) else (low, middle)
    coarse = 10 ** max(0, len(str(high)) - 2)
    return f"about {count(-(-high // coarse) * coarse, case.kind)}{of_it} would decide at this rate"


def count(n: int, kind: Kind) -> str:
    noun = _NOUN[kind]
    return f"{n:,} {noun[:-1] if n == 1 and kind is not Kind.EXACT else noun}".replace(",", " ")


def percent(confidence: float) -> str:
    return f"{confidence * 100:.4g} %"


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
