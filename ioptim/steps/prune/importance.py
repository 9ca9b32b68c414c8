"""How much the inputs of a layer matter, measured on rows: channels of a convolution, neurons and heads of a linear layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from ioptim.errors import StepError
from ioptim.shrink import Key, channel_axis, said

if TYPE_CHECKING:
    import torch

    from ioptim.core.artifact import ModelArtifact
    from ioptim.core.step import Context

    Feeds = Mapping[str, torch.Tensor]


class Importance(StrEnum):
    """By what the parts that stay are chosen.

    `activation`: mean of |input| times the norm of the weights it meets; needs rows, no labels.
    `taylor`: the squared change of the loss when the part is gone, to first order, averaged over rows. The loss is the cross entropy
    of the rows' labels; without a column `label` it is the outputs along a random direction, whose mean square is their own change.
    `magnitude`: norms of the weights alone.

    Source of `taylor`: Molchanov et al., Importance Estimation for Neural Network Pruning (arXiv:1906.10771), with gates on activations.
    """

    ACTIVATION = "activation"
    TAYLOR = "taylor"
    MAGNITUDE = "magnitude"


@dataclass(frozen=True)
class Rows:
    """Training rows as the module takes them, each a batch of one, and what their loss is."""

    feeds: Sequence[Feeds]
    loss: Callable[[Any, int], torch.Tensor]
    """Of what the module returned for the row of this number."""

    @classmethod
    def of(cls, ctx: Context, model: ModelArtifact, limit: int, kind: Importance) -> Rows:
        """The first `limit` rows of data.training; their labels are read only where the importance needs them."""
        import torch

        from ioptim.torch_model import named_outputs

        table = ctx.table("training")
        examples = [example for example, _ in zip(ctx.task.examples(table, model), range(limit), strict=False)]
        feeds = [{name: torch.from_numpy(array) for name, array in example.items()} for example in examples]
        labelled = kind is Importance.TAYLOR and "label" in table.columns and ctx.task.output == "logits"
        labels = ctx.task.class_ids(table, model) if labelled else None
        draw = torch.Generator().manual_seed(ctx.seed)

        def loss(result: Any, row: int) -> torch.Tensor:
            found = named_outputs(result, model.outputs)
            if labels is not None and "logits" in found:
                return torch.nn.functional.cross_entropy(found["logits"].float(), torch.tensor(labels[row : row + 1]))
            along = [(value.float() * torch.randn(value.shape, generator=draw)).sum() for value in found.values()]
            return torch.stack(along).sum()

        return cls(feeds, loss)


def measure(kind: Importance, module: Any, layers: Mapping[Key, Any], rows: Rows) -> dict[Key, torch.Tensor]:
    """By layer, (samples, inputs): for `activation` one sample, for `taylor` one for each row, of which `reduced` takes the square.

    An input that feeds several layers is to be added up over them before that.
    """
    if kind is Importance.ACTIVATION:
        return {key: value[None] for key, value in said(module, layers, rows.feeds).items()}
    return _taylor(module, layers, rows)


def reduced(kind: Importance, samples: torch.Tensor) -> torch.Tensor:
    """(samples, parts) as one value for each part."""
    return (samples**2 if kind is Importance.TAYLOR else samples).mean(0)


def share(values: torch.Tensor, kept: Any) -> float | None:
    """Part of all importance that these places have; None where nothing matters."""
    total = float(values.sum())
    return round(float(values[kept].sum()) / total, 4) if total else None


def _taylor(module: Any, layers: Mapping[Key, Any], rows: Rows) -> dict[Key, torch.Tensor]:
    """Derivative of each row's loss by a gate of 1 on each input: the loss minus this is the loss without the input, to first order."""
    import torch

    found: dict[Key, list[torch.Tensor]] = {key: [] for key in layers}
    for row, feeds in enumerate(rows.feeds):
        with gated(layers) as gates:
            loss = rows.loss(module(**feeds), row)
            gradients = torch.autograd.grad(loss, list(gates.values()), allow_unused=True)
        for key, gradient in zip(gates, gradients, strict=True):
            if gradient is not None:
                found[key].append(gradient)
    if silent := [str(key) for key, values in found.items() if len(values) < len(rows.feeds)]:
        raise StepError(f"importance taylor: no gradient reaches {', '.join(silent[:4])}; use activation or magnitude")
    return {key: torch.stack(values) for key, values in found.items()}


@contextmanager
def gated(layers: Mapping[Key, Any], closed: Mapping[Key, Sequence[int]] | None = None) -> Iterator[dict[Key, torch.Tensor]]:
    """While it is open, every input of these layers is multiplied by a gate of its own: 1, and 0 at the places of `closed`. (inputs,)."""
    import torch

    gates: dict[Key, torch.Tensor] = {}
    hooks = []
    for key, layer in layers.items():
        width = getattr(layer, "in_channels", None) or layer.in_features
        gate = torch.ones(width)
        gate[list((closed or {}).get(key, ()))] = 0
        gates[key] = gate.requires_grad_()

        def multiply(layer: Any, inputs: tuple[torch.Tensor, ...], gate: torch.Tensor = gate) -> tuple[torch.Tensor, ...]:
            shape = [1] * inputs[0].ndim
            shape[channel_axis(layer, inputs[0])] = -1
            return (inputs[0] * gate.view(shape), *inputs[1:])

        hooks.append(layer.register_forward_pre_hook(multiply))
    try:
        yield gates
    finally:
        for hook in hooks:
            hook.remove()
