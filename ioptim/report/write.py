"""Writes the report of a run into its folder."""

from __future__ import annotations

import os
from pathlib import Path

from ioptim.core.record import RunRecord
from ioptim.report.markdown import markdown
from ioptim.report.page import page

PAGE = "report.html"
MARKDOWN = "report.md"


def write_report(run: RunRecord, folder: Path) -> Path:
    """Write `report.html` (one file that needs nothing else) and `report.md`; return the first. `run.json` is the caller's."""
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / MARKDOWN, markdown(run))
    return _replace(folder / PAGE, page(run))


def _replace(path: Path, content: str) -> Path:
    """The old file or the new one, never half of it."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(content, encoding="utf-8")
    os.replace(aside, path)
    return path
