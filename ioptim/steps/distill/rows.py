"""Rows of one role as batches of like length, and how good a module is on them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ioptim.core.task import Table, Task
from ioptim.steps.distill.student import Pair, Side

if TYPE_CHECKING:
    import torch

    from ioptim.core.task import Feeds

PAIRED_ROWS = 1000


@dataclass(frozen=True)
class Rows:
    """Batches of (feeds, labels or None), rows of like length together; `places[i]` are the examples in batch i."""

    table: Table
    count: int
    batches: Sequence[tuple[Mapping[str, torch.Tensor], torch.Tensor | None]]
    places: Sequence[Sequence[int]]

    @classmethod
    def of(cls, table: Table, pair: Pair, task: Task, batch_size: int, longest: int, seed: int, *, labels: bool) -> Rows:
        """All rows of a table, as the teacher reads them; texts are cut where the shorter of the two would.

        Raises:
            StepError: there are no labels where they are wanted.
        """
        model = pair.teacher.artifact
        if limit := getattr(task, "longest", None):  # of a task on text
            task = task.model_copy(update={"max_length": min(longest, *(limit(side.artifact) for side in (pair.teacher, pair.student)))})
        examples = list(task.examples(table, model))
        classes = task.class_ids(table, model) if labels else None
        places = alike(examples, batch_size, seed)
        batches = _Batches(examples, places, lambda chosen: task.collate(chosen, model), classes)
        return cls(table, len(table), batches, places)

    def order(self, seed: int) -> Callable[[int], Sequence[int]]:
        """The batches of an epoch, shuffled; the same for the same seed and epoch, so that a training can go on in the middle."""

        def shuffled(epoch: int) -> Sequence[int]:
            indices = list(range(len(self.batches)))
            random.Random(f"{seed} {epoch}").shuffle(indices)
            return indices

        return shuffled

    def quality(self, task: Task, pair: Pair) -> Quality:
        """By the task's headline metric where the rows have what it needs, else by closeness to the teacher."""
        if set(task.columns) <= set(self.table.columns):
            return _by_task(self, task, pair)
        theirs = _vectors(self, task, pair.teacher)
        if theirs.shape[1] == _vectors(self, task, pair.student).shape[1]:
            return Quality("cosine_to_teacher", lambda: _cosine(_vectors(self, task, pair.student), theirs))
        return Quality("similarities_as_teacher", lambda: _correlation(_vectors(self, task, pair.student), theirs))


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


@dataclass(frozen=True)
class Quality:
    """Called, it says how good the student is on the rows now; higher is better. `metric` is what the number means."""

    metric: str
    measure: Callable[[], float]

    def __call__(self) -> float:
        return self.measure()


def _by_task(rows: Rows, task: Task, pair: Pair) -> Quality:
    headline = task.metrics[0]
    sign = 1.0 if headline.higher_is_better else -1.0

    def measure() -> float:
        answers = _answers(rows, task, pair.student)
        return sign * fmean(task.score(answers, rows.table, pair.teacher.artifact)[headline.name])

    return Quality(headline.name, measure)


def _vectors(rows: Rows, task: Task, side: Side) -> Any:
    """(examples, width): logits, or tokens' vectors as the task pools them."""
    import numpy as np

    first = getattr(task, "pooling", "mean") == "cls"
    outputs = [answer[task.output][0] for answer in _answers(rows, task, side)]
    return np.stack([array if array.ndim == 1 else array[0] if first else array.mean(axis=0) for array in outputs])


def _answers(rows: Rows, task: Task, side: Side) -> list[dict[str, Any]]:
    """The output that the task reads, example by example, without padding."""
    import torch
    from accelerate.utils import send_to_device

    from ioptim.torch_model import named_outputs

    answers: list[dict[str, Any]] = [{} for _ in range(sum(map(len, rows.places)))]
    side.module.eval()
    device = next(side.module.parameters()).device
    with torch.inference_mode():
        for places, (feeds, _) in zip(rows.places, _each(rows.batches), strict=True):
            result = side.answer(send_to_device(feeds, device))
            output = named_outputs(result, side.artifact.outputs)[task.output].float().cpu().numpy()
            lengths = feeds["attention_mask"].sum(1).tolist() if output.ndim == 3 and "attention_mask" in feeds else None
            for row, place in enumerate(places):
                one = output[row : row + 1]
                answers[place] = {task.output: one[:, : lengths[row]] if lengths else one}
    return answers


def _each(batches: Sequence[Any]) -> Iterator[Any]:
    return (batches[i] for i in range(len(batches)))


def alike(examples: Sequence[Feeds], batch_size: int, seed: int) -> list[list[int]]:
    """Places of the examples of each batch: sorted by size, so that little is padded; among those of one size, drawn.

    Nobody is left alone in the last batch: a normalization over the batch would have nothing to go by.
    """
    draw = random.Random(seed)
    by_size = sorted(range(len(examples)), key=lambda i: (next(iter(examples[i].values())).size, draw.random()))
    batches = [by_size[start : start + batch_size] for start in range(0, len(by_size), batch_size)]
    if len(batches) > 1 and len(batches[-1]) == 1:
        alone = batches.pop()
        batches[-1] += alone
    return batches


def _cosine(mine: Any, theirs: Any) -> float:
    """Mean over the rows, (rows, width) each."""
    import numpy as np

    lengths = np.linalg.norm(mine, axis=1) * np.linalg.norm(theirs, axis=1)
    return float(np.mean((mine * theirs).sum(axis=1) / np.maximum(lengths, 1e-12)))


def _correlation(mine: Any, theirs: Any) -> float:
    """Of vectors of different widths: Pearson's, of the cosines between all pairs of the first `PAIRED_ROWS` rows."""
    import numpy as np

    above = np.triu_indices(min(len(mine), PAIRED_ROWS), 1)
    units = (side[:PAIRED_ROWS] / np.linalg.norm(side[:PAIRED_ROWS], axis=1, keepdims=True) for side in (mine, theirs))
    return float(np.corrcoef(*((unit @ unit.T)[above] for unit in units))[0, 1])
