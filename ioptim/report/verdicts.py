"""The part of the page that answers: the gates, the worst first, each with its reason and its interval against the bound."""

from __future__ import annotations

from ioptim.core.gate import GateResult, SliceResult, Verdict
from ioptim.core.record import RunRecord
from ioptim.report import marks
from ioptim.report.figures import number, shown
from ioptim.report.html import Html, el, scroll
from ioptim.report.words import nothing_judged, tolerated

_ORDER = (Verdict.FAIL, Verdict.UNDECIDED, Verdict.PASS)


def verdicts(run: RunRecord) -> Html:
    """One entry for each gate and candidate."""
    if not run.gates:
        return el("p", nothing_judged(run))
    return el("ul", [_verdict(result) for result in sorted(run.gates, key=lambda each: _ORDER.index(each.verdict))], class_="verdicts")


def _verdict(result: GateResult) -> Html:
    versus = f" against {result.baseline}" if result.baseline else ""
    where = f" ({result.gate.slices}: {result.slice})" if result.slice is not None else ""
    let = tolerated(result)
    return el(
        "li",
        el("div", el("span", result.verdict.value, class_=f"badge {result.verdict.value}")),
        el(
            "div",
            el("p", f"{result.metric} of {result.candidate}{versus}{where}", class_="what"),
            el("p", result.reason),
            el("p", f"{let[0].upper()}{let[1:]}.", class_="soft small") if let else None,
        ),
        marks.interval(result),
        _slices(result) if result.slices else None,
        class_="verdict",
    )


def _slices(result: GateResult) -> Html:
    """Every slice, the worst first; unfolded where one does not pass."""
    passed = sum(each.verdict is Verdict.PASS for each in result.slices)
    told = f"{passed} of {len(result.slices)} slices of {result.gate.slices} pass"
    estimate = result.gate.bound[0].partition("_")[2]
    heads = (result.gate.slices or "slice", "verdict", "rows", result.baseline, result.candidate, estimate, "interval")
    kept = [i for i, head in enumerate(heads) if head is not None]
    head = [el("th", heads[i], scope="col", class_="num" if i > 1 else None) for i in kept]
    rows = [el("tr", [_slice(result.metric, each)[i] for i in kept]) for each in result.slices]
    table = el("table", el("thead", el("tr", head)), el("tbody", rows))
    summary = el("summary", el("span", told, class_="id"))
    return el("details", summary, el("div", scroll(table, told)), open=result.verdict is not Verdict.PASS, class_="slices")


def _slice(metric: str, each: SliceResult) -> list[Html]:
    between = f"{number(each.interval[0])} to {number(each.interval[1])}" if each.interval else "–"
    if each.interval and each.confidence is not None:
        between += f" at {100 * each.confidence:.3g} %"
    numbers = (number(each.n), shown(metric, each.baseline_value), shown(metric, each.candidate_value))
    estimate = "–" if each.estimate is None else number(each.estimate)
    return [
        el("th", each.name, scope="row"),
        el("td", el("span", each.verdict.value, class_=f"badge {each.verdict.value}")),
        *(el("td", value, class_="num") for value in (*numbers, estimate, between)),
    ]
