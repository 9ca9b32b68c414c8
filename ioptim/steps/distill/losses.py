"""What a student is asked to have in common with its teacher. Every loss is a mean over the rows of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ioptim.errors import StepError

if TYPE_CHECKING:
    import torch


def logits(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """KL divergence teacher‖student of the softened answers, times T²; (batch, classes) each. Hinton et al., arXiv:1503.02531."""
    from torch.nn import functional

    soft, target = functional.log_softmax(student / temperature, -1), functional.log_softmax(teacher / temperature, -1)
    return functional.kl_div(soft, target, reduction="batchmean", log_target=True) * temperature**2


def embedding(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """1 - cosine of the sentence vectors, (batch, width) each.

    Vectors of different widths have no cosine: then the mean squared difference of the cosines among the batch's own rows, which is what
    a search goes by (similarity-preserving distillation, arXiv:1907.09682).
    """
    from torch.nn import functional

    if student.shape[-1] == teacher.shape[-1]:
        return 1 - functional.cosine_similarity(student, teacher).mean()
    mine, theirs = (functional.normalize(vectors, dim=-1) for vectors in (student, teacher))
    return functional.mse_loss(mine @ mine.T, theirs @ theirs.T)


def pooled(states: torch.Tensor, mask: torch.Tensor | None, pooling: str) -> torch.Tensor:
    """Sentence vectors from the tokens' (batch, tokens, width): their masked means, or the first (`cls`)."""
    if pooling == "cls":
        return states[:, 0]
    return states.mean(1) if mask is None else _mean(states, mask)


def hidden(
    student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor], mask: torch.Tensor, projections: Sequence[torch.nn.Module]
) -> torch.Tensor:
    """Mean squared distance of the tokens' vectors, layer by layer, each scaled to unit variance (TinyBERT, arXiv:1909.10351).

    `student` and `teacher` are the states of the layers matched; `projections` take the student's to the teacher's width.
    """
    import torch

    total = torch.zeros((), device=mask.device)
    weights = mask.unsqueeze(-1).to(torch.float32)
    for mine, theirs, project in zip(student, teacher, projections, strict=True):
        distance = (_unit(project(mine)) - _unit(theirs)) ** 2
        total = total + (distance * weights).sum() / (weights.sum() * distance.shape[-1])
    return total / len(student)


def attention(student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
    """KL divergence of the attention maps of the matched layers (MobileBERT, arXiv:2004.02984), masked rows left out.

    The maps are those after dropout, so the student's attention must have none.

    Raises:
        StepError: another number of heads.
    """
    import torch

    total = torch.zeros((), device=mask.device)
    rows = mask[:, None, :].to(torch.float32)  # (batch, 1, queries)
    for mine, theirs in zip(student, teacher, strict=True):
        if mine.shape[1] != theirs.shape[1]:
            text = f"the loss on attention compares head with head; the student has {mine.shape[1]} in a layer and its teacher"
            raise StepError(f"{text} {theirs.shape[1]}. Leave attention out; hidden takes any width")
        wanted, given = theirs.float(), mine.float()
        kl = (wanted * (wanted.clamp_min(1e-9).log() - given.clamp_min(1e-9).log())).sum(-1)  # (batch, heads, queries)
        total = total + (kl * rows).sum() / (rows.sum() * kl.shape[1])
    return total / len(student)


def matched(students: int, teachers: int) -> tuple[int, ...]:
    """For each of the student's layers the teacher's that it is compared with: evenly, the last with the last."""
    return tuple(max(0, round((i + 1) * teachers / students) - 1) for i in range(students))


def _mean(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    weights = mask.unsqueeze(-1).to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1)


def _unit(states: torch.Tensor) -> torch.Tensor:
    from torch.nn import functional

    return functional.layer_norm(states.float(), states.shape[-1:])
