"""Which source a recipe's text means."""

from __future__ import annotations

from pathlib import Path

import pytest

from ioptim.core.source import DataSpec, ModelSpec
from ioptim.errors import PlanError
from ioptim.sources import data_source, model_source


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("package:some-model", "PackageModel"),
        ("hf:org/name", "HubModel"),
        ("python:models.cnn:build", "FactoryModel"),
        ("models/minilm", "LocalCheckpoint"),
        ("models/minilm.onnx", "OnnxModel"),
        ("./odd:name", "LocalCheckpoint"),
    ],
)
def test_a_model_source_is_found_by_its_prefix(source: str, kind: str) -> None:
    assert type(model_source(ModelSpec(source=source), Path(), None)).__name__ == kind


@pytest.mark.parametrize(
    ("source", "kind"),
    [("builtin:retrieval", "BuiltinData"), ("sklearn:digits", "SklearnData"), ("hf:org/name", "HubData"), ("rows.tsv", "LocalTable")],
)
def test_a_data_source_is_found_by_its_prefix(source: str, kind: str) -> None:
    assert type(data_source(DataSpec(source=source), Path(), None)).__name__ == kind


def test_an_unknown_model_prefix_is_refused_with_a_suggestion() -> None:
    with pytest.raises(PlanError) as caught:
        model_source(ModelSpec(source="pakage:x"), Path(), None)
    assert str(caught.value) == (
        "'pakage:x': no model comes from 'pakage'; did you mean 'package:'? Accepted: hf:, package:, python:"
        " or a path to a folder, or an .onnx file; a path with a colon in it starts with ./"
    )


def test_a_prefix_of_models_is_none_of_data() -> None:
    with pytest.raises(PlanError) as caught:
        data_source(DataSpec(source="package:x"), Path(), None)
    assert str(caught.value) == (
        "'package:x': no data set comes from 'package'. Accepted: builtin:, hf:, sklearn:"
        " or a path to a .tsv, .csv, .jsonl or .parquet file, or a folder of them; a path with a colon in it starts with ./"
    )


def test_an_address_is_no_source() -> None:
    with pytest.raises(PlanError, match="'https://example.org/model': no model comes from 'https'"):
        model_source(ModelSpec(source="https://example.org/model"), Path(), None)
