"""Rows of a file: .tsv and .csv and .jsonl by the standard library, .parquet by pyarrow."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ioptim.errors import PlanError, Problem, UnavailableError

SUFFIXES = (".tsv", ".csv", ".jsonl", ".parquet")
_SHOWN = 5

csv.field_size_limit(1 << 30)


@dataclass(frozen=True)
class Rows:
    """Columns of equal length, and the name of each row (`file:line`, lines counted from 1; for Parquet `file:row`)."""

    columns: Mapping[str, Sequence[Any]]
    names: tuple[str, ...]


def read_rows(path: Path) -> Rows:
    """All rows of a file.

    Raises:
        PlanError: another kind of file, not UTF-8, no header, or broken rows; the first of these are named with their line.
        UnavailableError: pyarrow is not installed.
    """
    readers = {".tsv": _read_separated, ".csv": _read_separated, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise PlanError(f"{path} is not a data file that can be read: accepted are {', '.join(SUFFIXES)}")
    try:
        return reader(path)
    except UnicodeDecodeError as error:
        raise PlanError(f"{path} is not UTF-8 text (byte {error.start}); convert it, for example: iconv -t UTF-8") from error


def column_names(path: Path) -> list[str]:
    """Columns of a file, from its first row where it has no header."""
    if path.suffix.lower() == ".parquet":
        return list(_open_parquet(path).schema_arrow.names)
    if path.suffix.lower() == ".jsonl":
        first = next(_json_objects(path, []), (0, {}))
        return list(first[1])
    with path.open(encoding="utf-8-sig", newline="") as file:
        return _header(_csv_reader(file, path), path)


def _csv_reader(file: Any, path: Path) -> Any:
    if path.suffix.lower() == ".tsv":
        # A quotation mark in a .tsv is text (SST-2 has rows that start with one): nothing is quoted.
        return csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
    return csv.reader(file, strict=True)


def _header(reader: Any, path: Path) -> list[str]:
    try:
        return next(reader, [])
    except csv.Error as error:
        accepted = "expected names with commas between them, each plain or wholly in quotation marks"
        raise PlanError(f"{path}: the header cannot be read ({error}): {accepted}") from error


def _read_separated(path: Path) -> Rows:
    broken: list[str] = []
    values, names = [], []
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = _csv_reader(file, path)
        header = _header(reader, path)
        _check_header(header, path)
        line = reader.line_num + 1
        try:
            for row in reader:
                if row and len(row) != len(header):
                    broken.append(f"line {line} has {len(row)} fields, the header has {len(header)} ({', '.join(header)})")
                elif row:
                    values.append(row)
                    names.append(f"{path.name}:{line}")
                line = reader.line_num + 1
        except csv.Error as error:
            broken.append(f"line {line}: {error}")
    _refuse(broken, path)
    return Rows({name: [row[i] for row in values] for i, name in enumerate(header)}, tuple(names))


def _check_header(header: Sequence[str], path: Path) -> None:
    if not header:
        raise PlanError(f"{path} is empty: expected a header with the names of the columns, then rows")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise PlanError(f"{path}: the header names {', '.join(twice)} twice")
    if "" in header:
        raise PlanError(f"{path}: the header has a column without a name: {', '.join(repr(name) for name in header)}")


def _read_jsonl(path: Path) -> Rows:
    broken: list[str] = []
    objects, names = [], []
    keys: dict[str, None] | None = None
    for line, value in _json_objects(path, broken):
        if keys is None:
            keys = dict.fromkeys(value)
        if value.keys() != keys.keys():
            broken.append(f"line {line} has the keys {', '.join(value)}; the first row has {', '.join(keys)}")
        else:
            objects.append(value)
            names.append(f"{path.name}:{line}")
    _refuse(broken, path)
    if keys is None:
        raise PlanError(f"{path} is empty: expected one JSON object on each line")
    return Rows({key: [value[key] for value in objects] for key in keys}, tuple(names))


def _json_objects(path: Path, broken: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of every line that is not blank; what is wrong with the others goes to `broken`."""
    with path.open(encoding="utf-8-sig") as file:
        for line, text in enumerate(file, 1):
            if not text.strip():
                continue
            try:
                value = json.loads(text.rstrip("\r\n"))
            except json.JSONDecodeError as error:
                broken.append(f"line {line} is not JSON: {error.msg} (column {error.colno})")
                continue
            except (ValueError, RecursionError):
                broken.append(f"line {line} holds a number of thousands of digits, or thousands of brackets in one another")
                continue
            if isinstance(value, dict):
                yield line, value
            else:
                broken.append(f"line {line} holds {type(value).__name__}, not a JSON object")


def _read_parquet(path: Path) -> Rows:
    table = _open_parquet(path).read()
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    return Rows(columns, tuple(f"{path.name}:{i}" for i in range(1, table.num_rows + 1)))


def _open_parquet(path: Path) -> Any:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UnavailableError(f"{path} is a Parquet file, which needs pyarrow; install it with: pip install pyarrow") from error
    try:
        return parquet.ParquetFile(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        text = str(error).partition("\n")[0]
        raise PlanError(f"{path} is not a Parquet file: {text}") from error


def _refuse(broken: Sequence[str], path: Path) -> None:
    if not broken:
        return
    problems = [Problem("", f"broken row: {text}") for text in broken[:_SHOWN]]
    if len(broken) > _SHOWN:
        problems.append(Problem("", f"and {len(broken) - _SHOWN} more broken rows"))
    raise PlanError(problems, str(path))
