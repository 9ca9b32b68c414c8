"""Paths as a recipe writes them."""

from __future__ import annotations

import os
from pathlib import Path

from ioptim.core.source import within


def located(text: str, base: Path) -> Path:
    """The path meant: `~` is the home folder, a relative path starts from the recipe's folder."""
    path = Path(text).expanduser()
    return Path(os.path.normpath(base / path))


def outside(path: Path, root: Path | None) -> list[str]:
    """The objection to a path that leaves the allowed root, links followed."""
    if within(path, root):
        return []
    leads = f" (it leads to {path.resolve()})" if path.resolve() != path else ""
    return [f"{path}{leads} is outside the allowed root {root}; move it there, or allow a wider root"]


def missing(path: Path, what: str) -> str:
    """Nothing at `path`: says how far the path exists and what is there."""
    folder = path.parent
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    names = sorted(p.name + ("/" if p.is_dir() else "") for p in folder.iterdir() if not p.name.startswith("."))
    shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    return f"there is no {what} {path}; {folder} has {shown or 'no files'}"
