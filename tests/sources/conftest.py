"""Checkpoints made of a few bytes, without a library."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import pytest

CONFIG = {"model_type": "bert", "vocab_size": 11, "hidden_size": 4, "num_hidden_layers": 2}
SHAPES = {
    "embeddings.word_embeddings.weight": (11, 4),
    "encoder.layer.0.output.dense.weight": (4, 4),
    "encoder.layer.1.output.dense.weight": (4, 4),
}


def safetensors_bytes(shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    header, offset = {}, 0
    for name, shape in shapes.items():
        end = offset + 4 * prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + b"\1" * offset


@pytest.fixture
def safetensors() -> Callable[[Mapping[str, tuple[int, ...]]], bytes]:
    """The bytes of a safetensors file with float32 tensors of these shapes."""
    return safetensors_bytes


@pytest.fixture
def forbidden(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], str]:
    """Lets no one open a file (whose mode would not keep root out), and gives the objection to it."""

    def forbid(file: Path) -> str:
        opened = Path.open

        def refused(path: Path, *args: Any, **options: Any) -> Any:
            if path == file:
                raise PermissionError(13, "Permission denied", str(path))
            return opened(path, *args, **options)

        monkeypatch.setattr(Path, "open", refused)
        return f"{file} cannot be read: Permission denied. Change its permissions, or name another file"

    return forbid


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Writes a checkpoint folder that passes every check made without loading it."""

    def write(name: str = "model", config: Mapping[str, Any] = CONFIG, shapes: Mapping[str, tuple[int, ...]] = SHAPES) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "model.safetensors").write_bytes(safetensors_bytes(shapes))
        (folder / "tokenizer.json").write_text("{}")
        return folder

    return write


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT classifier with two layers of width 32, three labels and a tokenizer of a few words."""
    pytest.importorskip("transformers")
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("tiny-bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "a", "very"]
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=24,
        id2label={0: "bad", 1: "neutral", 2: "good"},
    )
    torch.manual_seed(0)
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
