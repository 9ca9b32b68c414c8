"""Numbers as people read them."""

from __future__ import annotations

import pytest

from ioptim.report.figures import change, seconds, shown


@pytest.mark.parametrize(
    ("metric", "value", "said"),
    [
        ("latency_p50_ms", 1.0391, "1.039 ms"),
        ("latency_offline_p50_ms", 12345.6, "12\u202f346 ms"),
        ("load_s", 0.25, "0.25 s"),
        ("throughput_per_s", 1090.4, "1\u202f090 /s"),
        ("size_bytes", 22_972_869, "22.97 MB"),
        ("size_bytes", 512, "512 B"),
        ("accuracy", 0.88647, "0.8865"),
        ("accuracy_drop", -0.0034, "−0.0034"),
        ("accuracy", None, "–"),
    ],
)
def test_shown(metric: str, value: float | None, said: str) -> None:
    assert shown(metric, value) == said


@pytest.mark.parametrize(
    ("metric", "candidate", "baseline", "said", "better"),
    [
        ("latency_p50_ms", 1.0, 2.9, "2.9× faster", True),
        ("latency_p50_ms", 3.0, 1.5, "2× slower", False),
        ("size_bytes", 25.0, 100.0, "4× smaller", True),
        ("throughput_per_s", 50.0, 100.0, "2× lower", False),
        ("latency_p50_ms", 1.001, 1.0, "same", None),
        ("latency_p50_ms", 0.0, 1.0, "−1", True),
        ("accuracy", 0.9, 0.8, "+0.1", True),
    ],
)
def test_change(metric: str, candidate: float, baseline: float, said: str, better: bool | None) -> None:
    moved = change(metric, candidate, baseline, metric == "accuracy")
    assert moved is not None and (moved.text, moved.better) == (said, better)


def test_no_value_no_change_and_no_direction_no_judgement() -> None:
    assert change("accuracy", None, 1.0, True) is None
    moved = change("accuracy", 0.5, 1.0, None)
    assert moved is not None and moved.better is None


def test_seconds() -> None:
    assert [seconds(value) for value in (0.012, 3.14159, 119.6, 192.0)] == ["12 ms", "3.1 s", "2 min 0 s", "3 min 12 s"]
