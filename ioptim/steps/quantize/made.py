"""What a scheme hands back to the step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ioptim.core.step import ChartFigure, Note, TableFigure
from ioptim.steps._layers import Layer

if TYPE_CHECKING:
    from ioptim.core.task import Feeds, Outputs


@dataclass(frozen=True)
class Made:
    """A model written to the step's folder, its layers, and both models' outputs on the same `feeds`.

    `reference` are the outputs of the model that came in, `outputs` those of the quantized one.
    """

    entry: str
    layers: list[Layer]
    reference: Sequence[Outputs]
    outputs: Sequence[Outputs]
    feeds: Sequence[Feeds]
    notes: tuple[Note, ...] = ()
    metrics: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    tables: tuple[TableFigure, ...] = ()
    charts: tuple[ChartFigure, ...] = ()
