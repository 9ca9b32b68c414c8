"""How rows are sliced: columns, and buckets of lengths that hold about as many rows each."""

from __future__ import annotations

from collections import Counter

import pytest

from ioptim.core.slices import length_buckets, rows_of, slicings
from ioptim.core.task import Table


@pytest.mark.parametrize(
    ("lengths", "buckets"),
    [
        (list(range(1, 101)), {"1-25 tokens": 25, "26-50 tokens": 25, "51-75 tokens": 25, "76-100 tokens": 25}),
        ([3, 3, 3, 3, 4, 5, 9], {"3 tokens": 4, "4 tokens": 1, "5-9 tokens": 2}),
        ([7] * 5, {"7 tokens": 5}),
        ([2, 1], {"1 tokens": 1, "2 tokens": 1}),
        ([5], {"5 tokens": 1}),
    ],
)
def test_lengths_are_cut_at_their_quartiles_and_equal_ones_stay_together(lengths: list[int], buckets: dict[str, int]) -> None:
    assert Counter(length_buckets(lengths, "tokens")) == buckets


def test_each_row_is_in_the_bucket_of_its_length() -> None:
    assert length_buckets([9, 1, 5, 7], "tokens") == ("9 tokens", "1 tokens", "5 tokens", "7 tokens")


def test_columns_that_group_the_rows_are_kept() -> None:
    columns = {
        "text": [f"text {i}" for i in range(60)],
        "label": [i % 2 for i in range(60)],
        "genre": ["prose", "verse", None, ""] * 15,
        "fold": ["a"] * 60,
        "image": [[0.0]] * 60,
    }
    found = slicings(Table(columns=columns, rows=tuple(map(str, range(60)))), [4, 8] * 30, "tokens")
    assert {name: dict(Counter(slices)) for name, slices in found.items()} == {
        "label": {"0": 30, "1": 30},
        "genre": {"prose": 15, "verse": 15, "(empty)": 30},
        "input_length": {"4 tokens": 30, "8 tokens": 30},
    }


def test_rows_of_each_slice() -> None:
    assert rows_of(("b", "a", "b")) == {"b": [0, 2], "a": [1]}
