from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from ioptim import loadgen
from ioptim.errors import UnavailableError
from ioptim.loadgen import Load, Scenario

pytest.importorskip("mlperf_loadgen", reason="mlcommons-loadgen is not installed")


class Echo:
    """Answers at once, or after a while, and remembers what it was asked."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.loaded: list[int] = []
        self.asked: list[list[int]] = []
        self.flushed = False
        self.complete = loadgen.completer()

    def load(self, indices: Sequence[int]) -> None:
        self.loaded = list(indices)

    def issue(self, samples: Sequence[Any]) -> None:
        self.asked.append([sample.index for sample in samples])
        time.sleep(self.seconds)
        self.complete([sample.id for sample in samples])

    def flush(self) -> None:
        self.flushed = True


def test_single_stream_makes_whole_passes_over_the_rows(tmp_path: Path) -> None:
    first, again = Echo(0.002), Echo()
    answers = loadgen.run(Load(Scenario.SINGLE_STREAM, 12, 4), first, tmp_path)
    assert first.flushed
    assert sorted(first.loaded) == [0, 1, 2, 3]
    rows = [row for (row,) in first.asked]
    assert [sorted(rows[i : i + 4]) for i in (0, 4, 8)] == [[0, 1, 2, 3]] * 3
    assert answers.rows == rows
    assert len(answers.seconds) == 12
    assert min(answers.seconds) >= 0.002
    loadgen.run(Load(Scenario.SINGLE_STREAM, 12, 4), again, tmp_path)
    assert again.asked == first.asked, "every model must be asked the same"


def test_multi_stream_times_a_query_to_its_last_row(tmp_path: Path) -> None:
    system = Echo(0.002)
    answers = loadgen.run(Load(Scenario.MULTI_STREAM, 5, 16, rows_per_query=8), system, tmp_path)
    assert [len(rows) for rows in system.asked] == [8] * 5
    assert len(answers.seconds) == 5
    assert len(answers.rows) == 40
    assert min(answers.seconds) >= 0.002


def test_offline_asks_for_all_rows_in_one_query(tmp_path: Path) -> None:
    system = Echo()
    answers = loadgen.run(Load(Scenario.OFFLINE, 12, 4), system, tmp_path)
    assert system.asked == [system.loaded * 3]
    assert len(answers.seconds) == 12


def test_server_requests_arrive_by_the_schedule(tmp_path: Path) -> None:
    system = Echo()
    answers = loadgen.run(Load(Scenario.SERVER, 50, 4, rate_per_s=2000, bound_s=0.01), system, tmp_path)
    assert len(answers.seconds) == len(answers.late_s) == len(system.asked) == 50
    assert all(late <= seconds for late, seconds in zip(answers.late_s, answers.seconds, strict=True))


def test_a_seed_draws_other_rows_and_arrivals_and_the_same_again(tmp_path: Path) -> None:
    """When each request was issued, less how late that was: when it was due."""

    class Clock(Echo):
        def __init__(self) -> None:
            super().__init__()
            self.at: list[float] = []

        def issue(self, samples: Sequence[Any]) -> None:
            self.at.append(time.perf_counter())
            super().issue(samples)

    def drawn(seed: int) -> tuple[list[list[int]], list[float]]:
        system = Clock()
        answers = loadgen.run(Load(Scenario.SERVER, 20, 8, rate_per_s=100, seed=seed), system, tmp_path)
        due = [at - late for at, late in zip(system.at, answers.late_s, strict=True)]
        return system.asked, [b - a for a, b in pairwise(due)]

    (rows, gaps), (rows_again, gaps_again), (other_rows, other_gaps) = drawn(0), drawn(0), drawn(1)
    assert rows == rows_again != other_rows
    assert gaps == pytest.approx(gaps_again, abs=5e-3)
    assert max(abs(a - b) for a, b in zip(gaps, other_gaps, strict=True)) > 1e-2


def test_only_loadgens_results_are_kept(tmp_path: Path) -> None:
    loadgen.run(Load(Scenario.SINGLE_STREAM, 100, 4), Echo(), tmp_path / "source")
    assert sorted(path.name for path in (tmp_path / "source").iterdir()) == ["mlperf_log_detail.txt", "mlperf_log_summary.txt"]
    assert "Scenario : SingleStream" in (tmp_path / "source" / "mlperf_log_summary.txt").read_text()


def test_the_model_stays_on_its_cpus(tmp_path: Path) -> None:
    """And LoadGen's own thread does not: it is born while this one is elsewhere."""
    if not hasattr(os, "sched_setaffinity") or len(before := os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two CPUs and a system that binds threads to them")
    cpu = {min(before)}
    system = Echo()
    monitored: list[set[int]] = []
    system.flush = lambda: monitored.extend(os.sched_getaffinity(int(task.name)) for task in Path("/proc/self/task").iterdir())  # type: ignore[method-assign]
    os.sched_setaffinity(0, cpu)
    try:
        loadgen.run(Load(Scenario.SINGLE_STREAM, 4, 4), system, tmp_path)
        assert os.sched_getaffinity(0) == cpu
    finally:
        os.sched_setaffinity(0, before)
    assert cpu in monitored
    assert set(range(os.cpu_count() or 1)) - cpu in monitored


def test_loadgen_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
    with pytest.raises(UnavailableError, match=r"^LoadGen cannot be imported \(.*\); install it with: pip install mlcommons-loadgen$"):
        loadgen.library()
