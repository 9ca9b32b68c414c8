"""Which runs are promoted, which of their models, and what is said about it."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from ioptim import champions
from ioptim.cache import Store
from ioptim.cli import main
from ioptim.core.artifact import Format
from ioptim.core.gate import Gate, Verdict
from ioptim.core.record import ArtifactRef, NodeRecord, RunRecord, Status
from ioptim.core.step import Outcome, Written
from ioptim.core.target import Hardware
from ioptim.errors import ExitCode
from ioptim.tracking import local
from tests.tracking.records import gate_result

HARDWARE = Hardware(cpu_model="test", cpu_flags=(), cores=1, threads=1, memory_bytes=1 << 30)


def compiled(home: Path, node_id: str, target: str, *, inserted: bool = False, content: str = "") -> NodeRecord:
    """A compile step as recorded, with its model in the store."""
    store = Store(home / "store").create()
    with store.work() as out:
        (out / "model").mkdir()
        (out / "model" / "m").write_text(content or node_id)
        outcome = Outcome(written=Written(format=Format.ONNX, entry="m", facts={"runtime": "onnxruntime"}))
        digest = store.put(node_id, "compile", {}, outcome, out, 1.0, None).model
    assert digest is not None
    artifact = ArtifactRef(digest=digest, path=str(store.root / "objects" / digest), format=Format.ONNX, size_bytes=len(node_id))
    return NodeRecord(
        id=node_id, step="compile", target=target, parents=(), status=Status.PASSED, artifact=artifact, inserted=inserted
    )


def judged(verdict: Verdict, undecided: str = "fail") -> NodeRecord:
    gate = Gate.model_validate({"metric": "accuracy", "max_drop": 0.01, "undecided": undecided})
    said = {"gate": gate, "candidate": "compile", "reason": "accuracy of compile fell"}
    result = gate_result(verdict).model_copy(update=said)
    status = Status.GATE_FAILED if result.blocks else Status.PASSED
    return NodeRecord(id="validate", step="validate", target="cpu", parents=("compile",), status=status, gates=(result,))


def recorded(home: Path, *nodes: NodeRecord, run_id: str = "20260101-r-1", **changes: Any) -> Path:
    blocked = any(gate.blocks for node in nodes for gate in node.gates)
    given = {"run_id": run_id, "recipe": "r", "hardware": HARDWARE, "status": Status.GATE_FAILED if blocked else Status.PASSED}
    return local.create_run(home, RunRecord.model_validate({**given, "nodes": nodes, **changes}))


def promote(capsys: pytest.CaptureFixture[str], *argv: str, code: ExitCode = ExitCode.PASS) -> dict[str, Any]:
    assert main(["promote", *argv, "--json"]) == code
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert document["exit_code"] == code
    return document


def test_a_pass_is_promoted_out_of_the_store_s_reach(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    node = compiled(home, "compile", "cpu")
    recorded(home, compiled(home, "runtime-fp32", "cpu", inserted=True), node, judged(Verdict.PASS))
    assert main(["promote"]) == ExitCode.PASS
    assert node.artifact is not None
    folder = home / "champions" / "r" / "cpu" / node.artifact.digest
    assert capsys.readouterr().out.splitlines() == [
        "r on cpu: compile of run 20260101-r-1 is the champion",
        f"  onnx, 0.0 MB, {node.artifact.digest[:12]}, in {folder}",
    ]
    Store(home / "store").prune(timedelta(0))
    champion = champions.read(home, "r", "cpu")
    assert champion is not None and champions.damage(champion.folder, node.artifact.digest) == ""
    assert champion.model_dump(mode="json", exclude={"promoted"}) == {
        "recipe": "r",
        "target": "cpu",
        "run_id": "20260101-r-1",
        "made_by": "compile",
        "digest": node.artifact.digest,
        "format": "onnx",
        "runtime": "onnxruntime",
        "hardware": HARDWARE.fingerprint,
        "overridden": [],
    }


def test_the_champion_before_is_named(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorded(home, compiled(home, "compile", "cpu"), judged(Verdict.PASS))
    assert promote(capsys)["champions"][0]["replaces"] is None
    recorded(home, compiled(home, "compile", "cpu", content="better"), judged(Verdict.PASS), run_id="20260102-r-2")
    [champion] = promote(capsys)["champions"]
    assert (champion["run_id"], champion["replaces"]["run_id"]) == ("20260102-r-2", "20260101-r-1")
    assert main(["promote", "20260101"]) == ExitCode.PASS
    assert "  it takes the place of compile of run 20260102-r-2" in capsys.readouterr().out.splitlines()


def test_a_run_whose_gate_blocks_is_refused(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorded(home, compiled(home, "compile", "cpu"), judged(Verdict.FAIL))
    assert main(["promote"]) == ExitCode.GATE
    out, err = capsys.readouterr()
    assert (out, err.splitlines()) == (
        "",
        [
            "ioptim: run 20260101-r-1 is not promoted, for it is no pass:",
            "  validate: fail: accuracy of compile fell",
            "Promote another run, or this one all the same with --force",
        ],
    )
    assert promote(capsys, code=ExitCode.GATE)["refused"] == ["validate: fail: accuracy of compile fell"]
    assert not (home / "champions").exists()


def test_what_force_overrides_is_kept(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorded(home, compiled(home, "compile", "cpu"), judged(Verdict.FAIL))
    assert promote(capsys, "--force")["overridden"] == ["validate: fail: accuracy of compile fell"]
    champion = champions.read(home, "r", "cpu")
    assert champion is not None and champion.overridden == ("validate: fail: accuracy of compile fell",)
    assert main(["promote", "--force"]) == ExitCode.PASS
    assert "note: promoted with --force, though validate: fail: accuracy of compile fell" in capsys.readouterr().out.splitlines()


def test_force_where_nothing_speaks_against_it_is_no_mark(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorded(home, compiled(home, "compile", "cpu"), judged(Verdict.PASS))
    assert promote(capsys, "--force")["overridden"] == []


@pytest.mark.parametrize("status", [Status.ERROR, Status.INTERRUPTED, Status.RUNNING])
def test_a_run_that_did_not_come_to_its_end_is_refused(home: Path, capsys: pytest.CaptureFixture[str], status: Status) -> None:
    recorded(home, compiled(home, "compile", "cpu"), status=status)
    assert promote(capsys, code=ExitCode.GATE)["refused"] == [f"the run is recorded as {status.value}"]


def test_a_pass_that_is_less_than_it_seems_is_noted(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    node = compiled(home, "compile", "cpu")
    recorded(home, node)
    assert promote(capsys)["notes"] == ["no gate judged this run"]
    recorded(home, node, judged(Verdict.UNDECIDED, "warn"), run_id="20260102-r-2")
    assert promote(capsys)["notes"] == ["validate: undecided, which the recipe lets pass: accuracy of compile fell"]


def test_a_model_that_no_gate_of_the_run_judged_is_noted(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorded(home, compiled(home, "compile", "cpu"), compiled(home, "other", "gpu"), judged(Verdict.PASS))
    assert promote(capsys)["notes"] == ["no gate judged other"]


def test_each_target_has_its_own(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorded(home, compiled(home, "compile@cpu", "cpu"), compiled(home, "compile@ov", "ov"))
    assert {each["target"]: each["made_by"] for each in promote(capsys)["champions"]} == {"cpu": "compile@cpu", "ov": "compile@ov"}
    assert [each["made_by"] for each in promote(capsys, "--step", "compile@ov")["champions"]] == ["compile@ov"]


def test_of_several_for_one_target_one_is_named(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorded(home, *(compiled(home, f"{step}@{target}", target) for step in ("dense", "pruned") for target in ("cpu", "ov")))
    assert promote(capsys, code=ExitCode.BAD_RECIPE)["error"] == (
        "run 20260101-r-1 compiled 2 models for the target cpu: dense@cpu, pruned@cpu. Name one, for example --step dense@cpu"
    )
    assert promote(capsys, "--step", "prune", code=ExitCode.BAD_RECIPE)["error"] == (
        "--step prune: run 20260101-r-1 compiled dense@cpu, dense@ov, pruned@cpu, pruned@ov"
    )
    assert not (home / "champions").exists()
    assert [each["made_by"] for each in promote(capsys, "--step", "pruned")["champions"]] == ["pruned@cpu", "pruned@ov"]


def test_a_run_that_compiled_nothing(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorded(home, compiled(home, "runtime-fp32", "cpu", inserted=True))
    error = promote(capsys, code=ExitCode.UNAVAILABLE)["error"]
    assert error == "run 20260101-r-1 compiled no model. A champion is what a `compile` step of the recipe made"


@pytest.mark.parametrize("change", ["damaged", "pruned"])
def test_a_model_that_is_not_there_as_sealed_promotes_none(home: Path, capsys: pytest.CaptureFixture[str], change: str) -> None:
    other, node = compiled(home, "compile@cpu", "cpu"), compiled(home, "compile@ov", "ov")
    recorded(home, other, node)
    assert node.artifact is not None
    if change == "damaged":
        (Path(node.artifact.path) / "m").write_text("x")
    else:
        Store(home / "store").prune(timedelta(0))
    error = promote(capsys, code=ExitCode.UNAVAILABLE)["error"]
    assert "cannot be promoted: the object" in error and error.endswith("Run the recipe again and promote that run")
    assert not (home / "champions").exists()


def test_a_run_of_another_home_comes_to_this_one(home: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = recorded(tmp_path / "theirs", compiled(tmp_path / "theirs", "compile", "cpu"))
    [champion] = promote(capsys, str(folder))["champions"]
    assert Path(champion["path"]).is_relative_to(home / "champions")
    assert not (tmp_path / "theirs" / "champions").exists()


def test_a_record_whose_names_are_none_writes_nowhere(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorded(home, compiled(home, "compile", "cpu"), recipe="../../elsewhere")
    assert "is not as ioptim writes it" in promote(capsys, code=ExitCode.UNAVAILABLE)["error"]
    assert not (home / "champions").exists()
