"""One stage of a recipe: a frozen model whose fields are the YAML keys and one method that does the work."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self

from pydantic import Field, field_validator

from ioptim.core.artifact import Format, ModelArtifact, TensorSpec
from ioptim.core.base import Frozen
from ioptim.core.gate import Gate
from ioptim.core.metrics import Samples
from ioptim.core.outline import Outline

if TYPE_CHECKING:
    from ioptim.core.runtime import Runtime, Session, Target
    from ioptim.core.source import ModelSource, ModelSpec
    from ioptim.core.target import Hardware
    from ioptim.core.task import Table, Task


class Level(StrEnum):
    INFO = "info"
    WARNING = "warning"


class Note(Frozen):
    """Something the user should know that is not a number: what was skipped, where a fallback happened, and why."""

    text: str
    level: Level = Level.INFO


class Written(Frozen):
    """The model a step wrote under `ctx.out / "model"`; it is sealed by the caller, which adds the input's assets.

    `entry` is relative to that folder. Specs left empty are taken over from the input model.
    """

    format: Format
    entry: str
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    assets: tuple[str, ...] = Field((), description="asset files this step itself wrote")
    facts: Mapping[str, Any] = Field(default_factory=dict)


class TableFigure(Frozen):
    """A small table for the report and the trackers: layers quantized, operators by time."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | float | int | None, ...], ...]


class Series(Frozen):
    """The points of one thing in a chart: of a model, an operator, a bound. `x` holds numbers, or names on an axis of names."""

    name: str
    x: tuple[float | str, ...]
    y: tuple[float | None, ...]
    low: tuple[float | None, ...] = Field((), description="lower ends of intervals around `y`; empty where there are none")
    high: tuple[float | None, ...] = Field((), description="upper ends")
    labels: tuple[str, ...] = Field((), description="what a reader sees of each point when pointing at it")
    line: bool = Field(False, description="joined by a line: a curve or a bound, not separate measurements")


class ChartFigure(Frozen):
    """A chart for the report, as data: the report chooses how it looks.

    `bars`: names on x, one bar per point. `points`: y over x. `distribution`: every value of `y` is one sample of the series, `x` is
    empty. Say in `note` what the reader should see in it.
    """

    title: str
    kind: Literal["bars", "points", "distribution"]
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    log_x: bool = False
    log_y: bool = False
    stacked: bool = Field(False, description="bars of all series on one another")
    note: str = ""


class Curve(Frozen):
    """A number that changed while a step ran: one value at each of `steps` (of an optimizer, say), `seconds` after it began."""

    metric: str = Field(description="what the values are, as trackers name it: train/loss")
    steps: tuple[int, ...]
    values: tuple[float, ...]
    seconds: tuple[float, ...]


class Outcome(Frozen):
    """What a step returns. Values only: it crosses a process boundary and is kept in the store as JSON.

    `subjects` holds, for a measuring step, the metrics of every model measured ({"candidate": {...}, "source": {...}});
    `metrics` holds what the step says about its own model.
    """

    written: Written | None = None
    metrics: Mapping[str, float] = Field(default_factory=dict)
    subjects: Mapping[str, Mapping[str, float]] = Field(default_factory=dict)
    samples: tuple[Samples, ...] = Field((), exclude=True, description="kept beside the record as samples.json")
    tables: tuple[TableFigure, ...] = ()
    charts: tuple[ChartFigure, ...] = ()
    curves: tuple[Curve, ...] = Field((), description="for trackers, which keep them as histories; the report has `charts`")
    notes: tuple[Note, ...] = ()
    facts: Mapping[str, Any] = Field(default_factory=dict, description="what really executed, read back: providers, precision")


class Where(Frozen):
    """What a step's `check` and `resolve` may look at: the plan around it. No files, no libraries, no network."""

    format: Format
    """Format of the model that will arrive."""
    targets: tuple[Any, ...]
    """Targets (`ioptim.core.runtime.Target`) that this node, or anything after it, runs on."""
    task: Any
    """`ioptim.core.task.Task`."""
    hardware: Any
    """`ioptim.core.target.Hardware` of this machine."""
    has_calibration: bool
    columns: Mapping[str, tuple[str, ...]] = Field(default_factory=dict)


class Context(Protocol):
    """What a running step may reach. It writes to `out` and, to go on after a kill, to `scratch`; nowhere else."""

    out: Path
    """An empty directory of its own: the model goes to `out/model`, anything worth keeping to `out/files`."""
    scratch: Path
    """What an earlier attempt at this very step left (same key: same configuration, inputs, data, code). Made by the step; removed
    when it has ended well."""
    task: Task
    source: ModelSource
    """Where the recipe's model comes from."""
    target: Target
    """Where this node measures or compiles for; for a shared node the first target."""
    hardware: Hardware
    seed: int
    candidates: Mapping[str, ModelArtifact]
    """Every model that arrived, by node id; one except at a comparison."""
    request: Mapping[str, Any]
    """The JSON document this node was started with: what a process of a measuring step's own needs to open the same models."""
    subject_worker: str
    """`module:Class` of a worker that opens one model of `request` and runs timed blocks on it."""
    baselines: Mapping[str, ModelArtifact]
    """`source`, `runtime-fp32`, the `champion` and the steps that gates name (with `@target` where several targets meet); what the step
    `reads` and `brings`, by field."""
    step_worker: str
    """`module:function` that runs a `request` in a process of its own, for a step that wants several."""

    def table(self, role: str) -> Table:
        """Rows of one role of the recipe's data (`calibration`, `validation`, `training`, `dev`), columns renamed to the task's."""

    def target_of(self, model: ModelArtifact) -> Target:
        """The target that a model which arrived was made for, by this run's graph; this node's where there is none."""

    def open(self, model: ModelArtifact) -> Session:
        """Open a model on the runtime and target it was made for; a source model on the runtime of its format."""

    def runtime_for(self, model: ModelArtifact) -> Runtime:
        """The runtime that `open` would use."""

    def progress(self, done: float, message: str) -> None:
        """Tell the user how far this step is: `done` from 0 to 1."""


class Step(Frozen, ABC):
    """Base of every step. A subclass adds fields (the YAML keys) and `run`.

    A step keeps nothing on itself, never changes its input and writes only to `ctx.out`.
    """

    step: str
    id: str | None = Field(None, pattern=r"^[a-z0-9][a-z0-9_-]*$", description="name of this step in the graph; its kind when left out")
    after: tuple[str, ...] | None = Field(None, description="ids of the steps this one follows; the one above when left out")
    target: str | None = Field(None, description="name of the one target this step is for; all that it can reach when left out")
    timeout_s: float | None = Field(None, gt=0, description="seconds after which the step is ended as an error")
    memory_limit_gb: float | None = Field(None, gt=0, description="memory above which the step is ended as an error")

    accepts: ClassVar[frozenset[Format]] = frozenset(Format)
    """Formats it takes; where the model has another, the plan inserts `export`."""
    libraries: ClassVar[tuple[str, ...]] = ()
    """Distributions whose versions are part of the cache key and whose absence is an objection."""
    transforms: ClassVar[bool] = True
    """Whether it writes a model. One that does not passes its input on."""
    per_target: ClassVar[bool] = False
    """Whether it runs once for each target."""
    measures: ClassVar[bool] = False
    """Whether its result holds only on this hardware: the key then holds the fingerprint, and it runs alone on the device."""
    needs_baselines: ClassVar[bool] = False
    compares: ClassVar[bool] = False
    """Whether it takes several models at once."""
    uses_price: ClassVar[bool] = False
    """Whether its figures depend on the prices of its models' targets, which are then part of its key."""
    opens_elsewhere: ClassVar[bool] = False
    """Whether it opens every model in a process of the model's own, and so needs none of their libraries in its own."""
    inserted_only: ClassVar[bool] = False
    """Whether only the plan may add it; a recipe that names it is refused."""
    uses_data: ClassVar[tuple[str, ...]] = ()
    """Roles of the recipe's data that it may read."""

    not_in_key: ClassVar[frozenset[str]] = frozenset({"id", "after", "target", "timeout_s", "memory_limit_gb", "gates"})
    """Fields that cannot change what `run` writes."""

    def resolve(self, where: Where) -> Self:
        """The same step with every `auto` replaced by what it means here. Pure; shown by the plan and part of the key."""
        return self

    def check_training(self, table: Table, task: Task) -> list[str]:
        """Objections to the rows of `data.training`; asked where a plan can read them."""
        return []

    def check(self, where: Where) -> list[str]:
        """Objections at plan time, all of them: what depends on the hardware, the targets or the neighbouring step."""
        return []

    def produces(self, where: Where) -> Format:
        """Format of the model that comes out."""
        return where.format

    def reads(self) -> Mapping[str, str]:
        """Models beside the one that arrives, by the field that names each: the id of the step that made it."""
        return {}

    def brings(self) -> Mapping[str, ModelSpec]:
        """Models of the user's that no step made, by the field that names each; the plan brings them in as it does the recipe's."""
        return {}

    def outline(self, arriving: Outline | None, others: Mapping[str, Outline | None]) -> Outline | None:
        """What the model that leaves will be like, as far as that follows from the one that arrives and from `others` (by field);
        None where only running the step tells.

        Raises:
            StepError: what is asked for cannot be made of them; an objection of the plan.
        """
        return None

    def data_roles(self) -> tuple[str, ...]:
        """The data this configuration of the step reads; part of the key, and required in the recipe."""
        return self.uses_data

    def library_names(self, where: Where) -> tuple[str, ...]:
        """The distributions this configuration of the step needs."""
        return self.libraries

    @abstractmethod
    def run(self, model: ModelArtifact, ctx: Context) -> Outcome:
        """Do the work in this process (the caller isolates it)."""


class MeasuringStep(Step, ABC):
    """A step that measures and may carry gates. Gates are judged by the caller from the kept samples, so a changed bound
    needs no new measurement."""

    transforms: ClassVar[bool] = False
    measures: ClassVar[bool] = True
    gates: tuple[Gate, ...] = Field((), description="bounds that block a regression")

    scores_rows: ClassVar[bool] = False
    """Whether its samples are of rows, so that a gate may name `slices`."""

    @field_validator("gates")
    @classmethod
    def _slices_are_of_rows(cls, gates: tuple[Gate, ...]) -> tuple[Gate, ...]:
        sliced = [gate.metric for gate in gates if gate.slices is not None]
        if sliced and not cls.scores_rows:
            raise ValueError(f"slices are of rows, which this step does not score; leave `slices` out of the gate on {', '.join(sliced)}")
        return gates

    def metric_names(self, task: Task) -> Sequence[str]:
        """Names that a gate on this step may use."""
        return ()

    def check_rows(self, table: Table, task: Task) -> list[str]:
        """Objections to gates that these validation rows cannot answer; asked where a plan can read the rows."""
        return []
