"""Who is judged against whom, and what follows for all rows or for the worst slice of them."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Sequence
from statistics import fmean

from ioptim.core.gate import Gate, GateResult, SliceResult, Verdict, fitting_bounds
from ioptim.core.metrics import Kind, Samples
from ioptim.core.slices import rows_of
from ioptim.gates import words
from ioptim.gates.evidence import Case, Evidence, decide, ends, evidence, fewest, numbers
from ioptim.gates.words import Finding

_WORST_FIRST = (Verdict.FAIL, Verdict.UNDECIDED, Verdict.PASS)


def judge(gate: Gate, samples: Sequence[Samples], candidates: Sequence[str]) -> tuple[GateResult, ...]:
    """One verdict for each candidate that the gate names (for all when it names none), never for a model against itself.

    What cannot be judged fails, and the reason says why: the metric, candidate, baseline or slicing was not measured (lists those that
    were), the bound does not fit the metric, the only candidate is its own baseline, or times of different hardware would be compared.
    """
    baseline = gate.baseline if gate.needs_baseline else None
    named = [name for name in candidates if gate.candidate in (None, name)] or [str(gate.candidate)]
    others = [name for name in named if name != baseline]
    return tuple(_judge_one(gate, samples, name, baseline) for name in others or named)


class _NotComparable(Exception):
    """Nothing that was measured answers the gate."""


def _judge_one(gate: Gate, samples: Sequence[Samples], candidate: str, baseline: str | None) -> GateResult:
    try:
        findings = sorted(_findings(_cases(gate, samples, candidate, baseline)), key=_worst_first)
    except _NotComparable as why:
        return GateResult(
            gate=gate,
            metric=gate.metric,
            candidate=candidate,
            baseline=baseline,
            candidate_value=None,
            baseline_value=None,
            estimate=None,
            interval=None,
            verdict=Verdict.FAIL,
            reason=f"{gate.metric} of {candidate} cannot be judged: {why}",
            n=0,
        )
    worst = findings[0]
    return GateResult(
        gate=gate,
        metric=gate.metric,
        candidate=candidate,
        baseline=baseline,
        candidate_value=worst.values[0],
        baseline_value=worst.values[1],
        estimate=worst.evidence.estimate if worst.evidence else None,
        interval=worst.interval,
        verdict=worst.verdict,
        reason=words.reason(findings),
        n=worst.case.n,
        slice=worst.case.slice,
        slices=tuple(_slice_result(finding) for finding in findings if finding.case.slice is not None),
    )


# --- what follows from the samples


def _findings(cases: Sequence[Case]) -> Iterator[Finding]:
    """A verdict on every case: all rows alone, or every slice of them. Nothing is merged and nothing left out.

    "No slice is worse than the bound" is true only when all its parts are, so a pass needs every slice to pass, each at the gate's
    confidence: more slices make that harder by themselves, and no correction is due (an intersection-union test; Berger,
    Multiparameter Hypothesis Testing and Acceptance Sampling, Technometrics 24 (1982) 295-300).

    "Some slice is worse" could come true by chance in any of m slices, so a fail is corrected: by Holm's step-down, with which a model
    that is good enough in every slice is failed in no more than (1 - confidence) / 2 of all measurements, however many slices there are
    (Holm, A Simple Sequentially Rejective Multiple Test Procedure, Scandinavian Journal of Statistics 6 (1979) 65-70).

    A slice with too few rows at the gate's confidence is undecided, which keeps the gate from passing. It does not count among the m:
    it could not fail, and its size says nothing about its outcome.
    """
    stopped = {i: obstacle for i, case in enumerate(cases) if (obstacle := _obstacle(case)) is not None}
    found = {i: evidence(case) for i, case in enumerate(cases) if i not in stopped}
    for i in [i for i, each in found.items() if not _has_interval(cases[i], each)]:
        stopped[i] = Verdict.UNDECIDED, _too_near_zero(cases[i])
        del found[i]
    asked_at = _step_down(cases, found)
    for i, case in enumerate(cases):
        if i in stopped:
            yield Finding(case, *stopped[i])
        else:
            verdict = decide(case.gate, found[i], case.n, asked_at[i])
            yield Finding(case, verdict, "", found[i], case.gate.confidence if verdict is Verdict.PASS else asked_at[i])


def _step_down(cases: Sequence[Case], found: dict[int, Evidence]) -> dict[int, float]:
    """The confidence at which each case was asked whether it fails: the first at which it did, else the last of the steps.

    Each step asks those still standing at 1 - (1 - confidence) / how many they are, and goes on while one more falls.
    """
    standing, asked_at = set(found), dict[int, float]()
    while standing:
        level = _corrected(cases[0].gate, len(standing))
        asked_at |= dict.fromkeys(standing, level)
        fallen = {i for i in standing if decide(cases[i].gate, found[i], cases[i].n, level) is Verdict.FAIL}
        if not fallen:
            break
        standing -= fallen
    return asked_at


def _corrected(gate: Gate, m: int) -> float:
    return gate.confidence if m == 1 else 1 - (1 - gate.confidence) / m


def _obstacle(case: Case) -> tuple[Verdict, str] | None:
    """Why there is nothing to estimate, with the verdict that follows; every way to have none is told apart.

    A gap fails: a model without an answer is not as good as one with.
    """
    for name, column in zip(case.names, case.columns, strict=True):
        if holes := len(column) - len(numbers(column)):
            where = "" if case.kind is Kind.EXACT else f" in {holes} of {words.count(len(column), case.kind)}"
            return Verdict.FAIL, f"{case.metric.name} of {name} is not a number{where}"
    if (baseline := case.names[1]) is not None and len(case.baseline) != case.n:
        here, there = (words.count(n, case.kind) for n in (case.n, len(case.baseline)))
        return Verdict.UNDECIDED, f"{case.metric.name} is not paired: {case.names[0]} has {here}, {baseline} has {there}"
    if case.n < (least := fewest(case)):
        at = words.percent(case.gate.confidence)
        return Verdict.UNDECIDED, (
            f"{words.count(case.n, case.kind)} of {case.metric.name} cannot decide at {at} confidence: at least {least} can"
        )
    no_ratio = _no_ratio(case)
    return (Verdict.UNDECIDED, no_ratio) if no_ratio else None


def _no_ratio(case: Case) -> str:
    if case.gate.bound[0] not in ("max_ratio", "min_ratio", "min_speedup"):
        return ""
    faster = case.gate.bound[0] == "min_speedup" and not case.metric.higher_is_better  # then it is the candidate that divides
    for name, column in zip(case.names, (case.candidate, case.baseline), strict=True):
        divides = name == case.names[0 if faster else 1]
        if min(column) < 0 or (divides and (fmean(column) == 0 or (case.kind is Kind.BLOCKS and min(column) == 0))):
            return f"{case.metric.name} of {name} is zero or negative: it has no ratio"
    return ""


def _has_interval(case: Case, found: Evidence) -> bool:
    return all(math.isfinite(end) for end in ends(case.gate, found, case.n, case.gate.confidence))


def _too_near_zero(case: Case) -> str:
    """Of a ratio of scores, the one estimate that may have no interval: the baseline's mean is next to 0 without a few of its rows."""
    return (
        f"{case.metric.name} of {case.names[1]} is zero or next to it in too many of {words.count(case.n, case.kind)} for a ratio;"
        " use max_drop, or more rows"
    )


def _worst_first(finding: Finding) -> tuple[int, bool, float]:
    """By verdict; then what has no estimate; then by the estimate."""
    if finding.evidence is None:
        return _WORST_FIRST.index(finding.verdict), finding.verdict is not Verdict.FAIL, 0.0
    sign = -1 if finding.case.gate.bound[0].startswith("max") else 1
    return _WORST_FIRST.index(finding.verdict), finding.verdict is Verdict.FAIL, sign * finding.evidence.estimate


def _slice_result(finding: Finding) -> SliceResult:
    assert finding.case.slice is not None
    return SliceResult(
        name=finding.case.slice,
        n=finding.case.n,
        candidate_value=finding.values[0],
        baseline_value=finding.values[1],
        estimate=finding.evidence.estimate if finding.evidence else None,
        interval=finding.interval,
        confidence=finding.shown_at if finding.interval else None,
        verdict=finding.verdict,
    )


# --- who is judged against whom


def _cases(gate: Gate, samples: Sequence[Samples], candidate: str, baseline: str | None) -> list[Case]:
    """All rows or blocks of the two, or every slice of them.

    Raises:
        _NotComparable: there is nothing to compare, or nothing that may be.
    """
    sample = _sample_of(gate, samples)
    kind, _ = gate.bound
    fitting = fitting_bounds(sample.kind, sample.metric)
    if kind not in fitting:
        raise _NotComparable(f"{kind} does not fit this metric; use one of {', '.join(fitting)}")
    for name in (candidate, baseline):
        if name is not None and name not in sample.values:
            raise _NotComparable(f"it was not measured for {name}{_instead(name, list(sample.values))}")
    if candidate == baseline:
        raise _NotComparable("the only candidate is its own baseline; name another baseline")
    _same_hardware(sample, candidate, baseline)
    columns = sample.values[candidate], sample.values[baseline] if baseline is not None else ()
    whole = Case(gate, sample, (candidate, baseline), columns)
    return list(_sliced(whole)) if gate.slices else [whole]


def _sample_of(gate: Gate, samples: Sequence[Samples]) -> Samples:
    names = [sample.metric.name for sample in samples]
    if gate.metric not in names:
        raise _NotComparable(f"no metric {gate.metric!r} was measured{_instead(gate.metric, names)}")
    return samples[names.index(gate.metric)]


def _same_hardware(sample: Samples, candidate: str, baseline: str | None) -> None:
    """Times of two machines have no ratio; scores of rows and sizes do."""
    if sample.kind is not Kind.BLOCKS or baseline is None:
        return
    here, there = (sample.hardware.get(name) for name in (candidate, baseline))
    if here != there:
        raise _NotComparable(
            f"{baseline} was measured on other hardware ({there or 'unknown'}) than {candidate} ({here or 'unknown'});"
            " times compare only on one machine, so measure both on it"
        )


def _sliced(whole: Case) -> Iterator[Case]:
    name, sample = whole.gate.slices, whole.sample
    assert name is not None
    if sample.kind is not Kind.PAIRED_ROWS:
        raise _NotComparable("slices are of rows, and this metric is not measured on rows; leave `slices` out")
    if name not in sample.slices:
        raise _NotComparable(f"no slices by {name!r} were kept{_instead(name, list(sample.slices))}")
    slices, columns = sample.slices[name], [column for column in whole.columns if column]
    if any(len(column) != len(slices) for column in columns):
        raise _NotComparable(f"the slices by {name!r} name {len(slices)} rows; there are {', '.join(str(len(c)) for c in columns)}")
    for part, rows in rows_of(slices).items():
        candidate, baseline = (tuple(column[i] for i in rows) if column else () for column in whole.columns)
        yield Case(whole.gate, sample, whole.names, (candidate, baseline), part)


def _instead(wanted: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(wanted, names, n=1)
    return f"; there are {', '.join(names) or 'none'}" + (f" (did you mean {close[0]!r}?)" if close else "")
