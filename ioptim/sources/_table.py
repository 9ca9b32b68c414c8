"""From the rows of a source to the table that a recipe asks for: columns renamed, rows drawn."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from ioptim.core.base import canonical_json
from ioptim.core.source import DataSpec
from ioptim.core.task import Table
from ioptim.errors import PlanError
from ioptim.sources._rows import Rows


def make_table(rows: Rows, spec: DataSpec, origin: str) -> Table:
    """Rename columns and draw `limit` rows; the drawn rows keep their order.

    Raises:
        PlanError: no rows, or a column that is not there.
    """
    if objections := column_objections(list(rows.columns), spec, origin):
        raise PlanError(objections[0])
    total = len(rows.names)
    if total == 0:
        raise PlanError(f"{origin} has no rows")
    chosen = drawn(total, spec)
    columns = {name: [values[i] for i in chosen] for name, values in renamed(rows.columns, spec.columns).items()}
    return Table(columns=columns, rows=tuple(rows.names[i] for i in chosen), origin=f"{origin}{_drawn_text(total, spec)}")


def renamed(columns: Mapping[str, Sequence[Any]], mapping: Mapping[str, str]) -> dict[str, Sequence[Any]]:
    """The columns under the task's names; those not mapped keep theirs, unless a mapped one has taken it."""
    taken = set(mapping) | set(mapping.values())
    return {name: columns[source] for name, source in mapping.items()} | {k: v for k, v in columns.items() if k not in taken}


def drawn(total: int, spec: DataSpec) -> Sequence[int]:
    """Positions of the rows that are used."""
    if spec.limit is None or spec.limit >= total:
        return range(total)
    return sorted(random.Random(spec.seed).sample(range(total), spec.limit))


def column_objections(names: Sequence[str], spec: DataSpec, origin: str) -> list[str]:
    """Mapped columns that are not there; lists those there are."""
    return [
        f"{origin} has no column {source!r} (asked for as {name!r} by `columns`); it has {', '.join(names)}"
        for name, source in spec.columns.items()
        if source not in names
    ]


def selection(spec: DataSpec) -> dict[str, str]:
    """What of a data spec changes the rows, for the cache key."""
    chosen: dict[str, Any] = {"split": spec.split, "columns": dict(spec.columns), "limit": spec.limit}
    if spec.limit is not None:
        chosen["seed"] = spec.seed
    return {"selection": canonical_json(chosen)}


def _drawn_text(total: int, spec: DataSpec) -> str:
    if spec.limit is None:
        return ""
    if spec.limit >= total:
        return f" (all {total} rows; limit {spec.limit})"
    return f" ({spec.limit} of {total} rows, seed {spec.seed})"
