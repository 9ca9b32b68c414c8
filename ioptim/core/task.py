"""What a model is for: how rows become feeds, how outputs become scores."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ioptim.core.artifact import ModelArtifact, TensorSpec
from ioptim.core.base import Frozen
from ioptim.core.metrics import Metric
from ioptim.errors import StepError

if TYPE_CHECKING:
    import numpy as np

    Feeds = dict[str, np.ndarray]
    Outputs = Mapping[str, np.ndarray]


class Table(Frozen):
    """Rows of a data set, by column. Every column has the same length; `rows` names each row for the reader (file:line)."""

    columns: Mapping[str, Sequence[Any]]
    rows: tuple[str, ...]
    origin: str = ""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def different(self) -> int:
        """How many rows are left without repetitions: a row that stands there twice is no further evidence of anything."""
        return len({tuple(map(_content, row)) for row in zip(*self.columns.values(), strict=True)})

    def split(self, held_out: int, seed: int, by: Sequence[str] = ()) -> tuple[Table, Table]:
        """The rows without some drawn at random and without what repeats these, and those; both in their order.

        Rows are the same where they are in the columns `by` (all when none is named): a number of its own makes no other text.
        """
        compared = [self.columns[name] for name in by or self.columns]
        contents = [tuple(map(_content, row)) for row in zip(*compared, strict=True)]
        drawn = sorted(random.Random(seed).sample(range(len(self)), held_out))
        seen = {contents[i] for i in drawn}
        parts = [i for i in range(len(self)) if contents[i] not in seen], drawn
        kept, held = ({name: [column[i] for i in part] for name, column in self.columns.items()} for part in parts)
        names = [tuple(self.rows[i] for i in part) for part in parts]
        return Table(columns=kept, rows=names[0], origin=self.origin), Table(columns=held, rows=names[1], origin=self.origin)


def _content(value: Any) -> object:
    """What two cells are compared by: of an array its bytes."""
    return value.tobytes() if hasattr(value, "tobytes") else value if isinstance(value, str | int | float | None) else str(value)


class Task(Frozen, ABC):
    """One task with its options, as the recipe's `model.task` spells them. One file, found by its name.

    A row may need several forward passes (a query and a passage): `feeds` yields examples, `score` gets their outputs in
    the same order.
    """

    task: str
    libraries: ClassVar[tuple[str, ...]] = ()
    metrics: ClassVar[tuple[Metric, ...]]
    """Quality metrics that `score` returns; the first is the task's headline."""
    columns: ClassVar[Mapping[str, str]]
    """Columns that validation data must have, with what each holds."""
    calibration_columns: ClassVar[Mapping[str, str]]
    """Columns that calibration data must have (no labels)."""
    auto_class: ClassVar[str] = ""
    """transformers' class that loads a checkpoint for this task; empty where a checkpoint cannot serve it."""
    output: ClassVar[str] = ""
    """Name of the output that `score` reads, and what the only output of a module that does not name it is called."""

    length_unit: ClassVar[str] = ""
    """What inputs are counted in (`tokens`); empty where all have the same size."""

    def check_table(self, table: Table, role: str) -> list[str]:
        """Objections to the data: a missing column (lists those there are), an empty value, too few rows."""
        wanted = self.columns if role == "validation" else self.calibration_columns
        missing = [name for name in wanted if name not in table.columns]
        return [
            f"{table.origin} has no column {name!r} ({wanted[name]}); it has {', '.join(table.columns)}."
            f" Map one with `columns: {{{name}: <its name>}}`"
            for name in missing
        ]

    def fed(self, table: Table) -> tuple[str, ...]:
        """The columns of a table that feeds are made of: those without labels, or where it has none of these all that the task reads."""
        unlabelled = tuple(name for name in self.calibration_columns if name in table.columns)
        return unlabelled or tuple(name for name in self.columns if name in table.columns)

    @abstractmethod
    def examples(self, table: Table, model: ModelArtifact) -> Iterator[Feeds]:
        """One feed per example, batch axis 1, at its natural length, for the model's input names."""

    @abstractmethod
    def collate(self, examples: Sequence[Feeds], model: ModelArtifact) -> Feeds:
        """Several examples as one batch, padded to the longest."""

    @abstractmethod
    def score(self, outputs: Sequence[Outputs], table: Table, model: ModelArtifact) -> dict[str, list[float]]:
        """Per-row values of every metric, from the outputs of `examples` in order (batch axis 1 each).

        Raises:
            StepError: an output is missing or has another shape than the task expects; a label the model does not have.
        """

    def class_ids(self, table: Table, model: ModelArtifact) -> list[int]:
        """The class of each row, by number.

        Raises:
            StepError: the task has no classes, the table no column `label`, or a label is none of the model's.
        """
        raise StepError(f"the task {self.task} has no classes, so nothing can be trained on labels")

    @abstractmethod
    def dummy_feeds(self, model: ModelArtifact, batch: int, length: int) -> Feeds:
        """Random but valid feeds: for tracing, comparing and warming up. `length` counts tokens; vision ignores it."""

    def input_specs(self, parameters: Sequence[str]) -> tuple[TensorSpec, ...]:
        """What a torch module whose `forward` takes these parameters is fed with; varying axes have names.

        Raises:
            StepError: the task cannot tell, and what the recipe must say so that it can.
        """
        raise StepError(f"the task {self.task} cannot feed a torch module that takes {', '.join(parameters)}")

    def input_lengths(self, table: Table, model: ModelArtifact) -> list[int]:
        """How long each row is as the model sees it, in `length_unit`; of a row with several examples, the longest."""
        raise NotImplementedError(f"{self.task} has no length_unit, so nobody may ask it for lengths")

    def notes(self, table: Table, model: ModelArtifact) -> list[str]:
        """What `examples` had to change so that the model takes the rows: how many texts were cut, and where."""
        return []

    def dynamic_axes(self, model: ModelArtifact) -> dict[str, dict[int, str]]:
        """Axes that vary, by input name: {input_ids: {0: "batch", 1: "sequence"}}."""
        return {spec.name: {i: a for i, a in enumerate(spec.shape) if isinstance(a, str)} for spec in model.inputs}
