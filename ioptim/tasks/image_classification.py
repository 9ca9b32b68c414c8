"""One label for an image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ioptim.core.artifact import ModelArtifact, TensorSpec
from ioptim.core.metrics import Metric
from ioptim.core.task import Table, Task
from ioptim.errors import StepError
from ioptim.tasks._outputs import accuracy, class_ids

if TYPE_CHECKING:
    import numpy as np

    from ioptim.core.task import Feeds, Outputs


class ImageClassification(Task):
    """Images are arrays (channels, height, width), scaled as the model was trained; a label is a class's number or name."""

    task: Literal["image-classification"] = "image-classification"
    image_shape: tuple[int, int, int] | None = Field(
        None, description="channels, height, width: needed for a python: factory, whose module does not tell"
    )
    libraries = ("numpy",)
    metrics = (Metric(name="accuracy", higher_is_better=True, description="1 where the highest logit is the label's"),)
    columns = {"image": "an array (channels, height, width)", "label": "number or name of its class"}
    calibration_columns = {"image": "an array (channels, height, width) of the kind the model will see"}
    auto_class = "AutoModelForImageClassification"
    output = "logits"

    def examples(self, table: Table, model: ModelArtifact) -> Iterator[Feeds]:
        """(1, channels, height, width) each."""
        spec = _image_input(model)
        for image, row in zip(table.columns["image"], table.rows, strict=True):
            yield {spec.name: _batch_of_one(image, spec, row)}

    def collate(self, examples: Sequence[Feeds], model: ModelArtifact) -> Feeds:
        """(batch, channels, height, width)."""
        import numpy as np

        name = _image_input(model).name
        return {name: np.concatenate([example[name] for example in examples])}

    def class_ids(self, table: Table, model: ModelArtifact) -> list[int]:
        """From the column `label`: a number, or the name of a class."""
        return class_ids(table, model)

    def score(self, outputs: Sequence[Outputs], table: Table, model: ModelArtifact) -> dict[str, list[float]]:
        """`accuracy`: 1 or 0 for each row."""
        return {"accuracy": accuracy(outputs, table, model)}

    def dummy_feeds(self, model: ModelArtifact, batch: int, length: int) -> Feeds:
        """Uniform in [0, 1)."""
        import numpy as np

        spec = _image_input(model)
        shape = [n if isinstance(n, int) else (self.image_shape or (1, 1, 1))[i] for i, n in enumerate(spec.shape[1:])]
        return {spec.name: np.random.default_rng(0).random((batch, *shape)).astype(spec.dtype)}

    def input_specs(self, parameters: Sequence[str]) -> tuple[TensorSpec, ...]:
        """float32 (batch, channels, height, width) for the first parameter."""
        if self.image_shape is None:
            raise StepError(
                "the size of the images is not known: write `task: {task: image-classification, image_shape: [channels, height, width]}`"
            )
        return (TensorSpec(name=parameters[0], dtype="float32", shape=("batch", *self.image_shape)),)


def _image_input(model: ModelArtifact) -> TensorSpec:
    if len(model.inputs) != 1 or len(model.inputs[0].shape) != 4:
        found = ", ".join(f"{spec.name} {list(spec.shape)}" for spec in model.inputs) or "none"
        raise StepError(f"image classification feeds one input (batch, channels, height, width); the model has {found}")
    return model.inputs[0]


def _batch_of_one(image: Any, spec: TensorSpec, row: str) -> np.ndarray:
    import numpy as np

    try:
        array = np.asarray(image, dtype=spec.dtype)
    except (TypeError, ValueError) as error:
        raise StepError(f"{row}: the image is not an array of numbers: {error}") from error
    wanted = spec.shape[1:]
    if array.ndim != 3 or any(isinstance(n, int) and n != m for n, m in zip(wanted, array.shape, strict=True)):
        raise StepError(f"{row}: the model takes images of shape {list(wanted)}; this one has {list(array.shape)}")
    return array[None]
