"""Channels that go are gone from every layer they were in, and what is left answers as if they had said nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ioptim.core.artifact import Format, ModelArtifact, verify
from ioptim.core.runtime import Target
from ioptim.core.step import Where
from ioptim.errors import StepError
from ioptim.runtimes.onnxruntime import OnnxRuntime
from ioptim.steps.prune import Prune
from ioptim.steps.prune.channels import Channels, Group, chosen, joined, vector_width
from ioptim.tasks.image_classification import ImageClassification
from tests.steps.conftest import HARDWARE

Own = Callable[..., ModelArtifact]
Run = Callable[..., tuple[Any, ModelArtifact]]
HALF = {"pruning_ratio": 0.5, "recalibrate": False}

ROOT = Path(__file__).parents[3]
ALONE = """
import sys
from pathlib import Path
import numpy as np
from ioptim.core.artifact import open_artifact
from ioptim.torch_model import call, load_module
model = open_artifact(Path(sys.argv[1]))
outputs = call(load_module(model), {"image": np.ones((2, 1, 8, 8), np.float32)}, model.outputs)
assert not [name for name in sys.modules if name.startswith(("ioptim.steps", "torch_pruning"))]
print(outputs["logits"].tolist())
"""


def answers(model: ModelArtifact) -> Any:
    import numpy as np

    from ioptim.torch_model import call, load_module

    return call(load_module(model), {"image": np.ones((2, 1, 8, 8), np.float32)}, model.outputs)["logits"]


def widths(model: ModelArtifact) -> dict[str, tuple[int, ...]]:
    from ioptim.torch_model import load_module

    return {name: tuple(p.shape[:2]) for name, p in load_module(model).named_parameters() if name.endswith("weight") and p.ndim > 1}


def table(outcome: Any, title: str) -> dict[str, tuple[Any, ...]]:
    return {row[0]: row[1:] for each in outcome.tables if each.title == title for row in each.rows}


@pytest.mark.integration
def test_half_the_channels_go_everywhere(own: Own, prune: Run) -> None:
    source = own()
    outcome, model = prune(source, channels=HALF)
    assert widths(model) == {
        "stem.weight": (8, 1),
        "block.conv1.weight": (8, 8),
        "block.conv2.weight": (8, 8),
        "depthwise.weight": (8, 1),
        "branch.weight": (8, 8),
        "merge.weight": (8, 16),
        "head.weight": (12, 8 * 4 * 4),
        "classifier.weight": (10, 12),
    }
    removed = table(outcome, "What was removed")
    assert removed["stem + block.conv2 + depthwise"][:3] == ("channels", 16, 8)
    assert set(removed) == {"stem + block.conv2 + depthwise", "block.conv1", "branch", "merge", "head"}
    assert table(outcome, "Layers that became smaller")["classifier"] == (250, 130, 240, 120)
    before = 64 * (9 * (16 + 2 * 256 + 16) + 256 + 512) + 256 * 24 + 240
    after = 64 * (9 * (8 + 2 * 64 + 8) + 64 + 128) + 128 * 12 + 120
    assert table(outcome, "What is left")["multiply-adds of a row"] == (before, after)
    assert outcome.metrics["parameters"] == sum(p.numel() for p in _parameters(model))
    assert outcome.facts["importance"] == "activation"
    assert outcome.notes[-1].text == "channels: the answers changed and nothing was trained yet; `distill` with `teacher: source` does it"
    assert verify(source) == []


def _parameters(model: ModelArtifact) -> Any:
    from ioptim.torch_model import load_module

    return load_module(model).parameters()


@pytest.mark.integration
def test_it_loads_in_another_process_without_the_step(own: Own, prune: Run) -> None:
    _, model = prune(own(), channels=HALF)
    said = json.loads((model.path / "shapes.json").read_text())
    assert said["block.norm1"] == {"num_features": 8} and said["branch"] == {"in_channels": 8, "out_channels": 8}
    assert "shapes.json" in model.assets and "shapes.json" in model.files
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, "-c", ALONE, str(model.path)], env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    for there, here in zip(json.loads(ran.stdout), answers(model).tolist(), strict=True):
        assert there == pytest.approx(here, abs=1e-5)
    assert verify(model.model_copy(update={"assets": ()})) == []


@pytest.mark.integration
@pytest.mark.parametrize("importance", ["activation", "taylor", "magnitude"])
def test_channels_that_say_nothing_are_those_that_go(own: Own, prune: Run, importance: str) -> None:
    import torch

    def silence(module: Any) -> None:
        for layer in (module.block.conv1, module.block.norm1):
            layer.weight[2:10] = 0
            layer.bias[2:10] = 0

    source = own(change=silence)
    outcome, model = prune(source, channels={"pruning_ratio": {"block.conv1": 0.5}, "recalibrate": False}, importance=importance)
    assert torch.allclose(answers(model), answers(source), atol=1e-5)
    assert widths(model)["block.conv1.weight"] == (8, 16) and widths(model)["stem.weight"] == (16, 1)
    assert outcome.notes[0].text == (
        "channels: 4 of 5 groups of layers stay whole (ratio and round_to): stem, branch, merge, head"
    )


@pytest.mark.integration
@pytest.mark.parametrize(("rows", "sizes"), [(1, []), (2, [2]), (64, [64]), (65, [33, 32]), (129, [43, 43, 43])])
def test_statistics_are_of_batches_of_like_size(rows: int, sizes: list[int]) -> None:
    import torch

    other = {"image": torch.zeros(1, 1, 4, 4)}
    batches = list(joined([*({"image": torch.zeros(1, 1, 8, 8)} for _ in range(rows)), other]))
    assert [len(batch["image"]) for batch in batches] == sizes


def group(name: str, width: int, parts: int = 1) -> Group:
    return Group(name=name, layers=(name,), width=width, parts=parts, normalized=False, readers={}, root=None)


@pytest.mark.integration
def test_global_takes_first_what_matters_least_for_its_cost() -> None:
    import torch

    groups, values = (group("dear", 8), group("cheap", 8)), {"dear": torch.arange(8.0) + 5, "cheap": torch.arange(8.0) + 1}
    wanted = Channels(pruning_ratio=0.25, scope="global")
    costs = {"dear": 100.0, "cheap": 1.0}
    assert chosen(groups, values, wanted, costs, comparable=True) == {"dear": [0, 1, 2, 3]}
    beside_their_mean = chosen(groups, values, wanted, costs, comparable=False)
    assert beside_their_mean == {"dear": [0], "cheap": [0, 1, 2]}
    most = chosen(groups, values, wanted.model_copy(update={"pruning_ratio": 0.5, "round_to": 2}), costs, comparable=True)
    assert most == {"dear": [0, 1, 2, 3, 4, 5]}, "a multiple of round_to stays"


@pytest.mark.integration
def test_what_nothing_was_asked_of_stays_whole_whatever_round_to_is() -> None:
    import torch

    groups, values = (group("conv1", 32), group("fc2", 84)), {"conv1": torch.arange(32.0), "fc2": torch.arange(84.0) + 1}
    named = Channels(pruning_ratio={"conv1": 0.5}, round_to=16)
    assert chosen(groups, values, named, {}, comparable=False) == {"conv1": list(range(16))}
    everywhere = Channels(pruning_ratio=0.25, scope="global", round_to=16)
    assert chosen(groups, values, everywhere, {"conv1": 100.0, "fc2": 1e-3}, comparable=True) == {"conv1": list(range(16))}


@pytest.mark.integration
def test_round_to_and_exclude(own: Own, prune: Run) -> None:
    source = own()
    _, model = prune(source, channels={"pruning_ratio": 0.4, "round_to": 8, "exclude": ["block"], "recalibrate": False})
    shapes = widths(model)
    assert shapes["stem.weight"] == (16, 1), "coupled with a layer that is excluded"
    assert shapes["branch.weight"] == (8, 16) and shapes["head.weight"][0] == 16


@pytest.mark.integration
def test_normalizations_are_measured_anew(own: Own, prune: Run) -> None:
    import torch

    from ioptim.torch_model import load_module

    outcome, model = prune(own(), channels={"pruning_ratio": 0.5})
    module: Any = load_module(model)
    draw = [torch.from_numpy(feed["image"]) for feed in _rows(model)]
    with torch.no_grad():
        seen = module.block.conv1(torch.relu(module.stem(torch.cat(draw))))
    assert torch.allclose(module.block.norm1.running_mean, seen.mean((0, 2, 3)), atol=1e-5)
    assert outcome.notes[0].text == "channels: 2 batch normalizations were measured anew on 24 training rows"


def _rows(model: ModelArtifact) -> Any:
    from tests.steps.conftest import ROWS, RandomTask

    task = RandomTask()
    return [task._draw(model, 1, 0, seed) for seed in range(ROWS)]


@pytest.mark.integration
def test_what_was_pruned_can_be_pruned_again(own: Own, prune: Run) -> None:
    _, once = prune(own(), channels=HALF)
    _, twice = prune(once, channels={"pruning_ratio": {"block": 0.5}, "recalibrate": False})
    assert widths(twice)["block.conv1.weight"] == (4, 4) and widths(twice)["head.weight"] == (12, 8 * 4 * 4)
    assert answers(twice).shape == (2, 10)


@pytest.mark.integration
def test_it_exports(own: Own, prune: Run, context: Callable[..., Any]) -> None:
    from ioptim.steps.export import Export

    _, model = prune(own(), channels=HALF)
    outcome = Export().run(model, context())  # compares the outputs itself
    assert outcome.metrics["max_abs_difference"] < 1e-4


@pytest.mark.integration
def test_a_group_normalization_keeps_as_many_in_each_group(own: Own, prune: Run) -> None:
    outcome, model = prune(own("normalized"), channels=HALF)
    assert widths(model)["stem.weight"] == (4, 1)
    assert outcome.notes[0].text == (
        "channels: 1 groups have a normalization over channels, which shifts what stays; from the first of them on only shapes were checked"
    )


@pytest.mark.integration
def test_a_grouped_convolution_keeps_as_many_in_each_group(own: Own, prune: Run) -> None:
    _, model = prune(own("grouped"), channels=HALF)
    assert widths(model)["middle.weight"] == (4, 2) and answers(model).shape == (2, 4)


# The width that vectors like


@pytest.mark.parametrize(("flags", "gpu", "width"), [(("avx2",), False, 8), (("avx512f",), False, 16), ((), True, 16), ((), False, 8)])
def test_vector_width(flags: tuple[str, ...], gpu: bool, width: int) -> None:
    assert vector_width(flags, gpu) == width


def test_round_to_is_resolved_by_the_plan() -> None:
    targets = (Target(name="cpu", runtime=OnnxRuntime()),)
    where = Where(format=Format.TORCH, targets=targets, task=ImageClassification(), hardware=HARDWARE, has_calibration=False)
    step = Prune(channels=Channels(pruning_ratio=0.5))
    resolved = step.resolve(where)
    assert resolved.channels is not None and resolved.channels.round_to == 16
    assert step.check(where) == []
    assert "torch-pruning" in step.library_names(where) and "transformers" not in step.library_names(where)


# What it refuses


def refused(own: Own, prune: Run, factory: str = "build", **channels: Any) -> str:
    with pytest.raises(StepError) as caught:
        prune(own(factory), channels={**HALF, **channels})
    return str(caught.value)


@pytest.mark.integration
def test_a_ratio_that_empties_a_layer(own: Own, prune: Run) -> None:
    assert refused(own, prune, pruning_ratio=0.98) == (
        "channels: pruning_ratio 0.98 leaves stem 0.32 of its 16 channels, which is none;"
        " lower the ratio, or add stem to `channels.exclude`"
    )


@pytest.mark.parametrize(
    ("channels", "says"),
    [
        ({"pruning_ratio": 1.0}, "channels: pruning_ratio is 1; a share of channels lies between 0 and 1, and 1 would leave none"),
        ({"pruning_ratio": {"stem": 0}}, "channels: pruning_ratio of stem is 0; a share of channels lies between 0 and 1"),
        ({"pruning_ratio": {"stem": 0.5}, "scope": "global"}, "shares by name are of each layer; with `scope: global` give one number"),
    ],
)
def test_shares_that_are_none(channels: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Prune.model_validate({"channels": channels})
    assert says in str(caught.value)


@pytest.mark.integration
def test_nothing_would_go(own: Own, prune: Run) -> None:
    assert refused(own, prune, pruning_ratio=0.1, round_to=8) == (
        "channels: nothing would be removed with pruning_ratio 0.1 and round_to 8; layers that can lose channels, with their widths:"
        " stem 16, block.conv1 16, branch 16, merge 16, head 24. Raise the ratio or lower round_to"
    )


@pytest.mark.integration
def test_a_name_that_is_no_module(own: Own, prune: Run) -> None:
    assert refused(own, prune, exclude=["blok"]) == "channels name 'blok', which is no module of Net; did you mean 'block'?"


@pytest.mark.integration
@pytest.mark.parametrize(
    ("factory", "says"),
    [
        (
            "detached",
            "the graph of Around cannot be traced: middle (Detached) hands on a result without a gradient (detach, numpy or no_grad in its"
            " forward), so stem, middle.conv cannot be pruned",
        ),
        ("fixed", "without channels of stem, middle (Fixed) fails: shape '[-1, 512]' is invalid for input of size 256. It has a"
         " width that the graph does not show; add stem to `channels.exclude`"),
        ("failing", "the graph of Around cannot be traced: middle (Failing) failed: not today"),
    ],
)  # fmt: skip
def test_a_module_that_cannot_be_traced(own: Own, prune: Run, factory: str, says: str) -> None:
    if factory == "failing":
        from ioptim.steps.prune.channels import Graph
        from ioptim.torch_model import load_module

        model = own(factory)
        import torch

        with pytest.raises(StepError) as caught:
            Graph(load_module(model), {"image": torch.ones(1, 1, 8, 8)}, Channels(pruning_ratio=0.5))
        assert str(caught.value) == says
    else:
        assert refused(own, prune, factory) == says


@pytest.mark.integration
def test_channels_mixed_unseen(own: Own, prune: Run) -> None:
    said = refused(own, prune, "heads")
    assert said.startswith("without channels of stem, an output differs by ")
    assert said.endswith("something mixes channels unseen by the graph (attention, a view); add stem to `channels.exclude`")
