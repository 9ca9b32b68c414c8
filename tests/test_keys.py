"""What runs inside a step's process is part of its key, to the last module."""

from __future__ import annotations

import ast
from fnmatch import fnmatch
from pathlib import Path

import ioptim
from ioptim import keys

ROOT = Path(ioptim.__file__).parent
CHANGES_NO_RESULT = {"errors.py", "isolate.py", "environment.py", "recipe.py"}
"""Modules of those processes that say how they run, not what they compute."""


def test_every_module_that_a_step_imports_is_in_the_key() -> None:
    covered = {path for pattern in keys._RUNS_IN_A_STEP for path in ROOT.glob(pattern)}
    missing = set()
    for path in covered:
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "ioptim":
                names = [node.module] if node.module != "ioptim" else [f"ioptim.{alias.name}" for alias in node.names]
            for name in names:
                relative = name.removeprefix("ioptim").lstrip(".").replace(".", "/")
                file = ROOT / f"{relative}.py"
                if relative and file.is_file() and file not in covered and not any(fnmatch(file.name, n) for n in CHANGES_NO_RESULT):
                    missing.add(f"{path.relative_to(ROOT)} imports {file.relative_to(ROOT)}")
    assert not missing
