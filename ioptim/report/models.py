"""The part of the page that shows candidates beside their baselines."""

from __future__ import annotations

from collections.abc import Sequence

from ioptim.core.metrics import Kind
from ioptim.core.record import RunRecord
from ioptim.report import charts
from ioptim.report.board import Board, samples_of
from ioptim.report.figures import change, shown
from ioptim.report.html import Html, el, scroll

SOURCE = "source"


def title(board: Board, every: Sequence[Board]) -> str:
    where = f" on {board.target}" if board.target and len(every) > 1 else ""
    return f"Quality, latency and size against every baseline{where}"


def side_by_side(board: Board, run: RunRecord) -> Html:
    """A table of the metrics that matter, the rest folded away, quality against latency, every timing block."""
    table = _one_candidate if len(board.candidates) == 1 else _several
    rest = [metric for metric in board.metrics if metric not in board.headline]
    summary = el("summary", el("span", f"{len(rest)} more metric{'s' if len(rest) > 1 else ''}", class_="id"))
    nodes = [node for node in run.nodes if node.target == board.target]
    samples = [sample for node in nodes for sample in samples_of(node)]
    timed = [sample for sample in samples if sample.kind is Kind.BLOCKS and sample.metric.name == board.latency]
    return el(
        "div",
        table(board, board.headline),
        el("details", summary, el("div", table(board, rest))) if rest else None,
        charts.quality_against_latency(board),
        [charts.blocks(sample, board) for sample in timed[:1]],
        class_="card",
    )


def _one_candidate(board: Board, metrics: Sequence[str]) -> Html:
    """Metrics down, models across; under a baseline's value what the candidate is against it."""
    (candidate,) = board.candidates
    head = [el("th", subject, el("br"), el("span", _kind(board, subject), class_="small"), scope="col") for subject in board.subjects]
    rows = []
    for metric in metrics:
        cells = [
            _cell(board, metric, subject, subject, _told(board, metric, candidate, subject, candidate) if subject != candidate else None)
            for subject in board.subjects
        ]
        rows.append(el("tr", el("th", metric, scope="row"), cells))
    return _table(el("th", "metric", scope="col"), head, rows)


def _several(board: Board, metrics: Sequence[str]) -> Html:
    """Models down, metrics across; under a candidate's value what it is against the source model."""
    rows = []
    for subject in board.subjects:
        judged = subject in board.candidates and SOURCE in board.baselines
        told = [_told(board, metric, subject, SOURCE, f"than {SOURCE}") if judged else None for metric in metrics]
        cells = [_cell(board, metric, subject, metric, each) for metric, each in zip(metrics, told, strict=True)]
        name = el("th", subject, el("br"), el("span", _kind(board, subject), class_="small soft"), scope="row")
        rows.append(el("tr", name, cells))
    return _table(el("th", "model", scope="col"), [el("th", metric, scope="col") for metric in metrics], rows)


def _table(corner: Html, head: Sequence[Html], rows: Sequence[Html]) -> Html:
    top = el("thead", el("tr", corner, head))
    return scroll(el("table", top, el("tbody", rows), class_="board"), "models side by side")


def _cell(board: Board, metric: str, subject: str, label: str, told: Html | None) -> Html:
    """The value, a bar as long as its share of the largest, and `told`; `label` is what a narrow screen shows above it."""
    value = board.values[subject].get(metric)
    kind = _kind(board, subject)
    if value is None:
        return el("td", el("span", "–", class_="soft"), class_=kind, data_label=label)
    largest = max(abs(board.values[each].get(metric, 0.0)) for each in board.subjects)
    bar = el("span", class_=board.tone(subject), style=f"width:{100 * abs(value) / largest:.1f}%") if largest else None
    return el("td", el("span", shown(metric, value), class_="was"), el("span", bar, class_="meter"), told, class_=kind, data_label=label)


def _told(board: Board, metric: str, candidate: str, baseline: str, who: str) -> Html | None:
    """The candidate against the baseline in words, coloured where better and worse are known."""
    moved = change(metric, board.values[candidate].get(metric), board.values[baseline].get(metric), board.higher.get(metric))
    if moved is None:
        return None
    side = {True: " better", False: " worse", None: ""}[moved.better]
    than = f"{moved.text} {who}" if who.startswith("than ") and moved.text.endswith("er") else moved.text
    return el("span", than if who.startswith("than ") else f"{who}: {moved.text}", class_=f"delta{side}")


def _kind(board: Board, subject: str) -> str:
    return "candidate" if subject in board.candidates else "baseline"
