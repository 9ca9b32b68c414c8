from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tracking_records import run_record

from ioptim.core.record import NodeRecord, Status, TrackingState
from ioptim.errors import ExitCode, UnavailableError
from ioptim.tracking import local

DIE_RUNNING = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from records import run_record
from ioptim.tracking import local
local.create_run(Path({home!r}), run_record("20261121-000000-dead-000000", **{changes}))
"""


def _run_that_dies(home: Path, changes: str = "{}") -> None:
    code = DIE_RUNNING.format(tests=str(Path(__file__).parent), home=str(home), changes=changes)
    subprocess.run([sys.executable, "-c", code], check=True)


def test_run_ids_are_new_sort_by_time_and_name_the_recipe() -> None:
    ids = [local.new_run_id("bert int8/é") for _ in range(50)]
    assert len(set(ids)) == 50
    assert all("-bert-int8-" in run_id for run_id in ids)


def test_a_run_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    run = run_record()
    folder = local.create_run(tmp_path, run)
    assert local.read_run(tmp_path, run.run_id) == run
    assert (folder / "recipe.yaml").read_text() == "name: tiny\n"
    assert {path.name for path in folder.iterdir()} == {"run.json", "recipe.yaml", "logs", "owner.json"}
    done = run.model_copy(update={"status": Status.PASSED, "exit_code": ExitCode.PASS})
    local.write_run(tmp_path, done)
    assert local.read_run(tmp_path, "latest") == done
    assert not (folder / "owner.json").exists()


def test_a_run_is_found_by_prefix_path_and_latest(tmp_path: Path) -> None:
    for run_id in ("20261121-080000-a-000001", "20261121-090000-b-000002"):
        local.create_run(tmp_path, run_record(run_id))
    for which in ("20261121-08", tmp_path / "runs/20261121-080000-a-000001", tmp_path / "runs/20261121-080000-a-000001/run.json"):
        assert local.read_run(tmp_path, which).run_id == "20261121-080000-a-000001"
        assert local.find_run(tmp_path, which) == tmp_path / "runs/20261121-080000-a-000001"
    assert local.read_run(tmp_path, "latest").run_id == "20261121-090000-b-000002"
    assert [run.run_id[-1] for run in local.list_runs(tmp_path)] == ["2", "1"]
    assert len(local.list_runs(tmp_path, limit=1)) == 1


def test_an_unknown_run_names_the_latest(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError) as empty:
        local.read_run(tmp_path, "latest")
    assert str(empty.value) == f"there is no run 'latest' in {tmp_path}/runs. There are none yet; `ioptim run RECIPE` makes one"
    for i in range(7):
        local.create_run(tmp_path, run_record(f"20261121-08000{i}-a-000001"))
    with pytest.raises(UnavailableError) as unknown:
        local.read_run(tmp_path, "nope")
    names = ", ".join(f"20261121-08000{i}-a-000001" for i in (6, 5, 4, 3, 2))
    assert str(unknown.value) == f"there is no run 'nope' in {tmp_path}/runs. The latest are {names} and 2 more"
    with pytest.raises(UnavailableError, match="7 runs begin with '2026'"):
        local.read_run(tmp_path, "2026")


def test_a_damaged_record_is_named_and_left_out_of_lists(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    local.create_run(tmp_path, run_record())
    record = tmp_path / "runs/20261121-081832-tiny-aaaaaa/run.json"
    record.write_text("{")
    with pytest.raises(UnavailableError, match=r"run\.json cannot be read"):
        local.read_run(tmp_path, "latest")
    assert local.list_runs(tmp_path) == []
    assert "cannot be read" in caplog.text


def test_a_home_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file")
    with pytest.raises(UnavailableError, match="Make it writable or choose another folder with --home"):
        local.create_run(tmp_path / "home", run_record())


def test_a_run_whose_process_is_gone_is_interrupted(tmp_path: Path) -> None:
    _run_that_dies(tmp_path)
    [closed] = local.reap(tmp_path)
    assert closed == local.read_run(tmp_path, "latest")
    assert (closed.status, closed.exit_code) == (Status.INTERRUPTED, ExitCode.INTERRUPTED)
    assert closed.finished is not None
    assert local.reap(tmp_path) == []


@pytest.mark.parametrize("damage", [lambda text: text[:40], lambda text: "[]", lambda text: text.replace('"seconds"', '"took"', 1)])
def test_a_dead_run_that_cannot_be_read_stops_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[str], str]
) -> None:
    _run_that_dies(tmp_path)
    folder = tmp_path / "runs/20261121-000000-dead-000000"
    (folder / "run.json").write_text(damage((folder / "run.json").read_text()))
    local.create_run(tmp_path, run_record())
    owner = tmp_path / "runs/20261121-081832-tiny-aaaaaa/owner.json"
    owner.write_text(json.dumps({**json.loads(owner.read_text()), "process": "another-boot/1"}))
    assert [run.run_id for run in local.reap(tmp_path)] == ["20261121-081832-tiny-aaaaaa"]
    [warning] = caplog.messages
    assert warning.startswith(f"the record {folder}/run.json cannot be read: ")
    assert warning.endswith(f". To remove the run: rm -r {folder}")
    assert (folder / "owner.json").exists()


def test_a_record_of_another_version_says_what_is_unknown_in_it(tmp_path: Path) -> None:
    folder = local.create_run(tmp_path, run_record())
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, "later": 1}))
    with pytest.raises(UnavailableError) as error:
        local.read_run(tmp_path, "latest")
    said = "it is not as this version of ioptim writes it (later: Extra inputs are not permitted)"
    assert str(error.value) == f"the record {folder}/run.json cannot be read: {said}. To remove the run: rm -r {folder}"


def test_an_owner_that_says_nothing_is_left_alone(tmp_path: Path) -> None:
    folder = local.create_run(tmp_path, run_record())
    for content in ("{}", "[]", "{"):
        (folder / "owner.json").write_text(content)
        assert local.reap(tmp_path) == []


def test_a_run_that_goes_on_is_left_alone(tmp_path: Path) -> None:
    local.create_run(tmp_path, run_record())
    assert local.reap(tmp_path) == []
    assert local.read_run(tmp_path, "latest").status is Status.RUNNING


def test_a_reused_process_number_is_not_the_same_process(tmp_path: Path) -> None:
    folder = local.create_run(tmp_path, run_record())
    owner = json.loads((folder / "owner.json").read_text())
    (folder / "owner.json").write_text(json.dumps({**owner, "process": "another-boot/1"}))
    assert len(local.reap(tmp_path)) == 1


def test_another_host_s_run_is_never_reaped(tmp_path: Path) -> None:
    folder = local.create_run(tmp_path, run_record())
    (folder / "owner.json").write_text(json.dumps({"host": "elsewhere", "pid": os.getpid(), "process": "x"}))
    assert local.reap(tmp_path) == []


def test_nodes_of_an_interrupted_run() -> None:
    def node(name: str, status: Status) -> NodeRecord:
        return NodeRecord(id=name, step="null", target=None, parents=(), status=status)

    run = run_record(nodes=(node("a", Status.PASSED), node("b", Status.RUNNING), node("c", Status.PENDING)))
    after = local.interrupted(run, "2026-11-21T08:20:00+00:00")
    assert [n.status for n in after.nodes] == [Status.PASSED, Status.INTERRUPTED, Status.SKIPPED]


def test_pending_runs_are_those_finished_and_not_logged(tmp_path: Path) -> None:
    waiting = TrackingState(state="pending", uri="http://127.0.0.1:9")
    local.create_run(tmp_path, run_record("20261121-080000-a-000001", tracking=waiting))
    assert local.pending(tmp_path) == []  # still running
    done = run_record("20261121-080000-a-000001", tracking=waiting, status=Status.PASSED)
    local.write_run(tmp_path, done)
    assert local.pending(tmp_path) == [done]
    local.write_run(tmp_path, done.model_copy(update={"tracking": TrackingState(state="logged")}))
    assert local.pending(tmp_path) == []


def test_a_record_that_cannot_be_read_keeps_no_other_from_being_uploaded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    waiting = TrackingState(state="pending", uri="http://127.0.0.1:9")
    runs = [run_record(f"20261121-08000{i}-a-000001", tracking=waiting, status=Status.PASSED) for i in range(2)]
    folders = [local.create_run(tmp_path, run) for run in runs]
    (folders[0] / "run.json").write_text("{")
    assert local.pending(tmp_path) == [runs[1]]
    assert f"rm -r {folders[0]}" in caplog.text


def test_a_reaped_run_is_uploaded_later(tmp_path: Path) -> None:
    _run_that_dies(tmp_path, "{'tracking': {'state': 'pending', 'uri': 'http://127.0.0.1:9'}}")
    assert local.pending(tmp_path) == []
    local.reap(tmp_path)
    assert [run.status for run in local.pending(tmp_path)] == [Status.INTERRUPTED]
