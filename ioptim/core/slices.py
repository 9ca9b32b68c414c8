"""Parts of the rows that a gate may judge one by one: by a column of the data, or by how long the input is.

A measuring step keeps every slicing that its rows have, asked for or not, so that a gate added later needs no new measurement.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

from ioptim.core.registry import did_you_mean
from ioptim.core.task import Table, Task

INPUT_LENGTH = "input_length"
"""Four buckets of the rows by the length of their inputs. A column of this name is out of reach."""
BUCKETS = 4
MOST_SLICES = 50
"""A column with more different values names its rows, it does not group them."""


def slicings(table: Table, lengths: Sequence[int] | None = None, unit: str = "") -> dict[str, tuple[str, ...]]:
    """The slice of every row, by the name of the slicing: each column with 2 to 50 different values, and `input_length`."""
    found = {name: tuple(map(_name, column)) for name, column in table.columns.items() if 2 <= _different(column) <= MOST_SLICES}
    if lengths is not None:
        found[INPUT_LENGTH] = length_buckets(lengths, unit)
    return found


def length_buckets(lengths: Sequence[int], unit: str) -> tuple[str, ...]:
    """The bucket of each length, named by the lengths it holds (`13-18 tokens`): cut at the quartiles, so about as many rows in each.

    Equal lengths share a bucket, so that there are fewer than four where many rows are equally long.
    """
    ordered = sorted(lengths)
    edges = sorted({ordered[len(ordered) * k // BUCKETS - 1] for k in range(1, BUCKETS) if len(ordered) * k >= BUCKETS} | {ordered[-1]})
    place = [bisect_left(edges, length) for length in lengths]
    names = {i: _span([n for n, at in zip(lengths, place, strict=True) if at == i], unit) for i in set(place)}
    return tuple(names[i] for i in place)


def objection(name: str, table: Table, task: Task) -> str:
    """Why the rows cannot be sliced so, with what there is; nothing when they can."""
    if name == INPUT_LENGTH and task.length_unit:
        return ""
    if name not in table.columns:
        known = sliceable(table, task)
        hint = did_you_mean(name, known)
        return f"{table.origin} has no column {name!r} to slice by{hint or '.'} There are: {', '.join(known) or 'none'}"
    count = _different(table.columns[name])
    if 2 <= count <= MOST_SLICES:
        return ""
    values = "its values are no names" if count == 0 else f"it has {count} different value{'s' if count > 1 else ''}"
    return f"the column {name!r} does not slice the rows: {values}, and 2 to {MOST_SLICES} can be judged"


def sliceable(table: Table, task: Task) -> list[str]:
    """What a gate on these rows may name."""
    columns = [name for name, column in table.columns.items() if 2 <= _different(column) <= MOST_SLICES and name != INPUT_LENGTH]
    return columns + ([INPUT_LENGTH] if task.length_unit else [])


def rows_of(slices: Sequence[str]) -> Mapping[str, list[int]]:
    """Row numbers of each slice."""
    found: dict[str, list[int]] = {}
    for i, name in enumerate(slices):
        found.setdefault(name, []).append(i)
    return found


def _different(column: Sequence[Any]) -> int:
    """How many different values a column has; 0 where they are no names (arrays)."""
    seen: set[str] = set()
    for value in column:
        if not isinstance(value, str | int | float | bool | None):
            return 0
        seen.add(_name(value))
    return len(seen)


def _name(value: Any) -> str:
    return "(empty)" if value is None or str(value).strip() == "" else str(value)


def _span(lengths: Sequence[int], unit: str) -> str:
    first, last = min(lengths), max(lengths)
    return f"{first} {unit}" if first == last else f"{first}-{last} {unit}"
