"""Runs side by side."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType

from ioptim.core.record import RunRecord
from ioptim.report import compare, comparison_page


def pair(records: ModuleType, folder: Path) -> list[RunRecord]:
    first, second = records.passed(folder / "1"), records.gate_failed(folder / "2")
    return [first, second.model_copy(update={"run_id": "second", "environment": {**first.environment, "onnxruntime": "1.30.0"}})]


def test_text(records: ModuleType, tmp_path: Path) -> None:
    text = compare(pair(records, tmp_path)).to_text()
    assert "[2] second  Gate failed: 1 of 4 gates failed, 1 undecided, 2 passed  (54.3 s)\n" in text
    assert "  candidate latency_p50_ms      1.04 ms [1.012, 1.059]   1.31 ms (1.26× slower)\n" in text
    assert "  candidate accuracy            0.883 [0.86, 0.9027]     0.8406 (−0.0424)\n" in text
    assert "pass 0.00344 [−0.005922, 0.01346]  fail 0.04587 [0.03145, 0.06321]\n" in text
    assert "  library onnxruntime  1.31.1  1.30.0" in text
    assert "library torch" not in text and "warning" not in text


def test_only_overrides_that_differ_are_shown(records: ModuleType, tmp_path: Path) -> None:
    first, second = pair(records, tmp_path)
    second = second.model_copy(update={"overrides": (*first.overrides, "targets.cpu.threads=1")})
    text = compare([first, second]).to_text()
    assert re.search(r"  --set targets.cpu.threads +– +1$", text, re.MULTILINE)
    assert "--set steps.quantize.scheme" not in text


def test_json(records: ModuleType, tmp_path: Path) -> None:
    document = json.loads(json.dumps(compare(pair(records, tmp_path)).to_json()))
    assert [run["tone"] for run in document["runs"]] == ["good", "bad"]
    row = next(row for row in document["metrics"] if row["metric"] == "size_bytes")
    assert (row["subject"], row["values"], row["higher_is_better"]) == ("candidate", [22972869.0, 22972869.0], False)
    assert document["verdicts"][0]["verdicts"][1]["verdict"] == "fail"


def test_html_escapes_and_fetches_nothing(records: ModuleType, tmp_path: Path) -> None:
    html = comparison_page(compare([records.passed(tmp_path / "1"), records.hostile(tmp_path / "2")]))
    assert "<script>alert" not in html and "<img" not in html
    assert "2 runs side by side" in html and "default-src &#x27;none&#x27;" in html


def test_other_hardware_is_said(records: ModuleType, tmp_path: Path) -> None:
    first, second = pair(records, tmp_path)
    other = second.model_copy(update={"hardware": second.hardware.model_copy(update={"cpu_model": "Other"})})
    text = compare([first, other]).to_text()
    assert "warning: the runs were made on different hardware: their times and throughputs do not compare" in text
    assert "  candidate latency_p50_ms      1.04 ms [1.012, 1.059]   1.31 ms (other hardware)\n" in text
    assert "  candidate size_bytes          22.97 MB                 22.97 MB (same)\n" in text
    assert re.search(r"  processor +Intel.* +Other$", text, re.MULTILINE)
    page = comparison_page(compare([first, other]))
    assert "their times and throughputs do not compare" in page and "Quality against speed" not in page
    assert "Quality against speed" in comparison_page(compare([first, second]))


def test_overlapping_intervals_are_said(records: ModuleType, tmp_path: Path) -> None:
    first, second = pair(records, tmp_path)
    text = compare([first, first.model_copy(update={"nodes": second.nodes[:5] + first.nodes[5:]})]).to_text()
    assert "0.883 [0.86, 0.9027] (same)" in text
    row = compare([first, first]).metrics[0].model_copy(update={"values": (0.883, 0.88), "intervals": ((0.86, 0.90), (0.85, 0.91))})
    assert row.cell(1) == "0.88 [0.85, 0.91] (−0.003, intervals overlap)"


def test_what_the_recipes_say_differently(records: ModuleType, tmp_path: Path) -> None:
    first, second = pair(records, tmp_path)
    config = {**first.recipe_config, "steps": [{"step": "quantize", "scheme": "int8-static"}]}
    text = compare([first, second.model_copy(update={"recipe_config": config})]).to_text()
    assert re.search(r"  recipe steps.quantize.scheme +– +int8-static$", text, re.MULTILINE)
    assert "recipe model.source" not in text


def test_runs_with_other_candidates_keep_their_names_and_gaps(records: ModuleType, tmp_path: Path) -> None:
    text = compare([records.passed(tmp_path / "1"), records.several(tmp_path / "2")]).to_text()
    assert "  compile-ort latency_p50_ms" in text
    assert re.search(r"  compile-ort latency_p50_ms +– +1.04 ms", text)


def test_a_run_that_measured_nothing(records: ModuleType, tmp_path: Path) -> None:
    text = compare([records.passed(tmp_path / "1"), records.errored(tmp_path / "2")]).to_text()
    assert "measured no model" in text
    assert "  candidate accuracy" in text
