"""A narrower module is written down as numbers and put back from them, or it is said what does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ioptim import torch_shapes
from ioptim.errors import StepError

pytestmark = pytest.mark.integration


def module() -> Any:
    import torch

    return torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.LayerNorm(6), torch.nn.Linear(6, 2))


def narrowed() -> Any:
    import torch

    return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.LayerNorm(3), torch.nn.Linear(3, 2))


def test_what_changed_is_put_back(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_model, save_model

    small = narrowed()
    changed = torch_shapes.difference(torch_shapes.numbers(module()), torch_shapes.numbers(small))
    assert changed == {"0": {"out_features": 3}, "1": {"normalized_shape": [3]}, "2": {"in_features": 3}}
    save_model(small, str(tmp_path / "model.safetensors"))
    torch_shapes.write(changed, tmp_path / torch_shapes.FILE)
    again = module()
    torch_shapes.reshape(again, torch_shapes.read(tmp_path / torch_shapes.FILE), tmp_path / "model.safetensors")
    assert load_model(again, tmp_path / "model.safetensors") == (set(), [])
    assert torch.equal(again(torch.ones(1, 4)), small(torch.ones(1, 4))) and again[1].normalized_shape == (3,)


def test_shared_parameters_stay_shared(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_model

    both, small = (torch.nn.ModuleDict({name: torch.nn.Linear(width, width) for name in "ab"}) for width in (6, 3))
    for modules in (both, small):
        modules["b"].weight = modules["a"].weight
    save_model(small, str(tmp_path / "model.safetensors"))
    torch_shapes.reshape(both, {}, tmp_path / "model.safetensors")
    assert both["a"].weight is both["b"].weight and both["a"].weight.shape == (3, 3)


@pytest.mark.parametrize(
    "changed", [{"5": {"out_features": 3}}, {"0": {"heads": 3}}, {"0": {"training": 1}}, {"1": {"normalized_shape": 3}}]
)
def test_numbers_of_another_module(tmp_path: Path, changed: dict[str, Any]) -> None:
    path, said = next(iter(changed.items()))
    with pytest.raises(StepError) as caught:
        torch_shapes.reshape(module(), changed, tmp_path / "none")
    place = f"{path}.{next(iter(said))}"
    assert str(caught.value) == f"shapes.json has the number {place}, which Sequential does not have. Copy the model again"


def test_a_file_of_another_form(tmp_path: Path) -> None:
    (tmp_path / "shapes.json").write_text(json.dumps([1]))
    with pytest.raises(StepError, match="shapes.json is not a table of modules and their numbers"):
        torch_shapes.read(tmp_path / "shapes.json")
    with pytest.raises(StepError, match=r"shapes.json cannot be read: .*No such file"):
        torch_shapes.read(tmp_path / "absent" / "shapes.json")
