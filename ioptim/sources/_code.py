"""A user's Python module as files: what it imports from beside it, found by reading it and not by running it."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from ioptim.errors import PlanError
from ioptim.sources._paths import unreadable


def local_files(base: Path, module: str) -> dict[str, Path]:
    """A module below `base` and every module below `base` that it imports, at any depth, by path relative to `base`.

    An import that is not a statement (importlib, `__import__`) is not seen.

    Raises:
        PlanError: one of the files is not Python.
    """
    found: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name.partition(".")[0] in sys.stdlib_module_names:
            continue
        for path in _files_of(base, name):
            relative = path.relative_to(base).as_posix()
            if relative not in found:
                found[relative] = path
                waiting += _imports(parse(path), path.relative_to(base))
    return dict(sorted(found.items()))


def packages_imported(files: Mapping[str, Path]) -> set[str]:
    """Top-level packages that files (by path, as from `local_files`) import from elsewhere; Python's own are left out."""
    own = {name.partition("/")[0].removesuffix(".py") for name in files}
    imported = {found.partition(".")[0] for name, path in files.items() for found in _imports(parse(path), Path(name))}
    return imported - own - sys.stdlib_module_names


def module_file(base: Path, module: str) -> Path | None:
    """The file of a module: beside the recipe first, then in an installed package (which is not imported for it)."""
    if (path := _file_below(base, module.split("."))) is not None:
        return path
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
    found = (_file_below(Path(place), rest) for place in spec.submodule_search_locations or ())
    return next((path for path in found if path is not None), None)


def parse(path: Path) -> ast.Module:
    """The syntax tree of a file.

    Raises:
        PlanError: a syntax error, with its line; a file that may not be read.
    """
    if objections := unreadable([path]):
        raise PlanError(objections[0])
    try:
        return ast.parse(path.read_bytes(), str(path))
    except SyntaxError as error:
        raise PlanError(f"{path}, line {error.lineno}: {error.msg}") from error
    except ValueError as error:
        raise PlanError(f"{path} is not Python source: {error}") from error


def names_defined(tree: ast.Module) -> list[str]:
    """Names that a module binds at its top level, inside `if` and `try` too; imported ones included."""
    names: list[str] = []
    for node in _top_level(tree.body):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign):
            names += [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names += [alias.asname or alias.name for alias in node.names]
    return names


def _top_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        yield node
        for part in ("body", "orelse", "finalbody"):
            if isinstance(node, ast.If | ast.Try):
                yield from _top_level(getattr(node, part, []))


def _files_of(base: Path, module: str) -> list[Path]:
    """The file of a module and the `__init__.py` of each package it is in; none where it is not below `base`."""
    parts = module.split(".")
    file = _file_below(base, parts)
    if file is None:
        return []
    packages = [base.joinpath(*parts[:i], "__init__.py") for i in range(1, len(parts))]
    return [*(path for path in packages if path.is_file()), file]


def _file_below(base: Path, parts: list[str]) -> Path | None:
    place = base.joinpath(*parts)
    candidates = (place.with_name(f"{place.name}.py"), place / "__init__.py")
    return next((path for path in candidates if path.is_file()), None)


def _imports(tree: ast.Module, relative: Path) -> Iterator[str]:
    """Dotted names that a file may mean by its imports; a name imported from a package may be a module of it."""
    package = relative.parent.parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            parts = (*start, *(node.module.split(".") if node.module else ()))
            if parts:
                yield ".".join(parts)
            yield from (".".join((*parts, alias.name)) for alias in node.names if alias.name != "*")
