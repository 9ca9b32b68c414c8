"""Parameters and multiply-adds of a module by layer: what there was, and what is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ioptim.core.step import TableFigure
from ioptim.steps._flops import flop_counter

if TYPE_CHECKING:
    import torch

COUNTED_ROWS = 16


@dataclass(frozen=True)
class Work:
    """`multiply_adds` are of one row, on average; of convolutions and matrix products, those of attention among them."""

    parameters: int
    multiply_adds: float
    by_layer: Mapping[str, tuple[int, float]]
    """Parameters and multiply-adds of every linear layer and convolution, by name."""


def work(module: Any, batches: Sequence[Mapping[str, torch.Tensor]]) -> Work:
    """Counted while the first rows pass through."""
    import torch

    rows = batches[:COUNTED_ROWS]
    counter = flop_counter()
    with torch.no_grad(), counter:
        for feeds in rows:
            module(**feeds)
    root = type(module).__name__
    done = {name.removeprefix(f"{root}."): sum(counts.values()) / 2 / len(rows) for name, counts in counter.get_flop_counts().items()}
    layers = {
        name: (parameters(child), done.get(name, 0.0))
        for name, child in module.named_modules()
        if isinstance(child, torch.nn.Linear | torch.nn.modules.conv._ConvNd)
    }
    return Work(parameters(module), counter.get_total_flops() / 2 / len(rows), layers)


def parameters(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def layers_table(before: Work, after: Work) -> TableFigure:
    """Every layer that became smaller; layers of other names in the two models are left out."""
    both = ((name, old, after.by_layer[name]) for name, old in before.by_layer.items() if name in after.by_layer)
    rows = [(name, old[0], new[0], round(old[1]), round(new[1])) for name, old, new in both if old != new]
    columns = ("layer", "parameters before", "after", "multiply-adds before", "after")
    return TableFigure(title="Layers that became smaller", columns=columns, rows=tuple(rows))
