"""`ioptim schema`: to the terminal or to a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ioptim.cli import main
from ioptim.errors import ExitCode
from ioptim.recipe import schema


def test_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "--output", str(tmp_path / "recipe.schema.json")]) == ExitCode.PASS
    assert json.loads((tmp_path / "recipe.schema.json").read_text()) == schema()
    assert capsys.readouterr().out == ""


def test_a_file_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "missing" / "recipe.schema.json"
    assert main(["schema", "--output", str(file)]) == ExitCode.UNAVAILABLE
    said = capsys.readouterr().err
    assert said == f"ioptim: cannot write {file}: No such file or directory. Its folder must exist and be writable\n"
