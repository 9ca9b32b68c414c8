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


def test_a_split_must_be_named() -> None:
    assert source("builtin:retrieval").check() == ["builtin:retrieval: name the split; it has test, calibration"]
    assert source("builtin:retrieval", split="train").check() == [
        "builtin:retrieval: there is no split 'train'; it has test, calibration"
    ]


def test_an_unknown_name() -> None:
    assert source("builtin:retreival", split="test").check() == [
        "there is no built-in data set 'retreival'; did you mean 'retrieval'? There are: retrieval"
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
