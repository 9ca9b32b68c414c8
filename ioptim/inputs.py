"""What a benchmark feeds a model with: rows of the data, and batches of them, padded as the recipe says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from ioptim.core.artifact import ModelArtifact
from ioptim.core.task import Table, Task

if TYPE_CHECKING:
    import numpy as np

    from ioptim.core.task import Feeds

MAX_LENGTH = 512
"""Tokens that `padding: max_length` pads to where the task does not know the model's."""

Rows = tuple[int, ...]


class Inputs:
    """The first `limit` examples of a table, made before any clock runs, and the batches of them."""

    def __init__(self, task: Task, table: Table, model: ModelArtifact, padding: str, limit: int) -> None:
        self.padding = padding
        self._task, self._model = task, model
        self._examples: list[Feeds] = []
        for example in task.examples(table, model):
            self._examples.append(example)
            if len(self._examples) == limit:
                break
        self.lengths = [sum(array.size for array in example.values()) for example in self._examples]
        """Elements of each row at its natural length: proportional to its tokens."""
        self._kept: dict[Rows, tuple[Mapping[str, np.ndarray], int]] = {}

    def __len__(self) -> int:
        return len(self._examples)

    def feed(self, rows: Rows) -> Mapping[str, np.ndarray]:
        """One feed: a row at its natural length, a batch at that of its longest, or all as long as `padding` says."""
        batch = [self._examples[row] for row in rows]
        if self.padding in ("natural", "bucketed"):
            return batch[0] if len(batch) == 1 else self._task.collate(batch, self._model)
        padded = self._task.collate([*batch, self._filler], self._model)  # as long as its longest row, which then goes
        return {name: array[:-1] for name, array in padded.items()}

    def kept(self, rows: Rows) -> Mapping[str, np.ndarray]:
        """The same, made once: every block asks for the same batches, and the warm-up has met them all."""
        found = self._kept.get(rows)
        if found is None:
            feed = self.feed(rows)
            found = self._kept[rows] = feed, sum(array.size for array in feed.values())
        return found[0]

    def padded_share(self, batches: Sequence[Rows]) -> float:
        """Of all elements in these batches, those that are padding."""
        natural = sum(self.lengths[row] for rows in batches for row in rows)
        whole = sum(self._size(rows) for rows in batches)
        return 1 - natural / whole

    def _size(self, rows: Rows) -> int:
        if rows in self._kept:
            return self._kept[rows][1]
        if self.padding in ("natural", "bucketed"):
            return len(rows) * max(self.lengths[row] for row in rows)
        return len(rows) * max(sum(array.size for array in self._filler.values()), *(self.lengths[row] for row in rows))

    @cached_property
    def _filler(self) -> Feeds:
        """An example as long as all are to be."""
        if self.padding == "longest":
            return max(self._examples, key=lambda feeds: sum(array.size for array in feeds.values()))
        longest = getattr(self._task, "longest", None)  # of a task on text
        return self._task.dummy_feeds(self._model, 1, longest(self._model) if longest else MAX_LENGTH)
