"""Time measured so that it can be believed: warm-up to a stated rule, models in turn, raw samples kept. Knows no step.

A *block* is one uninterrupted series of calls of one subject. Subjects take blocks in turn and the order turns round every other
round (A B C, C B A, A B C, ...), so that a drift of the machine falls on all of them alike and block i of every subject was
measured side by side.
"""

from __future__ import annotations

import gc
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFIDENCE = 0.95
"""Of the claim that the largest sample is not below the true quantile; see `fewest_for`."""
STABLE_BLOCKS = 3
TOLERANCE = 0.03
BUSY_SHARE = 0.05
STOLEN_SHARE = 0.01
"""Shares of the CPU time from which `disturbances` speaks."""
FREQUENCY_CHANGE = 0.05
"""Of the CPU's clock, from which it does: a processor that throttles, or one that had not yet come up to speed."""


def timed_block(call: Callable[[Any], Any], feeds: Sequence[Any], n: int, start: int = 0) -> list[float]:
    """Seconds of each of n calls, over `feeds` in turn from number `start` on. Python's garbage collector rests meanwhile.

    The clock covers the call and nothing else, to the nanosecond of `perf_counter_ns`.
    """
    clock, count = time.perf_counter_ns, len(feeds)
    seconds = [0.0] * n
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for i in range(n):
            feed = feeds[(start + i) % count]
            begin = clock()
            call(feed)
            seconds[i] = (clock() - begin) / 1e9
    finally:
        if collecting:
            gc.enable()
    return seconds


@dataclass(frozen=True)
class WarmUp:
    """The block medians (seconds) of a warm-up, and whether it ended because they were stable."""

    medians: tuple[float, ...]
    stable: bool


def warm_up(block: Callable[[], Sequence[float]], max_seconds: float = 10.0, max_blocks: int = 20) -> WarmUp:
    """Run blocks (each returns the seconds of its calls) until the medians of the last three lie within 3 % of each other, or a cap is
    reached. For the medians to compare, every block must hold the same work.
    """
    medians: list[float] = []
    start = time.monotonic()
    while len(medians) < max_blocks and (time.monotonic() - start < max_seconds or not medians):
        medians.append(statistics.median(block()))
        last = medians[-STABLE_BLOCKS:]
        if len(last) == STABLE_BLOCKS and max(last) <= min(last) * (1 + TOLERANCE):
            return WarmUp(tuple(medians), True)
    return WarmUp(tuple(medians), False)


def turn(names: Sequence[str], number: int) -> Sequence[str]:
    """The order of round `number`, counted from 0: A B C, C B A, A B C, ..."""
    return names if number % 2 == 0 else names[::-1]


# ---------------------------------------------------------------- what samples can say


def fewest_for(quantile: float) -> int:
    """Samples needed before a quantile may be reported: 5 for p50, 29 for p90, 299 for p99.

    With n samples the largest lies above the true quantile q with probability 1 - q^n; below 95 % the tail may simply not have
    been seen. Source: Wilks, Determination of Sample Sizes for Setting Tolerance Limits, Ann. Math. Statist. 12 (1941) 91-96.
    """
    return math.ceil(math.log(1 - CONFIDENCE) / math.log(quantile))


def percentile(samples: Sequence[float], quantile: float) -> float | None:
    """The quantile by linear interpolation between order statistics (NumPy's default); None when the samples are too few for it."""
    if len(samples) < fewest_for(quantile):
        return None
    ordered = sorted(samples)
    place = quantile * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def block_percentiles(blocks: Sequence[Sequence[float]], quantile: float) -> list[float]:
    """The quantile of each block; where a block is too short for it, of as few neighbouring blocks together as are long enough.

    What remains at the end and is too short joins the last of them. Empty when all blocks together are too short.
    """
    groups: list[list[float]] = []
    current: list[float] = []
    for block in blocks:
        current += block
        if len(current) >= fewest_for(quantile):
            groups.append(current)
            current = []
    if groups:
        groups[-1] += current
    return [value for group in groups if (value := percentile(group, quantile)) is not None]


# ---------------------------------------------------------------- the machine meanwhile


@dataclass(frozen=True)
class Machine:
    """Counters of the machine at one moment, over the logical CPUs this process may use; None where the system does not tell."""

    at: float
    cpus: int
    busy_s: float | None = None
    stolen_s: float | None = None
    frequency_mhz: float | None = None
    load_average: float | None = None

    @classmethod
    def now(cls, proc: Path = Path("/proc")) -> Machine:
        cpus = allowed_cpus()
        busy, stolen = _cpu_times(proc, cpus)
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        return cls(time.monotonic(), len(cpus), busy, stolen, _frequency(proc, cpus), load)


def conditions(before: Machine, after: Machine, own_s: float | None) -> dict[str, float]:
    """What else the machine did between two moments, as far as it tells.

    `stolen_share`: time the hypervisor gave to others, and `others_share`: time that processes other than the measured ones
    (`own_s` seconds) used, both of the CPU time there was. `load_average`: before the measurement began. `frequency_before_mhz` and
    `frequency_after_mhz`: the CPUs' clock at the two moments.
    """
    there = (after.at - before.at) * before.cpus
    found: dict[str, float] = {}
    if before.stolen_s is not None and after.stolen_s is not None:
        found["stolen_share"] = (after.stolen_s - before.stolen_s) / there
    if before.busy_s is not None and after.busy_s is not None and own_s is not None:
        found["others_share"] = max(0.0, after.busy_s - before.busy_s - own_s) / there
    read = {
        "load_average": before.load_average,
        "frequency_before_mhz": before.frequency_mhz,
        "frequency_after_mhz": after.frequency_mhz,
    }
    found |= {name: value for name, value in read.items() if value is not None}
    return {name: round(value, 4) for name, value in found.items()}


def disturbances(found: Mapping[str, float]) -> list[str]:
    """What a reader must know of `conditions` before believing a figure, in words; empty on a quiet machine."""
    others, stolen = found.get("others_share", 0.0), found.get("stolen_share", 0.0)
    said = []
    if others > BUSY_SHARE:
        text = f"other processes used {others:.0%} of the CPU time while this was measured"
        said.append(f"{text} (load average {found.get('load_average', 0):.2g} before); repeat it on an idle machine")
    if stolen > STOLEN_SHARE:
        said.append(f"the hypervisor gave {stolen:.0%} of the CPU time to other machines while this was measured")
    clock_before, clock_after = found.get("frequency_before_mhz"), found.get("frequency_after_mhz")
    if clock_before and clock_after and abs(clock_after / clock_before - 1) > FREQUENCY_CHANGE:
        text = f"the CPU's clock went from {clock_before:.0f} to {clock_after:.0f} MHz while this was measured"
        said.append(f"{text}; fix its frequency, or look to its cooling and power limit")
    return said


def allowed_cpus() -> list[int]:
    """Logical CPUs by number that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def cpus_for(threads: int, sysfs: Path = Path("/sys/devices/system/cpu")) -> list[int]:
    """The CPUs for a subject of so many threads: one of each physical core first, their siblings only when those are used up."""
    cores: dict[str, list[int]] = {}
    for cpu in allowed_cpus():
        try:
            core = (sysfs / f"cpu{cpu}/topology/thread_siblings_list").read_text()
        except OSError:
            core = str(cpu)
        cores.setdefault(core, []).append(cpu)
    by_turn = [siblings[i] for i in range(max(map(len, cores.values()))) for siblings in cores.values() if i < len(siblings)]
    return sorted(by_turn[:threads])


def _cpu_times(proc: Path, cpus: Sequence[int]) -> tuple[float | None, float | None]:
    """Seconds that these CPUs were busy, and that were stolen from them, since boot. Fields: see proc_stat(5)."""
    try:
        lines = (proc / "stat").read_text().splitlines()
    except OSError:
        return None, None
    wanted, tick = {f"cpu{cpu}" for cpu in cpus}, os.sysconf("SC_CLK_TCK")
    rows = [list(map(int, line.split()[1:9])) for line in lines if line.split()[0] in wanted]
    busy = sum(user + nice + system + irq + softirq for user, nice, system, _, _, irq, softirq, _ in rows)
    return busy / tick, sum(row[7] for row in rows) / tick


def _frequency(proc: Path, cpus: Sequence[int]) -> float | None:
    """Mean clock of these CPUs now, in MHz."""
    try:
        lines = (proc / "cpuinfo").read_text().splitlines()
    except OSError:
        return None
    values = [float(line.partition(":")[2]) for line in lines if line.startswith("cpu MHz")]
    mine = [values[cpu] for cpu in cpus if cpu < len(values)]
    return statistics.fmean(mine) if mine else None
