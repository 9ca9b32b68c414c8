"""The part of the page that shows candidates beside their baselines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ioptim.core.metrics import Kind
from ioptim.core.record import RunRecord
from ioptim.core.step import ChartFigure, Series
from ioptim.intervals import Interval
from ioptim.report.board import Board, samples_of
from ioptim.report.estimates import Estimates
from ioptim.report.figures import change, number, shown
from ioptim.report.html import Html, el, scroll
from ioptim.report.marks import meter
from ioptim.report.plot import Plot, figure
from ioptim.report.trade_off import Spot, trade_off

SOURCE = "source"


def title(board: Board, every: Sequence[Board]) -> str:
    where = f" on {board.target}" if board.target and len(every) > 1 else ""
    return f"Quality, latency and size against every baseline{where}"


def glance(board: Board, every: Sequence[Board]) -> Html | None:
    """The few figures that say what was won and what it cost; of one candidate, for several the verdicts name each."""
    if len(board.candidates) != 1:
        return None
    (candidate,) = board.candidates
    wanted = (*board.quality[:1], board.latency, board.throughput, "size_bytes")
    tiles = []
    for metric in wanted:
        value = board.values[candidate].get(metric) if metric else None
        if metric and value is not None:
            told = [_told(board, metric, candidate, base, f"than {base}") for base in board.baselines]
            lines = [el("li", each) for each in told if each]
            tiles.append(el("li", el("p", metric, class_="soft small"), el("p", shown(metric, value), class_="big"), el("ul", lines)))
    label = f"{candidate} on {board.target}" if board.target and len(every) > 1 else candidate
    return el("ul", tiles, class_="glance", aria_label=f"{label} at a glance") if tiles else None


def side_by_side(board: Board, run: RunRecord, sure: Estimates) -> Html:
    """Quality against speed, a table of the metrics that matter, the rest folded away."""
    table = _one_candidate if len(board.candidates) == 1 else _several
    first = board.headline if len(board.candidates) == 1 else board.glance  # across a page there is room for a few
    rest = [metric for metric in board.metrics if metric not in first]
    summary = el("summary", el("span", f"{len(rest)} more metric{'s' if len(rest) > 1 else ''}", class_="id"))
    plot = _plot(board, run, sure)
    return el(
        "div",
        figure(plot) if plot else None,
        table(board, first, sure),
        el("details", summary, el("div", table(board, rest, sure))) if rest else None,
        class_="card",
    )


def _plot(board: Board, run: RunRecord, sure: Estimates) -> Plot | None:
    quality, speed = (board.quality or (None,))[0], board.latency or board.throughput
    if quality is None or speed is None:
        return None
    spots = [
        Spot(
            name=name,
            colour=board.tone(name),
            speed=values[speed],
            quality=values[quality],
            size_bytes=values.get("size_bytes"),
            speed_interval=sure.get((board.target, name, speed)),
            quality_interval=sure.get((board.target, name, quality)),
        )
        for name in board.subjects
        if {quality, speed} <= (values := board.values[name]).keys()
    ]
    gates = [gate for node in run.nodes if node.target == board.target for gate in node.gates]
    return trade_off(f"{quality} against {speed}", speed, quality, spots, gates)


def blocks(found: Sequence[Board], run: RunRecord) -> Iterator[ChartFigure]:
    """Every block of the latency, for a run whose benchmark kept no chart of its single calls."""
    for board in found:
        for node in run.nodes:
            for samples in samples_of(node) if node.target == board.target else ():
                if samples.kind is Kind.BLOCKS and samples.metric.name == board.latency:
                    where = f" on {board.target}" if len(found) > 1 else ""
                    series = [Series(name=name, x=(), y=samples.values[name]) for name in board.subjects if samples.values.get(name)]
                    name = samples.metric.name
                    yield ChartFigure(
                        title=f"{name}: every block{where}", kind="distribution", x_label="", y_label=name, series=tuple(series)
                    )


def _one_candidate(board: Board, metrics: Sequence[str], sure: Estimates) -> Html:
    """Metrics down, models across; under a baseline's value what the candidate is against it."""
    (candidate,) = board.candidates
    head = [el("th", subject, el("br"), el("span", _kind(board, subject), class_="small"), scope="col") for subject in board.subjects]
    rows = []
    for metric in metrics:
        cells = []
        for subject in board.subjects:
            told = _told(board, metric, candidate, subject, candidate) if subject != candidate else None
            cells.append(_cell(board, metric, subject, subject, told, sure.get((board.target, subject, metric))))
        rows.append(el("tr", el("th", metric, scope="row"), cells))
    return _table(el("th", "metric", scope="col"), head, rows)


def _several(board: Board, metrics: Sequence[str], sure: Estimates) -> Html:
    """Models down, metrics across; under a candidate's value what it is against the source model."""
    rows = []
    for subject in board.subjects:
        judged = subject in board.candidates and SOURCE in board.baselines
        told = [_told(board, metric, subject, SOURCE, f"than {SOURCE}") if judged else None for metric in metrics]
        cells = [
            _cell(board, metric, subject, metric, each, sure.get((board.target, subject, metric)))
            for metric, each in zip(metrics, told, strict=True)
        ]
        name = el("th", subject, el("br"), el("span", _kind(board, subject), class_="small soft"), scope="row")
        rows.append(el("tr", name, cells))
    return _table(el("th", "model", scope="col"), [el("th", metric, scope="col") for metric in metrics], rows)


def _table(corner: Html, head: Sequence[Html], rows: Sequence[Html]) -> Html:
    top = el("thead", el("tr", corner, head))
    return scroll(el("table", top, el("tbody", rows), class_="board"), "models side by side")


def _cell(board: Board, metric: str, subject: str, label: str, told: Html | None, sure: Interval | None) -> Html:
    """The value, its interval, a bar as long as its share of the largest, and `told`; a narrow screen shows `label` above it."""
    value = board.values[subject].get(metric)
    kind = _kind(board, subject)
    if value is None:
        return el("td", el("span", "–", class_="soft"), class_=kind, data_label=label)
    largest = max(abs(board.values[each].get(metric, 0.0)) for each in board.subjects)
    ends = [number(end) for end in sure] if sure else []
    between = el("span", f" {ends[0]} to {ends[1]}", class_="range") if len(set(ends)) == 2 else None
    return el(
        "td",
        el("span", shown(metric, value), between, class_="was"),
        meter(abs(value) / largest, board.tone(subject)) if largest else None,
        told,
        class_=kind,
        data_label=label,
    )


def _told(board: Board, metric: str, candidate: str, baseline: str, who: str) -> Html | None:
    """The candidate against the baseline in words, coloured where better and worse are known; a loss that its gate allows is not."""
    moved = change(metric, board.values[candidate].get(metric), board.values[baseline].get(metric), board.higher.get(metric))
    if moved is None:
        return None
    allowed = moved.better is False and (candidate, metric) in board.passed
    side = "" if allowed else {True: " better", False: " worse", None: ""}[moved.better]
    if not who.startswith("than "):
        return el("span", f"{who}: {moved.text}", class_=f"delta{side}")
    joined = f"{moved.text} {who}" if moved.text.endswith("er") else f"{moved.text} {_AGAINST.get(moved.text, 'against')} {who[5:]}"
    return el("span", joined, class_=f"delta{side}")


_AGAINST = {"same": "as"}


def _kind(board: Board, subject: str) -> str:
    return "candidate" if subject in board.candidates else "baseline"
