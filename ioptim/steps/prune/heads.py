"""Fewer attention heads: which there are, which go, and the layers without them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ioptim.errors import StepError
from ioptim.steps.prune.importance import Importance, Rows, gated, measure, reduced

if TYPE_CHECKING:
    import torch

_COUNTS = ("num_attention_heads", "n_heads", "num_heads")
_PROJECTIONS = (("query", "key", "value"), ("q_lin", "k_lin", "v_lin"), ("q_proj", "k_proj", "v_proj"), ("q", "k", "v"))
_OUT = ("output.dense", "out_lin", "out_proj", "o_proj", "o")
_WIDTHS = ("all_head_size", "dim", "inner_dim")
"""What modules call the width of all their heads together."""
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Attention:
    """The self-attention of one layer: `count` heads of `size` features each."""

    path: str
    module: Any
    projections: tuple[torch.nn.Linear, ...]
    out: torch.nn.Linear
    count: int
    size: int


def attentions(module: Any) -> list[Attention]:
    """Every self-attention with projections of its own, in order.

    Raises:
        StepError: there is none.
    """
    modules = dict(module.named_modules())
    found = [one for path, child in modules.items() if (one := _attention(path, child, modules)) is not None]
    if not found:
        text = "no attention whose heads are known (linear layers query, key, value and an output)"
        raise StepError(f"{type(module).__name__} has {text}; leave heads out")
    return found


def _attention(path: str, child: Any, modules: Mapping[str, Any]) -> Attention | None:
    count = next((vars(child)[name] for name in _COUNTS if isinstance(vars(child).get(name), int)), None)
    names = next((names for names in _PROJECTIONS if all(hasattr(child, name) for name in names)), None)
    if count is None or names is None:
        return None
    projections = tuple(getattr(child, name) for name in names)
    around = (path, path.rpartition(".")[0])
    outs = (modules[f"{where}.{name}"] for where in around for name in _OUT if f"{where}.{name}" in modules)
    out = next((out for out in outs if getattr(out, "in_features", None) == projections[2].out_features), None)
    if out is None or len({projection.out_features for projection in projections}) > 1:
        return None
    return Attention(path, child, projections, out, count, out.in_features // count)


def scores(found: Sequence[Attention], kind: Importance, module: Any, rows: Rows) -> list[torch.Tensor]:
    """Of each attention, a value for each head. (heads,) each.

    `magnitude` is the product of the norms of the weights into a head's values and out of them.
    """
    if kind is Importance.MAGNITUDE:
        return [
            one.projections[2].weight.detach().unflatten(0, (one.count, -1)).flatten(1).norm(dim=1)
            * one.out.weight.detach().unflatten(1, (one.count, -1)).transpose(0, 1).flatten(1).norm(dim=1)
            for one in found
        ]
    measured = measure(kind, module, {one.path: one.out for one in found}, rows)
    return [reduced(kind, measured[one.path].unflatten(1, (one.count, -1)).sum(2)) for one in found]


def chosen(found: Sequence[Attention], values: Sequence[torch.Tensor], keep: int, everywhere: bool, comparable: bool) -> list[list[int]]:
    """Heads that stay, by attention: `keep` in each, or that many on average, at least one in each.

    Args:
        comparable: whether values of two layers can be compared as they are; else each is divided by its layer's mean.

    Raises:
        StepError: none would go.
    """
    import torch

    most = max(one.count for one in found)
    if keep >= most:
        raise StepError(f"heads is {keep}; the model has {most} in each layer, so none would go")
    if not everywhere:
        return [value.topk(min(keep, len(value))).indices.sort().values.tolist() for value in values]
    scaled = [value.clone() if comparable else value / value.mean() for value in values]
    best = [int(value.argmax()) for value in scaled]
    for value, place in zip(scaled, best, strict=True):
        value[place] = torch.inf
    limit = torch.cat(scaled).topk(min(keep * len(found), sum(one.count for one in found))).values[-1]
    return [[head for head in range(len(value)) if value[head] >= limit] for value in scaled]


def cut(module: Any, found: Sequence[Attention], kept: Sequence[Sequence[int]], trial: Mapping[str, torch.Tensor]) -> None:
    """Take the other heads out of the module, and check that it answers as if they had said nothing.

    Raises:
        StepError: it does not, so its code counts on all heads.
    """
    import torch

    places = {one.path: [h * one.size + i for h in heads for i in range(one.size)] for one, heads in zip(found, kept, strict=True)}
    closed = {one.path: sorted(set(range(one.out.in_features)) - set(places[one.path])) for one in found}
    with torch.no_grad(), gated({one.path: one.out for one in found}, closed):
        wanted = module(**trial)[0]
    for one, heads in zip(found, kept, strict=True):
        _narrow(one, places[one.path], len(heads))
    try:
        with torch.no_grad():
            difference = float((module(**trial)[0] - wanted).abs().max() / wanted.abs().max())
    except RuntimeError as error:
        raise StepError(f"{type(found[0].module).__name__} counts on all its heads and cannot lose one: {error}") from error
    if not difference <= TOLERANCE:
        text = f"without the heads an output differs by {difference:.2g} of its largest value from one with the heads silent"
        raise StepError(f"{text}; {type(found[0].module).__name__} is not built as this step expects")


def _narrow(one: Attention, places: Sequence[int], heads: int) -> None:
    import torch

    index = torch.tensor(places)
    for projection in one.projections:
        projection.weight = torch.nn.Parameter(projection.weight.detach()[index])
        if projection.bias is not None:
            projection.bias = torch.nn.Parameter(projection.bias.detach()[index])
        projection.out_features = len(places)
    one.out.weight = torch.nn.Parameter(one.out.weight.detach()[:, index])
    one.out.in_features = len(places)
    for name, value in [(name, heads) for name in _COUNTS] + [(name, len(places)) for name in _WIDTHS]:
        if name in vars(one.module):
            setattr(one.module, name, value)
