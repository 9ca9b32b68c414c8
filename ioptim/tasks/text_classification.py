"""One label for a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from ioptim.core.artifact import ModelArtifact
from ioptim.core.metrics import Metric
from ioptim.core.task import Table
from ioptim.tasks._outputs import accuracy, class_ids
from ioptim.tasks._text import TextTask

if TYPE_CHECKING:
    from ioptim.core.task import Outputs


class TextClassification(TextTask):
    """A label is the number of a class or its name in the model's `id2label`; the prediction is the highest logit."""

    task: Literal["text-classification"] = "text-classification"
    metrics = (Metric(name="accuracy", higher_is_better=True, description="1 where the highest logit is the label's"),)
    columns = {"sentence": "the text", "label": "number or name of its class"}
    calibration_columns = {"sentence": "a text of the kind the model will see"}
    auto_class = "AutoModelForSequenceClassification"
    output = "logits"

    def texts(self, table: Table) -> list[str]:
        """The column `sentence`."""
        return list(table.columns["sentence"])

    def class_ids(self, table: Table, model: ModelArtifact) -> list[int]:
        """From the column `label`: a number, or the name of a class."""
        return class_ids(table, model)

    def score(self, outputs: Sequence[Outputs], table: Table, model: ModelArtifact) -> dict[str, list[float]]:
        """`accuracy`: 1 or 0 for each row."""
        return {"accuracy": accuracy(outputs, table, model)}
