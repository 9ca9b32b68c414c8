"""Small SVG pictures: an interval against its bound, quality against latency, blocks of a benchmark, where the time went."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ioptim.core.gate import GateResult
from ioptim.core.metrics import Samples
from ioptim.core.record import RunRecord
from ioptim.report.board import Board
from ioptim.report.figures import number, seconds, shown
from ioptim.report.html import Html, el, text


def interval(result: GateResult) -> Html | None:
    """The estimate and its interval on a line, the side that passes shaded, the bound marked."""
    if result.estimate is None:
        return None
    kind, bound = result.gate.bound
    low, high = result.interval or (result.estimate, result.estimate)
    first, last = min(low, bound), max(high, bound)
    room = (last - first) * 0.14 or abs(bound) * 0.1 or 1.0
    at = _scale(first - room, last + room, 6, 354)
    meets = (6.0, at(bound)) if kind.startswith("max") else (at(bound), 354.0)
    label = f"{kind} {number(bound)}"
    place = min(max(at(bound), 8 + 3.1 * len(label)), 352 - 3.1 * len(label))
    said = f"estimate {number(result.estimate)}"
    if result.interval:
        said += f", interval {number(low)} to {number(high)}"
    return el(
        "svg",
        el("title", f"{said}, {label}"),
        el("rect", x=meets[0], y=22, width=max(0.0, meets[1] - meets[0]), height=20, class_="meets"),
        el("line", x1=6, x2=354, y1=32, y2=32, class_="axis"),
        el("line", x1=at(low), x2=at(high), y1=32, y2=32, class_=f"whisker {result.verdict.value}"),
        [el("line", x1=at(end), x2=at(end), y1=27, y2=37, class_=f"whisker {result.verdict.value}") for end in (low, high)],
        el("circle", cx=at(result.estimate), cy=32, r=5, class_=f"dot {result.verdict.value}"),
        el("line", x1=at(bound), x2=at(bound), y1=18, y2=46, class_="bound"),
        el("text", label, x=place, y=12, text_anchor="middle", class_="label"),
        viewBox="0 0 360 50",
        class_="interval",
        role="img",
    )


def quality_against_latency(board: Board) -> Html | None:
    """A dot for every model, its area the size on disk; nothing when quality or latency was not measured for two models."""
    quality, latency = (board.quality or (None,))[0], board.latency
    if quality is None or latency is None:
        return None
    values = board.values
    points = [(name, values[name][latency], values[name][quality]) for name in board.subjects if {quality, latency} <= values[name].keys()]
    if len(points) < 2 or any(x <= 0 for _, x, _ in points):
        return None
    xs, ys = [math.log10(x) for _, x, _ in points], [y for _, _, y in points]
    spread = (max(ys) - min(ys)) or abs(max(ys)) * 0.02 or 1.0
    pad = (max(xs) - min(xs)) * 0.12 or 0.1
    across = _scale(min(xs) - pad, max(xs) + pad, 64, 600)
    down = _scale(min(ys) - spread * 0.35, max(ys) + spread * 0.35, 228, 18)
    largest = max((values[name].get("size_bytes", 0.0) for name, _, _ in points), default=0.0)
    dots = []
    for (name, x, y), place in zip(points, xs, strict=True):
        share = values[name].get("size_bytes", 0.0) / largest if largest else 0.25
        tone = board.tone(name)
        said = f"{name}: {shown(quality, y)} at {shown(latency, x)}, {shown('size_bytes', values[name].get('size_bytes'))}"
        dots.append(el("circle", el("title", said), cx=across(place), cy=down(y), r=6 + 16 * math.sqrt(share), class_=f"bubble {tone}"))
    return el(
        "figure",
        el(
            "svg",
            el("title", f"{quality} against {latency}"),
            [_y_tick(down(y), shown(quality, y)) for y in _apart(sorted(set(ys)), down, 16)],
            [
                _x_tick(across(math.log10(x)), shown(latency, x))
                for x in _apart(sorted({x for _, x, _ in points}), lambda v: across(math.log10(v)), 70)
            ],
            dots,
            el("text", f"{latency} (logarithmic; left is faster)", x=332, y=276, text_anchor="middle", class_="label"),
            el("text", quality, x=64, y=10, class_="label"),
            viewBox="0 0 640 284",
            class_="chart",
            role="img",
        ),
        _legend([name for name, _, _ in points], board),
        el("figcaption", "Higher is better, further left is faster; the area is the size on disk." if largest else None),
    )


def blocks(samples: Samples, board: Board) -> Html | None:
    """Every block of a timing metric as a dot, a row for each model: what the medians and intervals were taken from."""
    names = [name for name in board.subjects if samples.values.get(name)]
    every = [value for name in names for value in samples.values[name] if value is not None and value > 0]
    if not every:
        return None
    first, last = math.log10(min(every)), math.log10(max(every))
    pad = (last - first) * 0.05 or 0.05
    across = _scale(first - pad, last + pad, 150, 620)
    rows = []
    for i, name in enumerate(names):
        y, tone = 22 + 30 * i, board.tone(name)
        kept = sorted(value for value in samples.values[name] if value is not None and value > 0)
        rows.append(el("text", name if len(name) <= 22 else name[:21] + "…", x=142, y=y + 4, text_anchor="end", class_="label strong"))
        rows.append(el("line", x1=150, x2=620, y1=y, y2=y, class_="grid"))
        rows += [el("circle", cx=across(math.log10(v)), cy=y, r=4, class_=f"sample {tone}") for v in kept]
        middle = kept[len(kept) // 2]
        rows.append(
            el("text", shown(samples.metric.name, middle), x=across(math.log10(middle)), y=y - 9, text_anchor="middle", class_="label")
        )
    height = 30 * len(names) + 14
    title = f"{samples.metric.name}: every block (logarithmic)"
    return el(
        "figure", el("svg", el("title", title), rows, viewBox=f"0 0 640 {height}", class_="chart", role="img"), el("figcaption", title)
    )


def where_time_went(run: RunRecord) -> Html | None:
    """A bar for each step's own time; cached steps are hatched, for their time was spent in an earlier run."""
    nodes = [node for node in run.nodes if node.seconds > 0]
    longest = max((node.seconds for node in nodes), default=0.0)
    if not longest:
        return None
    return el(
        "ol",
        [
            el(
                "li",
                el("a", node.id, href=f"#{anchor(node.id)}", class_="name"),
                el(
                    "span",
                    el("span", class_="fill cached" if node.cached else "fill", style=f"width:{100 * node.seconds / longest:.1f}%"),
                    class_="track",
                ),
                el("span", seconds(node.seconds), " (cached)" if node.cached else None, class_="amount"),
            )
            for node in nodes
        ],
        class_="bars",
    )


def anchor(node_id: str) -> str:
    return "step-" + "".join(c if c.isalnum() or c in "-_" else "-" for c in node_id)


def _scale(first: float, last: float, start: float, end: float):  # type: ignore[no-untyped-def]
    def at(value: float) -> float:
        return round(start + (value - first) / (last - first) * (end - start), 1)

    return at


def _apart(values: Sequence[float], at, room: float) -> list[float]:  # type: ignore[no-untyped-def]
    """Those of the sorted values whose labels do not overlap."""
    kept: list[float] = []
    for value in values:
        if not kept or abs(at(value) - at(kept[-1])) >= room:
            kept.append(value)
    return kept


def _y_tick(y: float, label: str) -> Html:
    return text(el("line", x1=64, x2=600, y1=y, y2=y, class_="grid"), el("text", label, x=58, y=y + 4, text_anchor="end", class_="label"))


def _x_tick(x: float, label: str) -> Html:
    return text(el("line", x1=x, x2=x, y1=18, y2=238, class_="grid"), el("text", label, x=x, y=254, text_anchor="middle", class_="label"))


def _legend(names: Sequence[str], board: Board) -> Html:
    keys = [el("li", el("span", class_=f"key {board.tone(name)}"), name) for name in names]
    return el("ul", keys, class_="legend")
