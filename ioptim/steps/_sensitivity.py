"""How much quality each layer costs when it alone is quantized, on calibration rows, against the float model. Needs no labels."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Literal

from ioptim.core.step import ChartFigure, Series, TableFigure
from ioptim.onnx_graph import load_graph
from ioptim.steps import _fidelity, _outputs
from ioptim.steps._layers import Layer
from ioptim.steps._onnx_int8 import FloatGraph

if TYPE_CHECKING:
    import onnx

    from ioptim.core.step import Context
    from ioptim.core.task import Feeds, Outputs, Task

By = Literal["layer", "block"]

_BLOCK = re.compile(r"^(.*?\b(?:layers?|blocks?|h|stages?)[._/]\d+)(?=[._/]|$)")
"""`encoder.layer.0` of `module.encoder.layer.0.attention.self.query`: one of the blocks that a model repeats."""


@dataclass(frozen=True)
class Group:
    """Layers that are quantized or left together, by the names of their nodes."""

    name: str
    layers: tuple[str, ...]


@dataclass(frozen=True)
class Loss:
    """How far a model's outputs are from the float model's.

    `distance` is fine-grained and ranks: the mean KL divergence (nats) where there are classes, else 1 - mean cosine. `drop` is what a
    user bounds: the share of rows whose top answer changes where there are classes, else 1 - mean cosine. Infinite for NaN.
    """

    distance: float
    drop: float


@dataclass(frozen=True)
class Sensitivity:
    """A group, what is lost when it alone is quantized, and the seconds per row that it then saves (None where not measured)."""

    group: Group
    loss: Loss
    saved_s: float | None = None


class Judge:
    """Compares models with the float one on the same rows, whose outputs are computed once."""

    def __init__(self, reference: Path, feeds: Sequence[Feeds], ctx: Context) -> None:
        self._feeds = feeds
        self._task: Task = ctx.task
        self._threads: int = ctx.hardware.threads
        self._reference = self._run(reference)

    def loss(self, path: Path) -> Loss:
        return loss_of(self._run(path), self._reference, self._task)

    @property
    def rows(self) -> int:
        return len(self._feeds)

    def _run(self, path: Path) -> Sequence[Outputs]:
        """Rows at once, each on one thread: they are many and short, and so no thread waits for another within a row."""
        parts = [self._feeds[i :: self._threads] for i in range(self._threads)]
        with ThreadPoolExecutor(self._threads) as pool:
            done = list(pool.map(lambda part: _outputs.run_onnx(path, part, 1), parts))
        return [done[i % self._threads][i // self._threads] for i in range(len(self._feeds))]


def loss_of(outputs: Sequence[Outputs], reference: Sequence[Outputs], task: Task) -> Loss:
    """The metrics are those of the `validate` step's fidelity."""
    found = _fidelity.compare(outputs, reference, task, len(outputs))
    if not found:
        return Loss(math.inf, math.inf)
    cosine = 1 - fmean(found[_fidelity.COSINE.name])
    if _fidelity.KL.name not in found:
        return Loss(_or_infinite(cosine), _or_infinite(cosine))
    return Loss(_or_infinite(fmean(found[_fidelity.KL.name])), _or_infinite(1 - fmean(found[_fidelity.TOP1.name])))


def _or_infinite(value: float) -> float:
    return value if math.isfinite(value) else math.inf


def drop_name(task: Task) -> str:
    return "share of answers that change" if task.output == "logits" else "1 - mean cosine"


def distance_name(task: Task) -> str:
    return "KL divergence, nats" if task.output == "logits" else "1 - mean cosine"


# Groups


def groups_of(graph: FloatGraph, by: By) -> list[Group]:
    """The layers that would be quantized, each by itself or by the block it is in, in the order of the graph."""
    layers = [layer for layer in graph.layers if layer.quantized]
    if by == "layer":
        return [Group(name, (layer.name,)) for layer, name in zip(layers, _scopes(layers, graph.path), strict=True)]
    named: dict[str, list[str]] = {}
    for layer, block in zip(layers, _blocks(layers, graph.path), strict=True):
        named.setdefault(block, []).append(layer.name)
    return [Group(name, tuple(names)) for name, names in named.items()]


def _blocks(layers: Sequence[Layer], path: Path) -> list[str]:
    """The block of each layer; a fused attention, which has lost its name, is in the block of the layer that follows it."""
    found: list[str] = []
    following = ""
    for layer, scope in reversed(list(zip(layers, _scopes(layers, path), strict=True))):
        match = _BLOCK.match(scope)
        following = match[1] if match else following if layer.kind == "Attention" and following else scope
        found.append(following)
    return found[::-1]


def _scopes(layers: Sequence[Layer], path: Path) -> list[str]:
    """The module that each layer came from, where the exporter or the weight's name tells; else the node's name."""
    nodes = {node.name: node for node in load_graph(path, weights=False).graph.node}
    return [_scope(layer, nodes.get(layer.name)) for layer in layers]


def _scope(layer: Layer, node: onnx.NodeProto | None) -> str:
    """torch's exporter writes ["", "module", "module.encoder", ..., "linear_3"] on a node, the last being the call itself."""
    told = {entry.key: entry.value for entry in node.metadata_props} if node is not None else {}
    try:
        scopes = ast.literal_eval(told.get("pkg.torch.onnx.name_scopes", "[]"))
    except (ValueError, SyntaxError):
        scopes = []
    if isinstance(scopes, list) and len(scopes) > 1 and scopes[-2]:
        return str(scopes[-2]).removeprefix("module.")
    weight = layer.weight.removesuffix(".weight").removeprefix("module.")
    return weight if _BLOCK.match(weight) else layer.name


# Ranking


def rank(
    graph: FloatGraph,
    groups: Sequence[Group],
    judge: Judge,
    progress: Callable[[float, str], None],
    seconds: Callable[[Path], float] | None = None,
) -> list[Sensitivity]:
    """Quantize one group after the other, alone; the most sensitive first.

    `seconds` tells what a graph saves per row against the float one.
    """
    everything = {layer.name for layer in graph.layers if layer.quantized}
    found = []
    for number, group in enumerate(groups):
        progress(number / len(groups), f"quantizing {group.name} alone, {number + 1} of {len(groups)}")
        path = graph.scratch / "alone.onnx"
        graph.write(path, everything - set(group.layers))
        found.append(Sensitivity(group, judge.loss(path), seconds(path) if seconds else None))
    return sorted(found, key=lambda one: -one.loss.distance)


def fewest_in_float(
    ranking: Sequence[Sensitivity], max_drop: float, drop: Callable[[Collection[str]], float]
) -> tuple[int, dict[int, float]]:
    """How many of the most sensitive groups must stay in float so that `drop` of the rest is at most `max_drop`.

    By bisection, which takes it that leaving one more in float never makes the drop larger. Returns the number, and the drop for each
    number that was tried; when all must stay, the number is that of all groups, and nothing was tried for it.
    """
    tried: dict[int, float] = {}

    def enough(count: int) -> bool:
        tried[count] = drop({name for one in ranking[:count] for name in one.group.layers})
        return tried[count] <= max_drop

    low, high = 0, len(ranking)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return low, tried


# Figures


def table(ranking: Sequence[Sensitivity], task: Task, kept: Collection[str] | None = None) -> TableFigure:
    """The most sensitive first; with `kept`, which of them stay in float."""
    timed = any(one.saved_s is not None for one in ranking)
    bounded = drop_name(task) != distance_name(task)  # without classes the two are one
    columns = ["group", "layers", f"lost when it alone is int8 ({distance_name(task)})", *([drop_name(task)] if bounded else [])]
    columns += ["ms saved per row"] if timed else []
    columns += [] if kept is None else ["runs in"]
    rows = []
    for one in ranking:
        row: list[str | float | int | None] = [one.group.name, len(one.group.layers), _short(one.loss.distance)]
        row += [_short(one.loss.drop)] if bounded else []
        row += [None if one.saved_s is None else _short(one.saved_s * 1e3)] if timed else []
        row += [] if kept is None else ["float" if set(one.group.layers) <= set(kept) else "int8"]
        rows.append(tuple(row))
    return TableFigure(title="Sensitivity", columns=tuple(columns), rows=tuple(rows))


def chart(ranking: Sequence[Sensitivity], task: Task, kept: Collection[str] | None = None) -> ChartFigure:
    """Loss against time saved where that was measured, else a bar for each group."""
    finite = [one for one in ranking if math.isfinite(one.loss.distance)]
    loss = f"lost when it alone is int8 ({distance_name(task)})"
    if finite and all(one.saved_s is not None for one in finite):
        series = Series(
            name="quantized alone",
            x=tuple(round((one.saved_s or 0.0) * 1e3, 6) for one in finite),
            y=tuple(_short(one.loss.distance) for one in finite),
            labels=tuple(one.group.name for one in finite),
        )
        note = "Up: more quality lost. Right: more time saved. What is up and left is better left in float."
        return ChartFigure(title="Sensitivity", kind="points", x_label="ms saved per row", y_label=loss, series=(series,), note=note)
    parts = {"int8": [one for one in finite if not _in(one, kept)], "float": [one for one in finite if _in(one, kept)]}
    series_of = tuple(
        Series(name=f"runs in {name}", x=tuple(one.group.name for one in part), y=tuple(_short(one.loss.distance) for one in part))
        for name, part in parts.items()
        if part
    )
    note = "The most sensitive first; those at the top stay in float until the bound is met."
    return ChartFigure(title="Sensitivity", kind="bars", x_label="layer", y_label=loss, series=series_of, note=note)


def _in(one: Sensitivity, kept: Collection[str] | None) -> bool:
    return bool(kept) and set(one.group.layers) <= set(kept or ())


def _short(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None
