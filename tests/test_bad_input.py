"""What a user's mistake gets, from the command line: the exit code, the exact words, and never a traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ioptim import plan as planning
from ioptim.cli import main

RECIPE = """\
model: {source: checkpoint, task: text-classification}
data: {validation: {source: rows.tsv}}
targets: [{name: cpu, runtime: onnxruntime}]
steps:
  - {step: quantize, scheme: int8-dynamic}
  - compile
  - {step: validate, gates: [{metric: accuracy, max_drop: 0.5}]}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path) -> Path:
    """A recipe with good data and no checkpoint, in the current folder."""
    (tmp_path / "r.yaml").write_text(RECIPE)
    (tmp_path / "rows.tsv").write_text("sentence\tlabel\ngood\t1\nbad\t0\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str]:
    """Exit code and everything printed, which is never a traceback."""
    try:
        code = main(argv)
    except SystemExit as stop:  # argparse's way out
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    text = captured.out + captured.err
    assert "Traceback" not in text
    return code, text


@pytest.mark.parametrize("command", ["plan", "run"])
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (None, "data.validation.source: there is no file or folder {folder}/new.tsv; {folder} has "),
        ("", "data.validation.source: {folder}/new.tsv is empty: expected a header with the names of the columns, then rows"),
        ("sentence\tlabel\n", "data.validation: {folder}/new.tsv has no rows"),
        (
            "text\tlabel\ngood\t1\n",
            "data.validation.columns: {folder}/new.tsv has no column 'sentence' (the text); it has text, label."
            " Map one with `columns: {{sentence: <its name>}}`",
        ),
        (
            "sentence\tlabel\ngood\t1\nbad\n",
            "data.validation: {folder}/new.tsv: broken row: line 3 has 1 fields, the header has 2 (sentence, label)",
        ),
    ],
)
def test_data_that_cannot_be_used(folder: Path, capsys: pytest.CaptureFixture[str], command: str, rows: str | None, message: str) -> None:
    if rows is not None:
        (folder / "new.tsv").write_text(rows)
    options = ["--engine", "local", "--tracking", "none"] if command == "run" else []
    code, text = said(capsys, command, "r.yaml", "--set", f"data.validation.source={folder}/new.tsv", *options)
    assert code == 2
    assert message.format(folder=folder) in text


def test_everything_that_speaks_against_a_plan_is_said_at_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "rows.tsv").write_text("text\tlabel\ngood\t1\n")
    code, text = said(capsys, "plan", "r.yaml", "--set", "targets.cpu.device=gpu", "--set", "steps.quantize.scheme=int8-static")
    assert code == 2
    assert f"model.source: there is no folder {folder}/checkpoint; {folder} has " in text
    assert "rows.tsv has no column 'sentence'" in text
    assert "targets.cpu: the target cpu asks for gpu; no NVIDIA GPU is found here" in text
    assert "quantize needs data.calibration, and the recipe has none" in text


def test_paths_that_leave_the_root(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (folder / "inside").mkdir()
    (folder / "inside" / "rows.tsv").symlink_to(folder / "rows.tsv")
    link = "data.validation.source=inside/rows.tsv"
    code, text = said(capsys, "plan", "r.yaml", "--root", "inside", "--set", link)
    assert code == 2
    assert f"{folder}/inside/rows.tsv (it leads to {folder}/rows.tsv) is outside the allowed root {folder}/inside" in text
    assert "model.source: " in text and "is outside the allowed root" in text


def test_a_runtime_that_is_not_installed(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "installed", lambda name: name != "onnxruntime")
    monkeypatch.setattr(planning, "model_source", lambda *args: type("Good", (), {"check": lambda self: []})())
    code, text = said(capsys, "run", "r.yaml", "--engine", "local", "--tracking", "none")
    assert code == 3
    assert "not installed: onnxruntime (for " in text
    assert "Install with: pip install 'ioptim[cpu]'" in text


@pytest.mark.parametrize(("name", "option"), [("prefect", "--engine local"), ("mlflow", "--tracking none")])
def test_without_prefect_or_mlflow_the_way_around_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str, option: str
) -> None:
    from ioptim.commands import run

    monkeypatch.setattr(run, "installed", lambda wanted: wanted != name)
    code, text = said(capsys, "run", "r.yaml")
    assert code == 3
    assert text == f"ioptim: {name} is not installed. Install it with: pip install 'ioptim[track]', or go without it: {option}\n"


def test_a_store_that_cannot_be_written(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "taken").write_text("a file where the home folder should be")
    code, text = said(capsys, "run", "r.yaml", "--engine", "local", "--tracking", "none", "--home", "taken")
    assert code == 3
    assert f"ioptim: the store {folder}/taken/store: it cannot be written to (Not a directory). Change its permissions" in text


def test_json_says_the_same_on_standard_output_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "r.yaml").write_text(RECIPE.replace("scheme", "schem"))
    assert main(["validate", "r.yaml", "--json"]) == 2
    document = json.loads(capsys.readouterr().out)
    assert document["status"] == "bad_recipe" and document["exit_code"] == 2
    assert {p["path"] for p in document["problems"]} >= {"steps.quantize.schem"}
    assert all(p["line"] == 5 for p in document["problems"])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["rnu", "r.yaml"], "invalid choice: 'rnu'"),
        (["run"], "the following arguments are required: recipe"),
        (["run", "r.yaml", "--engine", "celery"], "invalid choice: 'celery'"),
        (["report", "nothing"], "there is no run 'nothing' in "),
        (["steps", "quantise"], "there is no step 'quantise'; did you mean 'quantize'?"),
        (["cache", "ls"], "there is no store in "),
        (["ui"], "yet; `ioptim run RECIPE` makes it"),
    ],
)
def test_wrong_use_of_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str], argv: list[str], message: str) -> None:
    code, text = said(capsys, *argv)
    assert code in (2, 3)
    assert message in text
