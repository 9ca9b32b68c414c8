"""Data that comes with the project."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ioptim.core.source import DataSource, DataSpec
from ioptim.sources import data_source


def source(name: str, **options: Any) -> DataSource:
    return data_source(DataSpec(source=name, **options), Path(), None)


def test_retrieval_has_two_splits_without_a_common_text() -> None:
    test, calibration = (source("builtin:retrieval", split=split).read() for split in ("test", "calibration"))
    assert (len(test), len(calibration)) == (360, 120)
    assert set(test.columns) == {"id", "topic", "split", "query", "passage"}
    for column in ("id", "query", "passage"):
        assert not set(test.columns[column]) & set(calibration.columns[column])


def test_definitions_are_distinct_texts_of_many_lengths() -> None:
    table = source("builtin:definitions", split="train").read()
    texts = table.columns["text"]
    words = sorted(len(text.split()) for text in texts)
    assert len(set(texts)) == len(texts) == 70618
    assert words[len(words) // 4] <= 10 and words[-len(words) // 4] >= 30, "from a search query to a paragraph"


def test_definitions_share_no_text_with_retrieval() -> None:
    texts = set(source("builtin:definitions", split="train").read().columns["text"])
    for split in ("test", "calibration"):
        rows = source("builtin:retrieval", split=split).read().columns
        assert not texts & {*rows["query"], *rows["passage"]}


def test_a_split_must_be_named() -> None:
    assert source("builtin:retrieval").check() == ["builtin:retrieval: name the split; it has test, calibration"]
    assert source("builtin:retrieval", split="train").check() == [
        "builtin:retrieval: there is no split 'train'; it has test, calibration"
    ]


def test_an_unknown_name() -> None:
    assert source("builtin:retreival", split="test").check() == [
        "there is no built-in data set 'retreival'; did you mean 'retrieval'? There are: definitions, retrieval"
    ]


def test_a_column_that_is_not_there() -> None:
    assert source("builtin:retrieval", split="test", columns={"text": "body"}).check() == [
        "builtin:retrieval has no column 'body' (asked for as 'text' by `columns`); it has id, topic, split, query, passage"
    ]


def test_a_limit_is_within_the_split() -> None:
    table = source("builtin:retrieval", split="calibration", limit=7).read()
    assert set(table.columns["split"]) == {"calibration"}
    assert table.origin == "builtin:retrieval (calibration) (7 of 120 rows, seed 0)"


def test_identity_differs_by_split() -> None:
    assert source("builtin:retrieval", split="test").identity() != source("builtin:retrieval", split="calibration").identity()
