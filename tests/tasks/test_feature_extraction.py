"""Retrieval scores against what can be worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ioptim.core.gate import Gate
from ioptim.core.metrics import Kind, Samples
from ioptim.errors import StepError
from ioptim.gates import judge
from ioptim.tasks.feature_extraction import FeatureExtraction

TASK = FeatureExtraction()
Make = Callable[..., Any]


def pooled(*vectors: list[float]) -> list[dict[str, np.ndarray]]:
    """Outputs of a model that gives one vector for each text."""
    return [{"sentence_embedding": np.array([vector], dtype=np.float32)} for vector in vectors]


def scores(table: Any, model: Any, outputs: Any, task: FeatureExtraction = TASK) -> tuple[list[float], list[float]]:
    found = task.score(outputs, table, model)
    assert list(found) == [metric.name for metric in TASK.metrics]
    return found["ndcg_at_10"], found["recall_at_1"]


def test_ranks(text_model: Make, table: Make) -> None:
    rows = table(query=["a", "b", "c"], passage=["p", "q", "r"])
    # similarities of the first query: 1, 0, 0; of the second: 1 to p, 0.8 to its own; of the third all less than to its own
    outputs = pooled([1, 0], [1, 0], [1, 0], [0.8, 0.6], [0, 1], [0, 1])
    ndcg, recall = scores(rows, text_model(), outputs)
    assert ndcg == pytest.approx([1, 1 / math.log2(3), 1])
    assert recall == [1, 0, 1]


def test_only_recall_is_a_share_of_right_answers() -> None:
    """A slice in which every nDCG happens to be 1 is still of scores: 12 rows of it decide nothing."""
    assert {metric.name: metric.continuous for metric in TASK.metrics} == {"ndcg_at_10": True, "recall_at_1": False}
    ndcg = next(metric for metric in TASK.metrics if metric.name == "ndcg_at_10")
    samples = Samples(metric=ndcg, kind=Kind.PAIRED_ROWS, values={"int8": (1.0,) * 12, "source": (1.0,) * 12})
    (result,) = judge(Gate(metric="ndcg_at_10", max_drop=0.5), [samples], ["int8"])
    assert result.reason == "12 rows of ndcg_at_10 cannot decide at 95 % confidence: at least 30 can"


def test_beyond_rank_ten_there_is_no_gain(text_model: Make, table: Make) -> None:
    count = 12
    angles = np.linspace(0, 1, count)
    passages = [[math.cos(a), math.sin(a)] for a in angles]
    rows = table(query=[f"q{i}" for i in range(count)], passage=[f"p{i}" for i in range(count)])
    outputs = pooled(*[vector for passage in passages for vector in ([1.0, 0.0], passage)])
    ndcg, _ = scores(rows, text_model(), outputs)
    assert ndcg == pytest.approx([1 / math.log2(rank + 1) for rank in range(1, 11)] + [0, 0])


def test_a_model_that_gives_one_vector_for_everything_scores_nothing(text_model: Make, table: Make) -> None:
    rows = table(query=[f"q{i}" for i in range(20)], passage=[f"p{i}" for i in range(20)])
    ndcg, recall = scores(rows, text_model(), pooled(*[[1, 1]] * 40))
    assert ndcg == [0] * 20
    assert recall == [0] * 20


def test_a_passage_that_answers_two_queries_is_one_passage(text_model: Make, table: Make) -> None:
    rows = table(query=["a", "b", "c"], passage=["same", "same", "other"])
    _, recall = scores(rows, text_model(), pooled([1, 0], [1, 0], [1, 0.1], [1, 0], [0, 1], [0, 1]))
    assert recall == [1, 1, 1]


def test_a_vector_that_is_not_finite(text_model: Make, table: Make) -> None:
    rows = table(query=["a", "b", "c"], passage=["p", "q", "r"])
    nan = float("nan")
    ndcg, recall = scores(rows, text_model(), pooled([nan, 0], [1, 0], [0, 1], [0, 1], [1, 1], [nan, 1]))
    assert math.isnan(ndcg[0])
    assert math.isnan(recall[2])
    assert recall[1] == 0  # a passage whose similarity is unknown is not taken for a worse one


def test_dot_product(text_model: Make, table: Make) -> None:
    rows = table(query=["a", "b"], passage=["p", "q"])
    outputs = pooled([1, 0.5], [1, 0], [0, 1], [3, 3])
    assert scores(rows, text_model(), outputs, FeatureExtraction(normalize=False))[1] == [0, 1]
    assert scores(rows, text_model(), pooled([1, 0.1], [1, 0], [0, 1], [3, 3]))[1] == [1, 1]


def test_pooling_leaves_padding_out(text_model: Make, table: Make) -> None:
    pytest.importorskip("tokenizers")
    rows = table(query=["good", "bad"], passage=["good film", "bad film"])
    good, bad, noise = [1.0, 0.0], [0.0, 1.0], [0.0, 99.0]
    states = [[good] * 3 + [noise] * 2, [good] * 4 + [noise], [bad] * 3 + [noise] * 2, [bad] * 4 + [noise]]
    outputs = [{"last_hidden_state": np.array([state], dtype=np.float32)} for state in states]
    assert scores(rows, text_model(length=5), outputs)[1] == [1, 1]


def test_cls_pooling(text_model: Make, table: Make) -> None:
    pytest.importorskip("tokenizers")
    rows = table(query=["good", "bad"], passage=["good film", "bad film"])
    first = [[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]]
    outputs = [{"last_hidden_state": np.array([[vector, [5, 5], [7, 5]]], dtype=np.float32)} for vector in first]
    assert scores(rows, text_model(), outputs, FeatureExtraction(pooling="cls"))[1] == [1, 1]


def test_wrong_outputs(text_model: Make, table: Make) -> None:
    rows, model = table(query=["a"], passage=["p"]), text_model()
    with pytest.raises(StepError) as caught:
        TASK.score(pooled([1, 0]), rows, model)
    assert str(caught.value) == "1 rows of query and passage need 2 outputs; there are 1"
    with pytest.raises(StepError) as caught:
        TASK.score([{"last_hidden_state": np.zeros(3)}] * 2, rows, model)
    assert str(caught.value) == (
        "expected last_hidden_state of shape (1, tokens, hidden) or (1, hidden) for one text; the model gives (3,)"
    )


def test_examples_alternate(text_model: Make, table: Make) -> None:
    pytest.importorskip("tokenizers")
    rows = table(query=["good", "bad"], passage=["film", "a"])
    assert [feeds["input_ids"][0, 1] for feeds in TASK.examples(rows, text_model())] == [4, 6, 5, 7]


def test_calibration_takes_texts_or_pairs(table: Make) -> None:
    assert TASK.texts(table(text=["x", "y"])) == ["x", "y"]
    assert TASK.texts(table(query=["q"], passage=["p"], id=[1])) == ["q", "p"]
    for rows in (table(text=["x"]), table(query=["q"]), table(query=["q"], passage=["p"])):
        assert TASK.check_table(rows, "calibration") == []
    assert TASK.check_table(table(body=["x"]), "calibration") == [
        "rows.tsv has no column 'text' (a text of the kind the model will see; or `query` and `passage`); it has body."
        " Map one with `columns: {text: <its name>}`"
    ]
    assert TASK.check_table(table(text=[""]), "calibration") == [
        "rows.tsv: the column 'text' must hold text; it is empty or no text in rows.tsv:2"
    ]


def test_validation_needs_something_to_choose_from(table: Make) -> None:
    assert TASK.check_table(table(query=["q", "r"], passage=["p", "p"]), "validation") == [
        "rows.tsv: retrieval needs different passages to choose from; all 2 rows have the same one"
    ]
