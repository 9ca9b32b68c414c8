"""The recipe: what the YAML says, checked whole, with every mistake reported at once.

The only module that brings steps, runtimes and tasks together.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args

from pydantic import BaseModel, Field, ValidationError

import ioptim.runtimes
import ioptim.steps
import ioptim.tasks
from ioptim.core.base import Frozen, digest_of
from ioptim.core.document import Document, Loc, dotted, load, parse
from ioptim.core.registry import did_you_mean, find
from ioptim.core.runtime import Runtime, Target
from ioptim.core.source import DataSpec, ModelSpec
from ioptim.core.step import Step
from ioptim.core.task import Task
from ioptim.errors import Problem, RecipeError

STEPS: Mapping[str, type[Step]] = find(ioptim.steps, Step, "step")
RUNTIMES: Mapping[str, type[Runtime]] = find(ioptim.runtimes, Runtime, "runtime")
TASKS: Mapping[str, type[Task]] = find(ioptim.tasks, Task, "task")
WRITABLE_STEPS = {tag: cls for tag, cls in STEPS.items() if not cls.inserted_only}

if TYPE_CHECKING:
    AnyStep = Step
    AnyRuntime = Runtime
    AnyTask = Task
else:
    AnyStep = Annotated[Union[tuple(WRITABLE_STEPS.values())], Field(discriminator="step")]
    AnyRuntime = Annotated[Union[tuple(RUNTIMES.values())], Field(discriminator="runtime")]
    AnyTask = Annotated[Union[tuple(TASKS.values())], Field(discriminator="task")]


class RecipeTarget(Target):
    """A target, with the runtimes that there are."""

    runtime: AnyRuntime = Field(description="name of the runtime, or a mapping with `runtime` and its options")


class Model(ModelSpec):
    """The model to optimize."""

    task: AnyTask = Field(description="name of the task, or a mapping with `task` and its options")


class Data(Frozen):
    """The data sets. Gates are judged on `validation`, which nothing may be tuned on."""

    validation: DataSpec | None = Field(None, description="rows that quality and latency are measured on")
    calibration: DataSpec | None = Field(None, description="rows that quantization ranges are taken from; no overlap with validation")
    training: DataSpec | None = Field(None, description="rows that steps which train learn from")
    dev: DataSpec | None = Field(None, description="rows by which `distill` chooses when to stop; never the validation rows")


class Tracking(Frozen):
    """Where runs are remembered. `MLFLOW_TRACKING_URI` sets the server when `uri` is left out."""

    experiment: str | None = Field(None, min_length=1, description="MLflow experiment; the recipe's name when left out")
    uri: str | None = Field(None, min_length=1, description="MLflow tracking URI; a SQLite file in the home folder when left out")


class Recipe(Frozen):
    """One recipe."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80, description="name of the recipe; the file's when left out")
    description: str = Field("", description="a sentence for the report")
    seed: int = Field(0, ge=0, description="seed of everything random in the steps")
    model: Model
    data: Data = Field(default_factory=Data)
    targets: tuple[RecipeTarget, ...] = Field(min_length=1, description="hardware to optimize for, each with its runtime")
    steps: tuple[AnyStep, ...] = Field(min_length=1, description="a chain, or a graph with `id` and `after`")
    tracking: Tracking = Field(default_factory=Tracking)

    @property
    def digest(self) -> str:
        """Digest of everything the recipe says, defaults filled in."""
        return digest_of(self.model_dump(mode="json"))


class Loaded:
    """A recipe with where it came from: what relative paths are relative to, its text, and the line of each value."""

    def __init__(self, recipe: Recipe, document: Document, path: Path, overrides: Sequence[str]) -> None:
        self.recipe = recipe
        self.document = document
        self.path = path
        self.overrides = tuple(overrides)

    @property
    def folder(self) -> Path:
        """Absolute folder that relative paths in the recipe start from."""
        return self.path.parent.resolve()

    def problem(self, loc: Loc, message: str) -> Problem:
        """A problem at a place of this recipe, with its line."""
        return Problem(readable(loc, self.document.data), message, self.document.line(loc))


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Loaded:
    """Read, override and check a recipe.

    Raises:
        RecipeError: every mistake at once, each with its YAML path and line.
    """
    return parse_recipe(load(path), path, overrides)


def parse_recipe(document: Document, path: Path, overrides: Sequence[str] = ()) -> Loaded:
    """The recipe of a document that was read from `path`, or from a record that says so; errors as in `read_recipe`."""
    overrides = [_from_here(text) for text in overrides]
    data = document.data
    if not isinstance(data, dict):
        kind = "nothing" if data is None else type(data).__name__
        raise RecipeError(f"a recipe is a mapping with the keys {', '.join(Recipe.model_fields)}; this file holds {kind}", str(path))
    problems = [problem for text in overrides if (problem := _override(document, text)) is not None]
    if problems:
        raise RecipeError(problems, str(path))
    data.setdefault("name", path.stem)
    expanded = _expanded(data)
    try:
        # JSON mode: strict types ("2" is no number, 1 no boolean), yet names stand for enum members and lists for tuples.
        recipe = Recipe.model_validate_json(json.dumps(expanded), strict=True)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        # A list whose items were all refused is not short: its items are named.
        real = [e for e in errors if e["type"] != "too_short" or not e["input"]]
        found = [_problem(item, expanded, document) for item in real]
        raise RecipeError(sorted(found, key=lambda p: p.line or 0), str(path)) from None
    return Loaded(recipe, document, path, overrides)


# A string where a mapping with a tag is meant: `- profile`, `runtime: openvino`, `task: text-classification`.


def _expanded(data: dict[str, Any]) -> dict[str, Any]:
    expanded = dict(data)
    if isinstance(data.get("model"), dict):
        expanded["model"] = _tagged_value(data["model"], "task")
    if isinstance(data.get("targets"), list):
        expanded["targets"] = [_tagged_value(t, "runtime") if isinstance(t, dict) else t for t in data["targets"]]
    if isinstance(data.get("steps"), list):
        expanded["steps"] = [{"step": s} if isinstance(s, str) else s for s in data["steps"]]
    return expanded


def _tagged_value(holder: dict[str, Any], key: str) -> dict[str, Any]:
    return {**holder, key: {key: holder[key]}} if isinstance(holder.get(key), str) else holder


# --set: values given on the command line.


def _override(document: Document, text: str) -> Problem | None:
    """Put one `path=value` into the document; a list item is named by its id, name, step or number."""
    path, equals, raw = text.partition("=")
    where = f"--set {path}"
    if not equals or not path:
        return Problem(f"--set {text}", "expected PATH=VALUE, for example --set steps.quantize.scheme=int8-dynamic")
    try:
        value = parse(raw).data
    except RecipeError as error:
        return Problem(where, "; ".join(problem.message for problem in error.problems))
    parts = path.split(".")
    holder: Any = document.data
    loc: Loc = ()
    for part in parts[:-1]:
        key: Any = _key_of(holder, part)
        if key is None:
            return Problem(where, f"the recipe has no {part!r} in {dotted(loc) or 'its top level'}; there {_has(holder)}")
        if isinstance(holder, dict) and not isinstance(holder.get(key), dict | list):
            tag = holder.get(key)
            holder[key] = {key: tag} if isinstance(tag, str) and key in ("task", "runtime") else {}
        if isinstance(holder, list) and isinstance(holder[key], str):
            holder[key] = {"step": holder[key]}
        holder, loc = holder[key], (*loc, key)
    last: Any = _key_of(holder, parts[-1])
    if last is None:
        return Problem(where, f"the recipe has no {parts[-1]!r} in {dotted(loc)}; there {_has(holder)}")
    holder[last] = value
    document.overridden.add((*loc, last))
    return None


def _key_of(holder: Any, part: str) -> str | int | None:
    if isinstance(holder, dict):
        return part
    if isinstance(holder, list):
        positions = {str(i): i for i in range(len(holder))}
        if part in positions:
            return positions[part]
        for i, item in enumerate(holder):
            if item == part or (isinstance(item, dict) and part in (item.get("id"), item.get("name"))):
                return i
        for i, item in enumerate(holder):
            if isinstance(item, dict) and part in (item.get("step"), item.get("metric")):
                return i
    return None


def _has(holder: Any) -> str:
    if isinstance(holder, list):
        return f"are {', '.join(str(_name_of(item, i)) for i, item in enumerate(holder)) or 'no items'}"
    if isinstance(holder, dict):
        return f"are {', '.join(holder)}"
    return f"is the value {holder!r}"


def _from_here(text: str) -> str:
    """A path typed at the prompt is meant from the prompt's folder, not from the recipe's: in full, it means the same everywhere."""
    path, equals, raw = text.partition("=")
    if path.rpartition(".")[2] not in ("source", "weights") or raw.startswith("/") or not raw:
        return text
    if not os.path.exists(raw):  # noqa: PTH110  # Path's raises where the name is too long
        return text
    return f"{path}{equals}{Path(raw).absolute()}"


# Pydantic's errors in the user's words.


def _problem(error: Any, expanded: dict[str, Any], document: Document) -> Problem:
    loc, owner = _place(error["loc"], expanded)
    kind, ctx, given = error["type"], error.get("ctx", {}), error["input"]
    line = document.line(loc)
    key = str(loc[-1]) if loc else ""
    fields = owner.model_fields if owner else {}
    if loc == ("name",) and loc not in document.lines and loc not in document.overridden:
        return Problem("name", _no_name(given))
    if kind == "extra_forbidden":
        message = f"unknown key{did_you_mean(key, fields) or '.'} Accepted here: {', '.join(fields)}"
    elif kind == "missing":
        description = fields[key].description if key in fields else None
        message = f"missing key ({description})" if description else "missing key"
        line = document.line(loc[:-1])
    elif kind == "union_tag_invalid":
        noun, tag = ctx["discriminator"].strip("'"), str(ctx["tag"])
        accepted = [word.strip("'") for word in ctx["expected_tags"].split(", ")]
        message = f"unknown {noun} {tag!r}{did_you_mean(tag, accepted) or '.'} There are: {', '.join(accepted)}"
    elif kind == "union_tag_not_found":
        noun = ctx["discriminator"].strip("'")
        message = f"missing key {noun!r}, which names the {noun}"
    elif kind in ("enum", "literal_error"):
        accepted = [word.strip("'") for word in ctx["expected"].replace(" or ", ", ").split(", ")]
        message = f"{given!r} is not accepted{did_you_mean(str(given), accepted) or '.'} Accepted: {', '.join(accepted)}"
    elif kind == "too_short":
        message = "at least one is needed; there is none"
    elif kind == "value_error":
        message = str(ctx["error"])
    else:
        message = f"{error['msg'][0].lower()}{error['msg'][1:]}; received {_short(given)}"
    from_command_line = line is None and bool(document.overridden)
    return Problem(readable(loc, expanded), message + (" (from --set)" if from_command_line else ""), line)


def _no_name(stem: str) -> str:
    """A recipe that names itself by its file's name, which is none."""
    better = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:80] or "my-recipe"
    return (
        f"the file's name, {_short(stem)}, cannot be the recipe's: a name has at most 80 letters, digits and ._- and starts with"
        f" a letter or digit. Write a name into the file, for example `name: {better}`, or rename the file"
    )


def _place(loc: Sequence[str | int], expanded: Any) -> tuple[Loc, type[BaseModel] | None]:
    """Where in the YAML an error stands, and the model whose key the last part is.

    Pydantic's location also holds the tag of each union it went through, which the YAML has as a value and not as a key.
    """
    value = expanded
    model: type[BaseModel] | None = Recipe
    owner: type[BaseModel] | None = None
    clean: list[str | int] = []
    for part in loc:
        registry = next((r for d, r in _REGISTRIES.items() if isinstance(value, dict) and value.get(d) == part), None)
        if registry is not None:
            model = registry[str(part)]
            continue
        clean.append(part)
        if isinstance(part, str):
            owner = model
            field = model.model_fields.get(part) if model else None
            model = _model_in(field.annotation) if field else None
        value = _get(value, part)
    return tuple(clean), owner


_REGISTRIES: dict[str, Mapping[str, type[BaseModel]]] = {"step": STEPS, "runtime": RUNTIMES, "task": TASKS}


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The one model that a field holds, directly, as an option or in a list; None for a plain value or a union of several."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = [model for arg in get_args(annotation) if (model := _model_in(arg)) is not None]
    return inner[0] if len(inner) == 1 else None


def readable(loc: Loc, data: Any) -> str:
    """A place as a user names it: `steps.quantize.scheme`, which is also what `--set` takes."""
    names: list[str] = []
    for part in loc:
        data = _get(data, part)
        name = _name_of(data, part) if isinstance(part, int) else part
        names.append(f"[{name}]" if isinstance(name, int) else str(name))
    return ".".join(names).replace(".[", "[")


def _name_of(item: Any, position: int) -> Any:
    """How a list's item is called: by its id, name, step or metric, by itself where it is text, else by its number."""
    if isinstance(item, dict):
        return item.get("id") or item.get("name") or item.get("step") or item.get("metric") or position
    return item if isinstance(item, str) else position


def _get(holder: Any, part: str | int) -> Any:
    """The value under a key or number; None where there is none."""
    try:
        return holder[part]
    except (KeyError, IndexError, TypeError):
        return None


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def schema() -> dict[str, Any]:
    """JSON schema (2020-12) of a recipe, for editors; it also accepts the short forms (`- profile`, `runtime: openvino`)."""
    document = Recipe.model_json_schema()
    document = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "ioptim recipe", **document}
    document["required"] = [key for key in document["required"] if key != "name"]
    definitions = document["$defs"]
    steps = document["properties"]["steps"]
    steps["items"] = _or_name(steps["items"], WRITABLE_STEPS)
    for holder, key, names in (("RecipeTarget", "runtime", RUNTIMES), ("Model", "task", TASKS)):
        properties = definitions[holder]["properties"]
        properties[key] = _or_name(properties[key], names)
    return document


def _or_name(full: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {"anyOf": [{"type": "string", "enum": sorted(names)}, full]}
