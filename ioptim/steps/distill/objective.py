"""What a student is trained to bring down: the weighted sum of the losses on one batch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ioptim.core.task import Task
from ioptim.errors import StepError
from ioptim.steps.distill import losses
from ioptim.steps.distill.answers import Answers
from ioptim.steps.distill.rows import Rows
from ioptim.steps.distill.student import Pair

if TYPE_CHECKING:
    import torch

    from ioptim.steps.distill import Losses


class Objective:
    """The loss of a batch, by number and content.

    Where layers are compared the teacher runs in the same pass, without gradients. Where only its answers are, each batch is asked once
    (`Answers`): from the second epoch on the teacher costs nothing. Where only the labels count it is never asked.

    Raises:
        StepError: layers are to be compared and one of the two has none, or has not those named; vectors of different lengths
            where that cannot be.
    """

    def __init__(
        self,
        pair: Pair,
        weights: Losses,
        temperature: float,
        task: Task,
        rows: Rows,
        folder: Path,
        *,
        dropout: float | None = None,
        compared: tuple[int, ...] | None = None,
        writes: bool = True,
    ) -> None:
        import torch

        self.pair, self.weights, self.temperature, self.task = pair, weights, temperature, task
        self.pooling = getattr(task, "pooling", "mean")
        self.layered = bool(weights.hidden or weights.attention)
        self.projections, self.matched = torch.nn.ModuleList(), tuple[int, ...]()
        if self.layered:
            self._match(compared)
        for name, part in pair.student.module.named_modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = part.p if dropout is None else dropout
                if weights.attention and "attention" in name:  # transformers returns the maps after their dropout
                    part.p = 0.0
        pair.teacher.module.eval().requires_grad_(False)
        self._batches = rows.batches
        self.answers = Answers(self._asked, folder, writes=writes)

    def __call__(self, index: int, batch: tuple[Mapping[str, torch.Tensor], torch.Tensor | None]) -> torch.Tensor:
        import torch

        feeds, labels = batch
        weights = self.weights
        wanted = {"output_hidden_states": bool(weights.hidden), "output_attentions": bool(weights.attention)} if self.layered else {}
        theirs: Any = None
        if self.layered:
            with torch.no_grad():
                theirs = self.pair.teacher.answer(feeds, **wanted)
        mine = self.pair.student.answer(feeds, **wanted)
        own = self._read(mine, feeds, self.pair.student)
        total = torch.zeros((), device=own.device)
        if weights.logits or weights.embedding:
            said = self._read(theirs, feeds, self.pair.teacher) if theirs is not None else self.answers[index].to(own.device)
            if weights.logits:
                total = total + weights.logits * losses.logits(own, said, self.temperature)
            if weights.embedding:
                total = total + weights.embedding * losses.embedding(own, said)
        if self.layered:
            mask = feeds["attention_mask"] if "attention_mask" in feeds else torch.ones_like(next(iter(feeds.values())))
            if weights.hidden:
                states = mine.hidden_states[1:], [theirs.hidden_states[i + 1] for i in self.matched]
                total = total + weights.hidden * losses.hidden(*states, mask, list(self.projections))
            if weights.attention:
                maps = mine.attentions, [theirs.attentions[i] for i in self.matched]
                total = total + weights.attention * losses.attention(*maps, mask)
        if weights.labels:
            assert labels is not None
            total = total + weights.labels * torch.nn.functional.cross_entropy(own, labels)
        return total

    def _asked(self, index: int) -> torch.Tensor:
        """The teacher's answer to a batch: (rows, classes) or (rows, width)."""
        import torch
        from accelerate.utils import send_to_device

        device = next(self.pair.teacher.module.parameters()).device
        feeds, _ = send_to_device(self._batches[index], device)
        with torch.no_grad():
            return self._read(self.pair.teacher.answer(feeds), feeds, self.pair.teacher)

    def _read(self, result: Any, feeds: Mapping[str, torch.Tensor], side: Any) -> torch.Tensor:
        """The logits, or the sentence vectors: (rows, classes or width) float32."""
        from ioptim.torch_model import named_outputs

        output = named_outputs(result, side.artifact.outputs)[self.task.output].float()
        return losses.pooled(output, feeds.get("attention_mask"), self.pooling) if output.ndim == 3 else output

    def _match(self, compared: tuple[int, ...] | None) -> None:
        import torch

        for side in (self.pair.student, self.pair.teacher):
            if not side.is_encoder:
                text = f"the losses hidden and attention compare the layers of transformers encoders; {type(side.module).__name__}"
                raise StepError(f"{text} ({side.called}) has no config with num_hidden_layers. Use logits, embedding or labels")
        mine, theirs = self.pair.student.module.config, self.pair.teacher.module.config
        students, teachers = mine.num_hidden_layers, theirs.num_hidden_layers
        self.matched = compared or losses.matched(students, teachers)
        if len(self.matched) != students or not all(0 <= layer < teachers for layer in self.matched):
            text = f"compared_layers names {list(self.matched)}; the student has {students} layers, each compared with one of the teacher's"
            raise StepError(f"{text} 0 to {teachers - 1}")
        alike = mine.hidden_size == theirs.hidden_size
        sizes = mine.hidden_size, theirs.hidden_size
        self.projections = torch.nn.ModuleList(torch.nn.Identity() if alike else torch.nn.Linear(*sizes) for _ in self.matched)
