"""A model folder with a tokenizer of a few words, and no weights: tasks read nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ioptim.core.artifact import Format, ModelArtifact, TensorSpec
from ioptim.core.task import Table

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", "a", "very")


@pytest.fixture
def table() -> Callable[..., Table]:
    """A table of these columns."""

    def make(**columns: Any) -> Table:
        count = len(next(iter(columns.values())))
        return Table(columns=columns, rows=tuple(f"rows.tsv:{i + 2}" for i in range(count)), origin="rows.tsv")

    return make


@pytest.fixture
def text_model(tmp_path: Path) -> Callable[..., ModelArtifact]:
    """A model on text whose inputs, configuration and tokenizer limit are as given."""

    def make(
        inputs: tuple[str, ...] = ("input_ids", "attention_mask", "token_type_ids"), length: int | str = "sequence", **config: Any
    ) -> ModelArtifact:
        folder = tmp_path / f"model-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        vocabulary = {word: i for i, word in enumerate(WORDS)}
        (folder / "config.json").write_text(json.dumps({"vocab_size": len(WORDS), "pad_token_id": 0, **config}))
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer(vocabulary)))
        specs = tuple(TensorSpec(name=name, dtype="int64", shape=("batch", length)) for name in inputs)
        return ModelArtifact(path=folder, format=Format.TORCH, entry="model.safetensors", inputs=specs)

    return make


def tokenizer(vocabulary: dict[str, int]) -> dict[str, Any]:
    """A tokenizer.json that splits at white space, cuts at 3 and pads to 128: both of which a task must override."""
    special = {word: {"id": word, "ids": [vocabulary[word]], "tokens": [word]} for word in ("[CLS]", "[SEP]")}
    single = [
        {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
    ]
    return {
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
        "padding": {
            "strategy": {"Fixed": 128},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "[PAD]",
        },
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": special},
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
    }
