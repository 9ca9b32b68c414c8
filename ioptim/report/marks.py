"""Small inline pictures beside the words they belong to: an interval against its bound, a bar's length, the time of each step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ioptim.core.gate import GateResult
from ioptim.core.record import RunRecord
from ioptim.report.figures import number, seconds
from ioptim.report.html import Html, el


def interval(result: GateResult, beside: Sequence[GateResult] = ()) -> Html | None:
    """The estimate and its interval on a line, the side that passes shaded, the bound marked; `beside` are to have the same scale."""
    if result.estimate is None:
        return None
    kind, bound = result.gate.bound
    low, high = result.interval or (result.estimate, result.estimate)
    every = [end for each in (result, *beside) for end in (each.interval or (each.estimate,)) if end is not None]
    first, last = min(*every, bound), max(*every, bound)
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


def meter(share: float, kind: str) -> Html:
    """A bar of this share of its track's length."""
    return el("svg", el("rect", width=f"{100 * share:.1f}%", height="100%", class_=kind), class_="meter", aria_hidden="true")


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
                meter(node.seconds / longest, "fill cached" if node.cached else "fill"),
                el("span", seconds(node.seconds), " (cached)" if node.cached else None, class_="amount"),
            )
            for node in nodes
        ],
        class_="bars",
    )


def anchor(node_id: str) -> str:
    return "step-" + "".join(c if c.isalnum() or c in "-_" else "-" for c in node_id)


def _scale(first: float, last: float, start: float, end: float) -> Callable[[float], float]:
    def at(value: float) -> float:
        return round(start + (value - first) / (last - first) * (end - start), 1)

    return at
