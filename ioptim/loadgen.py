"""One test of MLPerf's LoadGen inside a model's process: it says which rows are asked for and when, and times the answers.

LoadGen draws the order of the rows and the arrival times from seeds, so that every model gets the same ones where `Load.seed` is. Its
clock starts when a query is issued (`server`: when it was due) and stops when the answer is handed back; what it reports is read from its
own trace, in nanoseconds. Knows no step. Source: https://github.com/mlcommons/inference/tree/master/loadgen
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from ioptim.errors import StepError, UnavailableError

SEEDS = {"qsl_rng_seed": 1, "sample_index_rng_seed": 2, "schedule_rng_seed": 3}
TRACE, DETAIL = "mlperf_log_trace.json", "mlperf_log_detail.txt"


class Scenario(StrEnum):
    """How the model is asked, in the words of MLPerf Inference (https://arxiv.org/abs/1911.02549)."""

    SINGLE_STREAM = "single-stream"
    """One row per query, the next when the last is answered."""
    MULTI_STREAM = "multi-stream"
    """A few rows per query, the next when the last is answered."""
    SERVER = "server"
    """One row per query, arriving at random (Poisson) at a given rate, whether or not the last is answered."""
    OFFLINE = "offline"
    """All rows at once, answered in batches."""


@dataclass(frozen=True)
class Load:
    """What one test asks. `queries` of one row each; of `rows_per_query` in multi-stream; offline that many rows in a single query."""

    scenario: Scenario
    queries: int
    rows: int
    """Rows there are to ask for, numbered from 0."""
    rows_per_query: int = 1
    rate_per_s: float = 1.0
    bound_s: float = 1.0
    percentile: float = 0.99
    seed: int = 0
    """Another number draws another order of the rows and other arrival times."""


@dataclass
class Answers:
    """What LoadGen logged, in the order of issue. `seconds[i]`: of query i; offline: from the start to the answer to row i."""

    seconds: list[float] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    """Sample numbers, of every row asked for."""
    late_s: list[float] = field(default_factory=list)
    """How long after it was due a query was issued: `server` alone."""


class System(Protocol):
    """What answers. `issue` is called in the thread that runs the test (`id` and `index` of each sample), `complete` ends a query."""

    def load(self, indices: Sequence[int]) -> None:
        """Before the clock: the samples that will be asked for, in LoadGen's order."""

    def issue(self, samples: Sequence[Any]) -> None: ...

    def flush(self) -> None:
        """All queries have been issued."""


def library() -> Any:
    try:
        import mlperf_loadgen
    except ImportError as error:
        raise UnavailableError(f"LoadGen cannot be imported ({error}); install it with: pip install mlcommons-loadgen") from error
    return mlperf_loadgen


def run(load: Load, system: System, folder: Path) -> Answers:
    """Run one test; LoadGen's summary and detail logs stay in `folder`.

    Raises:
        StepError: LoadGen did not log every query.
    """
    lg = library()
    folder.mkdir(parents=True, exist_ok=True)
    home = _step_aside()

    def loaded(indices: Sequence[int]) -> None:
        _return(home)
        system.load(indices)

    sut = lg.ConstructSUT(system.issue, system.flush)
    qsl = lg.ConstructQSL(load.rows, load.rows, loaded, _nothing)
    try:
        # The last argument names a file with settings for an audit, which LoadGen would otherwise look for in the working directory.
        lg.StartTestWithLogSettings(sut, qsl, _settings(lg, load), _logs(lg, folder), str(folder / "no-audit"))
    finally:
        _return(home)
        lg.DestroyQSL(qsl)
        lg.DestroySUT(sut)
    return _read(load, folder)


def completer() -> Callable[[Sequence[int]], None]:
    """A function that tells LoadGen that these samples (by id) are answered."""
    lg = library()
    complete, response = lg.QuerySamplesComplete, lg.QuerySampleResponse
    return lambda ids: complete([response(each, 0, 0) for each in ids])


def _nothing(indices: Sequence[int]) -> None:
    """There is nothing to unload."""


def _step_aside() -> set[int]:
    """Move this thread to CPUs that the process does not use, where there are any; returns where it was.

    LoadGen's log thread is born where the thread is that starts a test, before it loads the samples. On the model's own CPU, its work
    every 10 ms made calls of 6.7 ms last 2 % longer.
    """
    if not hasattr(os, "sched_setaffinity"):
        return set()
    home = os.sched_getaffinity(0)
    if others := set(range(os.cpu_count() or 1)) - home:
        with contextlib.suppress(OSError):  # they are not ours to use
            os.sched_setaffinity(0, others)
    return home


def _return(home: set[int]) -> None:
    if home:
        os.sched_setaffinity(0, home)


_NAMES = {
    Scenario.SINGLE_STREAM: "SingleStream",
    Scenario.MULTI_STREAM: "MultiStream",
    Scenario.SERVER: "Server",
    Scenario.OFFLINE: "Offline",
}


def _settings(lg: Any, load: Load) -> Any:
    settings = lg.TestSettings()
    settings.scenario = getattr(lg.TestScenario, _NAMES[load.scenario])
    settings.mode = lg.TestMode.PerformanceOnly
    settings.min_query_count = settings.max_query_count = load.queries
    settings.min_duration_ms = settings.max_duration_ms = 0
    # Whole passes over the rows, each in an order of its own, not draws with replacement. Offline passes through them in any case.
    settings.sample_concatenate_permutation = load.scenario is not Scenario.OFFLINE
    settings.multi_stream_samples_per_query = load.rows_per_query
    settings.server_target_qps = load.rate_per_s
    settings.server_target_latency_ns = int(load.bound_s * 1e9)
    settings.server_target_latency_percentile = load.percentile
    for name, first in SEEDS.items():
        setattr(settings, name, first + len(SEEDS) * load.seed)
    return settings


def _logs(lg: Any, folder: Path) -> Any:
    output = lg.LogOutputSettings()
    output.outdir = str(folder)
    output.copy_summary_to_stdout = False
    logs = lg.LogSettings()
    logs.log_output = output
    logs.enable_trace = True  # the only place where the Python binding tells every latency; its floor is the same with and without
    return logs


_SAMPLE = re.compile(
    rb'"name":"Sample","cat":"default","ph":"b".*?"sample_seq":(\d+),"query_seq":(\d+),"sample_idx":(\d+)'
    rb',"issue_start_ns":(-?\d+),"complete_ns":(\d+)'
)


def _read(load: Load, folder: Path) -> Answers:
    """Latencies of the trace; what is large and says nothing more is removed."""
    samples = sorted(tuple(map(int, found)) for found in _SAMPLE.findall((folder / TRACE).read_bytes()))
    for name in (TRACE, "mlperf_log_accuracy.json"):
        (folder / name).unlink(missing_ok=True)
    expected = load.queries * (load.rows_per_query if load.scenario is Scenario.MULTI_STREAM else 1)
    if len(samples) < expected:
        raise StepError(f"LoadGen logged {len(samples)} of {expected} answers ({load.scenario}); its log is {folder / DETAIL}")
    answers = Answers(rows=[row for _, _, row, _, _ in samples])
    if load.scenario is Scenario.MULTI_STREAM:
        last: dict[int, int] = {}
        for _, query, _, _, done in samples:
            last[query] = max(last.get(query, 0), done)
        answers.seconds = [last[query] / 1e9 for query in sorted(last)]
    else:
        answers.seconds = [done / 1e9 for _, _, _, _, done in samples]
    if load.scenario is Scenario.SERVER:
        answers.late_s = [late / 1e9 for _, _, _, late, _ in samples]
    return answers
