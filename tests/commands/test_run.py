"""`ioptim run`: what it records before the first step, and what earlier runs in the same home may not keep from it."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

from ioptim import hardware
from ioptim.commands import run
from ioptim.core.record import RunRecord, Status, TrackingState
from ioptim.plan import make_plan
from ioptim.recipe import read_recipe
from ioptim.tracking import local

RECIPE = """\
model: {source: checkpoint, task: text-classification}
data: {validation: {source: rows.tsv}}
targets: [{name: cpu, runtime: onnxruntime}]
steps:
  - {step: quantize, scheme: int8-dynamic}
  - compile
  - {step: validate, gates: [{metric: accuracy, max_drop: 0.5}]}
"""


def test_other_rows_are_recorded_as_other_data(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE)
    loaded = read_recipe(tmp_path / "r.yaml", [])
    records = []
    for rows in ("good\t1\nbad\t0\n", "good\t1\nbad\t0\n", "good\t0\nbad\t1\n"):
        (tmp_path / "rows.tsv").write_text(f"sentence\tlabel\n{rows}")
        plan = make_plan(loaded, hardware.probe())
        records.append(run._record(Namespace(recipe=tmp_path / "r.yaml", engine="local"), loaded, plan))
    assert set(records[0].data) == {"validation"}
    assert records[0].data == records[1].data != records[2].data


def test_what_earlier_runs_wait_for_is_said_and_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    away = TrackingState(state="pending", uri="http://127.0.0.1:9")
    for run_id in ("20261121-080000-a-000001", "20261121-090000-b-000002"):
        record = RunRecord(run_id=run_id, recipe="a", status=Status.PASSED, hardware=hardware.probe(), tracking=away)
        local.create_run(tmp_path, record)
        local.write_run(tmp_path, record)
    damaged = tmp_path / "runs/20261121-080000-a-000001"
    (damaged / "run.json").write_text("{")
    run._upload_earlier(tmp_path)
    [warning] = caplog.messages
    assert warning.endswith(f"To remove the run: rm -r {damaged}")
    said = capsys.readouterr().err
    assert said.startswith("ioptim: runs that still wait to be uploaded")
    assert "20261121-090000-b-000002: the MLflow server at http://127.0.0.1:9 cannot be reached" in said
