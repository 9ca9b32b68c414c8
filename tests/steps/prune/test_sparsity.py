"""Weights become zero where asked, the shapes stay, and what it is worth is said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from ioptim.core.artifact import ModelArtifact
from ioptim.core.step import Level
from ioptim.errors import StepError
from ioptim.steps.prune import Prune

Own = Callable[..., ModelArtifact]
Run = Callable[..., tuple[Any, ModelArtifact]]


def weights(model: ModelArtifact) -> dict[str, Any]:
    from ioptim.torch_model import load_module

    return {name.removesuffix(".weight"): p.detach() for name, p in load_module(model).named_parameters() if name.endswith("weight")}


@pytest.mark.integration
@pytest.mark.parametrize("importance", ["magnitude", "activation"])
def test_two_of_every_four_input_channels_stay(own: Own, prune: Run, importance: str) -> None:
    outcome, model = prune(own(), sparsity={"pattern": "2:4", "exclude": ["head"]}, importance=importance)
    found = weights(model)
    runs = (found["block.conv1"] != 0).view(16, 4, 4, 3, 3).sum(2)
    assert (runs == 2).all() and ((found["classifier"] != 0).view(10, 6, 4).sum(2) == 2).all()
    assert (found["head"] != 0).all() and (found["stem"] != 0).all()
    assert outcome.metrics["sparsity"] == pytest.approx(0.5) and outcome.metrics["parameters_ratio"] == 1
    assert outcome.metrics["compressed_size_ratio"] < 0.95
    said = [note.text for note in outcome.notes]
    text = "sparsity: 50% of the weights of 5 layers are zero; the runtimes multiply by them as before, the file compresses to "
    assert said[0].startswith(text)
    assert outcome.notes[0].level is Level.WARNING
    assert said[1] == "sparsity: 2 layers have inputs that 2:4 does not divide and stay whole: stem, depthwise"


@pytest.mark.integration
def test_the_least_of_each_row_go(own: Own, prune: Run) -> None:
    source = own()
    _, model = prune(source, sparsity={"ratio": 0.25}, importance="magnitude")
    before, after = weights(source)["classifier"], weights(model)["classifier"]
    assert ((after == 0).sum(1) == 6).all()
    for old, new in zip(before, after, strict=True):
        assert old[new == 0].abs().max() < old[new != 0].abs().min()
        assert (new[new != 0] == old[new != 0]).all()


@pytest.mark.integration
def test_a_loud_input_keeps_its_small_weights(own: Own, prune: Run) -> None:
    def change(module: Any) -> None:
        module.head.bias[3] = 1e4  # the classifier's fourth input
        module.classifier.weight[:, 3] *= 1e-2

    source = own(change=change)
    _, by_magnitude = prune(source, sparsity={"ratio": 0.5}, importance="magnitude")
    _, by_activation = prune(source, sparsity={"ratio": 0.5})
    assert (weights(by_magnitude)["classifier"][:, 3] == 0).all()
    assert (weights(by_activation)["classifier"][:, 3] != 0).all()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"sparsity": {}}, "sparsity takes `ratio` or `pattern`, one of the two"),
        ({"sparsity": {"ratio": 0.5, "pattern": "2:4"}}, "sparsity takes `ratio` or `pattern`, one of the two"),
        ({"sparsity": {"pattern": "4:2"}}, "the pattern '4:2' is not N:M with 0 < N < M, for example 2:4"),
        (
            {"sparsity": {"ratio": 0.5}, "importance": "taylor"},
            "`importance: taylor` is of channels, heads and neurons; for `sparsity` use activation or magnitude",
        ),
    ],
)
def test_bad_fields(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Prune.model_validate(fields)
    assert says in str(caught.value)


@pytest.mark.integration
def test_a_pattern_that_fits_nowhere(own: Own, prune: Run) -> None:
    with pytest.raises(StepError) as caught:
        prune(own("detached"), sparsity={"pattern": "1:7"})
    assert str(caught.value) == "sparsity: no layer has inputs in runs of 1:7; nothing was set to zero"
