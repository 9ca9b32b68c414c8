"""`ioptim steps`, `ioptim runtimes`, `ioptim tasks`: what exists, with the fields that a recipe may set."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ioptim.commands._common import print_json
from ioptim.core.registry import did_you_mean
from ioptim.errors import ExitCode, RecipeError
from ioptim.recipe import RUNTIMES, TASKS, WRITABLE_STEPS


def main(args: argparse.Namespace) -> ExitCode:
    registry: Mapping[str, type[BaseModel]] = {"steps": WRITABLE_STEPS, "runtimes": RUNTIMES, "tasks": TASKS}[args.command]
    if args.name is not None and args.name not in registry:
        hint = did_you_mean(args.name, registry)
        raise RecipeError(f"there is no {args.command[:-1]} {args.name!r}{hint or '.'} There are: {', '.join(registry)}")
    shown = {args.name: registry[args.name]} if args.name else dict(registry)
    if args.json:
        print_json({tag: _described(cls) for tag, cls in shown.items()})
        return ExitCode.PASS
    for tag, cls in shown.items():
        print(f"{tag}\n  {_first_line(cls)}")
        if args.name:
            print("\n".join(f"  {line}" for line in inspect.getdoc(cls).splitlines()[1:]))  # type: ignore[union-attr]
        for name, field in _own_fields(cls).items():
            print(f"    {name}: {_type(field)}{_default(field)}  {field.description or ''}".rstrip())
        print()
    return ExitCode.PASS


def _described(cls: type[BaseModel]) -> dict[str, Any]:
    fields = {name: {"type": _type(f), "default": _plain(f), "description": f.description} for name, f in _own_fields(cls).items()}
    return {"summary": _first_line(cls), "fields": fields}


def _own_fields(cls: type[BaseModel]) -> dict[str, FieldInfo]:
    return {name: field for name, field in cls.model_fields.items() if name not in ("step", "runtime", "task")}


def _first_line(cls: type[BaseModel]) -> str:
    return (inspect.getdoc(cls) or "").splitlines()[0]


def _type(field: FieldInfo) -> str:
    annotation = field.annotation
    text = annotation.__name__ if isinstance(annotation, type) and not getattr(annotation, "__args__", None) else str(annotation)
    values = [member.value for member in annotation] if isinstance(annotation, type) and hasattr(annotation, "__members__") else None
    if values:
        return " | ".join(str(value) for value in values)
    return text.replace("typing.", "").replace("ioptim.core.gate.", "").replace("NoneType", "None")


def _default(field: FieldInfo) -> str:
    return " (required)" if field.is_required() else f" = {_plain(field)}"


def _plain(field: FieldInfo) -> Any:
    if field.is_required():
        return None
    default = field.get_default(call_default_factory=True)
    return default.model_dump(mode="json") if isinstance(default, BaseModel) else getattr(default, "value", default)
