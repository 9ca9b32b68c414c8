"""Several runs side by side as a page: answers, verdicts with their intervals, quality against speed, metrics, what differs."""

from __future__ import annotations

from collections.abc import Iterator

from ioptim.core.gate import GateResult
from ioptim.report import marks
from ioptim.report.comparison import BEFORE, Axes, Comparison, MetricRow, VerdictRow
from ioptim.report.document import document, without_charts
from ioptim.report.figures import moment, number, shown
from ioptim.report.html import Child, Html, el, scroll, text
from ioptim.report.plot import Plot, figure, tone
from ioptim.report.trade_off import Spot, trade_off


def comparison_page(comparison: Comparison) -> str:
    """The page; it needs nothing else."""
    title = f"{len(comparison.runs)} runs side by side"
    sections = list(_sections(comparison))
    parts = text([el("section", el("h2", heading, id=name), el("div", content, class_="card")) for name, heading, content in sections])
    body = (
        el("a", "Skip to the first table", href=f"#{sections[0][0]}", class_="skip") if sections else None,
        el(
            "main",
            el("h1", title),
            [el("div", el("p", warning), class_="callout mixed", role="note") for warning in comparison.warnings],
            _heads(comparison),
            without_charts(parts),
            parts,
        ),
    )
    return document(title, *body)


def _heads(comparison: Comparison) -> Html:
    heads = [
        el(
            "li",
            el("p", el("strong", f"{i + 1} · {run.recipe}")),
            el("p", run.answer, class_="answer"),
            el("p", f"{run.run_id}, {moment(run.started)}, hardware {run.hardware}", class_="soft small"),
            class_=f"hero {run.tone}",
        )
        for i, run in enumerate(comparison.runs)
    ]
    return el("ul", heads, class_="heads")


def _sections(comparison: Comparison) -> Iterator[tuple[str, str, Child]]:
    if comparison.verdicts:
        rows: list[list[Child]] = [[row.gate, *(_verdict(result, row) for result in row.verdicts)] for row in comparison.verdicts]
        yield "verdicts", "Verdicts", _grid(comparison, "gate", rows)
    plots = [plot for axes in comparison.axes if (plot := _plot(comparison, axes))]
    if plots:
        yield "models", "Quality against speed", [figure(plot) for plot in plots]
    if comparison.metrics:
        rows = [[comparison.named(row), *(_value(row, i) for i in range(len(comparison.runs)))] for row in comparison.metrics]
        intro = el("p", f"In brackets 95 % intervals; below, the value against that of {BEFORE}.", class_="soft small")
        yield "metrics", "Metrics", [intro, _grid(comparison, "metric", rows)]
    if comparison.differences:
        yield "differences", "What differs", _grid(comparison, "", [[each.what, *each.values] for each in comparison.differences])


def _grid(comparison: Comparison, corner: str, rows: list[list[Child]]) -> Html:
    """Rows down, runs across."""
    names = [f"{i + 1} · {run.recipe}" for i, run in enumerate(comparison.runs)]
    head = [el("th", name, scope="col") for name in names]
    body = []
    for first, *cells in rows:
        values = [el("td", cell, data_label=name) for name, cell in zip(names, cells, strict=True)]
        body.append(el("tr", el("th", first, scope="row"), values))
    top = el("thead", el("tr", el("th", corner, scope="col"), head))
    return scroll(el("table", top, el("tbody", body), class_="board runs"), corner or "differences")


def _verdict(result: GateResult | None, row: VerdictRow) -> Child:
    """The estimate and its interval against the bound, on one scale for all runs."""
    if result is None:
        return "–"
    around = f" [{number(result.interval[0])}, {number(result.interval[1])}]" if result.interval else ""
    where = f" ({result.slice})" if result.slice is not None else ""
    estimate = f"{number(result.estimate)}{around}{where}" if result.estimate is not None else where
    badge = el("span", result.verdict.value, class_=f"badge {result.verdict.value}")
    beside = [each for each in row.verdicts if each is not None]
    return [badge, el("span", " ", estimate), marks.interval(result, beside)]


def _value(row: MetricRow, i: int) -> Child:
    moved = row.change(i)
    side = {True: " better", False: " worse", None: ""}[moved.better] if moved else ""
    return [
        el("span", shown(row.metric, row.values[i]), el("span", " ", row.interval(i), class_="range"), class_="was"),
        el("span", moved.text, class_=f"delta{side}") if moved else None,
    ]


def _plot(comparison: Comparison, axes: Axes) -> Plot | None:
    """Every run's candidates; none of runs on other hardware than the first, whose times do not compare."""
    rows = {(row.subject, row.metric): row for row in comparison.metrics if row.target == axes.target}
    spots: list[Spot] = []
    for subject in dict.fromkeys(subject for subject, _ in rows):
        quality, speed, size = (rows.get((subject, metric)) for metric in (axes.quality, axes.speed, "size_bytes"))
        for i, run in enumerate(comparison.runs):
            x, y = speed.values[i] if speed else None, quality.values[i] if quality else None
            if x is None or y is None or not speed or not quality or not speed.comparable[i]:
                continue
            name = f"{i + 1} · {run.recipe}" + (f" {subject}" if subject != "candidate" else "")
            bounds = speed.intervals[i], quality.intervals[i]
            spots.append(Spot(name, tone(len(spots)), x, y, size.values[i] if size else None, *bounds))
    where = f" on {axes.target}" if len(comparison.axes) > 1 else ""
    return trade_off(f"{axes.quality} against {axes.speed}{where}", axes.speed, axes.quality, spots)
