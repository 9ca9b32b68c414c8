"""Digits of scikit-learn, split once and for all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ioptim.core.source import DataSource, DataSpec
from ioptim.sources import data_source
from ioptim.sources.sklearn import split_rows


def source(name: str, **options: Any) -> DataSource:
    return data_source(DataSpec(source=name, **options), Path(), None)


def test_splits_part_every_class_alike() -> None:
    labels = [0] * 100 + [1] * 50
    splits = split_rows(labels)
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 105, "calibration": 15, "test": 30}
    assert sorted(row for rows in splits.values() for row in rows) == list(range(150))
    assert sum(labels[row] for row in splits["test"]) == 10
    assert split_rows(labels) == splits


def test_objections() -> None:
    assert source("sklearn:digit", split="test").check() == [
        "there is no sklearn data set 'digit' here; did you mean 'digits'? There are: digits"
    ]
    assert source("sklearn:digits").check() == ["sklearn:digits: name the split; it has train, calibration, test"]
    assert source("sklearn:digits", split="dev").check() == ["sklearn:digits: there is no split 'dev'; it has train, calibration, test"]
    assert source("sklearn:digits", split="test", columns={"image": "pixels"}).check() == [
        "sklearn:digits has no column 'pixels' (asked for as 'image' by `columns`); it has image, label"
    ]


@pytest.mark.integration
def test_digits() -> None:
    pytest.importorskip("sklearn")
    data = source("sklearn:digits", split="test")
    assert data.check() == []
    assert not data.cheap
    table = data.read()
    assert len(table) == 359
    image = table.columns["image"][0]
    assert (image.shape, str(image.dtype)) == ((1, 8, 8), "float32")
    assert 0 <= image.min() < image.max() <= 1
    assert set(table.columns["label"]) == set(range(10))
    train = source("sklearn:digits", split="train").read()
    assert not set(train.rows) & set(table.rows)
    assert not {i.tobytes() for i in train.columns["image"]} & {i.tobytes() for i in table.columns["image"]}
