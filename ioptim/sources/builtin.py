"""Data that comes with this project: `builtin:retrieval`, `builtin:english`, `builtin:everyday`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import ioptim
from ioptim.core.artifact import hash_file
from ioptim.core.registry import did_you_mean
from ioptim.core.source import DataSource, DataSpec
from ioptim.core.task import Table
from ioptim.errors import PlanError
from ioptim.sources._rows import SUFFIXES, Rows, read_rows
from ioptim.sources._table import column_objections, make_table, selection

FOLDER = Path(ioptim.__file__).parent / "data"


class BuiltinData(DataSource):
    """A .jsonl or .parquet file of `ioptim/data`, whose column `split` says which part a row belongs to."""

    def __init__(self, spec: DataSpec, base: Path, root: Path | None) -> None:
        self.spec = spec
        self.name = spec.source.partition(":")[2]

    def check(self) -> list[str]:
        """An unknown name, no split or an unknown one, a mapped column that is not there."""
        try:
            rows = self._rows()
        except PlanError as error:
            return [str(error)]
        return column_objections(list(rows.columns), self.spec, self.spec.source)

    def identity(self) -> Mapping[str, str]:
        """Digest of the file, and which of its rows and columns. Its splits are in one file, so the file does not tell the rows."""
        return {"data_set": hash_file(self._file()), **selection(self.spec)}

    def read(self) -> Table:
        """The rows of the split."""
        return make_table(self._rows(), self.spec, f"{self.spec.source} ({self.spec.split})")

    def _file(self) -> Path:
        files = {path.stem: path for path in sorted(FOLDER.iterdir()) if path.suffix in SUFFIXES}
        if self.name not in files:
            hint = did_you_mean(self.name, files) or "."
            raise PlanError(f"there is no built-in data set {self.name!r}{hint} There are: {', '.join(files)}")
        return files[self.name]

    def _rows(self) -> Rows:
        rows = read_rows(self._file())
        splits = rows.columns["split"]
        there = list(dict.fromkeys(splits))
        if self.spec.split not in there:
            asked = "name the split" if self.spec.split is None else f"there is no split {self.spec.split!r}"
            raise PlanError(f"{self.spec.source}: {asked}; it has {', '.join(there)}")
        chosen = [i for i, split in enumerate(splits) if split == self.spec.split]
        columns = {name: [values[i] for i in chosen] for name, values in rows.columns.items()}
        return Rows(columns, tuple(rows.names[i] for i in chosen))
