from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ioptim import timing
from ioptim.timing import Machine


def scripted(*medians: float) -> Callable[[], list[float]]:
    """Blocks with these medians."""
    left = list(medians)
    return lambda: [left.pop(0)] * 4


def test_a_block_calls_the_feeds_in_turn_from_its_start() -> None:
    seen: list[str] = []
    seconds = timing.timed_block(seen.append, ["a", "b", "c"], 5, start=2)
    assert seen == ["c", "a", "b", "c", "a"]
    assert len(seconds) == 5
    assert all(0 <= s < 1 for s in seconds)


def test_the_collector_rests_during_a_block_and_goes_on_after() -> None:
    states: list[bool] = []
    timing.timed_block(lambda feed: states.append(gc.isenabled()), [0], 2)
    assert states == [False, False]
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError):
        timing.timed_block(lambda feed: 1 / feed, [0], 1)
    assert gc.isenabled()


def test_warm_up_ends_when_three_blocks_agree() -> None:
    warm = timing.warm_up(scripted(2.0, 1.5, 1.0, 1.02, 1.03, 9.0))
    assert warm == timing.WarmUp((2.0, 1.5, 1.0, 1.02, 1.03), True)


def test_warm_up_is_capped_and_says_so() -> None:
    assert timing.warm_up(scripted(1, 2, 1, 2, 1, 2), max_blocks=5) == timing.WarmUp((1, 2, 1, 2, 1), False)
    assert timing.warm_up(scripted(1, 2, 1), max_seconds=0) == timing.WarmUp((1,), False)


def test_turns_turn_round() -> None:
    assert [timing.turn("abc", i) for i in range(3)] == ["abc", "cba", "abc"]


@pytest.mark.parametrize(("quantile", "n"), [(0.5, 5), (0.9, 29), (0.95, 59), (0.99, 299), (0.999, 2995)])
def test_samples_that_a_percentile_needs(quantile: float, n: int) -> None:
    assert timing.fewest_for(quantile) == n
    assert timing.percentile([1.0] * (n - 1), quantile) is None
    assert timing.percentile([1.0] * n, quantile) == 1.0


def test_percentiles_interpolate_between_order_statistics() -> None:
    samples = [float(i) for i in range(100)]
    assert timing.percentile(samples[::-1], 0.5) == 49.5
    assert timing.percentile(samples, 0.9) == pytest.approx(89.1)


def test_short_blocks_are_taken_together_for_a_tail() -> None:
    blocks = [[float(i)] * 10 for i in range(7)]
    assert len(timing.block_percentiles(blocks, 0.9)) == 2  # 30 and 40 samples: the seventh block joins the second three
    assert timing.block_percentiles(blocks, 0.99) == []
    assert timing.block_percentiles([[1.0] * 29, [2.0] * 29], 0.9) == [1.0, 2.0]


def test_conditions_between_two_moments() -> None:
    before = Machine(at=100, cpus=2, busy_s=50, stolen_s=1, frequency_mhz=2000, load_average=1.5)
    after = Machine(at=110, cpus=2, busy_s=66, stolen_s=2, frequency_mhz=2600, load_average=3)
    assert timing.conditions(before, after, 12.0) == {
        "stolen_share": 0.05,
        "others_share": 0.2,
        "load_average": 1.5,
        "frequency_before_mhz": 2000,
        "frequency_after_mhz": 2600,
    }
    assert timing.conditions(Machine(at=0, cpus=1), Machine(at=1, cpus=1), None) == {}


def test_a_disturbed_machine_is_told_in_words() -> None:
    assert timing.disturbances({"others_share": 0.31, "stolen_share": 0.08, "load_average": 3.21}) == [
        "other processes used 31% of the CPU time while this was measured (load average 3.2 before); repeat it on an idle machine",
        "the hypervisor gave 8% of the CPU time to other machines while this was measured",
    ]
    assert timing.disturbances({"others_share": 0.02, "stolen_share": 0.001}) == []
    assert timing.disturbances({}) == []


@pytest.mark.parametrize("after", [1880, 2120])
def test_a_cpu_that_changes_its_clock_is_told(after: float) -> None:
    assert timing.disturbances({"frequency_before_mhz": 2000, "frequency_after_mhz": after}) == [
        f"the CPU's clock went from 2000 to {after} MHz while this was measured; fix its frequency, or look to its cooling and power limit"
    ]
    assert timing.disturbances({"frequency_before_mhz": 2000, "frequency_after_mhz": (after + 2000) / 2}) == []
    assert timing.disturbances({"frequency_after_mhz": after}) == []


def test_reads_the_counters_of_the_cpus_it_may_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1}, raising=False)
    ticks = os.sysconf("SC_CLK_TCK")
    (tmp_path / "stat").write_text(
        f"cpu 9 9 9 9 9 9 9 9 0 0\ncpu0 9 9 9 9 9 9 9 9 0 0\ncpu1 {ticks} 0 {ticks} 9 9 0 0 {ticks} 0 0\nintr 1\n"
    )
    (tmp_path / "cpuinfo").write_text("cpu MHz\t\t: 1000.0\n\ncpu MHz\t\t: 3000.0\n")
    now = Machine.now(tmp_path)
    assert (now.cpus, now.busy_s, now.stolen_s, now.frequency_mhz) == (1, 2, 1, 3000)
    nothing = Machine.now(tmp_path / "none")
    assert (nothing.busy_s, nothing.stolen_s, nothing.frequency_mhz) == (None, None, None)


def test_cpus_of_other_cores_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    for cpu in range(4):
        file = tmp_path / f"cpu{cpu}/topology/thread_siblings_list"
        file.parent.mkdir(parents=True)
        file.write_text("0-1" if cpu < 2 else "2-3")
    assert timing.cpus_for(2, tmp_path) == [0, 2]
    assert timing.cpus_for(3, tmp_path) == [0, 1, 2]
    assert timing.cpus_for(8, tmp_path) == [0, 1, 2, 3]
