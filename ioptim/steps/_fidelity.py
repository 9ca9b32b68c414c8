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
    continuous=True,
    description="cosine of the output with the source model's, over the whole output; needs no labels",
)
COSINE_P1 = Metric(
    name="output_cosine_p1",
    higher_is_better=True,
    continuous=True,
    quantile=0.01,
    description="the same, 1st percentile of the rows: how far the worst of them stray",
)
TOP1 = Metric(
    name="top1_agreement",
    higher_is_better=True,
    description="1 where the highest logit is the source model's; needs no labels",
)
KL = Metric(
    name="output_kl",
    higher_is_better=False,
    continuous=True,
    unit="nats",
    description="Kullback-Leibler divergence of the class probabilities from the source model's; needs no labels",
)
METRICS = (COSINE, COSINE_P1, TOP1, KL)


def metrics_for(task: Task) -> tuple[Metric, ...]:
    """Answers and probabilities are compared only where there are classes to choose from."""
    return METRICS if task.output == "logits" else (COSINE, COSINE_P1)


def compare(outputs: Sequence[Outputs], reference: Sequence[Outputs], task: Task, rows: int) -> dict[str, list[float]]:
    """One value per row of every metric, the mean over the row's examples; empty when the shapes differ.

    Compared is the output that the task scores, else the first one.
    """
    mine, theirs = ([_main(output, task) for output in each] for each in (outputs, reference))
    if [a.shape for a in mine] != [a.shape for a in theirs]:
        return {}
    pairs = list(zip(mine, theirs, strict=True))
    cosine = _by_row([_cosine(a, b) for a, b in pairs], rows)
    found = {COSINE.name: cosine, COSINE_P1.name: cosine}
    if TOP1 in metrics_for(task):
        found[TOP1.name] = _by_row([float((a.argmax(-1) == b.argmax(-1)).mean()) for a, b in pairs], rows)
        found[KL.name] = _by_row([_divergence(a, b) for a, b in pairs], rows)
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
    length = float(np.linalg.norm(x)) * float(np.linalg.norm(y))
    if length == 0:
        return float(not x.any() and not y.any())
    return min(1.0, max(-1.0, float(x @ y) / length)) if math.isfinite(length) else math.nan


def _divergence(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over the leading axes of KL(b || a) in nats, of logits (..., classes): what coding b's answers by a's would waste.

    From log-probabilities, so that a class with probability 0 in float32 keeps its weight. NaN or infinite where a logit is.
    """
    import numpy as np

    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite stays so, and the caller counts it
        mine, theirs = _log_softmax(a), _log_softmax(b)
        found = float((np.exp(theirs) * (theirs - mine)).sum(axis=-1).mean())
    return 0.0 if found < 0 else found  # rounding; `max` would make 0 of NaN


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    import numpy as np

    wide: np.ndarray = logits.astype("float64")
    logs: np.ndarray = wide - np.logaddexp.reduce(wide, axis=-1, keepdims=True)
    return logs
