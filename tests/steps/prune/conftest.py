"""Small modules of a user's own, as the source `python:` seals them, and the step run on one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ioptim.core.artifact import Format, ModelArtifact, TensorSpec, seal
from ioptim.steps.prune import Prune
from tests.steps.conftest import FakeContext, sealed

CODE = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.conv2, self.norm2 = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)

    def forward(self, x):
        return torch.relu(x + self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x))))))


class Net(nn.Module):
    # a residual, a depthwise convolution, a concatenation, channels flattened into features
    def __init__(self):
        super().__init__()
        self.stem, self.block = nn.Conv2d(1, 16, 3, padding=1), Block(16)
        self.depthwise, self.branch = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 16, 1)
        self.merge = nn.Conv2d(32, 16, 1)
        self.head, self.classifier = nn.Linear(16 * 4 * 4, 24), nn.Linear(24, 10)

    def forward(self, image):
        x = self.block(torch.relu(self.stem(image)))
        y = torch.relu(self.branch(torch.relu(self.depthwise(x))))
        x = torch.max_pool2d(self.merge(torch.cat([x, y], 1)), 2)
        return self.classifier(torch.relu(self.head(x.flatten(1))))


class Detached(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        return self.conv(x).detach()


class Fixed(nn.Module):
    def forward(self, x):
        return x.view(-1, 8 * 8 * 8)


class Heads(nn.Module):
    # features regrouped by a number of its own: what runs in another order than its graph shows
    def forward(self, x):
        return x.mean((2, 3)).view(len(x), 2, -1).flip(2).flatten(1)


class Failing(nn.Module):
    def forward(self, x):
        raise ValueError("not today")


class Around(nn.Module):
    def __init__(self, middle, features):
        super().__init__()
        self.stem, self.middle, self.classifier = nn.Conv2d(1, 8, 3, padding=1), middle, nn.Linear(features, 4)

    def forward(self, image):
        return self.classifier(self.middle(self.stem(image)).flatten(1))


def build(): return Net()
def detached(): return Around(Detached(), 8 * 8 * 8)
def fixed(): return Around(Fixed(), 8 * 8 * 8)
def heads(): return Around(Heads(), 8)
def failing(): return Around(Failing(), 8)
def grouped(): return Around(nn.Conv2d(8, 8, 3, padding=1, groups=2), 8 * 8 * 8)
def normalized(): return Around(nn.GroupNorm(4, 8), 8 * 8 * 8)
"""


@pytest.fixture
def own(tmp_path: Path) -> Callable[..., ModelArtifact]:
    """The module that a factory of `CODE` makes; `change` gets it before it is sealed."""
    pytest.importorskip("torch_pruning")

    def make(factory: str = "build", change: Callable[[Any], None] = lambda module: None) -> ModelArtifact:
        import torch
        from safetensors.torch import save_model

        from ioptim.torch_model import build

        folder = tmp_path / f"own{len(list(tmp_path.glob('own*')))}"
        (folder / "code").mkdir(parents=True)
        (folder / "code" / "net.py").write_text(CODE)
        torch.manual_seed(0)
        module = build(folder / "code", f"net:{factory}")
        with torch.no_grad():
            change(module)
        save_model(module, str(folder / "model.safetensors"), {"format": "pt"})
        classes = module.classifier.out_features
        return seal(
            ModelArtifact(
                path=folder,
                format=Format.TORCH,
                entry="model.safetensors",
                inputs=(TensorSpec(name="image", dtype="float32", shape=("batch", 1, 8, 8)),),
                outputs=(TensorSpec(name="logits", dtype="float32", shape=("batch", classes)),),
                facts={"loader": {"kind": "factory", "factory": f"net:{factory}", "code": "code"}},
            )
        )

    return make


@pytest.fixture
def prune(context: Callable[..., FakeContext]) -> Callable[..., tuple[Any, ModelArtifact]]:
    """The step on a model: what it says, and its model sealed with the assets that the store carries along."""

    def run(model: ModelArtifact, **fields: Any) -> tuple[Any, ModelArtifact]:
        ctx = context()
        outcome = Prune.model_validate(fields).run(model, ctx)  # type: ignore[arg-type]
        for name in model.assets:
            if not (ctx.out / "model" / name).exists():
                shutil.copyfile(model.path / name, ctx.out / "model" / name)
        made = sealed(outcome, ctx.out, model)
        return outcome, made.model_copy(update={"assets": outcome.written.assets})

    return run
