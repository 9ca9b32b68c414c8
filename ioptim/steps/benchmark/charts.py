"""The charts of a benchmark, as data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ioptim.core.step import ChartFigure, Series
from ioptim.loadgen import Scenario
from ioptim.steps.benchmark.rounds import Taken
from ioptim.steps.benchmark.server import Served, Trial

MOST_POINTS = 2000
"""Of one model in a chart: more would make the report large and look the same."""
_WHAT = {Scenario.SINGLE_STREAM: "a call with one row", Scenario.MULTI_STREAM: "a query"}


def of(taken: Mapping[Scenario, Taken], served: Mapping[str, Served]) -> Iterator[ChartFigure]:
    for scenario, one in taken.items():
        if scenario in _WHAT:
            yield _latencies(scenario, one)
    if warmed := {scenario: one for scenario, one in taken.items() if one.warm_ups}:
        yield _warm_up(*next(iter(warmed.items())))
    if any(one.trials for one in served.values()):
        yield _rates(served)


def _latencies(scenario: Scenario, taken: Taken) -> ChartFigure:
    series = []
    for name in taken.blocks:
        milliseconds = sorted(s * 1e3 for block in taken.seconds(name) for s in block)
        series.append(Series(name=name, x=(), y=tuple(float(f"{value:.5g}") for value in _thinned(milliseconds))))
    return ChartFigure(
        title=f"Latency, {scenario.value}",
        kind="distribution",
        x_label="model",
        y_label=f"milliseconds of {_WHAT[scenario]}",
        series=tuple(series),
        note="All calls of all blocks: a second hump is often another input length, a long tail another process on the machine. In the"
        " tables and verdicts a percentile is taken block by block, and the median of the blocks is shown.",
    )


def _warm_up(scenario: Scenario, taken: Taken) -> ChartFigure:
    series = [
        Series(name=name, x=tuple(range(1, len(warm_up.medians) + 1)), y=tuple(median * 1e3 for median in warm_up.medians), line=True)
        for name, warm_up in taken.warm_ups.items()
    ]
    return ChartFigure(
        title=f"Warm-up, {scenario.value}",
        kind="points",
        x_label="warm-up block",
        y_label="median milliseconds",
        series=tuple(series),
        log_y=True,
        note="Measuring begins when three blocks in a row agree within 3 %; none of these blocks is in any figure.",
    )


def _rates(served: Mapping[str, Served]) -> ChartFigure:
    asked = next(iter(served.values())).asked
    series = []
    for name, one in served.items():
        trials = sorted(one.every, key=lambda trial: trial.rate_per_s)
        if not trials:
            continue
        x = tuple(round(trial.rate_per_s, 3) for trial in trials)
        series.append(Series(name=name, x=x, y=tuple(trial.tail_s * 1e3 for trial in trials), labels=tuple(map(_label, trials))))
    rates = [x for each in series for x in each.x if not isinstance(x, str)]
    bound = Series(name="bound", x=(min(rates) * 0.9, max(rates) * 1.1), y=(asked.latency_bound_ms,) * 2, line=True)
    return ChartFigure(
        title=f"Server: {asked.p} against the rate of arrivals",
        kind="points",
        x_label="requests per second",
        y_label=f"{asked.p} in milliseconds",
        series=(*series, bound),
        log_y=True,
        note="Each point is one trial; the highest rate below the line is what the model serves.",
    )


def _label(trial: Trial) -> str:
    return f"{trial.setting}, mean batch {trial.mean_batch:.3g}"


def _thinned(ordered: Sequence[float]) -> Sequence[float]:
    """Evenly spaced order statistics, the least and the most among them: the same distribution in fewer points."""
    n = len(ordered)
    if n <= MOST_POINTS:
        return ordered
    return [ordered[round(i * (n - 1) / (MOST_POINTS - 1))] for i in range(MOST_POINTS)]
