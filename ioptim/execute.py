"""What running means: keys, the store, isolation, gates, what is skipped. Used by the Prefect flow and by the plain loop alike."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ioptim import gates, isolate
from ioptim.ahead import Ahead
from ioptim.cache import Result, Store, now
from ioptim.core.artifact import ModelArtifact
from ioptim.core.base import digest_of
from ioptim.core.gate import GateResult
from ioptim.core.metrics import read_samples
from ioptim.core.record import ArtifactRef, NodeRecord, RunRecord, Status
from ioptim.core.step import Level, MeasuringStep, Note, Outcome
from ioptim.core.tracker import Tracker
from ioptim.errors import ExitCode, IoptimError, UnavailableError
from ioptim.graph import Node
from ioptim.keys import ingredients, opened_on
from ioptim.plan import Plan

GIGABYTE = 1_000_000_000


@dataclass(frozen=True)
class Event:
    """Something to tell the user: `what` is started, progress or ended."""

    what: str
    node: NodeRecord
    done: float = 0.0
    message: str = ""


class Run:
    """One run of a plan. `run_node` may be called from any thread; the record is whole after every call."""

    def __init__(
        self,
        plan: Plan,
        store: Store,
        record: RunRecord,
        folder: Path,
        *,
        tracker: Tracker | None = None,
        force: Iterable[str] = (),
        use_cache: bool = True,
        save: Callable[[RunRecord], None] = lambda record: None,
        on_event: Callable[[Event], None] = lambda event: None,
    ) -> None:
        self.plan = plan
        self.store = store
        self.folder = folder
        self.tracker = tracker
        self.force = frozenset(force)
        self.use_cache = use_cache
        self.save = save
        self.on_event = on_event
        self.record = record.model_copy(update={"nodes": tuple(_pending(node) for node in plan.nodes)})
        self._models: dict[str, ModelArtifact] = {}
        self._ahead = Ahead(self._log)
        self._exit_codes: list[ExitCode] = []
        self._lock = threading.RLock()
        self._started = time.monotonic()

    # The run

    def begin(self) -> None:
        """Write the record down and tell the tracker."""
        self._change(status=Status.RUNNING, started=now())
        first = self.plan.nodes[0]
        if self._is_forced(first) or self.store.has(digest_of(self.ingredients(first))) is None:  # its files are verified when it is taken
            self._ahead.prepare([first])
        self._track(lambda tracker: tracker.begin(self.record))

    def run_node(self, node_id: str) -> NodeRecord:
        """Run, skip or serve one node from the store. Never raises for what a step did: the record says it.

        Raises:
            KeyboardInterrupt: the user ended the run; the node is recorded as interrupted.
        """
        node = self.plan.node(node_id)
        blocked = [p for p in node.parents if self.record.node(p).status is not Status.PASSED]
        if blocked:
            why = "; ".join(f"{p} ended as {self.record.node(p).status.value}" for p in blocked)
            return self._ended(node_id, status=Status.SKIPPED, notes=(Note(text=f"not run: {why}", level=Level.WARNING),))
        started = self._update(node_id, status=Status.RUNNING, started=now())
        self.on_event(Event("started", started))
        try:
            return self._finished(node, self._result(node))
        except KeyboardInterrupt:
            self._ended(node_id, status=Status.INTERRUPTED, error="ended by the user")
            raise
        except IoptimError as error:
            self._exit_codes.append(error.exit_code)
            return self._ended(node_id, status=Status.ERROR, error=str(error), log=str(self._log(node_id)))
        except Exception as error:  # noqa: BLE001  a defect of ours: Prefect would keep it to itself, and the run would pass unjudged
            self._exit_codes.append(ExitCode.STEP)
            log = self._log(node_id)
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("a") as file:
                traceback.print_exc(file=file)
            text = f"{type(error).__name__}: {error}. This is a defect of ioptim, not of the recipe; please report it with {log}"
            return self._ended(node_id, status=Status.ERROR, error=text, log=str(log))

    def end(self, stopped: BaseException | None = None) -> RunRecord:
        """Settle the run's status and exit code; `stopped` is what ended it before its last node, if anything did.

        The report and the tracker's last word come after, with `close`.
        """
        self._ahead.close()
        unfinished = [node.id for node in self.record.nodes if node.status in (Status.PENDING, Status.RUNNING)]
        for node_id in unfinished:
            self._update(node_id, status=Status.INTERRUPTED)
        if isinstance(stopped, IoptimError):
            self._exit_codes.append(stopped.exit_code)
            self._change(warnings=(*self.record.warnings, f"the run was stopped: {stopped}"))
        status, code = self._verdict(stopped)
        seconds = round(time.monotonic() - self._started, 3)
        self._change(status=status, exit_code=code, finished=now(), seconds=seconds)
        return self.record

    def close(self, report: Callable[[RunRecord, Path], Path]) -> RunRecord:
        """Write the report, hand everything to the tracker, and write down what became of that."""
        self._change(report=str(report(self.record, self.folder)))
        if self.tracker is not None:
            self._track(lambda tracker: self._change(tracking=tracker.end(self.record, self.folder)))
            report(self.record, self.folder)  # it links to where the tracker put the run, or says that it could not
        return self.record

    def _verdict(self, stopped: BaseException | None) -> tuple[Status, ExitCode]:
        statuses = {node.status for node in self.record.nodes}
        if isinstance(stopped, KeyboardInterrupt):
            return Status.INTERRUPTED, ExitCode.INTERRUPTED
        if self._exit_codes:
            return Status.ERROR, self._exit_codes[0]  # the first is the likeliest cause of the others
        if Status.GATE_FAILED in statuses:
            return Status.GATE_FAILED, ExitCode.GATE
        if Status.INTERRUPTED in statuses:  # nobody ended it, yet not every node came to its end
            return Status.ERROR, ExitCode.STEP
        return Status.PASSED, ExitCode.PASS

    # One node

    def _result(self, node: Node) -> tuple[Result, bool]:
        """The node's result and whether it came out of the store."""
        ingredients = self.ingredients(node)
        key = digest_of(ingredients)
        self._update(node.id, key=key)
        with self.store.lock(key):
            found = self._stored(node, key)
            if found is not None:
                return found, True
            return self._compute(node, key, ingredients), False

    def _stored(self, node: Node, key: str) -> Result | None:
        return None if self._is_forced(node) else self.store.get(key)

    def _is_forced(self, node: Node) -> bool:
        return not self.use_cache or node.id in self.force or node.step.step in self.force

    def _compute(self, node: Node, key: str, ingredients: Mapping[str, Any]) -> Result:
        with self.store.work() as out:
            start = time.monotonic()
            prepared = self._ahead.take(node.id)
            if node.step.measures:
                self._ahead.close()  # one that nobody took must not import beside a measurement
            else:
                self._ahead.prepare(self._following(node))
            answer = isolate.call(
                "ioptim.worker:run_step",
                self._request(node, out, self.store.partial(key)),
                log=self._log(node.id),
                limits=_limits(node),
                on_progress=lambda done, message: self.on_event(Event("progress", self.record.node(node.id), done, message)),
                prepared=prepared,
            )
            seconds = time.monotonic() - start
            outcome = Outcome.model_validate(answer)
            parent = self._models.get(node.model) if node.model else None
            return self.store.put(key, node.step.step, ingredients, outcome, out, seconds, parent)

    def _following(self, node: Node) -> Sequence[Node]:
        """The nodes that may still run after this one, in order."""
        place = self.plan.nodes.index(node)
        return [other for other in self.plan.nodes[place + 1 :] if self.record.node(other.id).status is Status.PENDING]

    def _finished(self, node: Node, found: tuple[Result, bool]) -> NodeRecord:
        result, cached = found
        if result.model is not None:
            self._models[node.id] = self.store.model(result.model)
        verdicts = self._judge(node, result)
        blocked = any(verdict.blocks for verdict in verdicts)
        model = self._models.get(node.provides)
        outcome = result.outcome
        return self._ended(
            node.id,
            status=Status.GATE_FAILED if blocked else Status.PASSED,
            cached=cached,
            seconds=result.seconds,
            computed=result.computed,
            metrics=outcome.metrics,
            subjects=outcome.subjects,
            notes=outcome.notes,
            tables=outcome.tables,
            charts=outcome.charts,
            curves=outcome.curves,
            facts=outcome.facts,
            gates=verdicts,
            artifact=_reference(model) if model else None,
            files=str(self.store.files(result.files)) if result.files else None,
            log=None if cached else str(self._log(node.id)),
        )

    def _judge(self, node: Node, result: Result) -> tuple[GateResult, ...]:
        """Verdicts from the kept samples: they are judged anew each time, so a changed bound needs no new measurement."""
        if not isinstance(node.step, MeasuringStep) or not node.step.gates:
            return ()
        samples = read_samples(self.store.files(result.files)) if result.files else ()
        verdicts: list[GateResult] = []
        for gate in node.step.gates:
            versus = {name: self._baseline_of(node, gate.baseline, name) for name in node.candidates if gate.candidate in (None, name)}
            pairs = [(candidate, baseline) for candidate, baseline in versus.items() if baseline != candidate]
            if not pairs:
                verdicts += gates.judge(gate, samples, node.candidates)  # a failure, which says why there is nobody to judge
            for candidate, baseline in pairs:
                verdicts += gates.judge(gate.model_copy(update={"baseline": baseline}), samples, [candidate])
        return tuple(verdicts)

    def _baseline_of(self, node: Node, name: str, candidate: str) -> str:
        """The measured subject that a gate's `baseline` means for this candidate."""
        qualified = f"{name}@{opened_on(self.plan, node)[candidate].name}"
        return qualified if qualified in node.baselines else name

    # What a key is made of, and what a process is given

    def ingredients(self, node: Node) -> dict[str, Any]:
        """Everything that can change the bytes or the numbers of this node, by content."""
        return ingredients(self.plan, node, {name: model.digest for name, model in self._models.items()})

    def _request(self, node: Node, out: Path, scratch: Path) -> dict[str, Any]:
        recipe = self.plan.loaded.recipe
        target = node.target or recipe.targets[0]
        return {
            "step": node.step.model_dump(mode="json"),
            "candidates": {name: str(self._models[name].path) for name in node.candidates},
            "baselines": {name: str(self._models[provider].path) for name, provider in node.baselines.items()},
            "opened_on": {name: on.name for name, on in opened_on(self.plan, node).items()},
            "task": recipe.model.task.model_dump(mode="json"),
            "model_source": (node.source or recipe.model).model_dump(mode="json", exclude={"task"}),
            "data": {role: getattr(recipe.data, role).model_dump(mode="json") for role in self.plan.data_sources},
            "targets": [t.model_dump(mode="json") for t in recipe.targets],
            "target": target.name,
            "hardware": self.plan.hardware.model_dump(mode="json"),
            "seed": recipe.seed,
            "base": str(self.plan.loaded.folder),
            "root": str(self.plan.root) if self.plan.root else None,
            "out": str(out),
            "scratch": str(scratch),
        }

    def _log(self, node_id: str) -> Path:
        return self.folder / "logs" / f"{node_id}.log"

    # The record

    def _ended(self, node_id: str, **changes: Any) -> NodeRecord:
        node = self._update(node_id, **changes)
        self.on_event(Event("ended", node))
        self._track(lambda tracker: tracker.node(self.record, node))
        return node

    def _update(self, node_id: str, **changes: Any) -> NodeRecord:
        with self._lock:
            changed = self.record.node(node_id).model_copy(update=changes)
            self._change(nodes=tuple(changed if n.id == node_id else n for n in self.record.nodes))
            return changed

    def _change(self, **changes: Any) -> None:
        with self._lock:
            self.record = self.record.model_copy(update=changes)
            self.save(self.record)

    def _track(self, tell: Callable[[Tracker], None]) -> None:
        """Tell the tracker; one that cannot be reached is dropped for this run and said so, never waited for again."""
        if self.tracker is None:
            return
        with self._lock:
            try:
                tell(self.tracker)
            except UnavailableError as error:
                self.tracker = None
                problem = f"{error}. The run goes on; `ioptim sync` uploads it later"
                state = self.record.tracking.model_copy(update={"state": "pending", "problem": str(error)})
                self._change(tracking=state, warnings=(*self.record.warnings, problem))


def run_plan(run: Run) -> None:
    """The plain loop: every node in the plan's order, in this process's thread."""
    for node in run.plan.nodes:
        run.run_node(node.id)


def _pending(node: Node) -> NodeRecord:
    return NodeRecord(
        id=node.id,
        step=node.step.step,
        target=node.target.name if node.target else None,
        parents=node.parents,
        inserted=bool(node.inserted),
        config=node.step.model_dump(mode="json"),
    )


def _reference(model: ModelArtifact) -> ArtifactRef:
    return ArtifactRef(
        digest=model.digest,
        path=str(model.path),
        format=model.format,
        size_bytes=model.size_bytes,
        inputs=model.inputs,
        outputs=model.outputs,
    )


def _limits(node: Node) -> isolate.Limits:
    gigabytes = [g for g in (node.step.memory_limit_gb, node.target.memory_gb if node.target else None) if g]
    return isolate.Limits(seconds=node.step.timeout_s, memory_bytes=int(min(gigabytes) * GIGABYTE) if gigabytes else None)
