"""Where a model or a data set comes from. `ioptim.sources` finds the file for a prefix (`package:`, `hf:`, `python:`, a path)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from ioptim.core.base import Frozen
from ioptim.core.outline import Outline
from ioptim.core.step import Outcome
from ioptim.core.task import Table, Task


class ModelSpec(Frozen):
    """The recipe's `model`, without its task."""

    source: str = Field(min_length=1, description="package:NAME[/folder], hf:ORG/NAME, python:MODULE:FACTORY, a folder or an .onnx file")
    revision: str | None = Field(None, description="branch, tag or commit of an hf: source")
    weights: str | None = Field(None, description="safetensors file loaded into what a python: factory builds")
    allow_pickle: bool = Field(False, description="load a checkpoint stored as a pickle, which can run any code; shown in the report")
    allow_remote_code: bool = Field(False, description="run Python code that a checkpoint carries; shown in the report")


class DataSpec(Frozen):
    """One role (validation, calibration, training or dev) of the recipe's `data`."""

    source: str = Field(
        min_length=1, description="a .tsv, .csv, .jsonl or .parquet file, a folder, builtin:NAME, sklearn:NAME or hf:ORG/NAME"
    )
    split: str | None = Field(None, description="split of the source: the file NAME.* of a folder, a part of a built-in or hub data set")
    revision: str | None = Field(None, description="branch, tag or commit of an hf: source")
    columns: Mapping[str, str] = Field(default_factory=dict, description="the task's column name: the name in the file")
    limit: int | None = Field(None, ge=1, description="use this many rows, drawn with `seed`; all when left out")
    seed: int = Field(0, ge=0, description="seed of the draw when `limit` is set")


class ModelSource(ABC):
    """A model that can be brought into the store."""

    libraries: ClassVar[tuple[str, ...]] = ()
    """Distributions that load what it brings, here and in every later step that takes it as it came."""

    @abstractmethod
    def check(self) -> list[str]:
        """Objections that can be seen without loading a heavy library: missing, truncated, a pickle. In words for the user."""

    @abstractmethod
    def identity(self) -> Mapping[str, str]:
        """What the cache key holds: content digests of weights, configuration and user code, never a path or a time."""

    def outline(self) -> Outline | None:
        """Names and shapes of its tensors, where headers on this machine tell; called after a `check` without objections."""
        return None

    @abstractmethod
    def fetch(self, out: Path, task: Task) -> Outcome:
        """Write the model under `out` (files and assets) and describe it in `Outcome.written`. Runs in a process of its own.

        Raises:
            StepError: the configuration does not match the weights, the factory failed.
            UnavailableError: a package is missing, or a hub snapshot is not in the cache and there is no network.
        """


class DataSource(ABC):
    """A data set that can be read."""

    cheap: bool = True
    """Whether `read` takes milliseconds and no heavy library, so that a plan may look at the rows."""

    @abstractmethod
    def check(self) -> list[str]:
        """Objections that can be seen without a heavy library."""

    @abstractmethod
    def identity(self) -> Mapping[str, str]:
        """What the cache key holds: content digests and, for drawn rows, limit and seed."""

    @abstractmethod
    def read(self) -> Table:
        """All rows asked for, columns renamed.

        Raises:
            PlanError: no rows, a row that cannot be read (with its number), a column that is not there (lists those there are).
        """


def within(path: Path, root: Path | None) -> bool:
    """Whether `path`, with links followed, stays inside `root`; always true when no root is set."""
    return root is None or path.resolve().is_relative_to(root.resolve())
