"""A torch artifact becomes the module it was, or says which tensors do not fit."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from ioptim.core.artifact import Format, ModelArtifact, TensorSpec, open_artifact, seal, verify
from ioptim.errors import StepError

pytestmark = pytest.mark.integration

TEXT_INPUTS = tuple(TensorSpec(name=name, dtype="int64", shape=("batch", "sequence")) for name in ("input_ids", "attention_mask"))

FACTORY = """
import torch
from layers import Twice

def build():
    return torch.nn.Sequential(torch.nn.Linear(3, 2), Twice())

def build_wrong():
    return torch.nn.Linear(3, 4)

def fail():
    raise ValueError("no such size")

def not_a_module():
    return 3
"""

LAYERS = """
import torch

class Twice(torch.nn.Module):
    def forward(self, x):
        return 2 * x, None
"""


def bert(folder: Path, auto_class: str = "AutoModel", output: str = "last_hidden_state", **config: Any) -> ModelArtifact:
    """A BERT of two layers, hidden 32, with random weights; `config` changes only its config.json."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertModel

    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 50}
    cls = BertForSequenceClassification if auto_class == "AutoModelForSequenceClassification" else BertModel
    cls(BertConfig(**size)).save_pretrained(folder)
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**said, **config}))
    spec = TensorSpec(name=output, dtype="float32", shape=("batch", "sequence", 32))
    return sealed(folder, {"kind": "transformers", "auto_class": auto_class, "remote_code": False}, TEXT_INPUTS, (spec,))


def own(folder: Path, function: str = "build") -> ModelArtifact:
    """The user's own module of FACTORY."""
    import torch
    from safetensors.torch import save_file

    (folder / "code").mkdir(parents=True)
    (folder / "code" / "mine.py").write_text(FACTORY)
    (folder / "code" / "layers.py").write_text(LAYERS)
    save_file({"0.weight": torch.arange(6.0).reshape(2, 3), "0.bias": torch.ones(2)}, folder / "model.safetensors")
    inputs = (TensorSpec(name="input", dtype="float32", shape=("batch", 3)),)
    outputs = (TensorSpec(name="logits", dtype="float32", shape=("batch", 2)),)
    return sealed(folder, {"kind": "factory", "factory": f"mine:{function}", "code": "code"}, inputs, outputs)


Specs = tuple[TensorSpec, ...]


def sealed(folder: Path, loader: dict[str, Any], inputs: Specs, outputs: Specs) -> ModelArtifact:
    facts = {"loader": loader}
    return seal(
        ModelArtifact(path=folder, format=Format.TORCH, entry="model.safetensors", inputs=inputs, outputs=outputs, facts=facts)
    )


def test_transformers_checkpoint(tmp_path: Path) -> None:
    import numpy as np

    from ioptim.torch_model import call, input_names, load_module

    model = open_artifact(bert(tmp_path).path)
    module = load_module(model)
    assert not module.training
    assert input_names(module)[:2] == ["input_ids", "attention_mask"]
    feeds = {"input_ids": np.ones((2, 5), np.int64), "attention_mask": np.ones((2, 5), np.int64)}
    outputs = call(module, feeds, model.outputs)
    assert {name: tuple(tensor.shape) for name, tensor in outputs.items()} == {"last_hidden_state": (2, 5, 32)}
    assert set(call(module, feeds)) == {"last_hidden_state", "pooler_output"}
    fast = call(load_module(model, attention=None), feeds, model.outputs)
    np.testing.assert_allclose(outputs["last_hidden_state"], fast["last_hidden_state"], atol=1e-5)
    assert verify(model) == []


def test_a_head_that_the_module_does_not_have_is_left_out(tmp_path: Path) -> None:
    from ioptim.torch_model import load_module

    model = bert(tmp_path, "AutoModelForSequenceClassification", "logits")
    headless = {"kind": "transformers", "auto_class": "AutoModel"}
    assert load_module(model.model_copy(update={"facts": {"loader": headless}})) is not None


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"num_hidden_layers": 1}, "the module has no place for encoder.layer.1.attention.output.LayerNorm.bias"),
        ({"num_hidden_layers": 3}, "the file lacks encoder.layer.2.attention.output.LayerNorm.bias"),
        ({"vocab_size": 40}, "other shapes embeddings.word_embeddings.weight [50, 32] instead of [40, 32]"),
    ],
)
def test_config_that_does_not_match_its_weights(tmp_path: Path, config: dict[str, Any], says: str) -> None:
    from ioptim.torch_model import load_module

    with pytest.raises(StepError) as caught:
        load_module(bert(tmp_path, **config))
    assert f"{tmp_path}: config.json and model.safetensors do not match for BertModel: {says}" in str(caught.value)


def test_a_head_without_weights_is_refused(tmp_path: Path) -> None:
    from ioptim.torch_model import load_module

    model = bert(tmp_path)
    classifier = {"kind": "transformers", "auto_class": "AutoModelForSequenceClassification"}
    with pytest.raises(StepError, match=r"the file lacks classifier\.bias, classifier\.weight\. Use the two files"):
        load_module(model.model_copy(update={"facts": {"loader": classifier}}))


def test_pooler_may_be_missing_unless_it_is_read(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from ioptim.torch_model import load_module

    model = bert(tmp_path)
    kept = {name: tensor for name, tensor in load_file(model.model_path).items() if "pooler" not in name}
    save_file(kept, model.model_path, metadata={"format": "pt"})
    load_module(model)
    pooled = TensorSpec(name="pooler_output", dtype="float32", shape=("batch", 32))
    with pytest.raises(StepError, match=r"the file lacks pooler\.dense\.bias"):
        load_module(model.model_copy(update={"outputs": (pooled,)}))


def test_truncated_weights(tmp_path: Path) -> None:
    from ioptim.torch_model import load_module

    model = bert(tmp_path)
    model.model_path.write_bytes(model.model_path.read_bytes()[:-100])
    with pytest.raises(StepError, match=r"model\.safetensors cannot be read: .*Copy or download it again"):
        load_module(model)


def test_factory(tmp_path: Path) -> None:
    import numpy as np

    from ioptim.torch_model import call, input_names, load_module

    model = own(tmp_path)
    path = list(sys.path)
    module = load_module(model)
    assert input_names(module) == ["input"]
    outputs = call(module, {"input": np.ones((1, 3), np.float32)}, model.outputs)
    assert outputs["logits"].tolist() == [[8.0, 26.0]]
    assert sys.path == path
    assert verify(model) == [], "the sealed directory holds bytecode now"


def test_two_factories_of_the_same_name_do_not_mix(tmp_path: Path) -> None:
    from ioptim.torch_model import load_module

    load_module(own(tmp_path / "a"))
    other = own(tmp_path / "b")
    (other.path / "code" / "layers.py").write_text(LAYERS.replace("2 * x", "3 * x"))
    import numpy as np

    from ioptim.torch_model import call

    assert call(load_module(other), {"input": np.ones((1, 3), np.float32)})["output"].tolist() == [[12.0, 39.0]]


@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("build_wrong", "model.safetensors does not fit the module of mine:build_wrong"),
        ("fail", "the factory mine:fail failed: ValueError: no such size"),
        ("not_a_module", "the factory mine:not_a_module must return a torch.nn.Module; it returned int"),
        ("absent", "the factory mine:absent failed: AttributeError"),
    ],
)
def test_factory_that_fails(tmp_path: Path, function: str, says: str) -> None:
    from ioptim.torch_model import load_module

    with pytest.raises(StepError) as caught:
        load_module(own(tmp_path, function))
    assert says in str(caught.value)


def test_call_says_what_it_was_fed(tmp_path: Path) -> None:
    import numpy as np

    from ioptim.torch_model import call, load_module

    model = own(tmp_path)
    module = load_module(model)
    with pytest.raises(StepError, match=r"Sequential failed on input \[1, 4\] float32: mat1 and mat2"):
        call(module, {"input": np.ones((1, 4), np.float32)})
    missing = (*model.outputs, TensorSpec(name="boxes", dtype="float32", shape=(1,)))
    with pytest.raises(StepError, match="the module does not return the output boxes; it returns logits"):
        call(module, {"input": np.ones((1, 3), np.float32)}, missing)


def test_other_formats_are_refused(tmp_path: Path) -> None:
    from ioptim.torch_model import load_module

    with pytest.raises(StepError, match="holds a onnx model; a module needs a torch artifact with a `loader` fact"):
        load_module(ModelArtifact(path=tmp_path, format=Format.ONNX, entry="model.onnx"))
