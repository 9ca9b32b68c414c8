"""Verdicts of slices: the worst is named, the others are a fold away."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

from ioptim.core.gate import GateResult, SliceResult, Verdict
from ioptim.core.record import RunRecord
from ioptim.report.verdicts import verdicts


def sliced(run: RunRecord, verdict: Verdict) -> RunRecord:
    first = run.gates[0]
    slices = (
        SliceResult(
            name="31-62 tokens",
            n=218,
            candidate_value=0.80,
            baseline_value=0.88,
            estimate=0.08,
            interval=(0.03, 0.14),
            confidence=0.9875,
            verdict=verdict,
        ),
        SliceResult(name="<b>short</b>", n=4, candidate_value=0.75, baseline_value=1.0, verdict=Verdict.UNDECIDED),
    )
    result: GateResult = first.model_copy(
        update={
            "gate": first.gate.model_copy(update={"slices": "input_length"}),
            "slice": "31-62 tokens",
            "slices": slices,
            "verdict": verdict,
        }
    )
    nodes = tuple(node.model_copy(update={"gates": (result,) if node.id == "validate" else ()}) for node in run.nodes)
    return run.model_copy(update={"nodes": nodes})


def test_a_slice_that_fails_is_named_and_the_table_is_open(records: ModuleType, tmp_path: Path) -> None:
    html = str(verdicts(sliced(records.passed(tmp_path), Verdict.FAIL)))
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))
    assert "accuracy of compile against source (input_length: 31-62 tokens)" in text
    assert "0 of 2 slices of input_length pass" in text and '<details open class="slices">' in html
    assert "input_length verdict rows source compile drop interval" in text
    assert "31-62 tokens fail 218 0.88 0.8 0.08 0.03 to 0.14 at 98.8 %" in text
    assert "&lt;b&gt;short&lt;/b&gt; undecided 4 1 0.75 – –" in text


def test_slices_that_pass_are_folded(records: ModuleType, tmp_path: Path) -> None:
    html = str(verdicts(sliced(records.passed(tmp_path), Verdict.PASS)))
    assert "1 of 2 slices of input_length pass" in html and '<details class="slices">' in html
