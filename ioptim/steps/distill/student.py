"""A smaller transformer made from a larger one: fewer layers, narrower feed-forward, its weights taken over where they fit."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ioptim.errors import StepError

if TYPE_CHECKING:
    import torch

_LAYER = re.compile(r"^(.*\.(?:layers?|h|block)\.)(\d+)(\..*)$")
_WIDTHS = ("intermediate_size", "hidden_dim", "ffn_dim", "d_ff")
"""What configurations call the width of the feed-forward; the first that is there."""


def spread(count: int, total: int) -> tuple[int, ...]:
    """`count` of `total` layers, evenly, the first and the last among them (of one: the first)."""
    return tuple(round(i * (total - 1) / max(1, count - 1)) for i in range(count))


def width_name(config: Any) -> str:
    """What this configuration calls the width of its feed-forward.

    Raises:
        StepError: none of the known names is there.
    """
    found = next((name for name in _WIDTHS if isinstance(getattr(config, name, None), int)), None)
    if found is None:
        raise StepError(f"{type(config).__name__} has no feed-forward width that is known ({', '.join(_WIDTHS)}); leave feed_forward out")
    return found


def make_student(teacher: torch.nn.Module, layers: Sequence[int], feed_forward: int | None) -> torch.nn.Module:
    """A module of the teacher's class with the teacher's weights: these of its layers, and of each the strongest neurons.

    Raises:
        StepError: a layer that is not there, a width above the teacher's, no layer left out and nothing narrower.
    """
    config: Any = copy.deepcopy(teacher.config)
    total = config.num_hidden_layers
    if wrong := [i for i in layers if not 0 <= i < total]:
        raise StepError(f"student.layers names {wrong}; the teacher's layers are 0 to {total - 1}")
    name = width_name(config) if feed_forward is not None else ""
    width = getattr(config, name) if name else None
    if feed_forward is not None and width is not None and feed_forward > width:
        raise StepError(f"student.feed_forward is {feed_forward}; the teacher's is {width}: a student cannot be larger")
    if len(layers) == total and feed_forward in (None, width):
        raise StepError(f"the student would be as large as its teacher ({total} layers); name fewer layers or a narrower feed_forward")
    config.num_hidden_layers = len(layers)
    if feed_forward is not None:
        setattr(config, name, feed_forward)
    student = type(teacher)(config)
    state = _taken_over(teacher.state_dict(), layers)
    if feed_forward is not None and width is not None and feed_forward < width:
        _narrow(state, student.state_dict(), width, feed_forward)
    missing, unexpected = student.load_state_dict(state, strict=False)
    if missing or unexpected:
        raise StepError(f"the student's weights do not follow from the teacher's: missing {missing[:3]}, left over {unexpected[:3]}")
    return student


def _taken_over(state: dict[str, torch.Tensor], layers: Sequence[int]) -> dict[str, torch.Tensor]:
    """The teacher's tensors under the student's names."""
    found = {}
    for name, value in state.items():
        match = _LAYER.match(name)
        if match is None:
            found[name] = value
        for place, layer in enumerate(layers):
            if match is not None and int(match[2]) == layer:
                found[f"{match[1]}{place}{match[3]}"] = value
    return found


def _narrow(state: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], width: int, kept: int) -> None:
    """Keep, of each layer, the neurons whose weights in and out are largest (product of their norms)."""
    import torch

    by_layer: dict[str, list[str]] = {}
    for name, value in state.items():
        match = _LAYER.match(name)
        if match and tuple(value.shape) != tuple(wanted[name].shape):
            by_layer.setdefault(f"{match[1]}{match[2]}", []).append(name)
    for names in by_layer.values():
        strength = torch.ones(width)
        for name in names:
            value = state[name].float()
            if value.ndim == 2:
                strength = strength * value.norm(dim=1 if value.shape[0] == width else 0)
        chosen = strength.topk(kept).indices.sort().values
        for name in names:
            axis = 0 if state[name].shape[0] == width else 1
            state[name] = state[name].index_select(axis, chosen)
