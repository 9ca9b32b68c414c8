"""Findings as metrics, tables and charts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ioptim.core.artifact import ModelArtifact
from ioptim.core.step import ChartFigure, Series, TableFigure
from ioptim.roofline import FAR_FROM_ROOF, FLOAT32, INT8, Placement, Roofs, Work
from ioptim.steps.profile.advice import Advice
from ioptim.steps.profile.findings import Findings, Layer
from ioptim.steps.profile.kinds import kind_of

OPERATORS_SHOWN = 15
LAYERS_SHOWN = 20
POINTS_SHOWN = 60


def metrics(found: Findings, model: ModelArtifact) -> dict[str, float]:
    values: dict[str, float] = {"size_bytes": model.size_bytes, "row_mean_ms": found.row_mean_s * 1e3}
    values["row_p50_ms"] = statistics.median(found.row_seconds) * 1e3
    if found.weights:
        values["parameters"] = found.parameters
    if found.flops is not None:
        values["flops_per_row"] = found.flops / len(found.row_seconds)
        values["gflop_per_s"] = found.flops / sum(found.row_seconds) / 1e9
    for kind, share in found.shares().items():
        values[f"{kind.replace(' ', '_')}_share"] = share
    if found.profiled_s is not None:
        values["profiler_slowdown"] = found.profiled_s / sum(found.row_seconds)
    if found.layers:
        values["int8_time_share"] = found.share(found.int8_layers)
        values["int8_layers"] = len(found.int8_layers)
        values["reorders"] = len(found.reorders)
        values["uncounted_share"] = sum(found.uncounted.values())
    return values | _of_roofs(found)


def _of_roofs(found: Findings) -> dict[str, float]:
    if found.roofs is None:
        return {}
    values = {f"peak_{name}_gop_per_s": peak / 1e9 for name, peak in found.roofs.peaks.items()}
    values["memory_gb_per_s"] = found.roofs.memory_bandwidth / 1e9
    placed = found.placed()
    whole = found.layer_seconds or 1.0
    for bound in ("compute", "memory", "overhead"):
        values[f"{bound}_bound_share"] = sum(layer.seconds for layer, placement in placed if placement.bound == bound) / whole
    return values


# ---------------------------------------------------------------- tables


def tables(found: Findings, advice: Sequence[Advice]) -> list[TableFigure]:
    made = (_advice(advice), _kinds(found), _operators(found), _layers(found), _int8(found), _weights(found), _roofs(found.roofs))
    return [table for table in made if table.rows]


def _advice(advice: Sequence[Advice]) -> TableFigure:
    rows = tuple((one.text, _factor(one.at_most), _factor(one.expected), one.change) for one in advice)
    columns = ("what was found", "speedup at most", "at the same share of the roof", "change")
    return TableFigure(title="Advice", columns=columns, rows=rows)


def _kinds(found: Findings) -> TableFigure:
    rows = tuple((kind, round(100 * share, 1)) for kind, share in found.shares().items())
    return TableFigure(title="Time by kind of operator", columns=("kind", "% of operator time"), rows=rows)


def _operators(found: Findings) -> TableFigure:
    """The longest operators; what they leave of the time is the last line."""
    total, n = sum(operator.seconds for operator in found.operators), len(found.row_seconds)
    ordered = sorted(found.operators, key=lambda operator: -operator.seconds)
    shown, rest = ordered[:OPERATORS_SHOWN], ordered[OPERATORS_SHOWN:]

    def line(name: str, kind: str, calls: int, seconds: float) -> tuple[Any, ...]:
        return name, kind, _significant(calls / n), _significant(seconds / n * 1e3), round(100 * seconds / total, 1)

    rows = [line(operator.name, kind_of(operator.name), operator.calls, operator.seconds) for operator in shown]
    if rest:
        seconds = sum(operator.seconds for operator in rest)
        rows.append(line(f"{len(rest)} others", "", sum(operator.calls for operator in rest), seconds))
    columns = ("operator", "kind", "calls per row", "ms per row, profiled", "% of operator time")
    return TableFigure(title="Time by operator", columns=columns, rows=tuple(rows))


LAYER_COLUMNS = (
    "layer",
    "operator",
    "precision",
    "ms per row, profiled",
    "% of layer time",
    "Mop per row",
    "weights kB",
    "activations kB",
    "results kB",
    "op per byte",
    "Gop/s",
    "bound",
    "% of roof",
)


def _layers(found: Findings) -> TableFigure:
    """The longest layers, the others in one line, and what the pass took beside them: the times add up to the profiled row."""
    n, whole = len(found.row_seconds), found.layer_seconds or 1.0
    placements = {id(layer): placement for layer, placement in found.placed()}
    ordered = sorted(found.layers, key=lambda layer: -layer.seconds)

    def ms(seconds: float) -> float:
        return _significant(seconds / n * 1e3)

    rows = [_layer(layer, n, whole, placements.get(id(layer))) for layer in ordered[:LAYERS_SHOWN]]
    blank: tuple[None, ...] = (None,) * (len(LAYER_COLUMNS) - 5)
    if rest := ordered[LAYERS_SHOWN:]:
        seconds = sum(layer.seconds for layer in rest)
        rows.append((f"{len(rest)} others", "", "", ms(seconds), round(100 * seconds / whole, 1), *blank))
    if found.layers and found.profiled_s and (beside := found.profiled_s - found.layer_seconds) > 0:
        rows.append(("outside layers", "", "", ms(beside), None, *blank))
    return TableFigure(title="Layers by time", columns=LAYER_COLUMNS, rows=tuple(rows))


def _layer(layer: Layer, n: int, whole: float, placement: Placement | None) -> tuple[Any, ...]:
    intensity = layer.work.intensity if layer.work else None
    return (
        layer.name,
        layer.operator,
        layer.precision,
        _significant(layer.seconds / n * 1e3),
        round(100 * layer.seconds / whole, 1),
        None if layer.operations is None else _significant(layer.operations / n / 1e6),
        _significant(layer.weight_bytes / n / 1e3),
        _significant(layer.activation_bytes / n / 1e3),
        _significant(layer.output_bytes / n / 1e3),
        None if intensity is None else _significant(intensity),
        None if layer.operations is None or not layer.seconds else _significant(layer.operations / layer.seconds / 1e9),
        placement.bound if placement else None,
        round(100 * placement.share, 1) if placement else None,
    )


def _int8(found: Findings) -> TableFigure:
    """Products and what was quantized or converts, by operator and precision; nothing for a model that has no int8."""
    columns = ("what", "operator", "precision", "layers", "% of layer time")
    if not found.int8_layers:
        return TableFigure(title="What runs in int8", columns=columns, rows=())
    groups: dict[tuple[str, str, str], list[Layer]] = {}
    for layer in found.layers:
        what = "in int8" if layer.precision == INT8 else "conversion" if layer in found.reorders else "product in float"
        if layer.precision == INT8 or layer in found.reorders or layer.is_product:
            groups.setdefault((what, layer.operator, layer.precision if what != "conversion" else ""), []).append(layer)
    rows = [(*key, len(layers), round(100 * found.share(layers), 1)) for key, layers in groups.items()]
    order = ("in int8", "product in float", "conversion")
    rows.sort(key=lambda row: (order.index(row[0]), -row[4]))
    return TableFigure(title="What runs in int8", columns=columns, rows=tuple(rows))


def _weights(found: Findings) -> TableFigure:
    """Every kind of layer with weights or time."""
    n, parameters = len(found.row_seconds), found.parameters or 1
    timed = any(group.seconds is not None for group in found.weights)
    rows: list[tuple[Any, ...]] = [
        (
            group.kind,
            group.count,
            group.parameters,
            round(100 * group.parameters / parameters, 1),
            _significant(group.weight_bytes / 1e6),
            *((None if group.seconds is None else _significant(group.seconds / n * 1e3),) if timed else ()),
        )
        for group in found.weights
    ]
    columns = ("kind", "layers", "parameters", "% of parameters", "weights MB", *(("ms per row",) if timed else ()))
    return TableFigure(title="Layers", columns=columns, rows=tuple(rows))


def _roofs(roofs: Roofs | None) -> TableFigure:
    columns = ("roof", "measured", "unit", "with")
    if roofs is None:
        return TableFigure(title="Roofs of this machine", columns=columns, rows=())
    rows: list[tuple[Any, ...]] = [(name, _significant(peak / 1e9), "Gop/s", roofs.how.get(name, "")) for name, peak in roofs.peaks.items()]
    rows.append(("memory", _significant(roofs.memory_bandwidth / 1e9), "GB/s", roofs.how.get("memory", "")))
    if roofs.cache_bandwidth:
        rows.append(("last-level cache", _significant(roofs.cache_bandwidth / 1e9), "GB/s", f"of {roofs.cache_bytes >> 20} MiB"))
    return TableFigure(title="Roofs of this machine", columns=columns, rows=tuple(rows))


# ---------------------------------------------------------------- charts


def charts(found: Findings) -> list[ChartFigure]:
    made = [_time_chart(found)] if found.operators else []
    if found.roofs and (placed := found.placed()):
        made.append(_roofline_chart(found, found.roofs, placed))
    return made


def _time_chart(found: Findings) -> ChartFigure:
    ordered = sorted(found.operators, key=lambda operator: -operator.seconds)[:OPERATORS_SHOWN]
    n = len(found.row_seconds)
    series = Series(
        name="ms per row",
        x=tuple(operator.name.removeprefix("aten::") for operator in ordered),
        y=tuple(_significant(operator.seconds / n * 1e3) for operator in ordered),
        labels=tuple(f"{operator.name}: {kind_of(operator.name)}, {operator.calls / n:.4g} calls per row" for operator in ordered),
    )
    largest = " and ".join(f"{share:.0%} {kind}" for kind, share in list(found.shares().items())[:2])
    title, note = "Time by operator", f"Own time with the profiler on; {largest}."
    return ChartFigure(title=title, kind="bars", x_label="operator", y_label="ms per row", series=(series,), note=note)


def _roofline_chart(found: Findings, roofs: Roofs, placed: Sequence[tuple[Layer, Placement]]) -> ChartFigure:
    """Layers with arithmetic only: one that only moves bytes has no place on a logarithmic axis of operations."""
    points = [(layer, one, placement) for layer, placement in placed if (one := layer.one) and one.operations and one.intensity]
    points = points[:POINTS_SHOWN]
    intensities = [one.intensity for _, one, _ in points if one.intensity]
    first, last = min(intensities, default=0.1) / 2, max([*intensities, *(2 * roofs.ridge(name) for name in roofs.peaks)]) * 2
    lines = [_line(name, peak, roofs.memory_bandwidth, first, last) for name, peak in roofs.peaks.items()]
    if roofs.cache_bandwidth:
        peak = max(roofs.peaks.values())
        lines.append(_line(f"cache, {max(roofs.peaks, key=lambda name: roofs.peaks[name])}", peak, roofs.cache_bandwidth, first, last))
    return ChartFigure(
        title="Roofline",
        kind="points",
        x_label="operations per byte",
        y_label="Gop/s",
        series=(*lines, *_points(points)),
        log_x=True,
        log_y=True,
        note=_what_holds(found),
    )


def _line(name: str, peak: float, bandwidth: float, first: float, last: float) -> Series:
    x = sorted({first, peak / bandwidth, last})
    y = tuple(_significant(min(peak, at * bandwidth) / 1e9) for at in x)
    return Series(name=f"{name} roof", x=tuple(map(_significant, x)), y=y, line=True)


def _points(points: Sequence[tuple[Layer, Work, Placement]]) -> list[Series]:
    """One series for each kind and precision."""
    groups: dict[str, list[tuple[Layer, Work, Placement]]] = {}
    for layer, one, placement in points:
        name = layer.does if layer.precision == FLOAT32 else f"{layer.does}, {layer.precision}"
        groups.setdefault(name, []).append((layer, one, placement))
    return [
        Series(
            name=name,
            x=tuple(_significant(one.intensity or math.nan) for _, one, _ in group),
            y=tuple(_significant(one.operations / one.seconds / 1e9) if one.seconds else None for _, one, _ in group),
            labels=tuple(f"{layer.name}: {placement.bound}, {placement.share:.0%} of its roof" for layer, _, placement in group),
        )
        for name, group in groups.items()
    ]


def _what_holds(found: Findings) -> str:
    shares = _of_roofs(found)
    said = [f"{shares[f'{bound}_bound_share']:.0%} of the time is held by {bound}" for bound in ("compute", "memory")]
    rest = f"{shares['overhead_bound_share']:.0%} is below {FAR_FROM_ROOF:.0%} of both roofs"
    return f"{', '.join(said)}, and {rest}: the cost of starting small operators."


def _factor(value: float | None) -> str | None:
    return None if value is None else f"{value:.1f}x"


def _significant(value: float) -> float:
    return float(f"{value:.4g}")


def share_list(shares: Mapping[str, float], limit: int = 4) -> str:
    """`Subgraph 6%, Range 0.2%`."""
    named = [f"{name} {100 * share:.2g}%" for name, share in list(shares.items())[:limit]]
    return ", ".join(named) + (f" and {len(shares) - limit} more" if len(shares) > limit else "")
