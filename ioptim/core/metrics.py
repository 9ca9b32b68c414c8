"""What a number means: its unit, which way is better, and the raw samples it came from."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from statistics import fmean, median

from pydantic import Field

from ioptim.core.artifact import write_json
from ioptim.core.base import Frozen


class Kind(StrEnum):
    """How samples of several subjects relate, which decides the statistics that a gate may use."""

    PAIRED_ROWS = "paired_rows"
    """Value i of every subject is the score of the same row i."""
    BLOCKS = "blocks"
    """Value lists are timing blocks taken in turn: block i of every subject was measured side by side."""
    EXACT = "exact"
    """One value per subject, known without noise (bytes on disk)."""


class Metric(Frozen):
    """A metric's definition. `name` ends in its unit where it has one (`latency_p50_ms`, `size_bytes`)."""

    name: str
    higher_is_better: bool
    description: str
    unit: str = ""
    continuous: bool = Field(False, description="of rows: no share of right answers, even where every value seen is 0 or 1")
    quantile: float | None = Field(
        None, gt=0, lt=1, description="of rows: the metric is this quantile of their values; their mean when left out"
    )

    def of_rows(self, values: Sequence[float]) -> float:
        """What the rows of one model come to. A quantile is an order statistic: the smallest value that so many rows do not exceed."""
        if self.quantile is None:
            return fmean(values)
        place = math.ceil(round(self.quantile * len(values), 6))  # 0.01 * 700 is a little more than 7
        return sorted(values)[place - 1]


class Samples(Frozen):
    """Raw samples of one metric for every subject measured together.

    `values[subject]`: for paired rows one number per row; for blocks a list of per-block statistics (one per block);
    for exact metrics a single number. A NaN is stored as None and makes the verdict a failure, never a gap.
    """

    metric: Metric
    kind: Kind
    values: Mapping[str, tuple[float | None, ...]]
    rows: tuple[str, ...] = Field((), description="row ids, for paired rows: what a reader looks up in the data")
    slices: Mapping[str, tuple[str, ...]] = Field(
        default_factory=dict, description="for paired rows, by the name of a slicing (a column, input_length): the slice of each row"
    )
    hardware: Mapping[str, str] = Field(default_factory=dict, description="fingerprint of the machine each subject was measured on")

    def centre(self, numbers: Sequence[float]) -> float | None:
        """What a reader knows as the metric's value: of rows the mean or the metric's quantile, of blocks the median."""
        if not numbers:
            return None
        return self.metric.of_rows(numbers) if self.kind is Kind.PAIRED_ROWS else median(numbers)


SAMPLES_FILE = "samples.json"


def write_samples(folder: Path, samples: tuple[Samples, ...], hardware: str = "") -> None:
    """Keep the raw samples beside the figures derived from them; `hardware` is the fingerprint of the machine they were taken on."""
    stamped = [sample.model_copy(update={"hardware": dict.fromkeys(sample.values, hardware)}) if hardware else sample for sample in samples]
    write_json(folder / SAMPLES_FILE, [sample.model_dump(mode="json") for sample in stamped])


def read_samples(folder: Path) -> tuple[Samples, ...]:
    """The samples of a measuring step; empty when it kept none."""
    path = folder / SAMPLES_FILE
    return tuple(Samples(**item) for item in json.loads(path.read_text())) if path.is_file() else ()
