"""Data in a file of this machine, or in a folder with a file for each split."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ioptim.core.artifact import hash_file
from ioptim.core.source import DataSource, DataSpec
from ioptim.core.task import Table
from ioptim.errors import IoptimError, PlanError
from ioptim.sources._paths import located, missing, outside, unreadable
from ioptim.sources._rows import SUFFIXES, column_names, read_rows
from ioptim.sources._table import column_objections, make_table, selection

_CHEAP_BYTES = 32 << 20


class LocalTable(DataSource):
    """A .tsv (never quoted), .csv, .jsonl or .parquet file; in a folder, the one named like the split."""

    def __init__(self, spec: DataSpec, base: Path, root: Path | None) -> None:
        self.spec = spec
        self.root = root
        self.path = located(spec.source, base)

    @property
    def cheap(self) -> bool:  # type: ignore[override]
        """Reading takes milliseconds: a text file of at most 32 MB."""
        try:
            file = self._file()
        except IoptimError:
            return False
        return file.suffix.lower() != ".parquet" and file.stat().st_size <= _CHEAP_BYTES

    def check(self) -> list[str]:
        """The path, the split, the kind of file, the mapped columns. Rows are read by `read`."""
        try:
            file = self._file()
            if objections := unreadable([file]):
                return objections
            if file.stat().st_size == 0:
                return [f"{file} is empty: expected a header with the names of the columns, then rows"]
            names = column_names(file) if self.spec.columns else []
        except UnicodeDecodeError:
            return [f"{self.path} is not UTF-8 text"]
        except IoptimError as error:
            return [str(error)]
        return column_objections(names, self.spec, str(file))

    def identity(self) -> Mapping[str, str]:
        """Digest of the file, its suffix (which decides how it is read), and which of its rows and columns."""
        file = self._file()
        return {"file": hash_file(file), "suffix": file.suffix.lower(), **selection(self.spec)}

    def read(self) -> Table:
        """The rows; their names are `file:line`."""
        file = self._file()
        return make_table(read_rows(file), self.spec, str(file))

    def _file(self) -> Path:
        """The file that source and split name."""
        if objections := outside(self.path, self.root):
            raise PlanError(objections[0])
        if not self.path.exists():
            raise PlanError(f"{missing(self.path, 'file or folder')}. A data set of the Hugging Face hub is written hf:ORG/NAME")
        if self.path.is_dir():
            return self._file_of_split()
        if self.spec.split is not None:
            raise PlanError(
                f"split {self.spec.split!r} was asked for, but {self.path} is one file; a split chooses a file of a folder."
                f" Leave it out, or name the folder: source: {self.path.parent}"
            )
        if self.path.suffix.lower() not in SUFFIXES:
            raise PlanError(f"{self.path} is not a data file that can be read: accepted are {', '.join(SUFFIXES)}")
        return self.path

    def _file_of_split(self) -> Path:
        files = sorted(p for p in self.path.iterdir() if p.is_file() and p.suffix.lower() in SUFFIXES)
        there = ", ".join(p.name for p in files) or f"no {', '.join(SUFFIXES)} file"
        if self.spec.split is None:
            raise PlanError(f"{self.path} is a folder: name the split. It has {there}")
        chosen = [p for p in files if p.stem == self.spec.split]
        if len(chosen) == 1:
            if objections := outside(chosen[0], self.root):
                raise PlanError(objections[0])
            return chosen[0]
        if not chosen:
            raise PlanError(f"{self.path} has no file for the split {self.spec.split!r}; it has {there}")
        names = ", ".join(p.name for p in chosen)
        raise PlanError(f"{self.path} has several files for the split {self.spec.split!r}: {names}. Name one as the source")
