"""What a run and its nodes look like in a tracker: parameters, tags, files. Names no tracker's library."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ioptim.core.artifact import write_json
from ioptim.core.gate import Verdict
from ioptim.core.record import NodeRecord, RunRecord
from ioptim.core.step import TableFigure
from ioptim.tracking import local
from ioptim.tracking.summary import Summary

_WORST_LAST = (Verdict.PASS, Verdict.UNDECIDED, Verdict.FAIL)


def flatten(config: Mapping[str, Any]) -> dict[str, str]:
    """Nested values as parameters: `steps.quantize.scheme`. Items of a list are called by their id, name or kind, as in `--set`."""
    flat: dict[str, str] = {}

    def walk(value: Any, path: str) -> None:
        if isinstance(value, Mapping) and value:
            for key, child in value.items():
                walk(child, f"{path}.{key}" if path else str(key))
        elif isinstance(value, Sequence) and not isinstance(value, str) and value and all(isinstance(item, Mapping) for item in value):
            for name, item in zip(_names(value), value, strict=True):
                walk(item, f"{path}.{name}")
        elif value is not None and value != "" and value != [] and value != {} and value != ():
            flat[path] = value if isinstance(value, str) else json.dumps(value, default=str)

    walk(config, "")
    return flat


def _names(items: Sequence[Mapping[str, Any]]) -> list[str]:
    names: list[str] = []
    for index, item in enumerate(items):
        called = [item[key] for key in ("id", "name", "step", "metric") if isinstance(item.get(key), str)]
        name = called[0] if called else str(index)
        names.append(name if name not in names else f"{name}-{index}")
    return names


def final_models(run: RunRecord) -> list[NodeRecord]:
    """Nodes that wrote a model nothing else was made from, less the source and what the plan inserted (exports, baselines)."""
    wrote = [node for node in run.nodes if node.artifact and not _passed_on(run, node)]
    older = {ancestor for node in wrote for ancestor in ancestors(run, node)}
    return [node for node in wrote if node.id not in older and not node.inserted and node.step != "source"]


def _passed_on(run: RunRecord, node: NodeRecord) -> bool:
    """Whether the node's model is one of its parents': a step that measures hands on what it was given."""
    assert node.artifact is not None
    parents = [run.node(parent) for parent in node.parents]
    return any(parent.artifact and parent.artifact.path == node.artifact.path for parent in parents)


def ancestors(run: RunRecord, node: NodeRecord) -> set[str]:
    """Every node that this one waited for, near and far."""
    found: set[str] = set()
    waiting = list(node.parents)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += run.node(name).parents
    return found


def gate_word(run: RunRecord) -> str:
    """One word for all verdicts of a run."""
    verdicts = {gate.verdict.value for gate in run.gates}
    if any(gate.blocks for gate in run.gates) or "fail" in verdicts:
        return "failed"
    return "undecided" if "undecided" in verdicts else "passed" if verdicts else "none"


def run_tags(run: RunRecord) -> dict[str, str]:
    tags = {
        "ioptim.kind": "pipeline",
        "ioptim.run_id": run.run_id,
        "ioptim.recipe": run.recipe,
        "ioptim.recipe_digest": run.recipe_digest,
        "ioptim.engine": run.engine,
        "ioptim.command": " ".join(run.command),
        "ioptim.hardware": run.hardware.fingerprint,
        "ioptim.cpu": run.hardware.cpu_model,
        "ioptim.host": socket.gethostname(),
        "ioptim.pid": str(os.getpid()),
        "ioptim.gate": "none",
        "mlflow.source.name": run.recipe_path or run.recipe,
        "mlflow.source.git.commit": run.git_sha or "",
        "mlflow.user": os.environ.get("USER", ""),
    }
    return {name: value for name, value in tags.items() if value}


def verdict_tags(run: RunRecord, summary: Summary) -> dict[str, str]:
    tags = {"ioptim.gate": gate_word(run), "ioptim.status": run.status.value}
    for node in run.nodes:
        for gate in sorted(node.gates, key=lambda gate: _WORST_LAST.index(gate.verdict)):  # of two with one name the worse one stays
            by = re.sub(r"[^\w.-]", "_", f".by-{gate.gate.slices}") if gate.gate.slices else ""  # a column's name; MLflow refuses some
            against = f".against-{gate.baseline}" if gate.baseline else ""
            tags[f"ioptim.gate.{node.id}.{gate.metric}.{gate.gate.bound[0]}{by}.{gate.candidate}{against}"] = gate.verdict.value
    if summary.candidate:
        tags["ioptim.summary_of"] = summary.candidate
    if summary.quality:
        tags["ioptim.quality_metric"] = summary.quality
    lines = [f"- {gate.verdict.value}: {gate.metric}, {gate.reason}" for gate in run.gates]
    lines += [f"- {warning}" for warning in run.warnings]
    if lines:
        tags["mlflow.note.content"] = "\n".join(lines)
    return tags


def node_metrics(node: NodeRecord) -> dict[str, float]:
    metrics = dict(node.metrics)
    for subject, values in node.subjects.items():
        metrics.update({f"{subject.replace('@', '/')}/{name}": value for name, value in values.items()})
    return {**metrics, "step_seconds": node.seconds}


def node_tags(run: RunRecord, node: NodeRecord) -> dict[str, str]:
    tags = {
        "ioptim.kind": "step",
        "ioptim.run_id": run.run_id,
        "ioptim.step": node.step,
        "ioptim.node": node.id,
        "ioptim.status": node.status.value,
        "ioptim.cached": str(node.cached).lower(),
        "ioptim.key": node.key or "",
        "ioptim.target": node.target or "",
        "ioptim.error": node.error or "",
        "ioptim.artifact_digest": node.artifact.digest if node.artifact else "",
        "mlflow.note.content": "\n".join(f"- {note.text}" for note in node.notes),
    }
    return {name: value for name, value in tags.items() if value}


def provenance(run: RunRecord, node: NodeRecord) -> dict[str, Any]:
    """Where a node's model came from: the recipe and every step on the way to it."""
    steps = [
        {"id": n.id, "step": n.step, "key": n.key, "config": dict(n.config), "digest": n.artifact.digest if n.artifact else None}
        for n in run.nodes
        if n.id in {node.id, *ancestors(run, node)}
    ]
    about = {"recipe": run.recipe, "recipe_digest": run.recipe_digest, "git_sha": run.git_sha, "run_id": run.run_id}
    return {**about, "hardware": run.hardware.fingerprint, "steps": steps}


def write_node_files(node: NodeRecord, folder: Path) -> list[str]:
    """Write a node's own artifacts; returns the tables, which MLflow's page shows as such."""
    write_json(folder / "node.json", node.model_dump(mode="json"))
    tables = []
    for figure in node.tables:
        name = f"tables/{_file_name(figure.title)}"
        (folder / "tables").mkdir(exist_ok=True)
        write_json(folder / f"{name}.json", {"columns": list(figure.columns), "data": [list(row) for row in figure.rows]})
        (folder / f"{name}.md").write_text(_markdown(figure))
        tables.append(f"{name}.json")
    if node.error:
        (folder / "error.txt").write_text(node.error)
    if node.log and Path(node.log).is_file():
        shutil.copyfile(node.log, folder / "log.txt")
    return tables


def write_run_files(run: RunRecord, source: Path, folder: Path) -> None:
    (folder / "recipe").mkdir()
    (folder / "recipe" / local.RECIPE).write_text(run.recipe_text)
    write_json(folder / "recipe" / "resolved.json", dict(run.recipe_config))
    write_json(folder / "gates.json", [gate.model_dump(mode="json") for gate in run.gates])
    write_json(folder / "environment.json", {"packages": dict(run.environment), "hardware": run.hardware.model_dump(mode="json")})
    write_json(folder / local.RECORD, run.model_dump(mode="json"))
    if (source / local.REPORT).is_file():
        shutil.copyfile(source / local.REPORT, folder / local.REPORT)


def _markdown(table: TableFigure) -> str:
    rows = [list(table.columns), ["---"] * len(table.columns), *table.rows]
    lines = ["| " + " | ".join("" if cell is None else str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([f"# {table.title}", "", *lines, ""])


def _file_name(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:80] or "table"
