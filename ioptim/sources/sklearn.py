"""Small real data that scikit-learn carries: `sklearn:digits`."""

from __future__ import annotations

import importlib.metadata
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from ioptim.core.registry import did_you_mean
from ioptim.core.source import DataSource, DataSpec
from ioptim.core.task import Table
from ioptim.errors import PlanError, UnavailableError
from ioptim.sources._rows import Rows
from ioptim.sources._table import column_objections, make_table, selection

SHARES = {"train": 0.7, "calibration": 0.1, "test": 0.2}
COLUMNS = ("image", "label")
_DATA_SETS = ("digits",)
_SPLIT_SEED = 20240501


class SklearnData(DataSource):
    """`digits`: 1797 handwritten digits as (1, 8, 8) float32 arrays from 0 to 1, and their labels.

    Split once and for all into train, calibration and test (70, 10 and 20 % of every class), so that what a model was trained
    on is never what it is judged by. A row is named `digits:INDEX` after its place in `load_digits`.
    """

    cheap = False

    def __init__(self, spec: DataSpec, base: Path, root: Path | None) -> None:
        self.spec = spec
        self.name = spec.source.partition(":")[2]

    def check(self) -> list[str]:
        """An unknown name or split, a mapped column that is not there, scikit-learn not installed."""
        objections = []
        if self.name not in _DATA_SETS:
            hint = did_you_mean(self.name, _DATA_SETS) or "."
            objections.append(f"there is no sklearn data set {self.name!r} here{hint} There are: {', '.join(_DATA_SETS)}")
        if self.spec.split not in SHARES:
            asked = "name the split" if self.spec.split is None else f"there is no split {self.spec.split!r}"
            objections.append(f"{self.spec.source}: {asked}; it has {', '.join(SHARES)}")
        objections += column_objections(COLUMNS, self.spec, self.spec.source)
        try:
            _version()
        except UnavailableError as error:
            objections.append(str(error))
        return objections

    def identity(self) -> Mapping[str, str]:
        """Name of the data set and version of the library that carries it, and which of its rows and columns."""
        return {"sklearn": f"{self.name} {_version()}", **selection(self.spec)}

    def read(self) -> Table:
        """The rows of the split, in the order of `load_digits`."""
        if objections := self.check():
            raise PlanError("; ".join(objections))
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = (digits.images / 16).astype("float32")[:, None]  # (n, 1, 8, 8)
        labels = [int(label) for label in digits.target]
        chosen = split_rows(labels)[str(self.spec.split)]
        columns = {"image": [images[i] for i in chosen], "label": [labels[i] for i in chosen]}
        return make_table(Rows(columns, tuple(f"digits:{i}" for i in chosen)), self.spec, f"{self.spec.source} ({self.spec.split})")


def split_rows(labels: Sequence[int]) -> dict[str, list[int]]:
    """Positions of each split's rows: every class is shuffled with a fixed seed and cut by `SHARES`."""
    splits: dict[str, list[int]] = {name: [] for name in SHARES}
    for label in sorted(set(labels)):
        rows = [i for i, value in enumerate(labels) if value == label]
        random.Random(_SPLIT_SEED + label).shuffle(rows)
        start, share = 0, 0.0
        for name in SHARES:
            share += SHARES[name]
            end = round(share * len(rows))
            splits[name] += rows[start:end]
            start = end
    return {name: sorted(rows) for name, rows in splits.items()}


def _version() -> str:
    try:
        return importlib.metadata.version("scikit-learn")
    except importlib.metadata.PackageNotFoundError as error:
        raise UnavailableError("sklearn: needs scikit-learn; install it with: pip install scikit-learn") from error
