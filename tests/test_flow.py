from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ioptim.core.gate import Gate, GateResult, Verdict
from ioptim.core.record import NodeRecord, Status
from ioptim.core.step import Note, TableFigure
from ioptim.flow import _key, headline, markdown_of

ROOT = Path(__file__).parents[1]


def _record(status: Status = Status.PASSED, **changes: Any) -> NodeRecord:
    values: dict[str, Any] = {"id": "validate@cpu", "step": "validate", "target": "cpu", "parents": (), "status": status}
    return NodeRecord(**{**values, **changes})


def _gate(verdict: Verdict) -> GateResult:
    return GateResult(
        gate=Gate(metric="accuracy", max_drop=0.01),
        metric="accuracy",
        candidate="compile@cpu",
        baseline="source",
        candidate_value=0.8,
        baseline_value=0.9,
        estimate=0.1,
        interval=(0.05, 0.15),
        verdict=verdict,
        reason="dropped 0.1, at most 0.01",
        n=100,
    )


def test_one_line_on_how_a_node_ended() -> None:
    assert headline(_record(seconds=2.25)) == "computed in 2.2 s"
    assert headline(_record(cached=True, seconds=2.0, computed="2026-11-20")) == "from the store, computed in 2.0 s on 2026-11-20"
    assert headline(_record(Status.ERROR, error="no such file\nsecond line")) == "no such file"
    assert headline(_record(Status.GATE_FAILED, gates=(_gate(Verdict.FAIL),))) == "gate accuracy: dropped 0.1, at most 0.01"
    assert headline(_record(Status.SKIPPED, notes=(Note(text="not run: a ended as error"),))) == "not run: a ended as error"


def test_a_node_as_markdown() -> None:
    text = markdown_of(
        _record(
            seconds=1.0,
            subjects={"source": {"accuracy": 0.9}, "compile@cpu": {"accuracy": 0.8, "loss": 1234567.0}},
            gates=(_gate(Verdict.PASS),),
            notes=(Note(text="two rows were cut"),),
            tables=(TableFigure(title="Layers", columns=("kind", "n"), rows=(("a|b", None),)),),
        )
    )
    assert "| metric | source | compile@cpu |\n| --- | --- | --- |\n| accuracy | 0.9 | 0.8 |\n| loss |  | 1,234,567 |" in text
    assert "| accuracy | compile@cpu | source | pass | dropped 0.1, at most 0.01 |" in text
    assert "- two rows were cut" in text
    assert "### Layers\n\n| kind | n |\n| --- | --- |\n| a\\|b |  |" in text


def test_keys_of_artifacts_are_what_prefect_takes() -> None:
    assert _key("Bert_int8.v2", "compile@cpu") == "bert-int8-v2-compile-cpu"


# Whole flows, on a private server in a process of their own, as the command line starts them.

PRELUDE = """
import json, os, sys, threading, time
from pathlib import Path
from ioptim.environment import quiet_environment
quiet_environment()
from ioptim import flow
from ioptim.core.record import NodeRecord, Status
home = Path(sys.argv[1])
flow.start(home)
NODES = [
    flow.FlowNode("source", (), "source"),
    flow.FlowNode("quantize", ("source",), "quantize"),
    flow.FlowNode("compile@a", ("quantize",), "compile", "a"),
    flow.FlowNode("compile@b", ("quantize",), "compile", "b"),
    flow.FlowNode("validate", ("compile@a",), "validate", "a"),
    flow.FlowNode("benchmark", ("compile@b",), "benchmark", "b"),
]
STATUS = {}
def run_node(node_id):
    node = next(n for n in NODES if n.id == node_id)
    status = STATUS.get(node_id, Status.PASSED)
    error = "the file is truncated" if status is Status.ERROR else None
    return NodeRecord(id=node_id, step=node.step, target=node.target, parents=node.parents, status=status, cached=node_id == "source",
        computed="2026-11-20", seconds=1.0, metrics={"layers": 4}, error=error)
"""

WHOLE = (
    PRELUDE
    + """
flow.run_flow("good", NODES, run_node, tags=["good", "hw-1"], home=home, run_name="run-1", links={"report": home / "a run" / "report.html"})
STATUS.update({"compile@a": Status.ERROR, "validate": Status.SKIPPED})
seen = []
def run_bad(node_id):
    seen.append((node_id, threading.current_thread() is threading.main_thread()))
    return run_node(node_id)
flow.run_flow("bad", NODES, run_bad, tags=["bad"], home=home, max_workers=2)
from prefect.client.orchestration import get_client
with get_client(sync_client=True) as client:
    runs = {}
    flows = {f.id: f.name for f in client.read_flows()}
    for run in client.read_flow_runs():
        tasks = [t for t in client.read_task_runs() if t.flow_run_id == run.id]
        runs[flows[run.flow_id]] = {
            "state": [run.state.type.value, run.state.name, run.state.message],
            "name": run.name,
            "tags": sorted(run.tags),
            "tasks": {t.name: [t.state.type.value, t.state.name, t.state.message, sorted(t.tags)] for t in tasks},
            "parents": {t.name: sorted(str(p.id) for group in t.task_inputs.values() for p in group) for t in tasks},
            "ids": {t.name: str(t.id) for t in tasks},
        }
    artifacts = {a.key: a.data for a in client.read_artifacts()}
print(json.dumps({"runs": runs, "artifacts": artifacts, "seen": seen, "home": os.environ["PREFECT_HOME"]}))
"""
)

SLEEPING = (
    PRELUDE
    + """
def sleep(node_id):
    if node_id == "quantize":
        print(flow._server.process.pid, flush=True)
        time.sleep(60)
    return run_node(node_id)
try:
    flow.run_flow("long", NODES, sleep, tags=[], home=home)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.exit(130)
"""
)


def _python(code: str, home: Path) -> subprocess.Popen[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    env = {**kept, "PYTHONPATH": str(ROOT), "HOME": str(home)}
    command = [sys.executable, "-c", code, str(home)]
    return subprocess.Popen(command, stdout=-1, stderr=-1, stdin=subprocess.DEVNULL, text=True, env=env, start_new_session=True)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def flows(home: Path) -> Any:
    process = _python(WHOLE, home)
    out, err = process.communicate(timeout=200)
    assert (process.returncode, err) == (0, ""), err  # nothing of Prefect's on the console
    [document] = out.splitlines()
    return json.loads(document)


@pytest.mark.integration
@pytest.mark.slow
def test_states_and_tags_of_a_good_run(flows: Any) -> None:
    run = flows["runs"]["good"]
    assert run["state"] == ["COMPLETED", "Completed", "6 steps, 1 of them from the store"]
    assert (run["name"], run["tags"]) == ("run-1", ["good", "hw-1"])
    assert run["tasks"]["source"][:2] == ["COMPLETED", "Cached"]
    assert run["tasks"]["compile@a"] == ["COMPLETED", "Completed", "computed in 1.0 s", ["good", "hw-1", "step:compile", "target:a"]]
    assert len(run["tasks"]) == 6


@pytest.mark.integration
@pytest.mark.slow
def test_an_error_fails_the_flow_and_other_branches_go_on(flows: Any) -> None:
    run = flows["runs"]["bad"]
    assert run["state"] == ["FAILED", "Failed", "compile@a: the file is truncated"]
    assert run["tasks"]["compile@a"][:3] == ["FAILED", "Failed", "the file is truncated"]
    assert run["tasks"]["validate"][:2] == ["CANCELLED", "Skipped"]
    assert run["tasks"]["benchmark"][:2] == ["COMPLETED", "Completed"]
    assert sorted(node for node, _ in flows["seen"]) == sorted(run["tasks"])
    assert not any(in_main_thread for _, in_main_thread in flows["seen"])  # two workers


@pytest.mark.integration
@pytest.mark.slow
def test_the_graph_and_the_artifacts(flows: Any, home: Path) -> None:
    for run in flows["runs"].values():
        assert run["parents"]["benchmark"] == [run["ids"]["compile@b"]]
        assert run["parents"]["source"] == []
    assert {"good-compile-a", "good-report", "bad-validate"} <= set(flows["artifacts"])
    assert flows["artifacts"]["good-report"] == f"[report]({(home / 'a run' / 'report.html').as_uri()})"
    assert flows["home"] == str(home / "prefect")
    assert not (home / ".prefect").exists()


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_flow_leaves_no_server(flows: Any, home: Path, number: signal.Signals) -> None:
    process = _python(SLEEPING, home)
    assert process.stdout is not None
    server = int(process.stdout.readline())
    os.killpg(process.pid, number)  # as a terminal does: to the whole group
    out, err = process.communicate(timeout=60)
    if number == signal.SIGINT:
        assert (process.returncode, out, err) == (130, "interrupted\n", "")
    assert _is_gone(server)


def _is_gone(pid: int) -> bool:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True  # only its entry is left, for whoever adopted it to collect
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False
