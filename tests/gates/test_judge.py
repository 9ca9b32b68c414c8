"""What a gate answers, and the sentence that a user reads."""

from __future__ import annotations

import random

import pytest

from ioptim.core.gate import Gate, GateResult, Verdict
from ioptim.core.metrics import Kind, Metric, Samples
from ioptim.gates import judge

pytest.importorskip("numpy")

ACCURACY = Metric(name="accuracy", higher_is_better=True, description="rows answered correctly")
NDCG = Metric(name="ndcg_at_10", higher_is_better=True, description="ranking", continuous=True)
LOSS = Metric(name="loss", higher_is_better=False, description="mean loss")
LATENCY = Metric(name="latency_p50_ms", higher_is_better=False, description="median time", unit="ms")
THROUGHPUT = Metric(name="throughput_per_s", higher_is_better=True, description="rows in a second", unit="rows/s")
SIZE = Metric(name="size_bytes", higher_is_better=False, description="on disk", unit="bytes")


def answers(rows: int, right: int, lost: int = 0, won: int = 0) -> dict[str, tuple[float | None, ...]]:
    """Source right on the first `right` rows; the candidate loses `lost` of them and wins `won` of the others."""
    source = [1.0] * right + [0.0] * (rows - right)
    candidate = [0.0] * lost + source[lost:right] + [1.0] * won + source[right + won :]
    return {"int8": tuple(candidate), "source": tuple(source)}


def accuracy(rows: int = 872, right: int = 773, lost: int = 0, won: int = 0) -> Samples:
    return Samples(metric=ACCURACY, kind=Kind.PAIRED_ROWS, values=answers(rows, right, lost, won))


def scores(metric: Metric, kind: Kind, **values: list[float] | list[float | None]) -> Samples:
    return Samples(metric=metric, kind=kind, values={name.replace("_", "-"): tuple(column) for name, column in values.items()})


def one(samples: Samples, **bound: object) -> GateResult:
    (result,) = judge(Gate(metric=samples.metric.name, **bound), [samples], ["int8"])
    return result


def blocks(centre: float, n: int = 20, seed: int = 0) -> list[float]:
    rng = random.Random(seed)
    return [centre * rng.uniform(0.95, 1.05) for _ in range(n)]


# --- rows of 0 and 1


def test_a_drop_well_inside_passes() -> None:
    result = one(accuracy(lost=9, won=6), max_drop=0.02)
    assert result.verdict is Verdict.PASS
    assert result.reason == (
        "accuracy of int8 fell by 0.00344 against source (0.8865 to 0.883;"
        " 95 % interval of the drop -0.0059 to 0.0135, 872 rows): inside max_drop 0.02"
    )
    assert (result.n, result.candidate, result.baseline) == (872, "int8", "source")
    assert result.candidate_value == pytest.approx(770 / 872)
    assert result.estimate == pytest.approx(3 / 872)


def test_a_drop_wholly_outside_fails() -> None:
    result = one(accuracy(lost=40, won=5), max_drop=0.01)
    assert result.verdict is Verdict.FAIL
    assert result.reason.endswith("95 % interval of the drop 0.0264 to 0.0567, 872 rows): outside max_drop 0.01")


def test_what_the_rows_cannot_tell_is_undecided_and_names_the_rows_that_could() -> None:
    result = one(accuracy(lost=9, won=6), max_drop=0.01)
    assert result.verdict is Verdict.UNDECIDED
    assert result.reason.endswith(": undecided against max_drop 0.01; about 1 900 rows would decide at this rate")
    again = one(accuracy(rows=1900, right=1684, lost=20, won=14), max_drop=0.01)
    assert again.verdict is Verdict.PASS


def test_an_estimate_on_the_bound_can_never_be_decided() -> None:
    result = one(accuracy(rows=1000, right=900, lost=15, won=5), max_drop=0.01)
    assert result.verdict is Verdict.UNDECIDED
    assert result.reason.endswith("no number of rows would decide, for the estimate sits on the bound")


def test_a_rate_close_to_the_bound_needs_more_rows_than_anyone_has() -> None:
    result = one(accuracy(rows=1000, right=900, lost=15, won=5), max_drop=0.010001)
    assert result.reason.endswith("more than 10 000 000 rows would be needed at this rate")


@pytest.mark.parametrize("max_drop", [0.0, 0.001, 0.01])
def test_the_same_answer_on_every_row_passes_any_bound(max_drop: float) -> None:
    result = one(accuracy(), max_drop=max_drop)
    assert result.verdict is Verdict.PASS
    assert result.reason.startswith(
        "accuracy of int8 is source's on every row (0.8865; 95 % interval of the drop -0.00439 to 0.00439, 872 rows)"
    )
    assert result.reason.endswith("too few to rule out more") is (max_drop < 0.004)


def test_an_identical_candidate_never_fails_in_100_repetitions() -> None:
    rng = random.Random(1)
    for _ in range(100):
        column = [float(rng.random() < 0.9) for _ in range(200)]
        assert one(scores(ACCURACY, Kind.PAIRED_ROWS, int8=column, source=column), max_drop=0.01).verdict is Verdict.PASS
        column = [rng.random() for _ in range(30)]
        assert one(scores(NDCG, Kind.PAIRED_ROWS, int8=column, source=column), max_drop=0.0).verdict is Verdict.PASS


def test_an_equally_fast_candidate_is_not_called_slower_in_100_repetitions() -> None:
    """Two-sided 95 %: a false alarm in 2.5 % of the repetitions, fewer because the interval of the median is conservative."""
    verdicts, allowing = [], []
    for seed in range(100):
        pair = scores(LATENCY, Kind.BLOCKS, int8=blocks(2.0, seed=seed), source=blocks(2.0, seed=1000 + seed))
        verdicts.append(one(pair, max_ratio=1.0).verdict)
        allowing.append(one(pair, max_ratio=1.05).verdict)
    assert verdicts.count(Verdict.FAIL) <= 4
    assert verdicts.count(Verdict.PASS) <= 6
    assert allowing.count(Verdict.FAIL) == 0, "before a bound that is not the truth itself there is nothing to be unlucky with"
    assert allowing.count(Verdict.PASS) >= 95


def test_a_candidate_of_equal_quality_is_not_called_worse_in_100_repetitions() -> None:
    """A true drop of 0 before `max_drop: 0`: 2.5 false alarms are nominal, for answers and for scores. 5 at most with the noise."""
    rng = random.Random(6)
    failed = {ACCURACY.name: 0, NDCG.name: 0}
    for _ in range(100):
        source = [float(rng.random() < 0.9) for _ in range(200)]
        candidate = [float(rng.random() < 0.9) if rng.random() < 0.3 else value for value in source]
        failed[ACCURACY.name] += one(scores(ACCURACY, Kind.PAIRED_ROWS, int8=candidate, source=source), max_drop=0).verdict is Verdict.FAIL
        source = [rng.random() for _ in range(200)]
        candidate = [rng.random() if rng.random() < 0.3 else value for value in source]
        failed[NDCG.name] += one(scores(NDCG, Kind.PAIRED_ROWS, int8=candidate, source=source), max_drop=0).verdict is Verdict.FAIL
    assert all(count <= 5 for count in failed.values()), failed
    assert sum(failed.values()) > 0, "a test that never alarms would not notice intervals that are far too wide"


def test_all_rows_right_in_both() -> None:
    assert one(accuracy(rows=100, right=100), max_drop=0.01).verdict is Verdict.PASS


def test_too_few_rows_for_any_verdict() -> None:
    result = one(accuracy(rows=9, right=9), max_drop=0.5)
    assert result.verdict is Verdict.UNDECIDED
    assert result.reason == "9 rows of accuracy cannot decide at 95 % confidence: at least 10 can"
    assert one(scores(ACCURACY, Kind.PAIRED_ROWS, int8=[], source=[]), max_drop=0.5).verdict is Verdict.UNDECIDED


def test_scores_need_more_rows_than_answers() -> None:
    result = one(scores(NDCG, Kind.PAIRED_ROWS, int8=[0.5] * 29, source=[0.4] * 29), max_drop=0.5)
    assert result.reason == "29 rows of ndcg_at_10 cannot decide at 95 % confidence: at least 30 can"


@pytest.mark.parametrize("hole", [None, float("nan")])
def test_rows_without_a_number_fail(hole: float | None) -> None:
    holed = scores(NDCG, Kind.PAIRED_ROWS, int8=[hole, 0.5, hole] + [0.5] * 20, source=[0.5] * 23)
    result = one(holed, max_drop=1)
    assert result.verdict is Verdict.FAIL
    assert result.reason == "ndcg_at_10 of int8 is not a number in 2 of 23 rows"


def test_confidence_moves_the_verdict() -> None:
    assert one(accuracy(lost=9, won=6), max_drop=0.01, confidence=0.75).verdict is Verdict.PASS


# --- scores, blocks, exact values


def test_continuous_scores() -> None:
    rng = random.Random(2)
    source = [rng.random() for _ in range(400)]
    near = [max(0.0, s - rng.choice([0, 0, 0, 0, 0.05, -0.04])) for s in source]
    result = one(scores(NDCG, Kind.PAIRED_ROWS, int8=near, source=source), max_drop=0.01)
    assert result.verdict is Verdict.PASS
    assert result.interval is not None and result.interval[0] < result.estimate < result.interval[1] < 0.01
    far = [s - 0.1 for s in near]
    assert one(scores(NDCG, Kind.PAIRED_ROWS, int8=far, source=source), max_drop=0.01).verdict is Verdict.FAIL


def test_a_continuous_score_that_is_1_on_every_row_is_no_share_of_right_answers() -> None:
    """A model with exactly the source's outputs has a cosine of 1: not "at least 0.93 of all rows"."""
    cosine = Metric(name="output_cosine_mean", higher_is_better=True, description="", continuous=True)
    assert one(scores(cosine, Kind.PAIRED_ROWS, int8=[1.0] * 50), min_value=0.999).interval == (1, 1)
    assert one(scores(ACCURACY, Kind.PAIRED_ROWS, int8=[1.0] * 50), min_value=0.999).verdict is Verdict.UNDECIDED


def test_every_row_lower_by_exactly_the_bound_passes() -> None:
    lower = scores(NDCG, Kind.PAIRED_ROWS, int8=[0.4] * 30, source=[0.5] * 30)
    assert one(lower, max_drop=0.1).verdict is Verdict.PASS
    assert one(lower, max_drop=0.099).verdict is Verdict.FAIL


def test_a_drop_is_worse_whichever_way_the_metric_points() -> None:
    result = one(scores(LOSS, Kind.PAIRED_ROWS, int8=[0.5] * 30, source=[0.3] * 30), max_drop=0.1)
    assert result.verdict is Verdict.FAIL
    assert result.reason.startswith("loss of int8 rose by 0.2 against source (0.3 to 0.5;")


def test_a_speedup_is_judged_block_by_block() -> None:
    pair = scores(LATENCY, Kind.BLOCKS, int8=blocks(1.0), source=blocks(2.9, seed=1))
    result = one(pair, min_speedup=2.2)
    assert result.verdict is Verdict.PASS
    assert "int8 is 2.8" in result.reason and "times as fast as source in latency_p50_ms (" in result.reason
    assert ", 20 blocks): meets min_speedup 2.2" in result.reason
    assert one(pair, min_speedup=4).verdict is Verdict.FAIL
    assert one(pair, max_ratio=0.5).verdict is Verdict.PASS


def test_a_ratio_that_is_not_the_medians_says_why() -> None:
    """The machine had bad moments in different blocks of the two: half the ratios are of one good and one bad block."""
    pair = scores(LATENCY, Kind.BLOCKS, int8=[1, 1, 1, 4, 4, 4, 4.0], source=[2, 2, 6, 6, 6, 2, 2.0])
    assert one(pair, min_speedup=1.1).reason == (
        "int8 is 1.5 times as fast as source in latency_p50_ms, block by block (4 ms against 2 ms; 95 % interval 0.50 to 6.00, 7 blocks):"
        " undecided against min_speedup 1.1; about 23 blocks would decide at this rate"
    )


def test_throughput_speeds_up_the_other_way() -> None:
    pair = scores(THROUGHPUT, Kind.BLOCKS, int8=blocks(200), source=blocks(100, seed=1))
    assert one(pair, min_speedup=1.5).verdict is Verdict.PASS


def test_blocks_that_would_decide_follow_from_the_share_on_the_wrong_side() -> None:
    """One block in six misses the bound: the interval of six holds every block, that of nine leaves out one at each end."""
    pair = scores(LATENCY, Kind.BLOCKS, int8=[1.0] * 6, source=[1.1, 2.0, 2.1, 2.2, 2.3, 2.4])
    result = one(pair, min_speedup=1.2)
    assert result.verdict is Verdict.UNDECIDED
    assert result.reason.endswith("undecided against min_speedup 1.2; about 9 blocks would decide at this rate")
    again = scores(LATENCY, Kind.BLOCKS, int8=[1.0] * 9, source=[1.1, 2.0, 2.0, 2.1, 2.1, 2.2, 2.3, 2.4, 2.4])
    assert one(again, min_speedup=1.2).verdict is Verdict.PASS


def test_blocks_cancel_a_drift_that_both_saw() -> None:
    """The machine slows down fivefold during the run: the ratio of each block does not move."""
    drift = [1 + i / 5 for i in range(20)]
    pair = scores(LATENCY, Kind.BLOCKS, int8=[d * 1.0 for d in drift], source=[d * 2.0 for d in drift])
    assert one(pair, max_ratio=0.51).verdict is Verdict.PASS


def test_too_few_blocks() -> None:
    result = one(scores(LATENCY, Kind.BLOCKS, int8=[1.0] * 5, source=[2.0] * 5), max_ratio=0.9)
    assert (result.verdict, result.reason) == (
        Verdict.UNDECIDED,
        "5 blocks of latency_p50_ms cannot decide at 95 % confidence: at least 6 can",
    )


def test_exact_values_need_no_interval() -> None:
    size = scores(SIZE, Kind.EXACT, int8=[25e6], source=[100e6])
    result = one(size, max_ratio=0.25)
    assert (result.verdict, result.interval) == (Verdict.PASS, None)
    assert result.reason == "size_bytes of int8 is 0.25 times source's (25 MB against 100 MB): inside max_ratio 0.25"
    assert one(size, max_ratio=0.24).verdict is Verdict.FAIL
    assert one(size, max_value=20e6).reason == "size_bytes of int8 is 25 MB: outside max_value 20 MB"


def test_the_1st_percentile_of_rows_is_judged_by_its_order_statistics() -> None:
    cosine = Metric(name="output_cosine_p1", higher_is_better=True, description="worst rows", quantile=0.01)
    rows = [1 - i / 1000 for i in range(500)]
    result = one(scores(cosine, Kind.PAIRED_ROWS, int8=rows), min_value=0.505)
    assert result.reason == (
        "output_cosine_p1 of int8 is 0.505 (95 % interval 0.5010 to 0.5110, 500 rows):"
        " undecided against min_value 0.505; no number of rows would decide, for the estimate sits on the bound"
    )
    assert one(scores(cosine, Kind.PAIRED_ROWS, int8=rows), min_value=0.5).verdict is Verdict.PASS
    assert one(scores(cosine, Kind.PAIRED_ROWS, int8=rows), min_value=0.52).verdict is Verdict.FAIL
    few = one(scores(cosine, Kind.PAIRED_ROWS, int8=rows[:367]), min_value=0.5)
    assert few.reason == "367 rows of output_cosine_p1 cannot decide at 95 % confidence: at least 368 can"
    dropped = one(scores(cosine, Kind.PAIRED_ROWS, int8=rows, source=rows), max_drop=0.1)
    assert unjudged(dropped).endswith("max_drop does not fit this metric; use one of min_value, max_value")


@pytest.mark.parametrize(("bound", "verdict"), [(0.85, "pass"), (0.88, "undecided"), (0.95, "fail")])
def test_a_value_alone(bound: float, verdict: str) -> None:
    result = one(accuracy(), min_value=bound)
    assert result.verdict == verdict
    assert result.baseline is None and result.baseline_value is None


def test_a_ratio_to_zero_is_undecided() -> None:
    result = one(scores(SIZE, Kind.EXACT, int8=[25e6], source=[0.0]), max_ratio=0.25)
    assert (result.verdict, result.reason) == (Verdict.UNDECIDED, "size_bytes of source is zero or negative: it has no ratio")


def test_a_rate_of_zero_is_so_many_times_the_other() -> None:
    """No rate suits the candidate: that is known, not undecided. Nothing is a multiple of a baseline that serves nothing."""
    rate = Metric(name="server_rate_per_s", higher_is_better=True, description="requests per second")
    nothing, served = [0.0] * 6, [100.0, 101.0, 99.0, 100.0, 102.0, 98.0]
    assert one(scores(rate, Kind.BLOCKS, int8=nothing, source=served), min_speedup=1.2).verdict is Verdict.FAIL
    assert one(scores(rate, Kind.BLOCKS, int8=served, source=nothing), min_speedup=1.2).verdict is Verdict.UNDECIDED


# --- ratios of rows


def test_a_ratio_of_answers_is_judged_by_a_score_interval() -> None:
    result = one(accuracy(lost=9, won=6), min_ratio=0.98)
    assert result.verdict is Verdict.PASS
    assert result.reason == (
        "accuracy of int8 is 0.9961 times source's (0.883 against 0.8865; 95 % interval 0.9848 to 1.0067, 872 rows): meets min_ratio 0.98"
    )
    assert one(accuracy(lost=90), min_ratio=0.98).verdict is Verdict.FAIL
    assert one(accuracy(right=0, won=9), min_ratio=0.98).reason == "accuracy of source is zero or negative: it has no ratio"


def test_a_candidate_that_is_right_on_no_row_fails_a_ratio() -> None:
    assert one(accuracy(lost=773), min_ratio=0.5).verdict is Verdict.FAIL
    loss = scores(LOSS, Kind.PAIRED_ROWS, int8=[0.0] * 40, source=[0.5] * 40)
    assert one(loss, max_ratio=0.5).verdict is Verdict.PASS


@pytest.mark.parametrize("right", [1, 3])
def test_a_ratio_to_a_few_right_rows_is_undecided(right: int) -> None:
    result = one(accuracy(rows=40, right=right, lost=1, won=1), min_ratio=0.9)
    assert result.verdict is Verdict.UNDECIDED
    assert result.reason.endswith(" rows would decide at this rate")
    assert result.interval is not None and result.interval[0] < 0.6 and result.interval[1] > 1.6


def test_the_same_answers_pass_a_ratio_of_one_and_say_what_so_few_rows_cannot_rule_out() -> None:
    result = one(accuracy(rows=10, right=10), min_ratio=0.999)
    assert result.verdict is Verdict.PASS
    assert result.reason == (
        "accuracy of int8 is source's on every row (1; 95 % interval of the ratio 0.722 to 1.384, 10 rows):"
        " meets min_ratio 0.999, though 10 rows are too few to rule out less"
    )
    assert one(accuracy(rows=10, right=10), max_ratio=1).reason.endswith("inside max_ratio 1, though 10 rows are too few to rule out more")
    assert one(accuracy(), min_ratio=0.99).reason.endswith("872 rows): meets min_ratio 0.99")
    assert one(accuracy(), min_ratio=1.05).verdict is Verdict.FAIL


@pytest.mark.parametrize("few", [[1.0], [0.9, 0.8, 0.7], [1.0] + [1e-20] * 39])
def test_a_ratio_of_scores_to_a_baseline_next_to_zero_is_undecided(few: list[float]) -> None:
    source = few + [0.0] * (40 - len(few))
    for candidate in ([0.5] * 40, source):
        result = one(scores(NDCG, Kind.PAIRED_ROWS, int8=candidate, source=source), min_ratio=0.9)
        assert (result.verdict, result.interval) == (Verdict.UNDECIDED, None)
        assert result.reason == (
            "ndcg_at_10 of source is zero or next to it in too many of 40 rows for a ratio; use max_drop, or more rows"
        )


# --- who is judged, and what cannot be


def unjudged(result: GateResult) -> str:
    """Why, of a gate that fails for it."""
    assert (result.verdict, result.estimate, result.interval, result.n) == (Verdict.FAIL, None, None, 0)
    return result.reason


def test_unknown_metric_lists_those_measured() -> None:
    (result,) = judge(Gate(metric="acuracy", max_drop=0.1), [accuracy()], ["int8"])
    assert unjudged(result) == (
        "acuracy of int8 cannot be judged: no metric 'acuracy' was measured; there are accuracy (did you mean 'accuracy'?)"
    )


def test_unknown_baseline_and_candidate_list_those_measured() -> None:
    (result,) = judge(Gate(metric="accuracy", max_drop=0.1, baseline="runtime-fp32"), [accuracy()], ["int8"])
    assert unjudged(result) == "accuracy of int8 cannot be judged: it was not measured for runtime-fp32; there are int8, source"
    (result,) = judge(Gate(metric="accuracy", max_drop=0.1, candidate="int4"), [accuracy()], ["int8"])
    assert unjudged(result) == (
        "accuracy of int4 cannot be judged: it was not measured for int4; there are int8, source (did you mean 'int8'?)"
    )


def test_a_candidate_that_was_not_measured_fails_alone() -> None:
    missing, fine = judge(Gate(metric="accuracy", max_drop=0.02), [accuracy(lost=9, won=6)], ["int4", "int8"])
    assert unjudged(missing).startswith("accuracy of int4 cannot be judged: ")
    assert (fine.candidate, fine.verdict) == ("int8", Verdict.PASS)


def test_a_bound_that_does_not_fit_says_which_do() -> None:
    result = one(scores(LATENCY, Kind.BLOCKS, int8=blocks(1), source=blocks(2)), max_drop=1)
    assert unjudged(result) == (
        "latency_p50_ms of int8 cannot be judged: max_drop does not fit this metric;"
        " use one of max_ratio, min_ratio, min_speedup, min_value, max_value"
    )


def test_every_candidate_is_judged_unless_one_is_named_or_is_the_baseline() -> None:
    sample = scores(SIZE, Kind.EXACT, one=[1.0], two=[3.0], source=[2.0])
    results = judge(Gate(metric="size_bytes", max_ratio=1), [sample], ["one", "two"])
    assert [(r.candidate, r.verdict) for r in results] == [("one", Verdict.PASS), ("two", Verdict.FAIL)]
    (named,) = judge(Gate(metric="size_bytes", max_ratio=1, candidate="two"), [sample], ["one", "two"])
    assert named.candidate == "two"
    (versus,) = judge(Gate(metric="size_bytes", max_ratio=1, baseline="two"), [sample], ["one", "two"])
    assert (versus.candidate, versus.baseline) == ("one", "two")


def test_a_model_is_not_its_own_baseline() -> None:
    assert unjudged(one(accuracy(), max_drop=0.1, baseline="int8")) == (
        "accuracy of int8 cannot be judged: the only candidate is its own baseline; name another baseline"
    )


def test_times_of_two_machines_are_not_compared() -> None:
    times = scores(LATENCY, Kind.BLOCKS, int8=blocks(1.0), source=blocks(2.0))
    apart = times.model_copy(update={"hardware": {"int8": "aaa", "source": "bbb"}})
    assert unjudged(one(apart, min_speedup=1.5)) == (
        "latency_p50_ms of int8 cannot be judged: source was measured on other hardware (bbb) than int8 (aaa);"
        " times compare only on one machine, so measure both on it"
    )
    assert one(apart, max_value=5).verdict is Verdict.PASS
    assert one(times.model_copy(update={"hardware": {"int8": "aaa", "source": "aaa"}}), min_speedup=1.5).verdict is Verdict.PASS
    sizes = scores(SIZE, Kind.EXACT, int8=[1.0], source=[4.0]).model_copy(update={"hardware": {"int8": "aaa", "source": "bbb"}})
    assert one(sizes, max_ratio=0.5).verdict is Verdict.PASS


def test_verdicts_are_deterministic() -> None:
    assert one(accuracy(lost=9, won=6), max_drop=0.01) == one(accuracy(lost=9, won=6), max_drop=0.01)
