"""Finds the one class that each file of a package defines, by the file's name. Nothing else lists it."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Iterable
from types import ModuleType
from typing import TypeVar

T = TypeVar("T")


def find(package: ModuleType, base: type[T], field: str) -> dict[str, type[T]]:
    """Every concrete subclass of `base` in the package's modules, by the default of its `field` (the tag in a recipe).

    Raises:
        TypeError: a file without exactly one such class, or a tag that is not the file's name (our own mistake, not a user's).
    """
    found: dict[str, type[T]] = {}
    for info in pkgutil.iter_modules(package.__path__):
        if info.name.startswith("_"):
            continue
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        classes = [
            value
            for value in vars(module).values()
            if inspect.isclass(value) and issubclass(value, base) and value.__module__ == module.__name__ and not inspect.isabstract(value)
        ]
        if len(classes) != 1:
            raise TypeError(f"{module.__name__} must define exactly one {base.__name__}; it defines {[c.__name__ for c in classes]}")
        tag = classes[0].model_fields[field].default  # type: ignore[attr-defined]
        if tag.replace("-", "_") != info.name:
            raise TypeError(f"{module.__name__} defines {field} {tag!r}; the file's name and the tag must agree")
        found[tag] = classes[0]
    return found


def did_you_mean(given: str, accepted: Iterable[str]) -> str:
    """`; did you mean 'scheme'?`, or nothing when no accepted word is close."""
    close = difflib.get_close_matches(given, list(accepted), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""
