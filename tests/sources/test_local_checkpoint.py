"""A transformers checkpoint in a folder: what is checked before anything is loaded, and what is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ioptim.core.artifact import Format, ModelArtifact, seal
from ioptim.core.source import ModelSource, ModelSpec
from ioptim.errors import PlanError, StepError
from ioptim.sources import model_source
from ioptim.tasks.feature_extraction import FeatureExtraction
from ioptim.tasks.image_classification import ImageClassification
from ioptim.tasks.text_classification import TextClassification

Checkpoint = Callable[..., Path]


def source(path: Path | str, base: Path = Path(), root: Path | None = None, **options: Any) -> ModelSource:
    return model_source(ModelSpec(source=str(path), **options), base, root)


def test_a_sound_checkpoint_has_no_objection(checkpoint: Checkpoint) -> None:
    folder = checkpoint()
    assert source(folder).check() == []
    assert source(folder.name, base=folder.parent).check() == []


def test_identity_is_content_and_not_place(checkpoint: Checkpoint) -> None:
    first, second = checkpoint("one"), checkpoint("deep/two")
    assert source(first).identity() == source(second).identity()
    assert set(source(first).identity()) == {"config.json", "model.safetensors", "tokenizer.json"}
    (second / "tokenizer.json").write_text("{ }")
    assert source(first).identity() != source(second).identity()


def test_nothing_there(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    assert source("minilm", base=tmp_path).check() == [
        f"there is no folder {tmp_path}/minilm; {tmp_path} has other/. A model of the Hugging Face hub is written hf:ORG/NAME"
    ]


def test_no_config(checkpoint: Checkpoint) -> None:
    folder = checkpoint()
    (folder / "config.json").unlink()
    assert source(folder).check() == [
        f"{folder} is not a transformers checkpoint: it has no config.json; it holds model.safetensors, tokenizer.json"
    ]


def test_config_that_is_not_json(checkpoint: Checkpoint) -> None:
    folder = checkpoint()
    (folder / "config.json").write_text('{"model_type": bert}')
    assert source(folder).check() == [f"{folder}/config.json is not valid JSON: Expecting value: line 1 column 16 (char 15)"]
    (folder / "config.json").write_text("[]")
    assert source(folder).check() == [f"{folder}/config.json must hold a JSON object; it holds list"]
    for number in ("9" * 5000, "[" * 100_000):
        (folder / "config.json").write_text(f'{{"vocab_size": {number}}}')
        assert source(folder).check()[0].startswith(f"{folder}/config.json is not valid JSON: ")


def test_no_weights(checkpoint: Checkpoint) -> None:
    folder = checkpoint()
    (folder / "model.safetensors").unlink()
    (folder / "tf_model.h5").write_bytes(b"x")
    assert source(folder).check() == [
        f"{folder} has no weights: expected model.safetensors (or model.safetensors.index.json and its parts);"
        " it holds config.json, tf_model.h5, tokenizer.json"
    ]


def test_truncated_weights(checkpoint: Checkpoint) -> None:
    folder = checkpoint()
    weights = folder / "model.safetensors"
    size = weights.stat().st_size
    weights.write_bytes(weights.read_bytes()[:-1])
    expected = f"{weights} is truncated: its header says {size:,} bytes, the file has {size - 1:,}. Copy or download it again"
    assert source(folder).check() == [expected]
    with pytest.raises(PlanError, match="is truncated"):
        source(folder).identity()


def test_a_pickle_is_refused_with_the_command_that_converts_it(checkpoint: Checkpoint) -> None:
    folder = checkpoint()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    (objection,) = source(folder).check()
    assert objection.startswith(
        f"{folder}/pytorch_model.bin is a pickle, which can run any code when it is loaded."
        ' Convert it, with tensors only: python -c "import torch, safetensors.torch as s; '
    )
    assert objection.endswith("or accept it with `allow_pickle: true`")
    assert source(folder, allow_pickle=True).check() == []


def test_a_pickle_beside_safetensors_is_ignored(checkpoint: Checkpoint) -> None:
    folder = checkpoint()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    assert source(folder).check() == []
    assert "pytorch_model.bin" not in source(folder).identity()


def test_a_pickle_file_as_the_source(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"PK\x03\x04")
    (objection,) = source(tmp_path / "model.pt").check()
    assert objection.startswith(f"{tmp_path}/model.pt is a pickle, which can run any code when it is loaded.")


def test_a_lone_safetensors_file_as_the_source(checkpoint: Checkpoint) -> None:
    path = checkpoint() / "model.safetensors"
    assert source(path).check() == [
        f"{path} is a file; a model is a folder with config.json and model.safetensors, or an .onnx file."
        " Weights alone go with a factory: `source: python:MODULE:FACTORY` and `weights: FILE.safetensors`"
    ]


def test_code_in_a_checkpoint_is_refused(checkpoint: Checkpoint) -> None:
    folder = checkpoint()
    config = json.loads((folder / "config.json").read_text()) | {"auto_map": {"AutoModel": "modeling_x.XModel"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_x.py").write_text("")
    assert source(folder).check() == [
        f"{folder}/config.json asks to run Python code that the checkpoint carries (auto_map: modeling_x.XModel)."
        " Read that code, then accept it with `allow_remote_code: true`"
    ]
    allowed = source(folder, allow_remote_code=True)
    assert allowed.check() == []
    assert "modeling_x.py" in allowed.identity()


@pytest.mark.parametrize(("value", "kind"), [("x", "str"), (["x"], "list"), (None, "NoneType")])
@pytest.mark.parametrize("allowed", [True, False])
def test_code_that_is_named_in_no_known_way(checkpoint: Checkpoint, value: Any, kind: str, allowed: bool) -> None:
    folder = checkpoint(config={"model_type": "bert", "auto_map": value})
    message = f"{folder}/config.json: auto_map must be a JSON object; it is {kind}. Correct it, or remove it"
    assert source(folder, allow_remote_code=allowed).check() == [message]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_file_that_may_not_be_read(checkpoint: Checkpoint, forbidden: Callable[[Path], str], name: str) -> None:
    folder = checkpoint()
    objection = forbidden(folder / name)
    assert source(folder).check() == [objection]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 8}, "it says vocabulary 11 and width 8, but embeddings.word_embeddings.weight is [11, 4]"),
        ({"vocab_size": 12}, "it says vocabulary 12 and width 4, but embeddings.word_embeddings.weight is [11, 4]"),
        ({"num_hidden_layers": 3}, "num_hidden_layers is 3, but they hold 2 layers"),
    ],
)
def test_config_of_another_model(checkpoint: Checkpoint, change: dict[str, int], message: str) -> None:
    folder = checkpoint()
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    assert source(folder).check() == [f"{folder}/config.json does not match the weights: {message}"]


def test_parts(checkpoint: Checkpoint, safetensors: Callable[..., bytes]) -> None:
    folder = checkpoint()
    index = folder / "model.safetensors.index.json"
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    parts = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    index.write_text(json.dumps({"weight_map": parts}))
    assert source(folder).check() == [
        f"{index} names the part model-00002-of-00002.safetensors, which is not there. Copy or download it again"
    ]
    (folder / "model-00002-of-00002.safetensors").write_bytes(safetensors({"b": (3,)}))
    assert source(folder).check() == []
    index.write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))
    assert source(folder).check() == [f"{index} names a part outside its folder: ../elsewhere.safetensors"]
    for content in ("{}", '{"weight_map": {"a": 1}}', "[" * 100_000):
        index.write_text(content)
        assert source(folder).check() == [f"{index} is not an index of safetensors parts: it has no weight_map of names to files"]


def test_a_path_outside_the_root(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = checkpoint("secret")
    root = tmp_path / "allowed"
    root.mkdir()
    assert source("../secret", base=root, root=root).check() == [
        f"{folder} is outside the allowed root {root}; move it there, or allow a wider root"
    ]
    (root / "link").symlink_to(folder)
    assert source("link", base=root, root=root).check() == [
        f"{root}/link (it leads to {folder}) is outside the allowed root {root}; move it there, or allow a wider root"
    ]
    (root / "inside").mkdir()
    shutil.copytree(folder, root / "inside", dirs_exist_ok=True)
    assert source("inside", base=root, root=root).check() == []
    (root / "inside" / "vocab.txt").symlink_to(folder / "tokenizer.json")
    assert source("inside", base=root, root=root).check()[0].startswith(f"{root}/inside/vocab.txt (it leads to ")


# On real libraries


def fetched(path: Path, out: Path, task: Any, **options: Any) -> tuple[ModelArtifact, list[str]]:
    outcome = source(path, **options).fetch(out, task)
    assert outcome.written is not None
    model = seal(ModelArtifact(path=out / "model", **outcome.written.model_dump()))
    return model, [note.text for note in outcome.notes]


@pytest.mark.integration
def test_a_classifier_is_written_with_its_tokenizer_labels_and_specs(tiny_bert: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in tiny_bert.iterdir()}
    model, notes = fetched(tiny_bert, tmp_path, TextClassification())
    assert model.format is Format.TORCH
    assert model.entry == "model.safetensors"
    assert model.assets == ("config.json", "tokenizer.json")
    assert [(s.name, s.dtype, s.shape) for s in model.inputs] == [
        (name, "int64", ("batch", "sequence")) for name in ("input_ids", "attention_mask", "token_type_ids")
    ]
    assert [(s.name, s.dtype, s.shape) for s in model.outputs] == [("logits", "float32", ("batch", 3))]
    assert model.facts["loader"] == {"kind": "transformers", "auto_class": "AutoModelForSequenceClassification", "remote_code": False}
    assert model.facts["labels"] == {"0": "bad", "1": "neutral", "2": "good"}
    assert model.facts["model_type"] == "bert"
    assert notes == []
    assert {path.name: path.read_bytes() for path in tiny_bert.iterdir()} == before


@pytest.mark.integration
def test_an_encoder_from_a_classifier_says_what_it_leaves_out(tiny_bert: Path, tmp_path: Path) -> None:
    model, notes = fetched(tiny_bert, tmp_path, FeatureExtraction())
    assert [(s.name, s.shape) for s in model.outputs] == [("last_hidden_state", ("batch", "sequence", 32))]
    assert notes == ["2 tensors of the checkpoint are not used for feature-extraction: classifier.bias, classifier.weight"]


@pytest.mark.integration
def test_a_masked_language_model_has_no_pooler_and_needs_none(tiny_bert: Path, tmp_path: Path) -> None:
    from transformers import BertConfig, BertForMaskedLM

    folder = tmp_path / "mlm"
    shutil.copytree(tiny_bert, folder)
    BertForMaskedLM(BertConfig.from_pretrained(tiny_bert)).save_pretrained(folder)
    _, notes = fetched(folder, tmp_path / "out", FeatureExtraction())
    assert notes == [
        "5 tensors of the checkpoint are not used for feature-extraction: cls.predictions.bias,"
        " cls.predictions.transform.LayerNorm.bias, cls.predictions.transform.LayerNorm.weight,"
        " cls.predictions.transform.dense.bias and 1 more",
        "the checkpoint has no pooler.dense.bias, pooler.dense.weight; feature-extraction does not read them",
    ]


@pytest.mark.integration
def test_a_vision_checkpoint_says_the_size_of_its_images(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    folder = tmp_path / "vit"
    ViTForImageClassification(ViTConfig(image_size=16, patch_size=8, num_labels=5, **sizes)).save_pretrained(folder)
    model, notes = fetched(folder, tmp_path / "out", ImageClassification())
    assert [(s.name, s.shape) for s in model.inputs] == [("pixel_values", ("batch", 3, 16, 16))]
    assert [(s.name, s.shape) for s in model.outputs] == [("logits", ("batch", 5))]
    assert notes == []


@pytest.mark.integration
def test_parts_are_merged(tiny_bert: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    parts = tmp_path / "parts"
    shutil.copytree(tiny_bert, parts)
    (parts / "model.safetensors").unlink()
    AutoModelForSequenceClassification.from_pretrained(tiny_bert).save_pretrained(parts, max_shard_size="40KB")
    assert not (parts / "model.safetensors").exists()
    whole, _ = fetched(tiny_bert, tmp_path / "a", TextClassification())
    merged, _ = fetched(parts, tmp_path / "b", TextClassification())
    from safetensors.numpy import load_file

    expected, found = load_file(whole.model_path), load_file(merged.model_path)
    assert expected.keys() == found.keys()
    assert all((expected[name] == found[name]).all() for name in expected)


@pytest.mark.integration
def test_a_pickle_that_is_allowed_becomes_safetensors_and_is_noted(tiny_bert: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    folder = tmp_path / "pickle"
    shutil.copytree(tiny_bert, folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    model, notes = fetched(folder, tmp_path / "out", TextClassification(), allow_pickle=True)
    assert sorted(model.files) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert notes == ["allow_pickle: pytorch_model.bin was read (tensors only) and kept as safetensors"]


@pytest.mark.integration
def test_a_pickle_with_code_in_it_is_not_run_even_when_allowed(tiny_bert: Path, tmp_path: Path) -> None:
    import pickle

    folder, trace = tmp_path / "pickle", tmp_path / "trace"
    shutil.copytree(tiny_bert, folder)
    (folder / "model.safetensors").unlink()

    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (trace,)

    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(), protocol=2))
    with pytest.raises(StepError, match="pytorch_model.bin cannot be read as a state dict of tensors"):
        source(folder, allow_pickle=True).fetch(tmp_path / "out", TextClassification())
    assert not trace.exists()


@pytest.mark.integration
def test_a_checkpoint_without_the_head_a_task_needs(tiny_bert: Path, tmp_path: Path) -> None:
    from transformers import AutoModel

    folder = tmp_path / "encoder"
    shutil.copytree(tiny_bert, folder)
    AutoModel.from_pretrained(tiny_bert).save_pretrained(folder)
    with pytest.raises(StepError) as caught:
        source(folder).fetch(tmp_path / "out", TextClassification())
    assert str(folder) in str(caught.value)
    assert "the file lacks classifier.bias, classifier.weight" in str(caught.value)


@pytest.mark.integration
def test_a_shape_that_only_loading_sees(tiny_bert: Path, tmp_path: Path) -> None:
    folder = tmp_path / "wrong"
    shutil.copytree(tiny_bert, folder)
    config = json.loads((folder / "config.json").read_text()) | {"intermediate_size": 48}
    (folder / "config.json").write_text(json.dumps(config))
    assert source(folder).check() == []
    with pytest.raises(StepError, match=r"config\.json and model\.safetensors do not match.*intermediate\.dense"):
        source(folder).fetch(tmp_path / "out", TextClassification())


@pytest.mark.integration
def test_a_checkpoint_without_a_tokenizer(tiny_bert: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mute"
    shutil.copytree(tiny_bert, folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(StepError) as caught:
        source(folder).fetch(tmp_path / "out", TextClassification())
    assert str(caught.value) == f"{folder} has no tokenizer: expected tokenizer.json beside config.json"


@pytest.mark.integration
def test_code_that_is_allowed_is_run_and_noted(tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "remote"
    shutil.copytree(tiny_bert, folder)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForSequenceClassification": "modeling_own.OwnClassifier"}
    (folder / "config.json").write_text(json.dumps(config))
    code = "from transformers import BertForSequenceClassification\n\n\nclass OwnClassifier(BertForSequenceClassification):\n    pass\n"
    (folder / "modeling_own.py").write_text(code)
    model, notes = fetched(folder, tmp_path / "out", TextClassification(), allow_remote_code=True)
    assert model.facts["loader"]["remote_code"] is True
    assert "modeling_own.py" in model.files
    assert notes == ["allow_remote_code: the checkpoint's own modeling_own.py was run"]


@pytest.mark.integration
def test_weights_in_half_precision_run_in_float32_and_that_is_noted(tiny_bert: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    folder = tmp_path / "half"
    shutil.copytree(tiny_bert, folder)
    AutoModelForSequenceClassification.from_pretrained(tiny_bert).half().save_pretrained(folder)
    model, notes = fetched(folder, tmp_path / "out", TextClassification())
    assert model.outputs[0].dtype == "float32"
    assert notes == ["the weights are stored as F16 and run in float32"]


@pytest.mark.integration
def test_the_command_that_converts_a_pickle_works(tiny_bert: Path, tmp_path: Path) -> None:
    import shlex
    import subprocess
    import sys

    import torch
    from safetensors.torch import load_file

    folder = tmp_path / "pickle"
    shutil.copytree(tiny_bert, folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    (objection,) = source(folder).check()
    command = shlex.split(objection[objection.index("python -c") : objection.rindex('"') + 1])
    subprocess.run([sys.executable, *command[1:]], check=True)
    assert source(folder).check() == []
    assert load_file(folder / "model.safetensors").keys() == load_file(tiny_bert / "model.safetensors").keys()
