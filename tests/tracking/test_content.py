from __future__ import annotations

from pathlib import Path

import pytest
from tracking_records import finished_run

from ioptim.core.gate import Gate, Verdict
from ioptim.tracking.content import ancestors, final_models, flatten, gate_word, verdict_tags, write_node_files
from ioptim.tracking.summary import Summary


def test_items_of_a_list_are_called_by_their_id_name_or_kind() -> None:
    config = {
        "seed": 0,
        "targets": [{"name": "cpu", "threads": 2}],
        "steps": [{"step": "quantize", "scheme": "int8"}, {"step": "quantize", "scheme": "fp16"}, {"id": "q", "step": "quantize"}],
        "empty": None,
        "kinds": ["MatMul", "Gemm"],
    }
    assert flatten(config) == {
        "seed": "0",
        "targets.cpu.name": "cpu",
        "targets.cpu.threads": "2",
        "steps.quantize.step": "quantize",
        "steps.quantize.scheme": "int8",
        "steps.quantize-1.step": "quantize",
        "steps.quantize-1.scheme": "fp16",
        "steps.q.id": "q",
        "steps.q.step": "quantize",
        "kinds": '["MatMul", "Gemm"]',
    }


def test_the_final_model_is_the_one_nothing_was_made_from(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    assert [node.id for node in final_models(run)] == ["compile@cpu"]
    assert ancestors(run, run.node("benchmark@cpu")) == {"validate@cpu", "compile@cpu", "quantize"}


def test_one_word_for_all_verdicts(tmp_path: Path) -> None:
    words = [gate_word(finished_run(tmp_path / verdict.value, verdict=verdict)) for verdict in Verdict]
    assert words == ["passed", "failed", "failed"]  # undecided blocks unless the gate says otherwise
    assert gate_word(finished_run(tmp_path / "none", nodes=())) == "none"


def test_verdicts_have_tags_of_their_own(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    validate = run.node("validate@cpu")
    [passed] = validate.gates
    failed = passed.model_copy(update={"verdict": Verdict.FAIL, "baseline": "runtime-fp32"})
    alone = passed.model_copy(update={"gate": Gate(metric="accuracy", min_value=0.8, slices="text type"), "baseline": None})
    for gates in ((failed, passed, alone), (alone, passed, failed)):
        nodes = tuple(node if node.id != validate.id else node.model_copy(update={"gates": gates}) for node in run.nodes)
        tags = verdict_tags(run.model_copy(update={"nodes": nodes}), Summary())
        assert {name: value for name, value in tags.items() if name.startswith("ioptim.gate.")} == {
            "ioptim.gate.validate@cpu.accuracy.max_drop.compile@cpu.against-source": "pass",
            "ioptim.gate.validate@cpu.accuracy.max_drop.compile@cpu.against-runtime-fp32": "fail",
            "ioptim.gate.validate@cpu.accuracy.min_value.by-text_type.compile@cpu": "pass",
        }


@pytest.mark.parametrize("order", [(Verdict.PASS, Verdict.FAIL), (Verdict.FAIL, Verdict.PASS)])
def test_of_gates_that_differ_in_the_bound_s_value_alone_the_worst_verdict_stands(tmp_path: Path, order: tuple[Verdict, ...]) -> None:
    run = finished_run(tmp_path)
    [gate] = run.node("validate@cpu").gates
    gates = tuple(gate.model_copy(update={"verdict": verdict}) for verdict in order)
    nodes = (run.node("validate@cpu").model_copy(update={"gates": gates}),)
    tags = verdict_tags(run.model_copy(update={"nodes": nodes}), Summary())
    assert tags["ioptim.gate.validate@cpu.accuracy.max_drop.compile@cpu.against-source"] == "fail"


def test_files_of_a_node(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "store")
    folder = tmp_path / "files"
    folder.mkdir()
    assert write_node_files(run.node("quantize"), folder) == ["tables/layers-by-kind.json"]
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == [
        "log.txt",
        "node.json",
        "tables/layers-by-kind.json",
        "tables/layers-by-kind.md",
    ]
    assert "| a\\|b |  |" in (folder / "tables/layers-by-kind.md").read_text()
