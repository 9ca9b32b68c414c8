"""Recipe × hardware, resolved: which nodes run, on what, in which order, and every objection at once. Runs nothing."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote

from ioptim import champions
from ioptim.core.artifact import Format
from ioptim.core.document import Loc
from ioptim.core.outline import Outline
from ioptim.core.source import DataSource, ModelSource
from ioptim.core.step import MeasuringStep
from ioptim.core.target import Hardware
from ioptim.errors import IoptimError, PlanError, Problem, StepError, UnavailableError
from ioptim.graph import Grower, Node, in_order, named_steps
from ioptim.recipe import Loaded
from ioptim.sources import data_source, model_source
from ioptim.sources._paths import outside


@dataclass(frozen=True)
class Plan:
    """Every node in an order in which each comes after its parents, and everything that speaks against running them."""

    loaded: Loaded
    hardware: Hardware
    nodes: tuple[Node, ...]
    model_sources: Mapping[str, ModelSource]
    """What each `source` node brings in, by its id."""
    data_sources: Mapping[str, DataSource]
    root: Path | None = None
    objections: tuple[Problem, ...] = ()
    missing: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Distributions that are not installed: the nodes that need each."""
    outlines: Mapping[str, Outline] = field(default_factory=dict)
    """What the torch models will be like, by node, as far as it can be known before anything runs."""
    warnings: tuple[str, ...] = ()
    """What does not keep it from running and whoever reads the verdicts should know."""

    def node(self, node_id: str) -> Node:
        return next(node for node in self.nodes if node.id == node_id)

    def require(self) -> None:
        """Refuse to run a plan that cannot work.

        Raises:
            PlanError: with all objections.
            UnavailableError: packages are missing; names them, who needs them and the command that installs them.
        """
        if self.objections:
            raise PlanError(self.objections, str(self.loaded.path))
        if self.missing:
            raise UnavailableError(missing_text(self.missing))


def missing_text(missing: Mapping[str, Sequence[str]]) -> str:
    """What is not installed, which nodes need it, and the command that brings it."""
    needed = "; ".join(f"{name} (for {', '.join(nodes)})" for name, nodes in missing.items())
    return f"not installed: {needed}. Install with: pip install 'ioptim[{','.join(extras_with(missing))}]'"


def extras_with(distributions: Iterable[str]) -> tuple[str, ...]:
    """The extras of this project that bring these distributions, as few as can be, read from its own metadata."""
    brings: dict[str, set[str]] = {}
    for line in (importlib.metadata.requires("ioptim") if installed("ioptim") else None) or ():
        found = re.match(r"([A-Za-z0-9._-]+).*;.*extra == ['\"](\w+)['\"]", line)
        if found:
            brings.setdefault(found[2], set()).add(found[1].lower())
    wanted, chosen = {name.lower() for name in distributions}, list[str]()
    while wanted:
        best = max(brings, key=lambda extra: len(brings[extra] & wanted), default=None)
        if best is None or not brings[best] & wanted:
            return (*chosen, "cpu") if not chosen else tuple(chosen)
        chosen.append(best)
        wanted -= brings[best]
    return tuple(sorted(chosen))


def make_plan(loaded: Loaded, hardware: Hardware, root: Path | None = None, home: Path | None = None) -> Plan:
    """Resolve a recipe on this hardware. `home` is where its champions are; without one it has none.

    Never raises for what the recipe asks: objections are in the result, so that `ioptim plan` can show the graph beside them.
    Only a graph that cannot be drawn (a cycle, an `after` that names nothing) raises `PlanError`.
    """
    recipe = loaded.recipe
    problems: list[Problem] = []
    steps = named_steps(loaded)
    order = in_order(loaded, steps)
    champion_of: Callable[[str], champions.Champion | None] = partial(champions.read, home, recipe.name) if home else lambda target: None
    grower = Grower(loaded, hardware, steps, problems, champion_of)
    for step_id in order:
        grower.grow(step_id)
    models: dict[str, ModelSource] = {}
    for node_id, (spec, loc) in grower.brought.items():
        model = _source_of(lambda spec=spec: model_source(spec, loaded.folder, root), loaded, loc, problems)  # type: ignore[misc]
        if model is not None:
            models[node_id] = model
    outlines = _read_outlines(grower, models, problems)
    data: dict[str, DataSource] = {}
    used = {role for node in grower.nodes for role in node.step.data_roles()}
    for role in ("calibration", "training", "dev", "validation"):
        spec = getattr(recipe.data, role)
        if spec is not None and role in used:
            at = ("data", role, "source")
            found = _source_of(lambda spec=spec: data_source(spec, loaded.folder, root), loaded, at, problems)  # type: ignore[misc]
            if found is not None:
                data[role] = found
                problems += _table_problems(loaded, role, found)
    rows = {role: known for role, source in data.items() if (known := _rows_of(source)) is not None}
    problems += _seen_before(loaded, rows)
    problems += _written_outside(loaded, root)
    missing: dict[str, list[str]] = {}
    for node in grower.nodes:
        for library in node.libraries:
            if not installed(library):
                missing.setdefault(library, []).append(node.id)
    objections = sorted(dict.fromkeys(problems), key=lambda p: p.line or 0)
    return Plan(
        loaded,
        hardware,
        tuple(grower.nodes),
        models,
        data,
        root,
        tuple(objections),
        {k: tuple(v) for k, v in missing.items()},
        outlines,
        tuple(_warnings(loaded, rows)),
    )


@cache
def installed(distribution: str) -> bool:
    """Whether a distribution is there, without importing it (a folder named like it would import as well)."""
    try:
        importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


# Model and data.


T = TypeVar("T", ModelSource, DataSource)


def _source_of(make: Callable[[], T], loaded: Loaded, loc: Loc, problems: list[Problem]) -> T | None:
    """The source, with its objections put down; None when there is no such source."""
    try:
        source = make()
        problems += [loaded.problem(loc, text) for text in source.check()]
    except IoptimError as error:
        problems.append(loaded.problem(loc, str(error)))
        return None
    except OSError as error:  # a name that is too long, a folder that may not be entered
        text = f"{error.filename} cannot be read: {error.strerror}. Correct the path, or change its permissions"
        problems.append(loaded.problem(loc, text if error.filename else str(error)))
        return None
    return source


def _written_outside(loaded: Loaded, root: Path | None) -> list[Problem]:
    """Files that the recipe lets a run write outside the root; the sources object to what would be read there."""
    named: list[tuple[Loc, list[str]]] = [(("tracking", "uri"), _files_in(loaded.recipe.tracking.uri or ""))]
    for index, target in enumerate(loaded.recipe.targets):
        cache = getattr(target.runtime, "timing_cache", None)  # TensorRT's; no other runtime writes where it is told
        if cache:
            expanded = os.path.expanduser(cache)  # noqa: PTH111  # Path's raises where there is no such user
            named.append((("targets", index, "runtime", "timing_cache"), [expanded]))
    found = ((loc, [text for path in paths for text in outside(Path(path), root)]) for loc, paths in named)
    return [loaded.problem(loc, texts[0]) for loc, texts in found if texts]


def _files_in(uri: str) -> list[str]:
    """The file that an MLflow URI means, in each way that its escapes and `?` may be read; none for a server's."""
    local = r"(?:sqlite(?:\+\w+)?:///(?:file:)?|file:(?://[^/]*)?|(?!databricks$|[a-z][\w+.-]*:))(.+)"
    found = re.fullmatch(local, uri, re.IGNORECASE | re.DOTALL)
    forms = (found[1], re.split("[?#]", found[1])[0]) if found else ()
    return [text for form in forms for text in (form, unquote(form)) if text]


def changes_shape(node: Node) -> bool:
    """Whether a step makes another torch model out of one: a smaller one, or the same with other weights."""
    return node.step.transforms and node.model is not None and node.where.format is node.format is Format.TORCH


def outlined(
    nodes: Sequence[Node], known: Mapping[str, Outline], object_to: Callable[[Node, str], None] = lambda node, text: None
) -> dict[str, Outline]:
    """What is known, carried through the steps that change the shape of torch models; what a step objects to it goes to `object_to`."""
    found: dict[str, Outline | None] = {**known}
    for node in nodes:
        if node.id in known or not changes_shape(node):
            continue
        others = {name: found.get(provider) for name, provider in node.baselines.items()}
        try:
            found[node.id] = node.step.outline(found.get(node.model or ""), others)
        except StepError as error:
            object_to(node, str(error))
    return {node: outline for node, outline in found.items() if outline is not None}


def _read_outlines(grower: Grower, models: Mapping[str, ModelSource], problems: list[Problem]) -> dict[str, Outline]:
    """From the headers of what comes from outside; nothing where no step asks for it."""
    if not any(changes_shape(node) for node in grower.nodes):
        return {}
    index = {node: grower.steps[step_id].index for step_id, made in grower.made.items() if step_id in grower.steps for node in made}
    read = {node: source.outline() for node, source in models.items() if not source.check()}
    return outlined(
        grower.nodes,
        {node: outline for node, outline in read.items() if outline is not None},
        lambda node, text: problems.append(grower.loaded.problem(("steps", index[node.id]), text)),
    )


def _seen_before(loaded: Loaded, rows: Mapping[str, object]) -> list[Problem]:
    """Roles that hold the validation rows: a model tuned on what it is judged by is judged too well."""
    problems = []
    for role in ("training", "dev"):
        if role in rows and rows[role] == rows.get("validation"):
            text = f"data.{role} holds the validation rows; choose others, or gates mean nothing"
            problems.append(loaded.problem(("data", role), text))
    if "dev" in rows and rows["dev"] == rows.get("training"):
        text = "data.dev holds the training rows, so it chooses by what was learned by heart; choose others, or set `held_out` on the step"
        problems.append(loaded.problem(("data", "dev"), text))
    return problems


def _warnings(loaded: Loaded, rows: Mapping[str, object]) -> Iterator[str]:
    for key in ("allow_pickle", "allow_remote_code"):
        if getattr(loaded.recipe.model, key):
            yield f"model.{key} is on: the checkpoint may run code of its own on this machine"
    if "calibration" in rows and rows["calibration"] == rows.get("validation"):
        yield "data.calibration holds the validation rows: ranges are fitted to what the gates judge; on other rows the loss may be larger"


def _rows_of(source: DataSource) -> object | None:
    """What tells all rows there from others, whatever part of them is drawn: a file's digest, or a data set and its split.

    None where the source has objections of its own, or cannot be asked now.
    """
    if source.check():
        return None
    try:
        identity = dict(source.identity())
    except IoptimError:
        return None
    split = json.loads(identity.pop("selection", "{}")).get("split")
    return identity.get("file") or (identity, split)


def _table_problems(loaded: Loaded, role: str, source: DataSource) -> list[Problem]:
    """Read the rows where that is cheap, so that a missing column is an objection and not an error an hour later."""
    if not source.cheap or source.check():
        return []
    try:
        table = source.read()
    except IoptimError as error:
        return [loaded.problem(("data", role), str(error))]
    task = loaded.recipe.model.task
    problems = [loaded.problem(("data", role, "columns"), text) for text in task.check_table(table, role)]
    if role == "training":
        for index, step in enumerate(loaded.recipe.steps):
            problems += [loaded.problem(("steps", index), text) for text in step.check_training(table, task)]
    if role == "validation":
        for index, step in enumerate(loaded.recipe.steps):
            texts = step.check_rows(table, task) if isinstance(step, MeasuringStep) else ()
            problems += [loaded.problem(("steps", index, "gates"), text) for text in texts]
    return problems
