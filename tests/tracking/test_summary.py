from __future__ import annotations

from pathlib import Path

import pytest
from tracking_records import finished_run, run_record

from ioptim.core.record import NodeRecord, Status
from ioptim.tracking.summary import summarize


def test_one_candidate_stands_under_plain_names_beside_its_baselines(tmp_path: Path) -> None:
    summary = summarize(finished_run(tmp_path))
    assert (summary.candidate, summary.quality) == ("compile@cpu", "accuracy")
    assert summary.metrics["latency_p50_ms"] == 1.0
    assert summary.metrics["speedup"] == 8.0
    assert summary.metrics["speedup_over_runtime_fp32"] == 3.0
    assert summary.metrics["size_ratio"] == 0.25
    assert summary.metrics["quality"] == summary.metrics["accuracy"] == 0.89
    assert summary.metrics["quality_drop"] == pytest.approx(0.01)
    assert summary.metrics["source/latency_p50_ms"] == 8.0
    assert not any(name.startswith("compile") for name in summary.metrics)


def test_of_several_candidates_the_fastest_stands_under_plain_names() -> None:
    subjects = {
        "source@a": {"latency_p50_ms": 8.0},
        "source@b": {"latency_p50_ms": 6.0},
        "compile@a": {"latency_p50_ms": 4.0},
        "compile@b": {"latency_p50_ms": 2.0},
    }
    node = NodeRecord(id="benchmark", step="benchmark", target=None, parents=(), status=Status.PASSED, subjects=subjects)
    summary = summarize(run_record(nodes=(node,)))
    assert summary.candidate == "compile@b"
    assert summary.metrics["speedup"] == 3.0
    assert summary.metrics["compile/a/speedup"] == 2.0
    assert summary.models["compile@a"]["latency_p50_ms"] == 4.0


def test_a_champion_is_a_baseline_and_no_candidate() -> None:
    subjects = {"source": {"latency_p50_ms": 8.0}, "champion": {"latency_p50_ms": 1.0}, "compile": {"latency_p50_ms": 2.0}}
    node = NodeRecord(id="benchmark", step="benchmark", target=None, parents=(), status=Status.PASSED, subjects=subjects)
    summary = summarize(run_record(nodes=(node,)))
    assert summary.candidate == "compile"
    assert (summary.metrics["speedup"], summary.metrics["champion/latency_p50_ms"]) == (4.0, 1.0)


def test_a_run_that_measured_nothing_has_only_its_own_numbers() -> None:
    summary = summarize(run_record(seconds=3.0))
    assert summary.candidate is None
    assert summary.metrics == {"run_seconds": 3.0, "steps_seconds": 0, "steps_cached": 0, "gates": 0, "gates_blocking": 0}
