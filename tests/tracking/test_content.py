from __future__ import annotations

from pathlib import Path

from tracking_records import finished_run

from ioptim.core.gate import Verdict
from ioptim.tracking.content import ancestors, final_models, flatten, gate_word, write_node_files


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
