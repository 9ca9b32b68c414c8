"""A smaller transformer cut out of a larger one: fewer layers, narrower feed-forward, fewer words. Every kept weight is taken over."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from ioptim.core.outline import LAYER, WIDTHS
from ioptim.errors import StepError

if TYPE_CHECKING:
    import torch

Key = TypeVar("Key")


def spread(count: int, total: int) -> tuple[int, ...]:
    """`count` of `total` layers, evenly, the first and the last among them (of one: the first)."""
    return tuple(round(i * (total - 1) / max(1, count - 1)) for i in range(count))


def width_name(config: Any) -> str:
    """What this configuration calls the width of its feed-forward.

    Raises:
        StepError: none of the known names is there.
    """
    found = next((name for name in WIDTHS if isinstance(getattr(config, name, None), int)), None)
    if found is None:
        raise StepError(f"{type(config).__name__} has no feed-forward width that is known ({', '.join(WIDTHS)}); leave feed_forward out")
    return found


def cut(
    module: torch.nn.Module, layers: Sequence[int], feed_forward: int | None, importance: Mapping[int, torch.Tensor] | None = None
) -> torch.nn.Module:
    """A module of the same class with the same weights: these of its layers, and of each the neurons that matter most.

    `importance`: a value per neuron, by layer of `module`; the product of the norms of a neuron's weights in and out when left out.

    Raises:
        StepError: a layer that is not there, a larger width, no layer left out and nothing narrower.
    """
    config: Any = copy.deepcopy(module.config)
    total = config.num_hidden_layers
    if len(set(layers)) < len(layers):
        raise StepError(f"layers {list(layers)} names a layer twice")
    if wrong := [i for i in layers if not 0 <= i < total]:
        raise StepError(f"layers {wrong} were named; the model's are 0 to {total - 1}")
    name = width_name(config) if feed_forward is not None else ""
    width = getattr(config, name) if name else None
    if feed_forward is not None and width is not None and feed_forward > width:
        raise StepError(f"feed_forward is {feed_forward}; the model's is {width} and cannot grow")
    if len(layers) == total and feed_forward in (None, width):
        raise StepError(f"nothing would become smaller ({total} layers); name fewer layers or a narrower feed_forward")
    kinds = getattr(config, "layer_types", None)
    config.num_hidden_layers = len(layers)
    if kinds and len(kinds) == total:
        config.layer_types = [kinds[i] for i in layers]
    if feed_forward is not None:
        setattr(config, name, feed_forward)
    smaller = type(module)(config)  # type: ignore[call-arg]
    state = _taken_over(module.state_dict(), layers)
    if feed_forward is not None and width is not None and feed_forward < width:
        if importance is not None and (without := [layer for layer in layers if layer not in importance]):
            raise StepError(f"{type(module).__name__} has no feed-forward that is known in its layers {without}; leave feed_forward out")
        by_place = {place: importance[layer] for place, layer in enumerate(layers)} if importance else {}
        _narrow(state, smaller.state_dict(), width, feed_forward, by_place)
    try:
        missing, unexpected = smaller.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise StepError(f"{type(module).__name__} is not built as this step expects: {' '.join(str(error).split())[:200]}") from error
    if missing or unexpected:
        raise StepError(f"the smaller model's weights do not follow from the larger's: missing {missing[:3]}, left over {unexpected[:3]}")
    return smaller.eval()


def _taken_over(state: dict[str, torch.Tensor], layers: Sequence[int]) -> dict[str, torch.Tensor]:
    """The tensors under the smaller model's names."""
    found = {}
    for name, value in state.items():
        match = LAYER.match(name)
        if match is None:
            found[name] = value
        for place, layer in enumerate(layers):
            if match is not None and int(match[2]) == layer:
                found[f"{match[1]}{place}{match[3]}"] = value
    return found


def _narrow(
    state: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], width: int, kept: int, importance: Mapping[int, torch.Tensor]
) -> None:
    """Keep, of each layer, the neurons that matter most."""
    by_layer: dict[str, list[str]] = {}
    for name, value in state.items():
        match = LAYER.match(name)
        if match and name in wanted and tuple(value.shape) != tuple(wanted[name].shape):
            if sum(a != b for a, b in zip(value.shape, wanted[name].shape, strict=True)) != 1 or width not in value.shape:
                raise StepError(f"{name} has the shape {tuple(value.shape)}, which is no plain feed-forward of {width} neurons")
            by_layer.setdefault(f"{match[1]}{match[2]}", []).append(name)
    for layer, names in by_layer.items():
        place = int(layer.rpartition(".")[2])
        strength = importance[place] if place in importance else _magnitude([state[name] for name in names], width)
        chosen = strength.topk(kept).indices.sort().values
        for name in names:
            axis = next(i for i, (a, b) in enumerate(zip(state[name].shape, wanted[name].shape, strict=True)) if a != b)
            state[name] = state[name].index_select(axis, chosen)


def sizes(module: Any) -> dict[str, int]:
    """Parameters, layers, neurons of a feed-forward, words."""
    config = module.config
    width = next((getattr(config, name) for name in WIDTHS if isinstance(getattr(config, name, None), int)), 0)
    return {
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "layers": config.num_hidden_layers,
        "feed_forward": width,
        "vocabulary": getattr(config, "vocab_size", 0),
    }


def _magnitude(values: Sequence[torch.Tensor], width: int) -> torch.Tensor:
    """Product, over the matrices that touch a neuron, of the norm of its weights. (neurons,)."""
    import torch

    strength = torch.ones(width)
    for value in values:
        if value.ndim == 2:
            strength = strength * value.float().norm(dim=1 if value.shape[0] == width else 0)
    return strength


def feed_forwards(module: Any) -> dict[int, torch.nn.Linear]:
    """The matrix that each layer's feed-forward ends with, by layer: its inputs are the neurons."""
    import torch

    width = getattr(module.config, width_name(module.config))
    named = ((LAYER.match(f"{name}."), child) for name, child in module.named_modules() if isinstance(child, torch.nn.Linear))
    return {int(match[2]): child for match, child in named if match and child.in_features == width != child.out_features}


def activation_importance(module: Any, batches: Sequence[Mapping[str, Any]]) -> dict[int, torch.Tensor]:
    """`said` of the neurons of each feed-forward, by layer: (neurons,) each."""
    return said(module, feed_forwards(module), batches)


def said(module: Any, layers: Mapping[Key, Any], batches: Sequence[Mapping[str, Any]]) -> dict[Key, torch.Tensor]:
    """Mean of |an input of a layer| times the norm of its weights: what would be missing without it on these inputs. (inputs,) each.

    Inputs are features of a linear layer, channels of a convolution.

    Source: Sun et al., A Simple and Effective Pruning Approach (Wanda, arXiv:2306.11695), summed over an input's outgoing weights.
    """
    norms = {key: weight_norm(layer) for key, layer in layers.items()}
    return over_inputs(module, layers, batches, lambda key, value: value.abs().mean(0) * norms[key])


def over_inputs(
    module: Any, layers: Mapping[Key, Any], batches: Sequence[Mapping[str, Any]], of: Callable[[Key, torch.Tensor], torch.Tensor]
) -> dict[Key, torch.Tensor]:
    """Sums, over the batches, of what `of` makes of a layer's input: (positions, inputs), without gradients. A layer that never runs is not
    in it."""
    import torch

    found: dict[Key, torch.Tensor] = {}

    def watched(layer: Any, inputs: tuple[torch.Tensor, ...], key: Key) -> None:
        value = inputs[0].detach().movedim(channel_axis(layer, inputs[0]), -1).flatten(0, -2)
        found[key] = found.get(key, torch.zeros(())) + of(key, value)

    hooks = [layer.register_forward_pre_hook(partial(watched, key=key)) for key, layer in layers.items()]
    try:
        with torch.no_grad():
            for feeds in batches:
                module(**feeds)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def channel_axis(layer: Any, value: torch.Tensor) -> int:
    """The axis of a layer's input or output that holds features or channels: the last of a linear layer, the second of a convolution."""
    return 1 if hasattr(layer, "kernel_size") else value.ndim - 1


def weight_norm(layer: Any) -> torch.Tensor:
    """Norm of all weights that an input of a linear layer or a convolution (grouped, transposed) is multiplied by. (inputs,)."""
    weight = layer.weight.detach().float()
    if getattr(layer, "transposed", False):  # (inputs, outputs / groups, ...)
        norms: torch.Tensor = weight.flatten(1).norm(dim=1)
        return norms
    by_group = weight.unflatten(0, (getattr(layer, "groups", 1), -1)).transpose(1, 2)  # (groups, inputs / groups, outputs / groups, ...)
    return by_group.flatten(2).norm(dim=2).flatten()


def layer_influence(module: Any, batches: Sequence[Mapping[str, Any]]) -> list[float]:
    """1 - mean cosine of the tokens' vectors before and after each layer: how much it changes them.

    Source: Men et al., ShortGPT (arXiv:2403.03853), block influence.
    """
    import torch
    from torch.nn import functional

    totals = [0.0] * module.config.num_hidden_layers
    with torch.no_grad():
        for feeds in batches:
            states = module(**feeds, output_hidden_states=True).hidden_states
            for layer in range(len(totals)):
                totals[layer] += 1 - float(functional.cosine_similarity(states[layer], states[layer + 1], dim=-1).mean())
    return [total / len(batches) for total in totals]


def keep_words(module: Any, kept: Sequence[int]) -> Any:
    """The same module with these rows of its word embeddings, in this order; ids in its configuration follow."""
    import torch

    old = module.get_input_embeddings()
    new = torch.nn.Embedding(len(kept), old.embedding_dim)
    new.weight.data.copy_(old.weight.data[torch.tensor(kept)])
    places = {before: after for after, before in enumerate(kept)}
    new.padding_idx = places.get(old.padding_idx) if old.padding_idx is not None else None
    module.set_input_embeddings(new)
    module.config.vocab_size = len(kept)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "mask_token_id", "unk_token_id"):
        said = getattr(module.config, name, None)
        if isinstance(said, int):
            setattr(module.config, name, places.get(said))
    return module
