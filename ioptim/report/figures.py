"""Numbers as people read them. A metric's name ends in its unit, which decides how it is shown and how two values compare."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum


class Quantity(Enum):
    """What kind of number a metric is, by the end of its name."""

    TIME = "time"
    BYTES = "bytes"
    RATE = "rate"
    SCORE = "score"


def quantity(metric: str) -> Quantity:
    if "_per_s" in metric:
        return Quantity.RATE
    if metric.endswith("_bytes"):
        return Quantity.BYTES
    if metric.endswith(("_ms", "_s", "_us")):
        return Quantity.TIME
    return Quantity.SCORE


def shown(metric: str, value: float | None) -> str:
    """The value with its unit: `2.9 ms`, `22.97 MB`, `0.8865`; a dash where there is none."""
    if value is None:
        return "–"
    if quantity(metric) is Quantity.BYTES:
        return size(value)
    unit = {"_ms": " ms", "_us": " µs"}.get(metric[-3:], "")
    if quantity(metric) is Quantity.RATE:
        unit = next((unit for ending, unit in _RATES.items() if metric.endswith(ending)), " /s")
    elif metric.endswith("_s"):
        unit = " s"
    return number(value) + unit


_RATES = {"gflop_per_s": " Gflop/s", "_gop_per_s": " Gop/s", "_gb_per_s": " GB/s"}


def number(value: float) -> str:
    """Four digits that matter; thousands apart by a space that does not break."""
    if not math.isfinite(value):
        return str(value)
    if value == int(value) or abs(value) >= 1000:
        return f"{value:,.0f}".replace(",", "\u202f").replace("-", "−")
    return f"{value:.4g}".replace("-", "−")


def size(value: float) -> str:
    """Bytes in the decimal unit that leaves one to three digits before the point."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(value) >= scale:
            return f"{value / scale:.4g} {unit}"
    return f"{value:.0f} B"


def seconds(value: float) -> str:
    if value < 0.1:
        return f"{value * 1000:.0f} ms"
    return f"{value:.1f} s" if value < 90 else "{} min {} s".format(*divmod(round(value), 60))


def moment(utc: str) -> str:
    """An ISO 8601 time in UTC to the minute."""
    return f"{utc[:16].replace('T', ' ')} UTC"


@dataclass(frozen=True)
class Change:
    """A candidate against a baseline, in words; `better` is None where neither, or where the direction is not known."""

    text: str
    better: bool | None


def change(metric: str, candidate: float | None, baseline: float | None, higher_is_better: bool | None) -> Change | None:
    """None where one of the values is missing. Times, bytes and rates compare as factors, scores as differences."""
    if candidate is None or baseline is None:
        return None
    kind = quantity(metric)
    if kind is Quantity.SCORE or candidate <= 0 or baseline <= 0:
        moved = candidate - baseline
        better = None if not moved or higher_is_better is None else (moved > 0) == higher_is_better
        return Change("same" if not moved else f"{'+' if moved > 0 else '−'}{abs(moved):.3g}", better)
    grew = candidate >= baseline
    factor = max(candidate, baseline) / min(candidate, baseline)
    if factor < 1.005:
        return Change("same", None)
    words = {Quantity.TIME: ("slower", "faster"), Quantity.BYTES: ("larger", "smaller"), Quantity.RATE: ("higher", "lower")}[kind]
    return Change(f"{factor:.3g}× {words[0 if grew else 1]}", grew == (kind is Quantity.RATE))
