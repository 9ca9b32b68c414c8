from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from tracking_records import finished_run, run_record

from ioptim.core.gate import Verdict
from ioptim.core.record import RunRecord, Status, TrackingState
from ioptim.core.step import Curve
from ioptim.environment import quiet_environment
from ioptim.errors import UnavailableError
from ioptim.tracking import local
from ioptim.tracking.mlflow import MlflowTracker, _tracker_of, sync

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    quiet_environment()
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables: making them takes longer than all that a test does with them."""
    quiet_environment()
    home = tmp_path_factory.mktemp("mlflow")
    MlflowTracker(home, None, "none").begin(run_record())
    return home / "mlflow.db"


@pytest.fixture
def home(tmp_path: Path, empty_database: Path) -> Path:
    (tmp_path / "home").mkdir()
    shutil.copy(empty_database, tmp_path / "home")
    return tmp_path / "home"


def _track(tracker: MlflowTracker, run: RunRecord, folder: Path) -> TrackingState:
    tracker.begin(run)
    for node in run.nodes:
        tracker.node(run, node)
    return tracker.end(run, folder)


def _client(home: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{home / 'mlflow.db'}")


def _runs(client: Any, where: str = "", experiment: str = "tiny") -> list[Any]:
    return list(client.search_runs([client.get_experiment_by_name(experiment).experiment_id], where))


def _names(client: Any, run_id: str, path: str | None = None) -> list[str]:
    found = []
    for item in client.list_artifacts(run_id, path):
        found += _names(client, run_id, item.path) if item.is_dir else [item.path]
    return sorted(found)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _saved(home: Path, run: RunRecord) -> RunRecord:
    local.create_run(home, run)
    return run


def test_the_folder_named_like_the_library_holds_no_python() -> None:
    """An __init__.py there would shadow the library for everything started in the repository."""
    assert (ROOT / "mlflow" / "README.md").is_file()
    assert list((ROOT / "mlflow").rglob("*.py")) == []


@pytest.mark.integration
def test_a_run_with_its_steps_models_and_verdicts(tmp_path: Path, home: Path) -> None:
    run = finished_run(tmp_path / "store")
    folder = local.create_run(home, run)
    (folder / "report.html").write_text("<p>report</p>")
    state = _track(MlflowTracker(home, None, "tiny"), run, folder)
    assert state.state == "logged"
    assert not (tmp_path / "mlruns").exists()
    client = _client(home)
    parent = client.get_run(state.run_id)
    assert parent.info.status == "FINISHED"
    assert parent.data.params["steps.quantize.scheme"] == "int8-dynamic"
    assert parent.data.metrics["speedup"] == 8.0
    tags = parent.data.tags
    assert (tags["ioptim.kind"], tags["ioptim.gate"], tags["ioptim.hardware"]) == ("pipeline", "passed", run.hardware.fingerprint)
    assert tags["ioptim.gate.validate-cpu.accuracy.max_drop.compile-cpu.against-source"] == "pass"
    assert [(i.dataset.name, i.tags[0].value) for i in parent.inputs.dataset_inputs] == [("retrieval", "validation")]
    assert _names(client, state.run_id) == [
        "environment.json",
        "gates.json",
        "recipe/recipe.yaml",
        "recipe/resolved.json",
        "report.html",
        "run.json",
    ]
    steps = {step.info.run_name: step for step in _runs(client, f"tags.`mlflow.parentRunId` = '{state.run_id}'")}
    assert set(steps) == {node.id for node in run.nodes}
    quantize = steps["quantize"]
    assert (quantize.data.tags["ioptim.cached"], quantize.data.tags["ioptim.key"]) == ("true", "k1")
    assert quantize.data.metrics["layers_quantized"] == 4
    assert "tables/layers-by-kind.json" in _names(client, quantize.info.run_id)
    assert "files/samples.json" in _names(client, steps["validate@cpu"].info.run_id)
    [output] = parent.outputs.model_outputs
    model = client.get_logged_model(output.model_id)
    assert (model.status, model.model_type, model.source_run_id) == ("READY", "onnx", steps["compile@cpu"].info.run_id)
    assert {metric.key: metric.value for metric in model.metrics}["speedup"] == 8.0
    from mlflow.models import Model

    signature = Model.load(str(Path(model.artifact_location.removeprefix("file://")))).signature
    assert [(spec.name, spec.shape) for spec in signature.outputs.inputs] == [("logits", (-1, 2))]
    provenance = json.loads(Path(model.artifact_location.removeprefix("file://"), "provenance.json").read_text())
    assert [step["id"] for step in provenance["steps"]] == ["quantize", "compile@cpu"]


@pytest.mark.integration
def test_a_curve_is_the_history_of_a_metric(tmp_path: Path, home: Path) -> None:
    run = finished_run(tmp_path / "store")
    curve = Curve(metric="train/loss", steps=(4, 8, 12), values=(0.9, 0.5, 0.6), seconds=(0.25, 0.5, 1.0))
    first = run.nodes[0].model_copy(update={"curves": (curve,)})
    run = run.model_copy(update={"nodes": (first, *run.nodes[1:])})
    state = _track(MlflowTracker(home, None, "tiny"), run, tmp_path)
    client = _client(home)
    [step] = _runs(client, f"tags.`mlflow.parentRunId` = '{state.run_id}' and tags.`ioptim.node` = 'quantize'")
    history = client.get_metric_history(step.info.run_id, "train/loss")
    assert [(point.step, point.value, point.timestamp - step.info.start_time) for point in history] == [
        (4, 0.9, 250),
        (8, 0.5, 500),
        (12, 0.6, 1000),
    ]
    assert step.data.metrics["layers_quantized"] == 4  # a number that is no curve stays a number


@pytest.mark.integration
def test_the_same_model_is_stored_once_and_a_failed_gate_fails_the_run(tmp_path: Path, home: Path) -> None:
    first = finished_run(tmp_path / "store", "20261121-080000-tiny-000001")
    second = finished_run(tmp_path / "store", "20261121-080001-tiny-000002", Verdict.FAIL)
    states = [_track(MlflowTracker(home, None, "tiny"), run, tmp_path) for run in (first, second)]
    client = _client(home)
    runs = [client.get_run(state.run_id) for state in states]
    assert [run.info.status for run in runs] == ["FINISHED", "FAILED"]
    assert [run.data.tags["ioptim.gate"] for run in runs] == ["passed", "failed"]
    assert len({run.outputs.model_outputs[0].model_id for run in runs}) == 1
    assert set(runs[0].data.metrics) == set(runs[1].data.metrics)


@pytest.mark.integration
def test_any_thread_may_call_and_values_of_any_length_are_taken(tmp_path: Path, home: Path) -> None:
    run = finished_run(tmp_path / "store", recipe_config={"name": "tiny", "text": "x" * 20_000, **{f"k{i}": i for i in range(250)}})
    tracker = MlflowTracker(home, None, "tiny")
    steps = [lambda: tracker.begin(run), *(lambda node=node: tracker.node(run, node) for node in run.nodes)]
    steps.append(lambda: tracker.end(run, tmp_path))
    for step in steps:
        thread = threading.Thread(target=step)
        thread.start()
        thread.join()
    client = _client(home)
    [parent] = _runs(client, "tags.`ioptim.kind` = 'pipeline'")
    assert len(_runs(client)) == 1 + len(run.nodes)
    assert {child.data.tags.get("mlflow.parentRunId") for child in _runs(client)} == {None, parent.info.run_id}
    assert len(parent.data.params) == 252
    assert parent.data.params["text"].endswith("characters more")


@pytest.mark.integration
def test_a_server_that_is_not_there_is_said_at_once_and_the_run_uploaded_later(tmp_path: Path, home: Path) -> None:
    uri = f"http://127.0.0.1:{_free_port()}"
    run = finished_run(tmp_path / "store")
    tracker = MlflowTracker(home, uri, "tiny")
    with pytest.raises(UnavailableError) as error:
        tracker.begin(run)
    assert str(error.value) == f"the MLflow server at {uri} cannot be reached: Connection refused"
    assert tracker.state == TrackingState(state="pending", uri=uri)
    _saved(home, run.model_copy(update={"tracking": tracker.state}))
    with pytest.raises(UnavailableError, match="cannot be reached"):
        sync(home)
    assert len(local.pending(home)) == 1
    elsewhere = TrackingState(state="pending", uri=f"sqlite:///{home / 'mlflow.db'}")
    local.write_run(home, run.model_copy(update={"tracking": elsewhere}))
    [synced] = sync(home)
    assert synced.tracking.state == "logged"
    assert local.read_run(home, "latest").tracking == synced.tracking
    assert sync(home) == []
    assert len(_runs(_client(home))) == 1 + len(run.nodes)


@pytest.mark.integration
def test_a_server_that_is_gone_keeps_only_its_own_runs_waiting(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = f"http://127.0.0.1:{_free_port()}"
    for second, uri in enumerate((gone, gone, None)):
        waiting = TrackingState(state="pending", uri=uri)
        _saved(home, finished_run(tmp_path / "store", f"20261121-08000{second}-tiny-000001", tracking=waiting))
    knocks = []
    connect = socket.create_connection
    monkeypatch.setattr(socket, "create_connection", lambda *args, **options: knocks.append(args) or connect(*args, **options))
    with pytest.raises(UnavailableError) as error:
        sync(home)
    assert str(error.value) == (
        f"runs that still wait to be uploaded (to give one up, remove its tracking.pending in {home}/runs):\n"
        f"  20261121-080000-tiny-000001, 20261121-080001-tiny-000001: the MLflow server at {gone} cannot be reached: Connection refused"
    )
    assert [run.run_id for run in local.pending(home)] == ["20261121-080000-tiny-000001", "20261121-080001-tiny-000001"]
    assert local.read_run(home, "latest").tracking.state == "logged"
    assert len(knocks) == 1


def test_a_login_is_neither_shown_nor_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = _free_port()
    uri = f"http://me:s3cret@127.0.0.1:{port}"
    run = finished_run(tmp_path / "store")
    tracker = MlflowTracker(tmp_path, uri, "tiny")
    with pytest.raises(UnavailableError) as error:
        tracker.begin(run)
    assert str(error.value) == f"the MLflow server at http://127.0.0.1:{port} cannot be reached: Connection refused"
    assert tracker.state.uri == f"http://127.0.0.1:{port}"
    refused = OSError(f"API request to {uri}/api/2.0/mlflow failed")
    with pytest.raises(UnavailableError) as error, tracker._reaching():
        raise refused
    assert str(error.value) == f"MLflow at http://127.0.0.1:{port}: API request to http://127.0.0.1:{port}/api/2.0/mlflow failed"
    waits = run.model_copy(update={"tracking": tracker.state})
    assert _tracker_of(tmp_path, waits).uri == f"http://127.0.0.1:{port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert _tracker_of(tmp_path, waits).uri == uri
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:s3cret@elsewhere")
    assert _tracker_of(tmp_path, waits).uri == f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("uri", ["http://127.0.0.1:port", "http://me:s3/cret@127.0.0.1:5000"])
def test_an_address_that_is_none(tmp_path: Path, uri: str) -> None:
    with pytest.raises(UnavailableError, match="^the address of the MLflow server cannot be read: expected http://HOST:PORT"):
        MlflowTracker(tmp_path, uri, "tiny").begin(run_record())


@pytest.mark.integration
def test_the_digest_of_a_data_set_is_of_its_rows(home: Path) -> None:
    digests = []
    for rows in ({"file": "a"}, {"file": "b"}, {"file": "a"}, None):
        run = run_record(data={"validation": rows} if rows else {})
        tracker = MlflowTracker(home, None, "tiny")
        tracker.begin(run)
        [recorded] = _client(home).get_run(tracker.state.run_id).inputs.dataset_inputs
        digests.append(recorded.dataset.digest)
    assert digests[0] == digests[2]
    assert len(set(digests)) == 3


@pytest.mark.integration
def test_a_half_uploaded_run_is_replaced_and_a_whole_one_left_alone(tmp_path: Path, home: Path) -> None:
    run = finished_run(tmp_path / "store", tracking=TrackingState(state="pending"))
    _saved(home, run)
    broken_off = MlflowTracker(home, None, "tiny")
    broken_off.begin(run)
    broken_off.node(run, run.nodes[0])
    [first] = sync(home)
    client = _client(home)
    assert len(_runs(client)) == 1 + len(run.nodes)
    assert {found.info.status for found in _runs(client)} == {"FINISHED"}
    local.write_run(home, run)  # as if the process had died before it noted the upload
    [again] = sync(home)
    assert again.tracking == first.tracking
    assert len(_runs(client)) == 1 + len(run.nodes)


@pytest.mark.integration
def test_an_interrupted_run_is_killed_in_mlflow(home: Path) -> None:
    running = run_record()
    MlflowTracker(home, None, "tiny").begin(running)
    assert [run.info.status for run in _runs(_client(home))] == ["RUNNING"]
    closed = local.interrupted(running, "2026-11-21T08:20:00+00:00").model_copy(update={"tracking": TrackingState(state="pending")})
    _saved(home, closed)
    sync(home)
    assert [(run.info.status, run.data.tags["ioptim.status"]) for run in _runs(_client(home))] == [("KILLED", Status.INTERRUPTED.value)]


@pytest.mark.integration
def test_a_deleted_experiment_says_how_to_restore_it(home: Path) -> None:
    MlflowTracker(home, None, "tiny").begin(run_record())
    client = _client(home)
    client.delete_experiment(client.get_experiment_by_name("tiny").experiment_id)
    with pytest.raises(
        UnavailableError, match=r"experiment 'tiny' is deleted\. Restore it: .* mlflow experiments restore --experiment-id \d"
    ):
        MlflowTracker(home, None, "tiny").begin(run_record())


@pytest.mark.integration
def test_a_store_that_cannot_be_written_is_one_plain_error(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file")
    with pytest.raises(UnavailableError, match="MLflow at sqlite:"):
        MlflowTracker(tmp_path / "home", None, "tiny").begin(run_record())


FIRST_RUN = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from ioptim.environment import quiet_environment
quiet_environment()
from records import run_record
from ioptim.tracking.mlflow import MlflowTracker
tracker = MlflowTracker(Path({home!r}), None, "tiny")
run = run_record(sys.argv[1])
tracker.begin(run)
print(tracker.end(run, Path({home!r})).state)
"""


@pytest.mark.integration
def test_two_first_runs_at_once_on_one_store(tmp_path: Path) -> None:
    code = FIRST_RUN.format(tests=str(Path(__file__).parent), home=str(tmp_path / "home"))
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    processes = [subprocess.Popen([sys.executable, "-c", code, f"run-{i}"], stdout=-1, stderr=-1, text=True, env=env) for i in range(2)]
    assert [process.communicate() for process in processes] == [("logged\n", "")] * 2
    assert len(_runs(_client(tmp_path / "home"))) == 2


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    port = _free_port()
    store = ["--backend-store-uri", f"sqlite:///{tmp_path / 'server.db'}", "--artifacts-destination", str(tmp_path / "server")]
    command = [sys.executable, "-m", "mlflow", "server", *store, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    env = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (tmp_path / "server.log").open("wb") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    uri = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                urlopen(f"{uri}/health", timeout=1)
                break
            except (URLError, OSError):
                time.sleep(0.1)
        yield uri, process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, 9)
        process.wait()


@pytest.mark.integration
@pytest.mark.slow
def test_a_real_server_that_comes_and_goes(tmp_path: Path, home: Path, server: tuple[str, subprocess.Popen[bytes]]) -> None:
    uri, process = server
    run = finished_run(tmp_path / "store", tracking=TrackingState(state="pending", uri=uri))
    _saved(home, run)
    [synced] = sync(home)
    assert synced.tracking.url == f"{uri}/#/experiments/1/runs/{synced.tracking.run_id}"
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    assert _names(client, str(synced.tracking.run_id))[-1] == "run.json"
    [output] = client.get_run(str(synced.tracking.run_id)).outputs.model_outputs
    assert {item.path for item in client.list_logged_model_artifacts(output.model_id)} >= {"MLmodel", "model.onnx"}
    tracker = MlflowTracker(home, uri, "tiny")
    tracker.begin(run_record("another"))
    os.killpg(process.pid, 9)
    process.wait()
    with pytest.raises(UnavailableError, match=f"MLflow at {uri}"):
        tracker.node(run, run.nodes[0])
