"""Torch modules that a user's own function builds."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from ioptim.core.artifact import ModelArtifact, open_artifact, seal, verify
from ioptim.core.source import ModelSource, ModelSpec
from ioptim.errors import PlanError, StepError
from ioptim.sources import model_source
from ioptim.tasks.image_classification import ImageClassification

ROOT = Path(__file__).parents[2]


def source(text: str, base: Path, root: Path | None = None, **options: Any) -> ModelSource:
    return model_source(ModelSpec(source=text, **options), base, root)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A recipe's folder with the package `nets`; nothing of it can be imported without raising."""
    files = {
        "nets/cnn.py": "from nets.parts import layers\nfrom . import extra\nimport json\nboom()\ndef build(): ...\nclass Net: ...\n",
        "nets/parts/__init__.py": "",
        "nets/parts/layers.py": "from ..extra import x\n",
        "nets/extra.py": "x = 1\n",
        "nets/train.py": "import nets.cnn\n",
        "json.py": "",
    }
    base = tmp_path / "project"
    for name, text in files.items():
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_text(text)
    return base


def test_identity_is_the_code_that_is_imported(project: Path) -> None:
    factory = source("python:nets.cnn:build", project)
    assert factory.check() == []
    found = factory.identity()
    assert sorted(found) == [
        "code/nets/cnn.py",
        "code/nets/extra.py",
        "code/nets/parts/__init__.py",
        "code/nets/parts/layers.py",
        "factory",
        "packages",
    ]
    assert found["packages"] == ""
    (project / "nets/train.py").write_text("changed = True\n")
    assert source("python:nets.cnn:build", project).identity() == found
    (project / "nets/extra.py").write_text("x = 2\n")
    changed = source("python:nets.cnn:build", project).identity()
    assert changed != found
    (project / "nets/vocab.txt").write_text("a\nb\n")  # travels with the model
    assert source("python:nets.cnn:build", project).identity() != changed


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Installs a version of the distribution `Wide-Nets`, whose package is `widenets`."""
    site = tmp_path / "site"
    (site / "widenets").mkdir(parents=True)
    (site / "widenets/__init__.py").write_text("import yaml\nfrom .parts import Net\ndef build(): ...\n")
    (site / "wide_nets.dist-info").mkdir()
    (site / "wide_nets.dist-info/top_level.txt").write_text("widenets\n")
    monkeypatch.syspath_prepend(site)

    def write(version: str) -> None:
        (site / "wide_nets.dist-info/METADATA").write_text(f"Metadata-Version: 2.1\nName: Wide-Nets\nVersion: {version}\n")

    return write


@pytest.mark.parametrize("line", ["import widenets.parts as parts", "def f():\n    from widenets import Net"])
def test_identity_has_the_versions_of_imported_packages(project: Path, install: Callable[[str], None], line: str) -> None:
    (project / "nets/extra.py").write_text(f"import torch, os, nothing_installed\n{line}\n")  # torch: in the key as one of `libraries`
    install("1.0")
    found = source("python:nets.cnn:build", project).identity()
    assert found["packages"] == "Wide-Nets 1.0"
    install("1.1")
    assert source("python:nets.cnn:build", project).identity() == {**found, "packages": "Wide-Nets 1.1"}


def test_identity_of_a_factory_in_an_installed_package(project: Path, install: Callable[[str], None]) -> None:
    install("1.0")
    found = source("python:widenets:build", project).identity()
    assert sorted(found) == ["code/widenets/__init__.py", "factory", "packages"]
    assert found["packages"] == f"PyYAML {version('PyYAML')}, Wide-Nets 1.0"


def test_no_such_module(project: Path) -> None:
    assert source("python:nets.rnn:build", project).check() == [
        f"there is no module 'nets.rnn': there is no file {project}/nets/rnn.py, and no installed package has it"
    ]


def test_no_such_factory(project: Path) -> None:
    assert source("python:nets.cnn:biuld", project).check() == [
        f"{project}/nets/cnn.py has no 'biuld'; did you mean 'build'? It defines: layers, extra, json, build, Net"
    ]


@pytest.mark.parametrize("text", ["python:nets.cnn", "python:", "python::build", "python:.nets.cnn:build", "python:nets..cnn:build"])
def test_a_source_that_names_no_factory(project: Path, text: str) -> None:
    assert source(text, project).check() == [f"{text!r} must be python:MODULE:FACTORY, for example python:models.cnn:build"]


def test_a_path_instead_of_a_module(project: Path) -> None:
    assert source("python:nets/cnn.py:build", project).check() == [
        "'python:nets/cnn.py:build' names a file; name the module as for an import: python:nets.cnn:build"
    ]


def test_a_syntax_error(project: Path) -> None:
    (project / "nets/extra.py").write_text("x = 1\ndef broken(:\n")
    (objection,) = source("python:nets.cnn:build", project).check()
    assert objection.startswith(f"{project}/nets/extra.py, line 2: ")


def test_weights(project: Path, safetensors: Callable[..., bytes]) -> None:
    (project / "net.safetensors").write_bytes(safetensors({"w": (2,)}))
    good = source("python:nets.cnn:build", project, weights="net.safetensors")
    assert good.check() == []
    assert "weights" in good.identity()
    (missing,) = source("python:nets.cnn:build", project, weights="nets/net.safetensors").check()
    assert missing.startswith(f"there is no file of weights {project}/nets/net.safetensors; {project}/nets has ")
    (project / "net.pt").write_bytes(b"PK\x03\x04")
    (objection,) = source("python:nets.cnn:build", project, weights="net.pt").check()
    assert objection.startswith(f"{project}/net.pt is a pickle, which can run any code when it is loaded.")
    assert source("python:nets.cnn:build", project, weights="net.pt", allow_pickle=True).check() == []
    (project / "net.safetensors").write_bytes(safetensors({"w": (2,)})[:-1])
    assert "is truncated" in source("python:nets.cnn:build", project, weights="net.safetensors").check()[0]


@pytest.mark.parametrize("name", ["nets/extra.py", "nets/tokenizer.json", "net.safetensors"])
def test_a_file_that_may_not_be_read(
    project: Path, safetensors: Callable[..., bytes], forbidden: Callable[[Path], str], name: str
) -> None:
    (project / "nets/tokenizer.json").write_text("{}")
    (project / "net.safetensors").write_bytes(safetensors({"w": (2,)}))
    objection = forbidden(project / name)
    assert source("python:nets.cnn:build", project, weights="net.safetensors").check() == [objection]


def test_outside_the_root(project: Path, tmp_path: Path, safetensors: Callable[..., bytes]) -> None:
    (tmp_path / "net.safetensors").write_bytes(safetensors({"w": (2,)}))
    objections = source("python:nets.cnn:build", project, root=project, weights="../net.safetensors").check()
    assert objections == [f"{tmp_path}/net.safetensors is outside the allowed root {project}; move it there, or allow a wider root"]
    (project / "nets/tokenizer.json").symlink_to(tmp_path / "net.safetensors")
    assert source("python:nets.cnn:build", project, root=project).check()[0].startswith(f"{project}/nets/tokenizer.json (it leads to ")
    (project / "nets/tokenizer.json").unlink()
    (tmp_path / "elsewhere.py").write_text("x = 1\n")
    (project / "nets/extra.py").unlink()
    (project / "nets/extra.py").symlink_to(tmp_path / "elsewhere.py")
    assert source("python:nets.cnn:build", project, root=project).check()[0].startswith(f"{project}/nets/extra.py (it leads to ")


# On torch

NET = """
import torch
from torch import nn
from small.widths import WIDTH

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(12, WIDTH)
        self.same = self.first
        self.last = nn.Linear(WIDTH, 3)

    def forward(self, pixels):
        return self.last(torch.relu(self.first(pixels.flatten(1)) + self.same(pixels.flatten(1))))

def build():
    return Net()

def broken():
    raise ValueError("no luck")

def dictionary():
    return {}
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    pytest.importorskip("torch")
    base = tmp_path / "recipes"
    (base / "small").mkdir(parents=True)
    (base / "small" / "net.py").write_text(NET)
    (base / "small" / "widths.py").write_text("WIDTH = 8\n")
    return base


TASK = ImageClassification(image_shape=(1, 3, 4))


@pytest.mark.integration
def test_the_artifact_opens_where_its_source_is_gone(small: Path, tmp_path: Path) -> None:
    import shutil

    from ioptim.torch_model import call, load_module

    outcome = source("python:small.net:build", small).fetch(tmp_path, TASK)
    assert outcome.written is not None
    assert [(s.name, s.dtype, s.shape) for s in outcome.written.inputs] == [("pixels", "float32", ("batch", 1, 3, 4))]
    assert [(s.name, s.dtype, s.shape) for s in outcome.written.outputs] == [("logits", "float32", ("batch", 3))]
    assert outcome.written.facts["loader"] == {"kind": "factory", "factory": "small.net:build", "code": "code", "packages": ""}
    assert outcome.written.facts["parameters"] == 12 * 8 + 8 + 8 * 3 + 3
    assert [note.text for note in outcome.notes] == [
        "no `weights` were given: the module keeps those its factory made (random seed 0)"
    ]
    seal(ModelArtifact(path=tmp_path / "model", **outcome.written.model_dump()))
    shutil.rmtree(small)
    shutil.move(tmp_path / "model", tmp_path / "moved")
    model = open_artifact(tmp_path / "moved")
    assert sorted(model.files) == ["code/small/net.py", "code/small/widths.py", "model.safetensors"]
    module = load_module(model)
    assert call(module, TASK.dummy_feeds(model, 2, 0), model.outputs)["logits"].shape == (2, 3)
    assert verify(model) == []


@pytest.mark.integration
def test_another_version_of_an_imported_package_is_another_model(small: Path, tmp_path: Path, install: Callable[[str], None]) -> None:
    code = "def build():\n    from torch import nn\n    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3))\n"
    (small / "small/net.py").write_text(f"{code}def unused():\n    import widenets\n")
    digests = []
    for number in ("1.0", "1.0", "1.1"):
        install(number)
        out = tmp_path / str(len(digests))
        written = source("python:small.net:build", small).fetch(out, TASK).written
        assert written is not None
        digests.append(seal(ModelArtifact(path=out / "model", **written.model_dump())).digest)
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.integration
def test_weights_that_do_not_fit(small: Path, tmp_path: Path, safetensors: Callable[..., bytes]) -> None:
    weights = small / "other.safetensors"
    weights.write_bytes(safetensors({"first.weight": (8, 12)}))
    with pytest.raises(StepError, match=r"other\.safetensors does not fit the module of small\.net:build: the file lacks first\.bias, "):
        source("python:small.net:build", small, weights="other.safetensors").fetch(tmp_path, TASK)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("broken", "the factory small.net:broken failed: ValueError: no luck"),
        ("dictionary", "the factory small.net:dictionary must return a torch.nn.Module; it returned dict"),
    ],
)
def test_factories_that_fail(small: Path, tmp_path: Path, factory: str, message: str) -> None:
    with pytest.raises(StepError) as caught:
        source(f"python:small.net:{factory}", small).fetch(tmp_path, TASK)
    assert str(caught.value) == message


@pytest.mark.integration
def test_the_task_must_know_what_to_feed(small: Path, tmp_path: Path) -> None:
    factory = source("python:small.net:build", small)
    with pytest.raises(StepError) as caught:
        factory.fetch(tmp_path / "a", ImageClassification())
    assert str(caught.value) == (
        "the size of the images is not known: write `task: {task: image-classification, image_shape: [channels, height, width]}`"
    )
    with pytest.raises(StepError, match=r"Net failed on pixels \[2, 1, 5, 5\] float32: "):
        factory.fetch(tmp_path / "b", ImageClassification(image_shape=(1, 5, 5)))


@pytest.mark.integration
def test_a_factory_of_an_installed_package(small: Path, tmp_path: Path) -> None:
    factory = source("python:torch.nn.modules.flatten:Flatten", small)
    assert factory.check() == []
    found = factory.identity()
    assert "code/torch/nn/modules/flatten.py" in found
    assert found["packages"] == ""  # torch is one of `libraries`
    (note,) = (note.text for note in factory.fetch(tmp_path, TASK).notes if "installed" in note.text)
    assert note == f"the factory is of an installed package (torch {version('torch')}), which must be there to open the model"


@pytest.mark.integration
def test_the_vision_example_reads_digits(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("torch")
    from ioptim.core.source import DataSpec
    from ioptim.sources import data_source
    from ioptim.torch_model import call, load_module

    task = ImageClassification(image_shape=(1, 8, 8))
    digits = source("python:vision.digits_cnn:build", ROOT / "recipes", weights="vision/digits_cnn.safetensors")
    outcome = digits.fetch(tmp_path, task)
    assert outcome.written is not None
    assert outcome.notes == ()
    model = seal(ModelArtifact(path=tmp_path / "model", **outcome.written.model_dump()))
    table = data_source(DataSpec(source="sklearn:digits", split="test"), ROOT, None).read()
    module = load_module(model)
    outputs = [{k: v.numpy() for k, v in call(module, feeds, model.outputs).items()} for feeds in task.examples(table, model)]
    assert sum(task.score(outputs, table, model)["accuracy"]) / len(table) >= 0.97


def test_identity_of_what_cannot_be_used(project: Path) -> None:
    with pytest.raises(PlanError, match="there is no module"):
        source("python:nothing:build", project).identity()
