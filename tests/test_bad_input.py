"""What a user's mistake gets, from the command line: the exit code, the exact words, and never a traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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
    (tmp_path / "rows.tsv").write_text("sentence\tlabel\n" + "".join(f"row {i}\t{i % 2}\n" for i in range(12)))
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


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("2026-13-45", "'2026-13-45' cannot be read as a date; write one like 2026-01-31, or quote it (without a tag) to mean text"),
        ("!!timestamp x", "'x' cannot be read as a date; write one like 2026-01-31"),
        ("9" * 5000, f"'{'9' * 57}...' cannot be read as a whole number of at most 64 bits; write one like 12"),
        ("0x" + "f" * 5000, "...' cannot be read as a whole number of at most 64 bits"),
        ("0b_", "'0b_' cannot be read as a whole number"),
        ("!!int abc", "'abc' cannot be read as a whole number"),
        ("!!int ''", "'' cannot be read as a whole number"),
        ("!!bool maybe", "'maybe' cannot be read as a boolean; write true or false"),
        ("1:" * 400 + "1.5", "...' cannot be read as a number; write one like 0.5"),
    ],
)
def test_values_that_yaml_takes_for_what_they_are_not(folder: Path, capsys: pytest.CaptureFixture[str], value: str, message: str) -> None:
    (folder / "wrong.yaml").write_text(f"{RECIPE}seed: {value}\n")
    code, text = said(capsys, "validate", "wrong.yaml")
    assert code == 2
    assert text.startswith("ioptim: wrong.yaml: line 8: seed: ") and message in text
    code, text = said(capsys, "plan", "r.yaml", "--set", f"seed={value}")
    assert code == 2
    assert text.startswith("ioptim: r.yaml: --set seed: ") and message in text


def test_brackets_without_end(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "deep.yaml").write_text(f"{RECIPE}description: {'[' * 30_000}\n")
    message = "the file is nested too deeply to be a recipe (more than 100 levels)"
    assert said(capsys, "validate", "deep.yaml") == (2, f"ioptim: deep.yaml: {message}\n")
    assert said(capsys, "validate", "r.yaml", "--set", f"description={'[' * 30_000}") == (
        2,
        f"ioptim: r.yaml: --set description: {message}\n",
    )


def test_text_after_set_in_another_encoding(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "validate", "r.yaml", "--set", "description=caf\udce9") == (
        2,
        "ioptim: r.yaml: --set description: this is not UTF-8 text\n",
    )


@pytest.mark.parametrize("columns", ["{}", "{sentence: text}"])
def test_a_header_with_half_a_quoted_name(folder: Path, capsys: pytest.CaptureFixture[str], columns: str) -> None:
    (folder / "new.csv").write_text('"sentence"x,label\ngood,1\n')
    options = ["--set", "data.validation.source=new.csv", "--set", f"data.validation.columns={columns}"]
    code, text = said(capsys, "plan", "r.yaml", *options)
    assert code == 2
    assert f"{folder}/new.csv: the header cannot be read (',' expected after '\"'): expected names with commas between them" in text


@pytest.mark.parametrize("key", ["model.source", "data.validation.source"])
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("~nosuchuser/x", "'~nosuchuser/x': no home folder is known for ~nosuchuser. Write the path out;"),
        ("x" * 300, f"/{'x' * 300} cannot be read: File name too long. Correct the path, or change its permissions"),
    ],
)
def test_paths_that_no_system_has(folder: Path, capsys: pytest.CaptureFixture[str], key: str, source: str, message: str) -> None:
    code, text = said(capsys, "plan", "r.yaml", "--set", f"{key}={source}")
    assert code == 2
    assert message in text and f"  {key}: " in text


def test_data_that_may_not_be_read(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Path.open

    def refused(path: Path, *args: Any, **options: Any) -> Any:
        if path.name == "rows.tsv":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *args, **options)

    monkeypatch.setattr(Path, "open", refused)
    code, text = said(capsys, "plan", "r.yaml")
    assert code == 2
    message = f"{folder}/rows.tsv cannot be read: Permission denied. Change its permissions, or name another file"
    assert f"line 2: data.validation.source: {message}" in text


@pytest.mark.parametrize(("name", "message"), [("r.yaml/x", "not a directory"), ("x" * 300, "file name too long")])
def test_a_recipe_that_cannot_be_opened(folder: Path, capsys: pytest.CaptureFixture[str], name: str, message: str) -> None:
    assert said(capsys, "validate", name) == (2, f"ioptim: {name}: the file cannot be read: {message}\n")


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


@pytest.mark.parametrize("way_in", ["--root", "IOPTIM_ROOT"])
def test_files_written_outside_the_root(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, way_in: str
) -> None:
    inside = folder / "inside"
    inside.mkdir()
    text = RECIPE.replace("runtime: onnxruntime", "device: gpu, runtime: {runtime: tensorrt, timing_cache: ~nosuchuser/../../../t}")
    (inside / "r.yaml").write_text(f"{text}tracking: {{uri: 'sqlite:///{folder}/runs.db'}}\n")
    if way_in == "IOPTIM_ROOT":
        monkeypatch.setenv(way_in, str(inside))
    monkeypatch.chdir(inside)
    code, text = said(capsys, "run", "r.yaml", "--engine", "local", *(["--root", "."] if way_in == "--root" else []))
    assert code == 2
    assert f"line 8: tracking.uri: {folder}/runs.db is outside the allowed root {inside}; move it there, or allow a wider root" in text
    assert f"line 3: targets.cpu.runtime.timing_cache: ~nosuchuser/../../../t (it leads to {folder.parent}/t) is outside" in text
    assert not (folder / "runs.db").exists()


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
        (["cache", "prune", "--older-than", "36500"], "there is no store in "),
        *(
            (["cache", "prune", "--older-than", days], f"argument --older-than: '{days}' is not a number of days from 0 to 36500")
            for days in ("999999", "inf", "nan", "-5", "a week")
        ),
        (["ui"], "yet; `ioptim run RECIPE` makes it"),
    ],
)
def test_wrong_use_of_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str], argv: list[str], message: str) -> None:
    code, text = said(capsys, *argv)
    assert code in (2, 3)
    assert message in text
