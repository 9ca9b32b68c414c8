"""Reading a model's outputs and a row's label, with errors that name what was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ioptim.core.artifact import ModelArtifact
from ioptim.core.task import Table
from ioptim.errors import StepError
from ioptim.tasks._assets import labels_of

if TYPE_CHECKING:
    import numpy as np


def output_of(outputs: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """The output called `name`, or the only one there is."""
    if name in outputs:
        return outputs[name]
    if len(outputs) == 1:
        return next(iter(outputs.values()))
    raise StepError(f"the task reads the output {name!r}; the model gives {', '.join(outputs) or 'none'}")


def logits_of(outputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """The logits of one example: (classes,)."""
    logits = output_of(outputs, "logits")
    if logits.ndim != 2 or logits.shape[0] != 1 or logits.shape[1] < 2:
        raise StepError(f"expected logits of shape (1, classes) for one example; the model gives {tuple(logits.shape)}")
    return logits[0]


def accuracy(outputs: Sequence[Mapping[str, np.ndarray]], table: Table, model: ModelArtifact) -> list[float]:
    """1.0 for each row whose highest logit is its label's, 0.0 otherwise, NaN where a logit is not a number.

    Raises:
        StepError: another number of outputs than rows, a wrong shape, or a label that the model does not have.
    """
    import numpy as np

    if len(outputs) != len(table):
        raise StepError(f"{len(table)} rows need {len(table)} outputs; there are {len(outputs)}")
    labels = labels_of(model)
    scores = []
    for output, given, row in zip(outputs, table.columns["label"], table.rows, strict=True):
        logits = logits_of(output)
        expected = class_of(given, labels, len(logits), row)
        scores.append(float(np.argmax(logits) == expected) if np.isfinite(logits).all() else float("nan"))
    return scores


def class_ids(table: Table, model: ModelArtifact) -> list[int]:
    """The class of each row's label.

    Raises:
        StepError: there is no column `label`, or a label that the model does not have.
    """
    if "label" not in table.columns:
        raise StepError(f"{table.origin} has no column 'label'; it has {', '.join(table.columns)}")
    labels = labels_of(model)
    count = len(labels) or next((spec.shape[-1] for spec in model.outputs if spec.name == "logits"), 0)
    if not isinstance(count, int) or not count:
        raise StepError(f"{model.path} does not say how many classes it has, so labels cannot be matched to them")
    return [class_of(label, labels, count, row) for label, row in zip(table.columns["label"], table.rows, strict=True)]


def class_of(label: Any, labels: Sequence[str], classes: int, row: str) -> int:
    """Index of a label given as a number, as a text holding a number, or as the class's name.

    A name goes before a number: in a model whose classes are called "1" to "5", the label "1" is the first of them.
    """
    text = str(label).strip()
    if isinstance(label, str) and text in labels:
        return labels.index(text)
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if number.is_integer() and 0 <= number < classes:
        return int(number)
    named = f" or {', '.join(labels)}" if len(labels) == classes else ""
    raise StepError(f"{row}: the label {label!r} is outside the model's {classes} classes: 0 to {classes - 1}{named}")
