"""Rows of one role as batches of like length, and how good a module is on them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ioptim.core.artifact import ModelArtifact
from ioptim.core.task import Table, Task

if TYPE_CHECKING:
    import torch

    from ioptim.core.task import Feeds


@dataclass(frozen=True)
class Rows:
    """Batches of (feeds, labels or None), rows of like length together; `places[i]` are the examples in batch i."""

    table: Table
    count: int
    batches: Sequence[tuple[Mapping[str, torch.Tensor], torch.Tensor | None]]
    places: Sequence[Sequence[int]]

    @classmethod
    def of(cls, table: Table, model: ModelArtifact, task: Task, batch_size: int, longest: int, *, labels: bool) -> Rows:
        """All rows of a table.

        Raises:
            StepError: there are no labels where they are wanted.
        """
        if limit := getattr(task, "longest", None):  # of a task on text
            task = task.model_copy(update={"max_length": min(longest, limit(model))})
        examples = list(task.examples(table, model))
        classes = task.class_ids(table, model) if labels else None
        places = _alike(examples, batch_size)
        batches = _Batches(examples, places, lambda chosen: task.collate(chosen, model), classes)
        return cls(table, len(table), batches, places)

    def order(self, seed: int) -> Callable[[int], Sequence[int]]:
        """The batches of an epoch, shuffled; the same for the same seed and epoch, so that a training can go on in the middle."""

        def shuffled(epoch: int) -> Sequence[int]:
            indices = list(range(len(self.batches)))
            random.Random(f"{seed} {epoch}").shuffle(indices)
            return indices

        return shuffled

    def quality(self, task: Task, model: ModelArtifact, pupil: Any, teacher: Any) -> Quality:
        """By the task's headline metric where the rows have what it needs, else by closeness to the teacher."""
        return Quality(self, task, model, pupil, teacher)


def split(table: Table, held_out: int, seed: int) -> tuple[Table, Table]:
    """The rows without some drawn at random, and those; both in their order."""
    drawn = set(random.Random(seed).sample(range(len(table)), held_out))
    parts = []
    for chosen in ([i for i in range(len(table)) if i not in drawn], sorted(drawn)):
        columns = {name: [column[i] for i in chosen] for name, column in table.columns.items()}
        parts.append(Table(columns=columns, rows=tuple(table.rows[i] for i in chosen), origin=table.origin))
    return parts[0], parts[1]


class _Batches(Sequence[Any]):
    """Batches padded when they are asked for: all of them at once would take gigabytes."""

    def __init__(
        self, examples: Sequence[Feeds], places: Sequence[Sequence[int]], collate: Callable[[Sequence[Feeds]], Feeds], classes: Any
    ) -> None:
        self.examples, self.places, self.collate, self.classes = examples, places, collate, classes

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: Any) -> Any:
        import torch

        chosen = self.places[index]
        feeds = self.collate([self.examples[i] for i in chosen])
        labels = None if self.classes is None else torch.tensor([self.classes[i] for i in chosen])
        return {name: torch.from_numpy(array) for name, array in feeds.items()}, labels


class Quality:
    """Called, it says how good the student is on the rows; higher is better. `metric` is what the number means."""

    def __init__(self, rows: Rows, task: Task, model: ModelArtifact, pupil: Any, teacher: Any) -> None:
        self.rows, self.task, self.model, self.pupil = rows, task, model, pupil
        self.by_task = set(task.columns) <= set(rows.table.columns)
        headline = task.metrics[0]
        self.metric = headline.name if self.by_task else "cosine_to_teacher"
        self.sign = 1.0 if headline.higher_is_better or not self.by_task else -1.0
        self.reference = None if self.by_task else self._answers(teacher)

    def __call__(self) -> float:
        answers = self._answers(self.pupil)
        if self.reference is None:
            return self.sign * fmean(self.task.score(answers, self.rows.table, self.model)[self.metric])
        first = getattr(self.task, "pooling", "mean") == "cls"
        return fmean(_cosine(a[self.task.output], b[self.task.output], first) for a, b in zip(answers, self.reference, strict=True))

    def _answers(self, module: Any) -> list[dict[str, Any]]:
        """The output that the task reads, example by example, without padding."""
        import torch

        answers: list[dict[str, Any]] = [{} for _ in range(sum(map(len, self.rows.places)))]
        module.eval()
        with torch.inference_mode():
            for places, (feeds, _) in zip(self.rows.places, _each(self.rows.batches), strict=True):
                output = getattr(module(**feeds), self.task.output).float().numpy()
                lengths = feeds["attention_mask"].sum(1).tolist() if output.ndim == 3 and "attention_mask" in feeds else None
                for row, place in enumerate(places):
                    one = output[row : row + 1]
                    answers[place] = {self.task.output: one[:, : lengths[row]] if lengths else one}
        return answers


def _each(batches: Sequence[Any]) -> Iterator[Any]:
    return (batches[i] for i in range(len(batches)))


def _alike(examples: Sequence[Feeds], batch_size: int) -> list[list[int]]:
    """Places of the examples of each batch: sorted by size, so that little is padded."""
    by_size = sorted(range(len(examples)), key=lambda i: (next(iter(examples[i].values())).size, i))
    return [by_size[start : start + batch_size] for start in range(0, len(by_size), batch_size)]


def _cosine(a: Any, b: Any, first: bool) -> float:
    """Of two outputs as flat vectors; of tokens' vectors, of the first or of their means."""
    import numpy as np

    x, y = (array[0] if array.ndim < 3 else array[0, 0] if first else array[0].mean(axis=0) for array in (a, b))
    return float(np.dot(x, y) / max(1e-12, float(np.linalg.norm(x) * np.linalg.norm(y))))
