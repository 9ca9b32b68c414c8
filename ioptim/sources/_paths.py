"""Paths as a recipe writes them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ioptim.core.source import within
from ioptim.errors import PlanError


def located(text: str, base: Path) -> Path:
    """The path meant: `~` is the home folder, a relative path starts from the recipe's folder.

    Raises:
        PlanError: the home folder of a user that there is not.
    """
    try:
        path = Path(text).expanduser()
    except RuntimeError as error:
        home = Path(text).parts[0]
        raise PlanError(f"{text!r}: no home folder is known for {home}. Write the path out; a folder of that name is ./{home}") from error
    return Path(os.path.normpath(base / path))


def outside(path: Path, root: Path | None) -> list[str]:
    """The objection to a path that leaves the allowed root, links followed."""
    try:
        if within(path, root):
            return []
        leads = f" (it leads to {path.resolve()})" if path.resolve() != path else ""
    except (RuntimeError, ValueError) as error:  # links in a circle, a null byte
        return [f"{path} leads nowhere: {error}"]
    return [f"{path}{leads} is outside the allowed root {root}; move it there, or allow a wider root"]


def unreadable(paths: Iterable[Path]) -> list[str]:
    """The objection to each file that is there and cannot be opened."""
    objections = []
    for path in paths:
        try:
            if path.is_file():
                path.open("rb").close()
        except OSError as error:
            objections.append(f"{path} cannot be read: {error.strerror or error}. Change its permissions, or name another file")
    return objections


def missing(path: Path, what: str) -> str:
    """Nothing at `path`: says how far the path exists and what is there."""
    folder = path.parent
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    names = sorted(p.name + ("/" if p.is_dir() else "") for p in folder.iterdir() if not p.name.startswith("."))
    shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    return f"there is no {what} {path}; {folder} has {shown or 'no files'}"
