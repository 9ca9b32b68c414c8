"""Who learns: cut out of its teacher, the model that arrives, or another of the user's; and how it lies on disk."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, model_validator

from ioptim.core.artifact import MANIFEST, Format, ModelArtifact
from ioptim.core.base import Frozen
from ioptim.core.source import ModelSpec
from ioptim.core.step import Context, Level, Note, Written
from ioptim.core.task import Table, Task
from ioptim.errors import StepError
from ioptim.shrink import cut, spread

if TYPE_CHECKING:
    import torch

CONFIG = "config.json"
TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model")
COMPARED_ROWS = 200
"""Training rows that both tokenizers are asked for."""


class Student(Frozen):
    """The student: cut out of the model that arrives, or a checkpoint or factory of its own."""

    layers: int | tuple[int, ...] | None = Field(
        None, description="how many of the arriving model's layers to start from, or which, counted from 0; all when left out"
    )
    feed_forward: int | None = Field(None, ge=8, description="neurons of each feed-forward, the strongest; all when left out")
    checkpoint: str | None = Field(None, min_length=1, description="a student of its own, named as `model.source` is: a folder, python:…")
    revision: str | None = Field(None, description="branch, tag or commit of an hf: checkpoint")
    weights: str | None = Field(None, description="safetensors file loaded into what a python: checkpoint builds; its own draw without")
    allow_pickle: bool = Field(False, description="load a checkpoint stored as a pickle, which can run any code")
    allow_remote_code: bool = Field(False, description="run Python code that a checkpoint carries")

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        parts = self.layers is not None or self.feed_forward is not None
        if self.checkpoint is not None and parts:
            raise ValueError("a student is a `checkpoint`, or is cut by `layers` and `feed_forward`; name one of the two")
        if self.checkpoint is None and not parts:
            raise ValueError("a student names `layers`, `feed_forward` or both, or a `checkpoint`; as it stands it is its teacher")
        if self.checkpoint is None and (self.revision or self.weights or self.allow_pickle or self.allow_remote_code):
            raise ValueError("revision, weights, allow_pickle and allow_remote_code are of a `checkpoint`; name it or leave them out")
        count = self.layers if isinstance(self.layers, int) else len(self.layers) if self.layers is not None else 1
        if count < 1:
            raise ValueError("a student needs at least one layer")
        return self

    @property
    def source(self) -> ModelSpec | None:
        """Where a student of its own comes from."""
        if self.checkpoint is None:
            return None
        options = {name: getattr(self, name) for name in ("revision", "weights", "allow_pickle", "allow_remote_code")}
        return ModelSpec(source=self.checkpoint, **options)

    def chosen(self, total: int) -> tuple[int, ...]:
        """The layers to start from.

        Raises:
            StepError: more than there are.
        """
        if self.layers is None:
            return tuple(range(total))
        if isinstance(self.layers, int):
            if self.layers > total:
                raise StepError(f"student.layers is {self.layers}; the model that arrives has {total}, and a student is cut out of it")
            return spread(self.layers, total)
        return self.layers


@dataclass(frozen=True)
class Side:
    """Teacher or student: the module and the artifact it came from; `called` is what the recipe calls it."""

    module: Any
    artifact: ModelArtifact
    called: str

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.module.parameters())

    @property
    def is_encoder(self) -> bool:
        """A transformers module with layers that can be counted, compared and cut."""
        return hasattr(getattr(self.module, "config", None), "num_hidden_layers")

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes in their order; empty where the artifact does not say."""
        labels = self.artifact.facts.get("labels") or {}
        return tuple(labels[str(number)] for number in range(len(labels)))

    def answer(self, feeds: Mapping[str, torch.Tensor], **options: Any) -> Any:
        """What the module returns for a batch, as it returns it. One with a single input gets it whatever the batch calls it."""
        names = [spec.name for spec in self.artifact.inputs]
        if len(names) == 1 and len(feeds) == 1:
            return self.module(**dict(zip(names, feeds.values(), strict=True)), **options)
        return self.module(**{name: feeds[name] for name in names}, **options)


@dataclass(frozen=True)
class Pair:
    """A teacher and its student. `layers` are those of the arriving model that the student was cut from, if it was."""

    teacher: Side
    student: Side
    layers: tuple[int, ...] | None = None

    @classmethod
    def of(cls, student: Student | None, teacher_id: str | None, model: ModelArtifact, ctx: Context, attention: str | None) -> Pair:
        """Both modules, float32, as the recipe says.

        Raises:
            StepError: a student that is larger than its teacher, of other classes or other inputs; nothing to cut.
        """
        arriving = _side(model, "the model that arrives", attention)
        teacher = _side(ctx.baselines["teacher"], teacher_id, attention) if teacher_id is not None else arriving
        layers = None
        if student is None:
            pair = cls(teacher, arriving)
        elif student.checkpoint is not None:
            pair = cls(teacher, _side(ctx.baselines["student"], student.checkpoint, attention))
        else:
            if not arriving.is_encoder:
                text = f"a student is cut out of a transformers encoder; {type(arriving.module).__name__} has no config with"
                raise StepError(f"{text} num_hidden_layers. Name the student as a `checkpoint`, or prune first and name the `teacher`")
            layers = student.chosen(arriving.module.config.num_hidden_layers)
            pair = cls(teacher, Side(cut(arriving.module, layers, student.feed_forward), model, "the student"), layers)
        pair.check(ctx.task)
        return pair

    def check(self, task: Task) -> None:
        """Whether one can learn from the other; see `of`."""
        mine, theirs = self.student, self.teacher
        if mine.parameters > theirs.parameters:
            text = f"the student ({mine.called}) has {mine.parameters:,} parameters and its teacher ({theirs.called}) {theirs.parameters:,}"
            raise StepError(f"{text}: a student cannot be larger")
        shapes = [{spec.name: spec.shape for spec in side.artifact.outputs}.get(task.output, ()) for side in (mine, theirs)]
        if task.output == "logits" and all(shapes) and shapes[0][-1] != shapes[1][-1]:
            text = f"the student ({mine.called}) answers with {shapes[0][-1]} classes and its teacher ({theirs.called})"
            raise StepError(f"{text} with {shapes[1][-1]}; both must be of the same task")
        if mine.classes and theirs.classes and mine.classes != theirs.classes and set(mine.classes) == set(theirs.classes):
            text = f"the student ({mine.called}) and its teacher ({theirs.called}) number the same classes differently"
            raise StepError(f"{text}: {', '.join(mine.classes)} and {', '.join(theirs.classes)}")
        if missing := self._unfed():
            raise StepError(f"the student ({mine.called}) takes {missing}, which its teacher ({theirs.called}) is not fed with")

    def _unfed(self) -> str:
        """What the student takes and the teacher does not: its batches are the teacher's."""
        takes, given = ({spec.name: spec.shape for spec in side.artifact.inputs} for side in (self.student, self.teacher))
        if len(takes) == len(given) == 1:
            mine, theirs = next(iter(takes.values())), next(iter(given.values()))
            return "" if mine == theirs else f"{next(iter(takes))} {list(mine)}"
        return ", ".join(sorted(set(takes) - set(given)))

    def check_tokens(self, table: Table, task: Task) -> None:
        """Whether both read the same tokens, where both bring a tokenizer.

        Raises:
            StepError: other vocabularies, or a row that falls into other tokens.
        """
        mine, theirs = self.student.artifact, self.teacher.artifact
        if mine.digest == theirs.digest or not hasattr(task, "max_length") or not _tokenizer_files(mine):
            return
        fix = "a student needs its teacher's tokenizer. Trim a vocabulary after `distill`, not before"
        my_tokens, their_tokens = _vocabulary(mine), _vocabulary(theirs)
        if my_tokens and their_tokens and my_tokens != their_tokens:
            text = f"the student ({self.student.called}) and its teacher ({self.teacher.called}) read different vocabularies"
            raise StepError(f"{text}, of {len(my_tokens):,} and {len(their_tokens):,} tokens; {fix}")
        few = Table(columns={k: v[:COMPARED_ROWS] for k, v in table.columns.items()}, rows=table.rows[:COMPARED_ROWS], origin=table.origin)
        both = zip(task.examples(few, mine), task.examples(few, theirs), strict=True)
        different = next((i for i, (a, b) in enumerate(both) if a["input_ids"].tolist() != b["input_ids"].tolist()), None)
        if different is not None:
            text = f"the tokenizers of the student ({self.student.called}) and its teacher ({self.teacher.called}) cut"
            raise StepError(f"{text} row {few.rows[min(different, len(few) - 1)]} into different tokens; {fix}")

    def notes(self) -> tuple[Note, ...]:
        """Who learns from whom, and what nobody can check."""
        mine, theirs = self.student, self.teacher
        sizes = f"{mine.parameters:,} of {theirs.parameters:,} parameters"
        who = f"has the layers {', '.join(map(str, self.layers))}" if self.layers is not None else f"is {mine.called}"
        text = f"the student {who}, the teacher is {theirs.called}: {sizes}"
        if mine.classes and theirs.classes and mine.classes != theirs.classes:
            orders = f"{', '.join(mine.classes)} and {', '.join(theirs.classes)}"
            warning = f"student and teacher name their classes differently ({orders}); they are taken to be the same in this order"
            return Note(text=text), Note(text=warning, level=Level.WARNING)
        return (Note(text=text),)

    def write(self, folder: Path) -> Written:
        """The student under `folder`, as its artifact lies on disk but with the weights it has now."""
        from ioptim import torch_model

        like, module = self.student.artifact, self.student.module
        for name in like.files:
            if name not in (like.entry, MANIFEST):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(like.path / name, folder / name)
        loader = {key: value for key, value in like.facts["loader"].items() if key != "dtype"}
        if loader["kind"] == "transformers":
            torch_model.save_checkpoint(module, folder, like.entry)
        else:
            from safetensors.torch import save_model

            save_model(module, str(folder / like.entry), {"format": "pt"})
        return Written(
            format=Format.TORCH,
            entry=like.entry,
            inputs=like.inputs,
            outputs=like.outputs,
            assets=like.assets,
            facts={**like.facts, "loader": loader, "parameters": self.student.parameters},
        )


def _side(artifact: ModelArtifact, called: str, attention: str | None) -> Side:
    from ioptim import torch_model

    return Side(torch_model.load_module(artifact, attention=attention).float(), artifact, called)


def _tokenizer_files(artifact: ModelArtifact) -> bool:
    return any((artifact.path / name).is_file() for name in TOKENIZERS)


def _vocabulary(artifact: ModelArtifact) -> Mapping[str, int]:
    """Token to number; empty where there is no tokenizer.json (the rows are then what tells)."""
    from tokenizers import Tokenizer

    file = artifact.path / "tokenizer.json"
    return Tokenizer.from_file(str(file)).get_vocab() if file.is_file() else {}
