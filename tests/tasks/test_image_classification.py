"""Images as arrays, for a model whose input is one of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ioptim.core.artifact import Format, ModelArtifact, TensorSpec
from ioptim.errors import StepError
from ioptim.tasks.image_classification import ImageClassification

TASK = ImageClassification(image_shape=(1, 2, 2))
Make = Callable[..., Any]


def model(path: Path, shape: tuple[int | str, ...] = ("batch", 1, 2, 2)) -> ModelArtifact:
    spec = TensorSpec(name="image", dtype="float32", shape=shape)
    return ModelArtifact(path=path, format=Format.TORCH, entry="model.safetensors", inputs=(spec,))


def test_examples_and_batches(tmp_path: Path, table: Make) -> None:
    rows = table(image=[np.zeros((1, 2, 2)), [[[1, 2], [3, 4]]]], label=[0, 1])
    examples = list(TASK.examples(rows, model(tmp_path)))
    assert [e["image"].shape for e in examples] == [(1, 1, 2, 2)] * 2
    batch = TASK.collate(examples, model(tmp_path))["image"]
    assert (batch.shape, batch.dtype) == ((2, 1, 2, 2), np.float32)


def test_an_image_of_another_shape(tmp_path: Path, table: Make) -> None:
    with pytest.raises(StepError) as caught:
        list(TASK.examples(table(image=[np.zeros((2, 2))], label=[0]), model(tmp_path)))
    assert str(caught.value) == "rows.tsv:2: the model takes images of shape [1, 2, 2]; this one has [2, 2]"
    with pytest.raises(StepError, match=r"rows\.tsv:2: the image is not an array of numbers"):
        list(TASK.examples(table(image=["cat.png"], label=[0]), model(tmp_path)))


def test_a_model_that_takes_no_image(tmp_path: Path, table: Make) -> None:
    with pytest.raises(StepError) as caught:
        list(TASK.examples(table(image=[[1]], label=[0]), model(tmp_path, ("batch", "sequence"))))
    assert str(caught.value) == (
        "image classification feeds one input (batch, channels, height, width); the model has image ['batch', 'sequence']"
    )


def test_accuracy(tmp_path: Path, table: Make) -> None:
    rows = table(image=[0, 0], label=[1, 0])
    outputs = [{"logits": np.array([[0.0, 1.0]])}] * 2
    assert TASK.score(outputs, rows, model(tmp_path)) == {"accuracy": [1.0, 0.0]}
    with pytest.raises(StepError, match="the label 10 is outside the model's 2 classes: 0 to 1"):
        TASK.score(outputs, table(image=[0, 0], label=[1, 10]), model(tmp_path))


def test_dummy_feeds(tmp_path: Path) -> None:
    assert TASK.dummy_feeds(model(tmp_path), 3, 99)["image"].shape == (3, 1, 2, 2)
    assert TASK.dummy_feeds(model(tmp_path, ("batch", 1, "height", "width")), 1, 0)["image"].shape == (1, 1, 2, 2)


def test_input_specs() -> None:
    (spec,) = TASK.input_specs(["pixels"])
    assert (spec.name, spec.dtype, spec.shape) == ("pixels", "float32", ("batch", 1, 2, 2))


def test_missing_columns(table: Make) -> None:
    assert TASK.check_table(table(pixels=[0]), "calibration") == [
        "rows.tsv has no column 'image' (an array (channels, height, width) of the kind the model will see); it has pixels."
        " Map one with `columns: {image: <its name>}`"
    ]
