"""`ioptim run`: plan, run, judge, report."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ioptim import hardware
from ioptim.cache import Store
from ioptim.commands._common import home_of, load, plan_of, print_json
from ioptim.console import display, nobody_reads
from ioptim.core.record import RunRecord
from ioptim.core.tracker import Tracker
from ioptim.errors import ExitCode, IoptimError, PlanError, UnavailableError
from ioptim.execute import Run, run_plan
from ioptim.plan import Plan, installed
from ioptim.recipe import Loaded
from ioptim.report import summary_text, write_report
from ioptim.tracking import local


def main(args: argparse.Namespace) -> ExitCode:
    loaded = load(args)
    home = home_of(args)
    _require_installed(args)
    store = Store(home / "store").create()
    if args.engine == "prefect":
        from ioptim import flow

        flow.start(home)  # a private server takes seconds to come up: it does so while the plan is made
    plan = plan_of(args, loaded, hardware.probe())
    plan.require()
    local.reap(home)
    tracker = _tracker(args, loaded, home)
    record = _record(args, loaded, plan)
    if tracker is not None:
        record = record.model_copy(update={"tracking": tracker.state})  # a run that is killed is uploaded by the next
    folder = local.create_run(home, record)
    shown = display(len(plan.nodes), quiet=args.json)
    run = Run(
        plan,
        store,
        record,
        folder,
        tracker=tracker,
        force=_forced(args, plan),
        use_cache=not args.no_cache,
        save=lambda changed: local.write_run(home, changed),
        on_event=shown,
    )
    stopped: BaseException | None = None
    try:
        with store.in_use():
            run.begin()
            _walk(args, run, home)
    except (KeyboardInterrupt, IoptimError) as error:
        stopped = error
    finally:
        shown.close()
    run.end(stopped)
    record = run.close(write_report)
    if record.tracking.state == "logged":
        _upload_earlier(home)
    try:
        if args.json:
            print_json(document(record))
        else:
            print(summary_text(record, colour=sys.stdout.isatty()))
        sys.stdout.flush()
    except BrokenPipeError:  # what the run came to is still the answer
        nobody_reads(sys.stdout)
    return record.exit_code if record.exit_code is not None else ExitCode.STEP


def _walk(args: argparse.Namespace, run: Run, home: Path) -> None:
    if args.engine == "local":
        run_plan(run)
        return
    from ioptim import flow

    name = run.record.recipe
    flow.run_flow(
        name,
        [flow.FlowNode.of(node) for node in run.plan.nodes],
        run.run_node,
        tags=[name, run.plan.hardware.fingerprint],
        home=home,
        run_name=run.record.run_id,
        links={"report": run.folder / local.REPORT},
    )


def _upload_earlier(home: Path) -> None:
    """Runs that could not reach a server are uploaded by the next one that can."""
    from ioptim.tracking.mlflow import sync

    try:
        sync(home)
    except (UnavailableError, OSError) as error:  # this run has come to its end: what it came to is the answer
        print(f"ioptim: {error}", file=sys.stderr)


def _tracker(args: argparse.Namespace, loaded: Loaded, home: Path) -> Tracker | None:
    if args.tracking == "none":
        return None
    from ioptim.tracking.mlflow import MlflowTracker

    tracking = loaded.recipe.tracking
    uri = tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    return MlflowTracker(home, uri, tracking.experiment or loaded.recipe.name)


def _require_installed(args: argparse.Namespace) -> None:
    """Say before anything runs that an engine or tracker is not there, and how to go without it."""
    for wanted, name, option in ((args.engine, "prefect", "--engine local"), (args.tracking, "mlflow", "--tracking none")):
        if wanted == name and not installed(name):
            raise UnavailableError(f"{name} is not installed. Install it with: pip install 'ioptim[track]', or go without it: {option}")


def _forced(args: argparse.Namespace, plan: Plan) -> list[str]:
    known = {node.id for node in plan.nodes} | {node.step.step for node in plan.nodes}
    unknown = [name for name in args.force if name not in known]
    if unknown:
        raise PlanError(f"--force {unknown[0]}: the plan has no such step. It has {', '.join(sorted(known))}")
    return list(args.force)


def _record(args: argparse.Namespace, loaded: Loaded, plan: Plan) -> RunRecord:
    recipe = loaded.recipe
    libraries = sorted({"pydantic", "numpy", "prefect", "mlflow"}.union(*(node.libraries for node in plan.nodes)))
    versions = hardware.versions(libraries)
    return RunRecord(
        run_id=local.new_run_id(recipe.name),
        recipe=recipe.name,
        recipe_path=str(args.recipe),
        recipe_text=loaded.document.text,
        recipe_config=recipe.model_dump(mode="json"),
        overrides=loaded.overrides,
        recipe_digest=recipe.digest,
        command=("ioptim", *sys.argv[1:]),
        engine=args.engine,
        hardware=plan.hardware,
        environment={name: version for name, version in versions.items() if version},
        git_sha=_git_sha(loaded.folder),
        data={role: source.identity() for role, source in plan.data_sources.items()},
        warnings=plan.warnings,
    )


def _git_sha(folder: Path) -> str | None:
    """Commit of the repository that holds the recipe, with `-dirty` when it has changes; None outside one."""
    try:
        command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def document(record: RunRecord) -> dict[str, Any]:
    """What `run --json` prints."""
    return {
        "recipe": record.recipe,
        "status": record.status.value,
        "exit_code": int(record.exit_code) if record.exit_code is not None else None,
        "run_id": record.run_id,
        "seconds": record.seconds,
        "engine": record.engine,
        "hardware": record.hardware.fingerprint,
        "steps": [
            {
                "id": node.id,
                "step": node.step,
                "target": node.target,
                "status": node.status.value,
                "cached": node.cached,
                "seconds": node.seconds,
                "metrics": dict(node.metrics),
                "subjects": {name: dict(values) for name, values in node.subjects.items()},
                "notes": [{"level": note.level.value, "text": note.text} for note in node.notes],
                "artifact": {"digest": node.artifact.digest, "path": node.artifact.path} if node.artifact else None,
                "error": node.error,
            }
            for node in record.nodes
        ],
        "gates": [
            {
                "metric": gate.metric,
                "bound": dict([gate.gate.bound]),
                "baseline": {"name": gate.baseline, "value": gate.baseline_value},
                "candidate": {"name": gate.candidate, "value": gate.candidate_value},
                "estimate": gate.estimate,
                "interval": gate.interval,
                "n": gate.n,
                "slices": gate.gate.slices,
                "slice": gate.slice,
                "verdict": gate.verdict.value,
                "reason": gate.reason,
            }
            for gate in record.gates
        ],
        "warnings": list(record.warnings),
        "tracking": record.tracking.model_dump(mode="json"),
        "report": record.report,
    }
