"""What a benchmark feeds: here rows of words, padded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ioptim.core.artifact import Format, ModelArtifact, TensorSpec, seal
from ioptim.core.task import Table
from ioptim.inputs import Inputs
from ioptim.tasks.text_classification import TextClassification

TABLE = Table(columns={"sentence": ["one", "one two"], "label": [0, 1]}, rows=("rows.jsonl:1", "rows.jsonl:2"))


@pytest.fixture
def model(tmp_path: Path) -> ModelArtifact:
    """Takes 16 tokens; a token is a word."""
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[PAD]": 0, "one": 1, "two": 2}, "[PAD]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 16, "vocab_size": 3}))
    (tmp_path / "null.json").write_text("{}")
    inputs = (TensorSpec(name="input_ids", dtype="int64", shape=("batch", "sequence")),)
    return seal(ModelArtifact(path=tmp_path, format=Format.NULL, entry="null.json", inputs=inputs))


@pytest.mark.parametrize(("task", "tokens"), [(TextClassification(), 16), (TextClassification(max_length=8), 8)])
def test_max_length_is_what_the_model_takes(model: ModelArtifact, task: TextClassification, tokens: int) -> None:
    inputs = Inputs(task, TABLE, model, "max_length", limit=2)
    assert inputs.feed((0, 1))["input_ids"].shape == (2, tokens)
    assert inputs.padded_share([(0, 1)]) == pytest.approx(1 - 3 / (2 * tokens))
