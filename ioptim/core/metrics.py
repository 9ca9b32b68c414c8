"""What a number means: its unit, which way is better, and the raw samples it came from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

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


class Samples(Frozen):
    """Raw samples of one metric for every subject measured together.

    `values[subject]`: for paired rows one number per row; for blocks a list of per-block statistics (one per block);
    for exact metrics a single number. A NaN is stored as None and makes the verdict a failure, never a gap.
    """

    metric: Metric
    kind: Kind
    values: Mapping[str, tuple[float | None, ...]]
    rows: tuple[str, ...] = Field((), description="row ids, for paired rows: what a reader looks up in the data")


SAMPLES_FILE = "samples.json"


def write_samples(folder: Path, samples: tuple[Samples, ...]) -> None:
    """Keep the raw samples beside the figures derived from them."""
    write_json(folder / SAMPLES_FILE, [sample.model_dump(mode="json") for sample in samples])


def read_samples(folder: Path) -> tuple[Samples, ...]:
    """The samples of a measuring step; empty when it kept none."""
    path = folder / SAMPLES_FILE
    return tuple(Samples(**item) for item in json.loads(path.read_text())) if path.is_file() else ()
