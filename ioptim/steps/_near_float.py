"""A module that is trained to stay near another one, its own float self: batches of rows, the loss, how far it is on other rows."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from ioptim.core.artifact import ModelArtifact
    from ioptim.core.task import Feeds, Table, Task


class Batches(Sequence[Any]):
    """Rows of like length together, padded when a batch is asked for: all of them at once would take gigabytes."""

    def __init__(self, table: Table, model: ModelArtifact, task: Task, size: int, longest: int) -> None:
        if limit := getattr(task, "longest", None):  # of a task on text
            task = task.model_copy(update={"max_length": min(longest, limit(model))})
        self.rows = len(table)
        self._examples: list[Feeds] = list(task.examples(table, model))
        by_size = sorted(range(len(self._examples)), key=lambda i: (next(iter(self._examples[i].values())).size, i))
        self._places = [by_size[start : start + size] for start in range(0, len(by_size), size)]
        self._collate: Callable[[Sequence[Feeds]], Feeds] = lambda chosen: task.collate(chosen, model)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        import torch

        feeds = self._collate([self._examples[i] for i in self._places[index]])
        return {name: torch.from_numpy(array) for name, array in feeds.items()}

    def order(self, seed: int) -> Callable[[int], Sequence[int]]:
        """The batches of an epoch, shuffled; the same for the same seed and epoch, so that a training can go on in the middle."""

        def shuffled(epoch: int) -> Sequence[int]:
            indices = list(range(len(self)))
            random.Random(f"{seed} {epoch}").shuffle(indices)
            return indices

        return shuffled


class Near:
    """How far a pupil is from its float self: in training the loss on a batch, called without one the distance on the dev rows.

    The distance is the KL divergence of the answers (nats) where there are classes, else 1 - cosine of the sentence vectors. The loss
    adds the mean squared distance of the tokens' vectors after every layer, at unit variance.
    """

    def __init__(self, pupil: Any, teacher: Any, task: Task, dev: Batches) -> None:
        import torch

        self.pupil, self.teacher, self.output, self.dev = pupil, teacher, task.output, dev
        self.first = getattr(task, "pooling", "mean") == "cls"
        with torch.inference_mode():
            self._float = [getattr(teacher(**dev[i]), self.output) for i in range(len(dev))]

    @property
    def metric(self) -> str:
        return "kl_divergence" if self.output == "logits" else "cosine_distance"

    def loss(self, index: int, feeds: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Of a batch; its number does not matter, for the float self answers in the same pass."""
        import torch

        with torch.no_grad():
            theirs = self.teacher(**feeds, output_hidden_states=True)
        mine = self.pupil(**feeds, output_hidden_states=True)
        mask = _mask(feeds)
        total = self._distance(getattr(mine, self.output), getattr(theirs, self.output), mask)
        layers = list(zip(mine.hidden_states[1:], theirs.hidden_states[1:], strict=True))
        for a, b in layers:
            apart = (_unit(a) - _unit(b)) ** 2
            total = total + (apart * mask[..., None]).sum() / (mask.sum() * apart.shape[-1]) / len(layers)
        return total

    def distance(self) -> float:
        """On the dev rows, the pupil in evaluation mode; batches count by their rows."""
        import torch

        self.pupil.eval()
        found = []
        with torch.inference_mode():
            for i, wanted in enumerate(self._float):
                feeds = self.dev[i]
                found += [float(self._distance(getattr(self.pupil(**feeds), self.output), wanted, _mask(feeds)))] * len(wanted)
        return fmean(found)

    def _distance(self, mine: torch.Tensor, theirs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        from torch.nn import functional

        a, b = mine.float(), theirs.float()
        if self.output == "logits":
            return functional.kl_div(a.log_softmax(-1), b.log_softmax(-1), reduction="batchmean", log_target=True)
        return 1 - functional.cosine_similarity(self._pooled(a, mask), self._pooled(b, mask)).mean()

    def _pooled(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return states[:, 0] if self.first else (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def _mask(feeds: Mapping[str, torch.Tensor]) -> torch.Tensor:
    import torch

    mask = feeds.get("attention_mask")
    return torch.ones(next(iter(feeds.values())).shape[:2]) if mask is None else mask.float()


def _unit(states: torch.Tensor) -> torch.Tensor:
    from torch.nn import functional

    return functional.layer_norm(states.float(), states.shape[-1:])
