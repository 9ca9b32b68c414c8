"""Bring the recipe's model into the store."""

from __future__ import annotations

from typing import Literal

from ioptim.core.artifact import Format, ModelArtifact
from ioptim.core.step import Context, Outcome, Step


class Source(Step):
    """The model as given, copied into the store so that everything after it is addressed by content.

    Inserted by the plan as the first node of every run; a recipe cannot write it. Its output is the baseline `source`.
    """

    step: Literal["source"] = "source"
    accepts = frozenset[Format]()
    inserted_only = True

    def run(self, model: ModelArtifact | None, ctx: Context) -> Outcome:
        """`model` is None: nothing comes before it."""
        ctx.progress(0.0, "reading the model")
        return ctx.source.fetch(ctx.out, ctx.task)
