"""Data that comes with the project."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ioptim.core.source import DataSource, DataSpec
from ioptim.plan import _rows_of
from ioptim.sources import data_source
from ioptim.sources.builtin import FOLDER


def source(name: str, **options: Any) -> DataSource:
    return data_source(DataSpec(source=name, **options), Path(), None)


def test_retrieval_has_two_splits_without_a_common_text() -> None:
    test, calibration = (source("builtin:retrieval", split=split).read() for split in ("test", "calibration"))
    assert (len(test), len(calibration)) == (360, 120)
    assert set(test.columns) == {"id", "topic", "split", "query", "passage"}
    for column in ("id", "query", "passage"):
        assert not set(test.columns[column]) & set(calibration.columns[column])


def test_english_is_distinct_texts_of_many_lengths() -> None:
    columns = source("builtin:english", split="train").read().columns
    texts = columns["text"]
    words = sorted(len(text.split()) for text in texts)
    assert len(set(texts)) == len(texts) == 48625
    assert words[len(words) // 4] <= 10 and words[-len(words) // 4] >= 30, "from a search query to a paragraph"
    everyday = {text for text, origin in zip(texts, columns["origin"], strict=True) if origin == "everyday"}
    assert len(everyday) == 32417 and {*source("builtin:everyday", split="train").read().columns["text"]} <= everyday


def test_what_the_pages_say_of_english() -> None:
    columns = source("builtin:english", split="train").read().columns
    words = sorted(len(text.split()) for text in columns["text"])
    quarter, half, three_quarters = (words[len(words) * i // 4] for i in (1, 2, 3))
    readme = (FOLDER / "README.md").read_text()
    assert f"`english.parquet` holds {len(words):,} texts" in readme
    assert f"({columns['origin'].count('everyday'):,} rows, `everyday`), and half as many rows" in readme
    assert columns["origin"].count("wordnet") == columns["origin"].count("everyday") // 2
    assert f"A quarter has at most {quarter} words, half at most {half}, a quarter {three_quarters} or more." in readme
    assert f"`builtin:english` | {len(words):,} English texts" in (Path(__file__).parents[2] / "docs" / "data.md").read_text()


def test_everyday_texts_share_no_five_words_with_retrieval() -> None:
    """What a student learns from is not what it is judged by."""
    judged = {
        run
        for split in ("test", "calibration")
        for column in ("query", "passage")
        for text in source("builtin:retrieval", split=split).read().columns[column]
        for run in runs_of_five(text)
    }
    shared = [text for text in source("builtin:everyday", split="train").read().columns["text"] if judged & runs_of_five(text)]
    assert judged and shared == []


def test_english_shares_no_text_with_retrieval() -> None:
    texts = set(source("builtin:english", split="train").read().columns["text"])
    for split in ("test", "calibration"):
        rows = source("builtin:retrieval", split=split).read().columns
        assert not texts & {*rows["query"], *rows["passage"]}


def runs_of_five(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"[a-z0-9']+", text.lower())
    return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}


def test_its_splits_are_different_rows_to_the_plan() -> None:
    """They are in one file; calibrating on one and judging by the other is no leak."""
    test, again, calibration = (source("builtin:retrieval", split=split) for split in ("test", "test", "calibration"))
    assert _rows_of(test) == _rows_of(again) != _rows_of(calibration) is not None


def test_a_split_must_be_named() -> None:
    assert source("builtin:retrieval").check() == ["builtin:retrieval: name the split; it has test, calibration"]
    assert source("builtin:retrieval", split="train").check() == [
        "builtin:retrieval: there is no split 'train'; it has test, calibration"
    ]


def test_an_unknown_name() -> None:
    assert source("builtin:retreival", split="test").check() == [
        "there is no built-in data set 'retreival'; did you mean 'retrieval'? There are: english, everyday, retrieval"
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
