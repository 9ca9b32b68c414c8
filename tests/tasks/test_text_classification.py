"""Text in, tokens out; logits in, accuracy out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ioptim.core.artifact import ModelArtifact
from ioptim.core.task import Table
from ioptim.errors import StepError
from ioptim.tasks.text_classification import TextClassification

TASK = TextClassification()
Make = Callable[..., Any]


def logits(*rows: list[float]) -> list[dict[str, np.ndarray]]:
    return [{"logits": np.array([row], dtype=np.float32)} for row in rows]


# Tokens


def test_examples_are_as_long_as_their_text(text_model: Make, table: Make) -> None:
    pytest.importorskip("tokenizers")
    rows = table(sentence=["a very good film", "bad"], label=["1", "0"])
    first, second = TASK.examples(rows, text_model())
    assert first["input_ids"].tolist() == [[2, 7, 8, 4, 6, 3]]
    assert second["input_ids"].tolist() == [[2, 5, 3]]
    assert list(first) == ["input_ids", "attention_mask", "token_type_ids"]
    assert all(array.dtype == np.int64 for array in first.values())


def test_only_inputs_that_the_model_has_are_fed(text_model: Make, table: Make) -> None:
    pytest.importorskip("tokenizers")
    (feeds,) = TASK.examples(table(sentence=["bad"], label=[0]), text_model(inputs=("input_ids",)))
    assert list(feeds) == ["input_ids"]
    with pytest.raises(StepError) as caught:
        list(TASK.examples(table(sentence=["bad"], label=[0]), text_model(inputs=("input_ids", "images"))))
    assert str(caught.value) == (
        "the model asks for the inputs images; a text task feeds input_ids, attention_mask, token_type_ids"
    )


def test_long_texts_are_cut_and_counted(text_model: Make, table: Make) -> None:
    pytest.importorskip("tokenizers")
    rows = table(sentence=["a very good film", "bad", "good good good good good"], label=[1, 0, 1])
    task, model = TextClassification(max_length=5), text_model()
    assert [feeds["input_ids"].shape[1] for feeds in task.examples(rows, model)] == [5, 3, 5]
    assert task.notes(rows, model) == ["2 of 3 texts were cut at 5 tokens"]
    assert TASK.notes(rows, model) == []


@pytest.mark.parametrize(
    ("config", "longest"),
    [
        ({}, 512),
        ({"max_position_embeddings": 64}, 64),
        ({"max_position_embeddings": 4096}, 512),
        ({"max_position_embeddings": 514, "model_type": "roberta", "pad_token_id": 1}, 512),
        ({"max_position_embeddings": 130, "model_type": "roberta", "pad_token_id": 1}, 128),
    ],
)
def test_the_default_limit_is_the_model_s(text_model: Make, config: dict[str, Any], longest: int) -> None:
    assert TASK.longest(text_model(**config)) == longest


def test_a_limit_beyond_the_model_s(text_model: Make) -> None:
    model = text_model(max_position_embeddings=64)
    assert TextClassification(max_length=64).longest(model) == 64
    with pytest.raises(StepError) as caught:
        TextClassification(max_length=65).longest(model)
    assert str(caught.value) == "max_length: 65 was asked for, but the model takes at most 64 tokens"


def test_a_fixed_length_is_padded_to(text_model: Make, table: Make) -> None:
    pytest.importorskip("tokenizers")
    (feeds,) = TASK.examples(table(sentence=["bad"], label=[0]), text_model(length=6))
    assert feeds["input_ids"].tolist() == [[2, 5, 3, 0, 0, 0]]
    assert feeds["attention_mask"].tolist() == [[1, 1, 1, 0, 0, 0]]


def test_a_batch_is_padded_to_its_longest(text_model: Make, table: Make) -> None:
    pytest.importorskip("tokenizers")
    model = text_model(pad_token_id=1)
    batch = TASK.collate(list(TASK.examples(table(sentence=["a good film", "bad"], label=[1, 0]), model)), model)
    assert batch["input_ids"].tolist() == [[2, 7, 4, 6, 3], [2, 5, 3, 1, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert batch["token_type_ids"].tolist() == [[0] * 5] * 2


def test_dummy_feeds_are_valid_and_padded_in_a_batch(text_model: Make) -> None:
    feeds = TASK.dummy_feeds(text_model(), 3, 8)
    assert {name: array.shape for name, array in feeds.items()} == dict.fromkeys(feeds, (3, 8))
    assert feeds["input_ids"].max() < 9
    assert feeds["attention_mask"].tolist() == [[1] * 8, [1] * 6 + [0] * 2, [0] * 2 + [1] * 6], "tail and head"
    assert (feeds["input_ids"][feeds["attention_mask"] == 0] == 0).all()
    again = TASK.dummy_feeds(text_model(), 3, 8)
    assert all((feeds[name] == again[name]).all() for name in feeds)


def test_no_tokenizer(text_model: Make, table: Make) -> None:
    pytest.importorskip("tokenizers")
    model: ModelArtifact = text_model()
    (model.path / "tokenizer.json").unlink()
    with pytest.raises(StepError) as caught:
        list(TASK.examples(table(sentence=["bad"], label=[0]), model))
    assert str(caught.value) == f"the model has no tokenizer: {model.path} holds no tokenizer.json. Put it beside the weights"


@pytest.mark.integration
def test_a_vocabulary_alone_goes_through_transformers(text_model: Make, table: Make) -> None:
    pytest.importorskip("transformers")
    model: ModelArtifact = text_model(model_type="bert")
    (model.path / "tokenizer.json").unlink()
    (model.path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\ngood\n")
    (model.path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    (feeds,) = TASK.examples(table(sentence=["Good"], label=[0]), model)
    assert feeds["input_ids"].tolist() == [[2, 5, 3]]


def test_input_specs_come_from_the_parameters() -> None:
    specs = TASK.input_specs(["input_ids", "attention_mask", "labels"])
    assert [(s.name, s.dtype, s.shape) for s in specs] == [
        ("input_ids", "int64", ("batch", "sequence")),
        ("attention_mask", "int64", ("batch", "sequence")),
    ]
    with pytest.raises(StepError) as caught:
        TASK.input_specs(["x"])
    assert str(caught.value) == (
        "the task text-classification feeds input_ids, attention_mask, token_type_ids; forward takes x. Call its first input input_ids"
    )


# The table


def test_columns_that_are_missing(table: Make) -> None:
    rows = table(text=["a"], stars=[1])
    assert TASK.check_table(rows, "validation") == [
        "rows.tsv has no column 'sentence' (the text); it has text, stars. Map one with `columns: {sentence: <its name>}`",
        "rows.tsv has no column 'label' (number or name of its class); it has text, stars. Map one with `columns: {label: <its name>}`",
    ]
    assert TASK.check_table(table(sentence=["a"]), "calibration") == []


def test_texts_that_are_none(table: Make) -> None:
    rows = table(sentence=["a", "", None, " ", 3], label=[0] * 5)
    assert TASK.check_table(rows, "validation") == [
        "rows.tsv: the column 'sentence' must hold text; it is empty or no text in rows.tsv:3, rows.tsv:4, rows.tsv:5 and 1 more"
    ]


# Scores


def test_accuracy(text_model: Make, table: Make) -> None:
    model = text_model(id2label={"0": "negative", "1": "positive"})
    rows: Table = table(sentence=["a"] * 5, label=["1", "positive", 0, 1.0, "negative"])
    scores = TASK.score(logits([0, 1], [1, 0], [1, 0], [0, 1], [2, 1]), rows, model)
    assert scores == {"accuracy": [1.0, 0.0, 1.0, 1.0, 1.0]}


def test_a_class_called_by_a_number(text_model: Make, table: Make) -> None:
    model = text_model(id2label={"0": "1", "1": "2"})
    assert TASK.score(logits([1, 0], [1, 0]), table(sentence=["a"] * 2, label=["1", 1]), model) == {"accuracy": [1.0, 0.0]}


def test_a_logit_that_is_no_number(text_model: Make, table: Make) -> None:
    (score,) = TASK.score(logits([0, float("nan")]), table(sentence=["a"], label=[1]), text_model())["accuracy"]
    assert math.isnan(score)


@pytest.mark.parametrize(
    ("label", "config", "message"),
    [
        ("2", {}, "rows.tsv:2: the label '2' is outside the model's 2 classes: 0 to 1"),
        (
            "great",
            {"id2label": {"0": "negative", "1": "positive"}},
            "rows.tsv:2: the label 'great' is outside the model's 2 classes: 0 to 1 or negative, positive",
        ),
        (-1, {}, "rows.tsv:2: the label -1 is outside the model's 2 classes: 0 to 1"),
        (0.5, {}, "rows.tsv:2: the label 0.5 is outside the model's 2 classes: 0 to 1"),
        (None, {}, "rows.tsv:2: the label None is outside the model's 2 classes: 0 to 1"),
    ],
)
def test_a_label_outside_the_classes(text_model: Make, table: Make, label: Any, config: dict[str, Any], message: str) -> None:
    with pytest.raises(StepError) as caught:
        TASK.score(logits([0, 1]), table(sentence=["a"], label=[label]), text_model(**config))
    assert str(caught.value) == message


def test_outputs_that_are_not_logits(text_model: Make, table: Make) -> None:
    rows, model = table(sentence=["a"], label=[1]), text_model()
    for outputs, message in (
        ([], "1 rows need 1 outputs; there are 0"),
        ([{"logits": np.zeros((1, 3, 4))}], "expected logits of shape (1, classes) for one example; the model gives (1, 3, 4)"),
        ([{"a": np.zeros((1, 2)), "b": np.zeros((1, 2))}], "the task reads the output 'logits'; the model gives a, b"),
    ):
        with pytest.raises(StepError) as caught:
            TASK.score(outputs, rows, model)
        assert str(caught.value) == message


@pytest.mark.integration
def test_sst2(shared: Any, tmp_path: Any) -> None:
    """The classifier and data that recipes point at, on 64 rows in float32."""
    pytest.importorskip("transformers")
    from ioptim.core.artifact import seal
    from ioptim.core.source import DataSpec, ModelSpec
    from ioptim.sources import data_source, model_source
    from ioptim.torch_model import call, load_module

    outcome = model_source(ModelSpec(source=str(shared / "models/minilm-sst2")), tmp_path, None).fetch(tmp_path, TASK)
    assert outcome.written is not None
    model = seal(ModelArtifact(path=tmp_path / "model", **outcome.written.model_dump()))
    rows = data_source(DataSpec(source=str(shared / "data/sst2"), split="test", limit=64), tmp_path, None).read()
    assert TASK.check_table(rows, "validation") == []
    module = load_module(model)
    outputs = [{k: v.numpy() for k, v in call(module, feeds, model.outputs).items()} for feeds in TASK.examples(rows, model)]
    assert sum(TASK.score(outputs, rows, model)["accuracy"]) == 55
    examples = list(TASK.examples(rows, model))[:4]
    batch = call(module, TASK.collate(examples, model), model.outputs)["logits"].numpy()
    assert np.allclose(batch, np.concatenate([output["logits"] for output in outputs[:4]]), atol=1e-4)
