"""What becomes MLflow's page, and what is said where there is none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ioptim.cli import main
from ioptim.errors import ExitCode

pytest.importorskip("mlflow")


def test_the_page_is_for_this_machine_and_opens_on_the_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mlflow.db").touch()
    became: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda program, arguments: became.append(arguments))
    monkeypatch.setenv("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "true")
    assert main(["ui", "--home", str(tmp_path), "--port", "5123"]) == ExitCode.PASS
    [arguments] = became
    assert arguments[arguments.index("--host") + 1] == "127.0.0.1"
    assert f"sqlite:///{tmp_path / 'mlflow.db'}" in arguments
    assert capsys.readouterr().out == "http://127.0.0.1:5123/#/experiments?workflowType=machine_learning  (Ctrl-C ends it)\n"


def test_before_the_first_run_there_is_no_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ui", "--home", str(tmp_path)]) == ExitCode.UNAVAILABLE
    assert f"there is no {tmp_path}/mlflow.db yet; `ioptim run RECIPE` makes it" in capsys.readouterr().err
