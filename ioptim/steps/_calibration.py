"""Rows of the recipe's calibration data as feeds."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from ioptim.core.step import Level, Note
from ioptim.core.task import Table
from ioptim.errors import StepError

if TYPE_CHECKING:
    from ioptim.core.artifact import ModelArtifact
    from ioptim.core.step import Context
    from ioptim.core.task import Feeds


def calibration_feeds(model: ModelArtifact, ctx: Context, rows: int, batch_size: int) -> tuple[list[Feeds], list[Note]]:
    """Feeds of `rows` rows drawn with the recipe's seed, at their natural length unless batched.

    Padding would widen the ranges that are measured, which is why the batch is 1 where nothing else is asked.
    """
    table = ctx.table("calibration")
    wrong = ctx.task.check_table(table, "calibration")
    if wrong:
        raise StepError("; ".join(wrong))
    notes = []
    if len(table) < rows:
        text = f"calibrated on all {len(table)} rows of {table.origin or 'the calibration data'}; {rows} were asked for"
        notes.append(Note(text=text, level=Level.WARNING))
    else:
        table = _drawn(table, rows, ctx.seed)
    examples = list(ctx.task.examples(table, model))
    if batch_size > 1:
        batches = [examples[i : i + batch_size] for i in range(0, len(examples), batch_size)]
        examples = [ctx.task.collate(batch, model) for batch in batches]
    return examples, notes


def _drawn(table: Table, rows: int, seed: int) -> Table:
    chosen = sorted(random.Random(seed).sample(range(len(table)), rows))
    columns = {name: [values[i] for i in chosen] for name, values in table.columns.items()}
    return Table(columns=columns, rows=tuple(table.rows[i] for i in chosen), origin=table.origin)
