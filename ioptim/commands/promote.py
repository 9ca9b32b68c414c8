"""`ioptim promote RUN`: make what a run compiled the champions that later runs of its recipe are measured against."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ioptim import champions
from ioptim.cache import Store, now
from ioptim.champions import Champion
from ioptim.commands._common import home_of, print_json
from ioptim.core.artifact import ModelArtifact
from ioptim.core.gate import Verdict
from ioptim.core.record import NodeRecord, RunRecord, Status
from ioptim.errors import ExitCode, PlanError, UnavailableError
from ioptim.tracking import local


def main(args: argparse.Namespace) -> ExitCode:
    home = home_of(args)
    folder = local.find_run(home, args.run)
    record = local.read_run(home, folder)
    compiled = _compiled(record, args.step)
    against = tuple(_against(record))
    if against and not args.force:
        return _refused(args, record, against)
    store = Store(folder.parent.parent / "store")  # a run named by its path may lie in another home
    models = {node.id: _model(store, node) for node in compiled}  # all of them, before the first champion is replaced
    promoted = [_promote(home, record, node, models[node.id], against) for node in compiled]
    notes = list(_notes(record, compiled))
    if args.json:
        document = {"recipe": record.recipe, "run_id": record.run_id, "exit_code": int(ExitCode.PASS), "overridden": against}
        print_json({**document, "notes": notes, "champions": promoted})
        return ExitCode.PASS
    for each in promoted:
        print(f"{record.recipe} on {each['target']}: {each['made_by']} of run {record.run_id} is the champion")
        print(f"  {each['format']}, {each['size_bytes'] / 1e6:.1f} MB, {each['digest'][:12]}, in {each['path']}")
        if each["replaces"]:
            print(f"  it takes the place of {each['replaces']['made_by']} of run {each['replaces']['run_id']}")
    for text in (*(f"promoted with --force, though {reason}" for reason in against), *notes):
        print(f"note: {text}")
    return ExitCode.PASS


def _refused(args: argparse.Namespace, record: RunRecord, against: tuple[str, ...]) -> ExitCode:
    why = "\n".join(f"  {reason}" for reason in against)
    text = f"run {record.run_id} is not promoted, for it is no pass:\n{why}\nPromote another run, or this one all the same with --force"
    print(f"ioptim: {text}", file=sys.stderr)
    if args.json:
        document = {"recipe": record.recipe, "run_id": record.run_id, "exit_code": int(ExitCode.GATE), "refused": against}
        print_json({**document, "champions": []})
    return ExitCode.GATE


def _against(record: RunRecord) -> Iterator[str]:
    """Why the run is no pass; nothing for one that is."""
    if record.status is Status.PASSED:
        return
    yield from (f"{node.id}: {gate.verdict.value}: {gate.reason}" for node in record.nodes for gate in node.gates if gate.blocks)
    if record.status is not Status.GATE_FAILED:
        yield f"the run is recorded as {record.status.value}"


def _notes(record: RunRecord, compiled: Sequence[NodeRecord]) -> Iterator[str]:
    """What a pass does not tell by itself."""
    judged = {gate.candidate for gate in record.gates}
    if not judged:
        yield "no gate judged this run"
    else:
        yield from (f"no gate judged {node.id}" for node in compiled if node.id not in judged)
    for node in record.nodes:
        let = [gate for gate in node.gates if gate.verdict is Verdict.UNDECIDED and not gate.blocks]
        yield from (f"{node.id}: undecided, which the recipe lets pass: {gate.reason}" for gate in let)


def _compiled(record: RunRecord, step: str | None) -> list[NodeRecord]:
    """The nodes whose models are promoted: one for each target.

    Raises:
        UnavailableError: the run compiled nothing.
        PlanError: `step` is none of what it compiled, or several are for one target.
    """
    every = [node for node in record.nodes if node.step == "compile" and not node.inserted and node.target and node.artifact]
    if not every:
        raise UnavailableError(f"run {record.run_id} compiled no model. A champion is what a `compile` step of the recipe made")
    chosen = [node for node in every if step in (None, node.id, node.id.partition("@")[0])]
    if not chosen:
        raise PlanError(f"--step {step}: run {record.run_id} compiled {', '.join(node.id for node in every)}")
    for node in chosen:
        same = [other.id for other in chosen if other.target == node.target]
        if len(same) > 1:
            text = f"run {record.run_id} compiled {len(same)} models for the target {node.target}: {', '.join(same)}"
            raise PlanError(f"{text}. Name one, for example --step {same[0]}")
    return chosen


def _model(store: Store, node: NodeRecord) -> ModelArtifact:
    """Its sealed model, read to the last byte."""
    assert node.artifact is not None
    if problem := store.problem(node.artifact.digest):
        raise UnavailableError(f"the model of {node.id} cannot be promoted: {problem}. Run the recipe again and promote that run")
    return store.model(node.artifact.digest)


def _promote(home: Path, record: RunRecord, node: NodeRecord, model: ModelArtifact, against: tuple[str, ...]) -> dict[str, Any]:
    """Make it the champion of its target; what there is to tell about it."""
    assert node.target is not None
    try:
        champion = Champion(
            folder=champions.place(home, record.recipe, node.target) / model.digest,
            recipe=record.recipe,
            target=node.target,
            run_id=record.run_id,
            made_by=node.id,
            digest=model.digest,
            format=model.format,
            runtime=str(model.facts.get("runtime")),
            hardware=record.hardware.fingerprint,
            promoted=now(),
            overridden=against,
        )
    except ValidationError as error:
        raise UnavailableError(f"the record of run {record.run_id} is not as ioptim writes it: {error.errors()[0]['msg']}") from error
    before = None
    with contextlib.suppress(UnavailableError):  # one that is damaged is mended by this
        before = champions.read(home, record.recipe, node.target)
    champions.crown(champion, model)
    size = {"size_bytes": model.size_bytes, "path": str(champion.folder)}
    replaces = before.model_dump(mode="json", include={"run_id", "made_by", "digest"}) if before else None
    return {**champion.model_dump(mode="json"), **size, "replaces": replaces}
