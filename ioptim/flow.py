"""The plan as a Prefect flow: one task per node, with states, logs and artifacts that read well in Prefect's UI.

The one module that imports Prefect. What running means is decided by `run_node`; this only shows it.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from ioptim import isolate, prefect_server
from ioptim.core.record import NodeRecord, Status
from ioptim.core.runtime import Target
from ioptim.environment import finish_imports, import_early
from ioptim.errors import UnavailableError
from ioptim.prefect_server import PrivateServer

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State

RunNode = Callable[[str], NodeRecord]
SETTLE_S = 2.0
"""How long the end of a run waits for its own server to have written down every task."""


class PlanNode(Protocol):
    """What is read of a node of the plan."""

    @property
    def id(self) -> str: ...
    @property
    def parents(self) -> tuple[str, ...]: ...
    @property
    def step(self) -> Any: ...
    @property
    def target(self) -> Target | None: ...


@dataclass(frozen=True)
class FlowNode:
    """One task of the flow, to be started after its parents."""

    id: str
    parents: tuple[str, ...]
    step: str
    target: str | None = None

    @classmethod
    def of(cls, node: PlanNode) -> Self:
        return cls(node.id, node.parents, node.step.step, node.target.name if node.target else None)


_server: PrivateServer | None = None


def start(home: Path) -> None:
    """Make ready what a flow needs, in the background: the server named by PREFECT_API_URL, or else a private one.

    Call it early and from the main thread; `run_flow` waits for it. Nothing is read from or written to `~/.prefect`.

    Raises:
        UnavailableError: the server that PREFECT_API_URL names does not answer, or `home` cannot be written.
    """
    global _server
    if _server is not None:
        return
    folder = home / prefect_server.FOLDER
    _server = prefect_server.running(folder)
    if _server is None and (named := os.environ.get("PREFECT_API_URL")):
        prefect_server.check_reachable(named)
        os.environ.setdefault("PREFECT_HOME", str(folder))
    elif _server is None:
        _server = prefect_server.start(folder)
    import_early("prefect.main", "prefect.artifacts", "mlflow", "mlflow.store.tracking.sqlalchemy_store")


def run_flow(
    name: str,
    nodes: Sequence[FlowNode],
    run_node: RunNode,
    *,
    tags: Sequence[str],
    home: Path,
    run_name: str | None = None,
    max_workers: int = 1,
    links: Mapping[str, Path] | None = None,
) -> None:
    """Run every node, in the order given or, with several workers, as soon as its parents have ended.

    `run_node` runs, skips or serves a node from the store and returns its record, whatever happened. `run_name` is the name of the
    flow run (Prefect makes one up where it is left out), `tags` go to the flow and every task, `links` (title: absolute path of a
    file) become artifacts of the flow. The flow fails in Prefect when a gate or a step did.

    Raises:
        KeyboardInterrupt: the user ended the run; what ran in other threads has been ended too.
        UnavailableError: Prefect's server is not there or was lost on the way.
    """
    start(home)
    finish_imports()
    import httpx
    from prefect.exceptions import PrefectException
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    if _server is not None:
        _server.wait_healthy()
    recording = _Recording(name, run_name, nodes, run_node, tuple(tags), max_workers, links or {})
    try:
        # The thread that sends heartbeats is joined at the end of a flow, which takes a second. No variable can say None.
        with temporary_settings(updates={PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
            recording.run()
    except (httpx.HTTPError, PrefectException) as error:
        where = os.environ["PREFECT_API_URL"]
        raise UnavailableError(
            f"Prefect's server at {where} was lost: {error}. Steps that had finished are in the store: run again, or with --engine local"
        ) from error


@dataclass
class _Recording:
    """One flow run. Prefect is imported by the time it runs."""

    name: str
    run_name: str | None
    nodes: Sequence[FlowNode]
    run_node: RunNode
    tags: tuple[str, ...]
    max_workers: int
    links: Mapping[str, Path]
    records: dict[str, NodeRecord] = field(default_factory=dict)

    def run(self) -> None:
        from prefect import flow, tags
        from prefect.context import SyncClientContext
        from prefect.task_runners import ThreadPoolTaskRunner

        flow_of_nodes = flow(
            name=self.name,
            flow_run_name=self.run_name,
            task_runner=ThreadPoolTaskRunner(max_workers=self.max_workers),  # type: ignore[arg-type]
            persist_result=False,
            validate_parameters=False,
        )(self._nodes)
        with SyncClientContext.get_or_create(), tags(*self.tags):  # one client for the flow and what comes before it
            state = flow_of_nodes(return_state=True)
        if _server is not None:
            _wait_recorded(str(state.state_details.flow_run_id), len(self.records))

    def _nodes(self) -> State[Any]:
        """The flow's body."""
        from prefect import allow_failure
        from prefect.context import TagsContext

        # Prefect asks its server for a concurrency slot for every tag of a task before it runs, which on SQLite meets the writer of
        # task runs, gets 503 (database is locked) and waits seconds. So tasks begin without tags and get them while they run.
        with TagsContext(current_tags=set()):
            return self._walk(allow_failure)

    def _walk(self, allow_failure: Callable[[Any], Any]) -> State[Any]:
        states: dict[str, Any] = {}
        try:
            for node in self.nodes:
                # Whether a dependent runs is for `run_node` to say: to Prefect a failed parent is only something to wait for.
                waits = [allow_failure(states[parent]) for parent in node.parents]
                task = self._task(node)
                if self.max_workers == 1:  # in this thread, so that Ctrl-C reaches the step and not only its thread's owner
                    states[node.id] = task(node.id, wait_for=waits, return_state=True)
                else:
                    states[node.id] = task.submit(node.id, wait_for=waits)
            for state in states.values():
                if self.max_workers > 1:
                    state.wait()
        except KeyboardInterrupt:
            isolate.end_all()  # threads that wait for a step end with it
            raise
        self._flow_artifacts()
        return self._flow_state()

    def _task(self, node: FlowNode) -> Any:
        from prefect import task
        from prefect.cache_policies import NO_CACHE

        return task(
            name=node.step,
            task_run_name=node.id.replace("{", "{{").replace("}", "}}"),
            cache_policy=NO_CACHE,
            persist_result=False,
        )(self._run)

    def _run(self, node: str) -> State[Any]:
        """A task's body."""
        from prefect import get_run_logger
        from prefect.artifacts import create_markdown_artifact
        from prefect.context import TaskRunContext

        context = TaskRunContext.get()
        assert context is not None
        record = self.run_node(node)
        target = [f"target:{record.target}"] if record.target else []
        context.task_run.tags = sorted({*self.tags, f"step:{record.step}", *target})
        self.records[node] = record
        log = get_run_logger()
        for note in record.notes:
            log.log(30 if note.level.value == "warning" else 20, "%s", note.text)
        for gate in record.gates:
            log.info("gate %s: %s, %s", gate.metric, gate.verdict.value, gate.reason)
        if record.error:
            log.error("%s", record.error)
        create_markdown_artifact(markdown_of(record), key=_key(self.name, node), description=headline(record))
        return _state(record)

    def _flow_artifacts(self) -> None:
        from prefect.artifacts import create_link_artifact, create_table_artifact

        rows = [
            {
                "step": record.id,
                "metric": gate.metric,
                "bound": " ".join(str(part) for part in gate.gate.bound),
                "candidate": gate.candidate_value,
                "baseline": gate.baseline_value,
                "verdict": gate.verdict.value,
                "reason": gate.reason,
            }
            for record in self.records.values()
            for gate in record.gates
        ]
        if rows:
            create_table_artifact(rows, key=_key(self.name, "gates"), description=f"{len(rows)} verdicts of {self.name}")
        for title, path in self.links.items():
            # As a URI: Prefect's page would look for a bare path on its own server.
            create_link_artifact(path.as_uri(), link_text=title, key=_key(self.name, title), description=f"{title} of {self.name}")

    def _flow_state(self) -> State[Any]:
        from prefect.states import Completed, Failed

        bad = [record for record in self.records.values() if record.status in (Status.ERROR, Status.GATE_FAILED)]
        if bad:
            return Failed(message="; ".join(f"{record.id}: {headline(record)}" for record in bad))
        cached = sum(record.cached for record in self.records.values())
        return Completed(message=f"{len(self.records)} steps, {cached} of them from the store")


def _state(record: NodeRecord) -> State[Any]:
    from prefect.states import Cancelled, Completed, Failed

    message = headline(record)
    if record.status is Status.SKIPPED:
        return Cancelled(name="Skipped", message=message)
    if record.status is Status.GATE_FAILED:
        return Failed(name="GateFailed", message=message)
    if record.status is not Status.PASSED:
        return Failed(message=message)
    return Completed(name="Cached", message=message) if record.cached else Completed(message=message)


def headline(record: NodeRecord) -> str:
    """One line on how a node ended."""
    if record.error:
        return record.error.splitlines()[0]
    blocking = [gate for gate in record.gates if gate.blocks]
    if blocking:
        return "; ".join(f"gate {gate.metric}: {gate.reason}" for gate in blocking)
    if record.status is Status.SKIPPED:
        return record.notes[0].text if record.notes else "not run"
    taken = f"computed in {record.seconds:.1f} s"
    return f"from the store, {taken} on {record.computed}" if record.cached else taken


def markdown_of(record: NodeRecord) -> str:
    """A node as Prefect's UI shows it."""
    parts = [f"## {record.id}", f"**{record.status.value}**: {headline(record)}"]
    if record.metrics:
        parts.append(_table(("metric", "value"), [(name, _number(value)) for name, value in record.metrics.items()]))
    if record.subjects:
        names = list(dict.fromkeys(name for values in record.subjects.values() for name in values))
        rows = [[name, *(_number(values.get(name)) for values in record.subjects.values())] for name in names]
        parts.append(_table(("metric", *record.subjects), rows))
    if record.gates:
        rows = [[gate.metric, gate.candidate, gate.baseline or "", gate.verdict.value, gate.reason] for gate in record.gates]
        parts += ["### Gates", _table(("metric", "candidate", "baseline", "verdict", "reason"), rows)]
    if record.notes:
        parts += ["### Notes", "\n".join(f"- {note.text}" for note in record.notes)]
    for table in record.tables:
        parts += [f"### {table.title}", _table(table.columns, [["" if cell is None else cell for cell in row] for row in table.rows])]
    if record.error:
        parts += ["### Error", f"```\n{record.error}\n```"]
    if record.artifact:
        model = record.artifact
        parts.append(f"Model: {model.format.value}, {model.size_bytes:,} bytes, digest `{model.digest[:12]}`, in `{model.path}`")
    return "\n\n".join(parts)


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [list(columns), ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.4g}" if abs(value) < 1e6 else f"{value:,.0f}"


def _key(*words: str) -> str:
    """An artifact's key: lower-case letters, digits and dashes. Prefect keeps the versions of one key together."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(words).lower()).strip("-")


def _wait_recorded(flow_run_id: str, tasks: int) -> None:
    """Wait until the server has every task as ended. It writes them down from a queue, and goes away with this process."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    here = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))  # type: ignore[list-item]
    deadline = time.monotonic() + SETTLE_S
    with get_client(sync_client=True) as client:
        while time.monotonic() < deadline:
            runs = client.read_task_runs(flow_run_filter=here)
            if sum(run.state is not None and run.state.is_final() for run in runs) >= tasks:
                return
            time.sleep(0.05)
