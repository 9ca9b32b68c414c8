"""What a terminal shows at the end of a run."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

from ioptim.core.record import RunRecord, TrackingState
from ioptim.report import summary_text


def test_the_end_of_a_run_that_passed(records: ModuleType, tmp_path: Path) -> None:
    text = summary_text(records.passed(tmp_path))
    assert text.startswith("bert-sst2-int8: Passed: all 4 gates  (54.3 s, run 20261121-081832-bert-sst2-int8-3f2a91)\n")
    assert "  pass       size_bytes of compile is 0.2528 times source's (22.97 MB against 90.87 MB): inside max_ratio 0.35\n" in text
    assert "  latency_p50_ms      1.04 ms   7.9 ms    (7.6× faster)    2.9 ms        (2.79× faster)\n" in text
    assert "  warning: quantize: 1 MatMul left in float: /classifier/MatMul is excluded by default\n" in text
    assert text.endswith("  MLflow    logged, http://127.0.0.1:5000/#/runs/1\n  report    runs/20261121/report.html")
    assert "\033" not in text and "secret" not in text


def test_verdicts_that_do_not_pass(records: ModuleType, tmp_path: Path) -> None:
    text = summary_text(records.gate_failed(tmp_path))
    assert "Gate failed: 1 of 4 gates failed, 1 undecided, 2 passed" in text
    assert "\n  fail       accuracy of compile fell by" in text
    assert "blocks would decide at this rate (the recipe only warns of an undecided verdict)\n" in text


def test_errors_are_shown_whole(records: ModuleType, tmp_path: Path) -> None:
    text = summary_text(records.errored(tmp_path))
    assert "Error in quantize" in text
    assert "\n  quantize: quantize was ended: it used more than 4 GB of memory\n      terminate called after" in text


def test_several_candidates_are_rows(records: ModuleType, tmp_path: Path) -> None:
    text = summary_text(records.several(tmp_path))
    assert "  model                  accuracy  latency_p50_ms  size_bytes\n" in text
    assert "  compile-ort            0.883     1.04 ms         23 MB\n" in text


def test_colour_changes_nothing_but_the_colour(records: ModuleType, tmp_path: Path) -> None:

    run = records.gate_failed(tmp_path)
    coloured = summary_text(run, colour=True)
    assert "\033[31mfail     \033[0m" in coloured
    assert re.sub(r"\033\[\d+m", "", coloured) == summary_text(run)


def test_a_run_that_has_barely_begun(records: ModuleType) -> None:
    bare = RunRecord(run_id="r", recipe="bare", hardware=records.HARDWARE, tracking=TrackingState(state="pending"))
    tracking = "MLflow    could not be reached; `ioptim sync` uploads the run later"
    assert summary_text(bare) == f"bare: Not finished  (0 ms, run r)\n\n  {tracking}"


def test_many_warnings_are_counted(records: ModuleType, tmp_path: Path) -> None:
    run = records.passed(tmp_path).model_copy(update={"warnings": tuple(f"warning {i}" for i in range(7))})
    text = summary_text(run)
    assert "  warning: warning 4\n  and 3 more warnings, all in the report\n" in text
