"""What a profile finds, whichever library it was taken with."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from ioptim.roofline import FLOAT32, INT8, Placement, Roofs, Work
from ioptim.steps.profile.kinds import PRODUCTS, kind_of

T = TypeVar("T")


@dataclass(frozen=True)
class Operator:
    """An operator over all rows: how often it ran, and the seconds in it, those in operators that it called not counted."""

    name: str
    calls: int
    seconds: float


@dataclass(frozen=True)
class Layer:
    """One node of a graph, or one module of a torch model, over all rows; a module without what it called.

    `operations` is None where it ran operators whose operations are not known. Bytes as if every operand were read and every result
    written once. `output_bytes` are those of its results, which is memory it needs beside its weights.
    """

    name: str
    operator: str
    calls: int
    seconds: float
    operations: float | None = None
    weight_bytes: float = 0.0
    activation_bytes: float = 0.0
    output_bytes: float = 0.0
    precision: str = FLOAT32
    kind: str = ""
    """What it does; by its operator when left empty."""
    product_operations: float | None = None
    """Those of its operations that are of matrix products, convolutions and attention; None where it has none, or they are not known."""
    converts: bool = False
    """Whether it only changes precision or layout."""

    @property
    def does(self) -> str:
        return self.kind or kind_of(self.operator)

    @property
    def is_product(self) -> bool:
        return self.does in PRODUCTS

    @property
    def work(self) -> Work | None:
        """All its rows' work; None where its operations are not known."""
        if self.operations is None:
            return None
        return Work(self.seconds, self.operations, self.weight_bytes, self.activation_bytes, self.precision)

    @property
    def one(self) -> Work | None:
        """Its work of one call: what is in a cache or not depends on that, not on how often it is repeated."""
        if self.operations is None or not self.calls:
            return None
        seconds, operations, weights, activations = (
            value / self.calls for value in (self.seconds, self.operations, self.weight_bytes, self.activation_bytes)
        )
        return Work(seconds, operations, weights, activations, self.precision)


@dataclass(frozen=True)
class Weights:
    """The weights of all layers of one kind, and the seconds in them over all rows (None where the library does not tell)."""

    kind: str
    count: int
    parameters: int
    weight_bytes: int
    seconds: float | None = None


@dataclass(frozen=True)
class Findings:
    """Of one model on some rows. `row_seconds` were taken without the profiler, everything else with it or beside it."""

    row_seconds: Sequence[float]
    operators: Sequence[Operator] = ()
    layers: Sequence[Layer] = ()
    weights: Sequence[Weights] = ()
    roofs: Roofs | None = None
    profiled_s: float | None = None
    """Wall time of the rows with the profiler on."""
    notes: Sequence[str] = ()
    facts: dict[str, str | int] = field(default_factory=dict)

    def with_notes(self, *notes: str) -> Findings:
        return replace(self, notes=(*self.notes, *notes))

    def under(self, roofs: Roofs) -> Findings:
        """With roofs, raised where a layer computed faster than was measured; a note then says that the machine was busy."""
        raised = roofs
        for layer in self.layers:
            if layer.operations and layer.seconds and layer.precision in roofs.peaks:
                rate = layer.operations / layer.seconds
                raised = raised.raised(layer.precision, rate, f"attained by {layer.name}, more than a matrix product by itself")
        ratios = {name: raised.peaks[name] / peak for name, peak in roofs.peaks.items()}
        higher = ", ".join(f"{name} to {ratio:.1f} times" for name, ratio in ratios.items() if ratio > 1.1)
        note = (f"layers ran above the measured roof, which was raised ({higher}): the machine was busy when it was measured",)
        return replace(self, roofs=raised, notes=(*self.notes, *(note if higher else ())))

    @property
    def device(self) -> str:
        """`cpu`, `gpu` or torch's name of a GPU: where the rows ran."""
        return str(self.facts.get("device", "cpu")).lower()

    @property
    def parameters(self) -> int:
        return sum(group.parameters for group in self.weights)

    @property
    def flops(self) -> float | None:
        """Operations of the matrix products, convolutions and attention of all rows; None where none was counted."""
        counted = [layer.product_operations for layer in self.layers if layer.product_operations is not None]
        return sum(counted) if counted else None

    @property
    def layer_seconds(self) -> float:
        return sum(layer.seconds for layer in self.layers)

    @property
    def uncounted(self) -> dict[str, float]:
        """Share of the layers' time by operator whose operations are not known, largest first."""
        seconds: Counter[str] = Counter()
        for layer in self.layers:
            if layer.operations is None:
                seconds[layer.operator] += layer.seconds  # type: ignore[assignment]
        total = self.layer_seconds or 1.0
        return {name: value / total for name, value in seconds.most_common()}

    @property
    def model_weight_bytes(self) -> float:
        """Bytes of weights that one row reads."""
        return sum(layer.weight_bytes / layer.calls for layer in self.layers if layer.calls)

    def share(self, layers: Sequence[Layer]) -> float:
        """Of the layers' time."""
        return sum(layer.seconds for layer in layers) / (self.layer_seconds or 1.0)

    def shares(self) -> dict[str, float]:
        """Share of the operators' time by kind, largest first."""
        seconds: Counter[str] = Counter()
        for operator in self.operators:
            seconds[kind_of(operator.name)] += operator.seconds  # type: ignore[assignment]
        total = sum(seconds.values()) or 1.0
        return {kind: value / total for kind, value in seconds.most_common()}

    def placed(self) -> list[tuple[Layer, Placement]]:
        """Every layer whose work is known, under the roofs, the longest first; empty without roofs."""
        if self.roofs is None:
            return []
        ordered = sorted(self.layers, key=lambda layer: -layer.seconds)
        return [(layer, self.roofs.place(one, self.model_weight_bytes)) for layer in ordered if (one := layer.one) and one.bytes]

    @property
    def int8_layers(self) -> list[Layer]:
        return [layer for layer in self.layers if layer.precision == INT8]

    @property
    def reorders(self) -> list[Layer]:
        """Layers that only change precision or layout."""
        return [layer for layer in self.layers if layer.converts]

    @property
    def row_mean_s(self) -> float:
        return statistics.fmean(self.row_seconds)


def affordable(feeds: Sequence[T], row_s: float, passes: int, duration_s: float) -> Sequence[T]:
    """As many of the first feeds as so many passes over them take in `duration_s`, at least one."""
    return feeds[: max(1, int(duration_s / passes / row_s))]
