"""How close a model's outputs stay to the source model's. Needs no labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from ioptim.core.metrics import Metric
from ioptim.core.task import Task

if TYPE_CHECKING:
    import numpy as np

    from ioptim.core.task import Outputs

COSINE = Metric(
    name="output_cosine_mean",
    higher_is_better=True,
    description="cosine of the output with the source model's, over the whole output; needs no labels",
)
TOP1 = Metric(
    name="top1_agreement",
    higher_is_better=True,
    description="1 where the highest logit is the source model's; needs no labels",
)
METRICS = (COSINE, TOP1)


def metrics_for(task: Task) -> tuple[Metric, ...]:
    """The top answer is compared only where there are classes to choose from."""
    return METRICS if task.output == "logits" else (COSINE,)


def compare(outputs: Sequence[Outputs], reference: Sequence[Outputs], task: Task, rows: int) -> dict[str, list[float]]:
    """One value per row of every metric, the mean over the row's examples; empty when the shapes differ.

    Compared is the output that the task scores, else the first one.
    """
    mine, theirs = ([_main(output, task) for output in each] for each in (outputs, reference))
    if [a.shape for a in mine] != [a.shape for a in theirs]:
        return {}
    pairs = list(zip(mine, theirs, strict=True))
    found = {COSINE.name: _by_row([_cosine(a, b) for a, b in pairs], rows)}
    if TOP1 in metrics_for(task):
        found[TOP1.name] = _by_row([float((a.argmax(-1) == b.argmax(-1)).mean()) for a, b in pairs], rows)
    return found


def _main(output: Outputs, task: Task) -> np.ndarray:
    return output[task.output] if task.output in output else next(iter(output.values()))


def _by_row(values: Sequence[float], rows: int) -> list[float]:
    per_row = len(values) // rows
    return [fmean(values[i : i + per_row]) for i in range(0, len(values), per_row)]


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Of two outputs as flat float64 vectors: 1 when both are zero, 0 when one is, NaN when one is not finite."""
    import numpy as np

    x: np.ndarray = a.astype("float64").ravel()
    y: np.ndarray = b.astype("float64").ravel()
    length = float(np.linalg.norm(x) * np.linalg.norm(y))
    if length == 0:
        return float(not x.any() and not y.any())
    return min(1.0, max(-1.0, float(x @ y) / length)) if math.isfinite(length) else math.nan
