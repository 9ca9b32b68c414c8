"""What a recipe asks of a measurement, and what it is told. The statistics are in `ioptim.gates`."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, Self

from pydantic import Field, model_validator

from ioptim.core.base import Frozen
from ioptim.core.metrics import Kind, Metric


class Verdict(StrEnum):
    """The answer of a gate. `undecided` means that the samples cannot tell at the confidence asked for."""

    PASS = "pass"
    FAIL = "fail"
    UNDECIDED = "undecided"


class Gate(Frozen):
    """A bound on a metric of the step that carries it. Exactly one bound per gate.

    `max_drop` compares paired rows and bounds how much worse the candidate may be, in the metric's own unit.
    `max_ratio` and `min_ratio` bound candidate ÷ baseline; `min_speedup` bounds baseline time ÷ candidate time.
    `min_value` and `max_value` bound the candidate alone. With `slices` the bound holds for every slice of the rows, and the result is
    the worst slice's.
    """

    metric: str = Field(description="name of a metric that the step measures, for example ndcg_at_10 or latency_p50_ms")
    baseline: str = Field("source", description="source, runtime-fp32, champion, or the id of a step whose model is measured beside it")
    candidate: str | None = Field(None, description="id of the step whose model is judged; every candidate when left out")
    slices: str | None = Field(
        None, min_length=1, description="judge every slice of the rows: a column of the validation data, label or input_length"
    )
    max_drop: float | None = Field(None, ge=0, description="largest loss of quality that still passes, in the metric's unit")
    max_ratio: float | None = Field(None, gt=0, description="largest candidate ÷ baseline that still passes")
    min_ratio: float | None = Field(None, gt=0, description="smallest candidate ÷ baseline that still passes")
    min_speedup: float | None = Field(None, gt=0, description="smallest baseline time ÷ candidate time that still passes")
    min_value: float | None = Field(None, description="smallest value of the candidate that still passes")
    max_value: float | None = Field(None, description="largest value of the candidate that still passes")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="confidence level of the interval that decides")
    undecided: Literal["pass", "fail", "warn"] = Field("fail", description="what an undecided verdict does to the run")

    @model_validator(mode="after")
    def _one_bound(self) -> Self:
        given = [name for name in BOUNDS if getattr(self, name) is not None]
        if len(given) != 1:
            had = ", ".join(given) or "none"
            raise ValueError(f"a gate has exactly one bound out of {', '.join(BOUNDS)}; this one has {had}")
        return self

    @property
    def bound(self) -> tuple[str, float]:
        """The bound's kind and value, for example ("max_drop", 0.01)."""
        name = next(name for name in BOUNDS if getattr(self, name) is not None)
        return name, getattr(self, name)

    @property
    def needs_baseline(self) -> bool:
        return self.bound[0] not in ("min_value", "max_value")


BOUNDS = ("max_drop", "max_ratio", "min_ratio", "min_speedup", "min_value", "max_value")
_FITS = {
    Kind.PAIRED_ROWS: ("max_drop", "max_ratio", "min_ratio", "min_value", "max_value"),
    Kind.BLOCKS: ("max_ratio", "min_ratio", "min_speedup", "min_value", "max_value"),
    Kind.EXACT: ("max_ratio", "min_ratio", "min_value", "max_value"),
}
_OF_A_QUANTILE = ("min_value", "max_value")
"""The quantiles of two columns are not paired: no interval here is right for their difference."""


def fitting_bounds(kind: Kind, metric: Metric) -> tuple[str, ...]:
    """The bounds that a gate on this metric may have."""
    return _OF_A_QUANTILE if metric.quantile is not None else _FITS[kind]


class SliceResult(Frozen):
    """What a gate with `slices` says about one of them. Nothing is estimated where the rows are too few."""

    name: str
    n: int = Field(description="rows in it")
    candidate_value: float | None
    baseline_value: float | None
    estimate: float | None = None
    interval: tuple[float, float] | None = None
    confidence: float | None = Field(None, description="of the interval: the gate's, or what Holm's correction made of it")
    verdict: Verdict


class GateResult(Frozen):
    """One gate's verdict with everything needed to understand it without the recipe at hand.

    With `gate.slices`, `slice` names the worst slice, the values, estimate, interval and `n` are its, and `slices` has all of them.
    """

    gate: Gate
    metric: str
    candidate: str = Field(description="subject judged")
    baseline: str | None = Field(description="subject compared with; None for a bound on the candidate alone")
    candidate_value: float | None
    baseline_value: float | None
    estimate: float | None = Field(description="the judged quantity: drop, ratio, speedup or value")
    interval: tuple[float, float] | None = Field(description="confidence interval of the estimate; None where the value is exact")
    verdict: Verdict
    reason: str = Field(description="one sentence in words and numbers; when undecided it says which sample size would decide")
    n: int = Field(description="paired rows, blocks or 1")
    slice: str | None = Field(None, description="the worst slice, which this result is about; None for a gate without slices")
    slices: tuple[SliceResult, ...] = Field((), description="every slice, the worst first")

    @property
    def blocks(self) -> bool:
        """Whether this result makes the run fail (exit code 1)."""
        return self.verdict is Verdict.FAIL or (self.verdict is Verdict.UNDECIDED and self.gate.undecided == "fail")
