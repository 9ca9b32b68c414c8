"""What is known about a run, while it goes and for ever after: the one document behind the report, `--json` and every tracker."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from pydantic import Field

from ioptim.core.artifact import Format, TensorSpec
from ioptim.core.base import Frozen
from ioptim.core.gate import GateResult
from ioptim.core.step import ChartFigure, Curve, Note, TableFigure
from ioptim.core.target import Hardware
from ioptim.errors import ExitCode


class Status(StrEnum):
    """State of a node or of a run."""

    PENDING = "pending"
    RUNNING = "running"
    PASSED = "passed"
    GATE_FAILED = "gate_failed"
    ERROR = "error"
    SKIPPED = "skipped"
    INTERRUPTED = "interrupted"


class ArtifactRef(Frozen):
    """The sealed model that a node left, and where it is in the store."""

    digest: str
    path: str
    format: Format
    size_bytes: int
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()


class NodeRecord(Frozen):
    """One node of the run."""

    id: str
    step: str
    target: str | None
    parents: tuple[str, ...]
    inserted: bool = Field(False, description="added by the plan, not written in the recipe")
    config: Mapping[str, Any] = Field(default_factory=dict, description="every field of the resolved step")
    status: Status = Status.PENDING
    cached: bool = False
    key: str | None = None
    started: str | None = Field(None, description="UTC, ISO 8601, of this run")
    seconds: float = Field(0.0, description="wall time that the step itself took when it was computed")
    computed: str | None = Field(None, description="UTC, ISO 8601, of the computation; earlier than `started` when cached")
    metrics: Mapping[str, float] = Field(default_factory=dict)
    subjects: Mapping[str, Mapping[str, float]] = Field(default_factory=dict)
    notes: tuple[Note, ...] = ()
    tables: tuple[TableFigure, ...] = ()
    charts: tuple[ChartFigure, ...] = ()
    curves: tuple[Curve, ...] = ()
    facts: Mapping[str, Any] = Field(default_factory=dict)
    gates: tuple[GateResult, ...] = ()
    artifact: ArtifactRef | None = Field(None, description="the model that leaves this node (its input's, for a measuring step)")
    files: str | None = Field(None, description="sealed folder with samples.json and whatever else the step kept")
    error: str | None = None
    log: str | None = Field(None, description="path of the step's captured output")


class TrackingState(Frozen):
    """What became of the tracking of this run."""

    state: str = Field("off", description="off, logged, pending (could not be reached; `ioptim sync` uploads it)")
    uri: str | None = None
    run_id: str | None = None
    url: str | None = None
    problem: str | None = None


class RunRecord(Frozen):
    """One run of one recipe."""

    version: int = 1
    run_id: str
    recipe: str
    recipe_path: str | None = None
    recipe_text: str = Field("", description="the YAML as read")
    recipe_config: Mapping[str, Any] = Field(default_factory=dict, description="the resolved recipe, defaults filled in")
    overrides: tuple[str, ...] = Field((), description="every --set")
    recipe_digest: str = ""
    command: tuple[str, ...] = ()
    engine: str = "local"
    status: Status = Status.PENDING
    exit_code: ExitCode | None = None
    started: str = ""
    finished: str | None = None
    seconds: float = 0.0
    hardware: Hardware
    environment: Mapping[str, str] = Field(default_factory=dict, description="distribution: version")
    git_sha: str | None = Field(None, description="commit of the directory the run was started in")
    data: Mapping[str, Mapping[str, str]] = Field(default_factory=dict, description="role: what identifies the rows that the steps read")
    nodes: tuple[NodeRecord, ...] = ()
    warnings: tuple[str, ...] = ()
    tracking: TrackingState = TrackingState()
    report: str | None = Field(None, description="path of the HTML report")

    @property
    def gates(self) -> tuple[GateResult, ...]:
        """Every verdict of the run, in the order of the nodes."""
        return tuple(gate for node in self.nodes for gate in node.gates)

    def node(self, node_id: str) -> NodeRecord:
        return next(node for node in self.nodes if node.id == node_id)
