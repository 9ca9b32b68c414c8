"""A module whose layers are not as wide as its code or its configuration builds them: how that is written down and put back.

The widths themselves are those of the weights. What cannot be read there, the numbers that modules keep about themselves, lies in
`shapes.json` beside them, as plain JSON:

    {"bert.encoder.layer.0.attention.self": {"num_attention_heads": 8, "all_head_size": 256}, "stem.0": {"out_channels": 16}}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ioptim.core.artifact import write_json
from ioptim.errors import StepError

if TYPE_CHECKING:
    import torch

FILE = "shapes.json"

Numbers = dict[str, dict[str, int | list[int]]]
"""By path of the module, then by attribute."""


def numbers(module: torch.nn.Module) -> Numbers:
    """Every whole number, and tuple of them, that the module and what is in it keep as attributes."""
    return {
        path: {name: list(value) if isinstance(value, tuple) else value for name, value in vars(child).items() if _is_plain(value)}
        for path, child in module.named_modules()
    }


def difference(before: Numbers, after: Numbers) -> Numbers:
    """What `after` says otherwise, or in addition."""
    changed = {
        path: {name: value for name, value in said.items() if before.get(path, {}).get(name) != value} for path, said in after.items()
    }
    return {path: said for path, said in changed.items() if said}


def read(path: Path) -> Numbers:
    """What `write` wrote.

    Raises:
        StepError: it is not there, or not of this form.
    """
    try:
        said = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise StepError(f"{path} cannot be read: {error}. Copy the model again") from error
    if not isinstance(said, dict) or not all(isinstance(changed, dict) for changed in said.values()):
        raise StepError(f"{path} is not a table of modules and their numbers. Copy the model again")
    return said


def write(changed: Numbers, path: Path) -> None:
    write_json(path, changed)


def reshape(module: torch.nn.Module, changed: Mapping[str, Mapping[str, Any]], weights: Path) -> None:
    """Give the module these numbers, and every tensor that has another shape in the file `weights` the one from there.

    Raises:
        StepError: a number is named that the module does not have.
    """
    from safetensors import safe_open

    modules = dict(module.named_modules())
    for path, said in changed.items():
        for name, value in said.items():
            old = vars(modules[path]).get(name) if path in modules else None
            if not _is_plain(old) or isinstance(old, tuple) != isinstance(value, list):
                raise StepError(f"{FILE} has the number {path}.{name}, which {type(module).__name__} does not have. Copy the model again")
            setattr(modules[path], name, tuple(value) if isinstance(value, list) else value)
    with safe_open(weights, "pt") as file:
        for name in file.keys():  # noqa: SIM118  (not a mapping)
            old = _tensor(modules, name)
            if old is not None and list(old.shape) != file.get_slice(name).get_shape():
                _replace(module, old, file.get_tensor(name))


def _is_plain(value: Any) -> bool:
    return type(value) is int or (isinstance(value, tuple) and bool(value) and all(type(each) is int for each in value))


def _tensor(modules: Mapping[str, torch.nn.Module], name: str) -> torch.Tensor | None:
    path, _, leaf = name.rpartition(".")
    owner = modules.get(path)
    found: torch.Tensor | None = getattr(owner, leaf, None) if owner is not None else None
    return found


def _replace(module: torch.nn.Module, old: torch.Tensor, new: torch.Tensor) -> None:
    """Wherever the module holds `old`: parameters may be shared."""
    import torch

    if isinstance(old, torch.nn.Parameter):
        new = torch.nn.Parameter(new.to(old.dtype), requires_grad=old.requires_grad)
    for child in module.modules():
        for held in (child._parameters, child._buffers):
            for name in [name for name, value in held.items() if value is old]:
                held[name] = new  # type: ignore[assignment]
