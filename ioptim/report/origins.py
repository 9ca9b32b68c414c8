"""The part of the page that says where the numbers come from: machine, libraries, every artifact by digest, the recipe, the command."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from typing import Any

from ioptim.core.record import NodeRecord, RunRecord
from ioptim.report.figures import size
from ioptim.report.html import Child, Html, el, scroll, text
from ioptim.report.steps import pairs
from ioptim.report.words import without_login


def environment(run: RunRecord) -> Html:
    """The machine, the libraries, and where the run is remembered."""
    hardware = run.hardware
    return el(
        "div",
        pairs(
            {
                "processor": f"{hardware.cpu_model}, {hardware.cores} cores, {hardware.threads} threads",
                "instruction sets": ", ".join(hardware.cpu_flags) or "none that matter",
                "caches": ", ".join(f"{name} {size(value)}" for name, value in hardware.caches.items()) or "not known",
                "memory": size(hardware.memory_bytes),
                "GPUs": "; ".join(", ".join(f"{k} {v}" for k, v in gpu.items()) for gpu in hardware.gpus) or "none",
                "system": hardware.system or "not known",
                "python": hardware.python or "not known",
                "fingerprint": f"{hardware.fingerprint} (timings compare only where it is the same)",
            }
        ),
        el("h3", "Libraries"),
        pairs(run.environment) if run.environment else el("p", "none recorded"),
        el("h3", "Tracking"),
        _tracking(run),
        class_="card",
    )


def _tracking(run: RunRecord) -> Html:
    tracking = run.tracking
    link: Child = None
    if tracking.url:
        url = without_login(tracking.url)
        link = el("p", el("a", url, href=url, rel="noreferrer") if url.startswith(("http://", "https://")) else url)
    where = {
        "state": tracking.state,
        "server": without_login(tracking.uri or ""),
        "run": tracking.run_id or "",
        "problem": tracking.problem or "",
    }
    return text(pairs({key: value for key, value in where.items() if value}), link)


def artifacts(run: RunRecord) -> Html:
    """Every model that was made, at the step that made it; a step that only measures passes its model on."""
    made: dict[str, NodeRecord] = {}
    for node in run.nodes:
        if node.artifact:
            made.setdefault(node.artifact.digest, node)
    if not made:
        return el("p", "No artifact was made.")
    head = [el("th", name, scope="col") for name in ("step", *_ARTIFACT)]
    rows = [
        el("tr", el("th", node.id, scope="row"), [el("td", cell, data_label=_ARTIFACT[i]) for i, cell in enumerate(_artifact_cells(node))])
        for node in made.values()
    ]
    table = el("table", el("thead", el("tr", head)), el("tbody", rows), class_="stacked")
    return el("div", scroll(table, "artifacts"), class_="card")


_ARTIFACT = ("from", "format", "size", "digest (SHA-256)", "where")


def _artifact_cells(node: NodeRecord) -> Iterator[Child]:
    if node.artifact:
        yield ", ".join(node.parents) or "–"
        yield node.artifact.format.value
        yield el("span", size(node.artifact.size_bytes), class_="was")
        yield el("code", node.artifact.digest)
        yield el("code", node.artifact.path)


def recipe(run: RunRecord) -> Html:
    """The command, the overrides, the recipe as read and as resolved."""
    command = shlex.join(run.command) if run.command else f"ioptim run {shlex.quote(run.recipe_path or 'recipe.yaml')}"
    return el(
        "div",
        el("p", "The command, from the folder it was started in:"),
        el("pre", command, class_="wrap", tabindex="0"),
        el("p", "Overrides: ", [text(el("code", each), " ") for each in run.overrides]) if run.overrides else None,
        pairs({"recipe file": run.recipe_path or "–", "recipe digest": run.recipe_digest or "–", "git commit": run.git_sha or "none"}),
        el("h3", "The recipe as read"),
        el("pre", run.recipe_text or "not recorded", tabindex="0"),
        el("details", el("summary", "Resolved, with every default"), el("div", el("pre", _json(run.recipe_config), tabindex="0"))),
        class_="card",
    )


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)
