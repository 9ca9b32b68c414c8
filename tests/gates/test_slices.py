"""Gates that hold for every slice of the rows: who is worst, what a pass and a fail mean, and how often they are wrong."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from ioptim.core.gate import Gate, GateResult, Verdict
from ioptim.core.metrics import Kind, Metric, Samples
from ioptim.gates import judge

np = pytest.importorskip("numpy")

ACCURACY = Metric(name="accuracy", higher_is_better=True, description="rows answered correctly")
COSINE_P1 = Metric(name="output_cosine_p1", higher_is_better=True, description="worst rows", quantile=0.01)
LATENCY = Metric(name="latency_p50_ms", higher_is_better=False, description="median time", unit="ms")

Part = tuple[int, int, int, int]
"""Rows, of which the source is right on so many, of which the candidate loses so many, and wins so many others."""


def by_genre(**parts: Part) -> Samples:
    """Rows of several genres, those of a genre together."""
    source: list[float] = []
    candidate: list[float] = []
    genres: list[str] = []
    for genre, (rows, right, lost, won) in parts.items():
        source += [1.0] * right + [0.0] * (rows - right)
        candidate += [0.0] * lost + [1.0] * (right - lost + won) + [0.0] * (rows - right - won)
        genres += [genre] * rows
    values = {"int8": tuple(candidate), "source": tuple(source)}
    return Samples(metric=ACCURACY, kind=Kind.PAIRED_ROWS, values=values, slices={"genre": tuple(genres)})


def one(samples: Samples, slices: str | None = "genre", **bound: object) -> GateResult:
    (result,) = judge(Gate(metric=samples.metric.name, slices=slices, **bound), [samples], ["int8"])
    return result


def verdicts(result: GateResult) -> Mapping[str, Verdict]:
    return {part.name: part.verdict for part in result.slices}


FINE: Part = (1000, 900, 5, 5)


def test_a_model_that_is_fine_on_average_and_broken_in_one_slice_is_caught() -> None:
    samples = by_genre(prose=FINE, drama=FINE, letters=FINE, verse=(100, 90, 25, 0))
    assert one(samples, slices=None, max_drop=0.02).verdict is Verdict.PASS
    result = one(samples, max_drop=0.02)
    assert (result.verdict, result.slice, result.n) == (Verdict.FAIL, "verse", 100)
    assert result.reason == (
        "worst of 4 slices by genre, verse: accuracy of int8 fell by 0.25 against source (0.9 to 0.65;"
        " 98.75 % interval of the drop 0.159 to 0.371, 100 rows): outside max_drop 0.02 (95 % corrected for 4 slices by Holm's method)"
    )
    assert (result.candidate_value, result.baseline_value, result.estimate) == pytest.approx((0.65, 0.9, 0.25))
    assert verdicts(result) == {"verse": "fail", "prose": "pass", "drama": "pass", "letters": "pass"}
    assert [part.confidence for part in result.slices] == pytest.approx([0.9875, 0.95, 0.95, 0.95])
    assert result.slices[0].interval == result.interval


def test_every_slice_passing_is_a_pass_at_the_gate_s_own_confidence() -> None:
    result = one(by_genre(prose=FINE, drama=FINE, verse=(400, 350, 4, 1)), max_drop=0.03)
    assert result.verdict is Verdict.PASS
    assert result.reason == (
        "worst of 3 slices by genre, verse: accuracy of int8 fell by 0.0075 against source (0.875 to 0.8675;"
        " 95 % interval of the drop -0.0050 to 0.0232, 400 rows): inside max_drop 0.03"
    )
    alone = one(by_genre(verse=(400, 350, 4, 1)), slices=None, max_drop=0.03)
    assert alone.interval == result.interval


def test_an_undecided_slice_says_how_many_of_its_rows_would_decide() -> None:
    result = one(by_genre(prose=FINE, verse=(100, 90, 2, 1)), max_drop=0.03)
    assert (result.verdict, result.slice) == (Verdict.UNDECIDED, "verse")
    assert result.reason.endswith(
        "undecided against max_drop 0.03; about 410 rows of it would decide at this rate (95 % corrected for 2 slices by Holm's method)"
    )
    assert one(by_genre(prose=FINE, verse=(410, 369, 8, 4)), max_drop=0.03).verdict is Verdict.PASS


def test_a_slice_with_too_few_rows_keeps_the_gate_from_passing_and_is_named() -> None:
    result = one(by_genre(prose=FINE, letters=(4, 4, 0, 0), verse=(9, 9, 0, 0)), max_drop=0.5)
    assert (result.verdict, result.slice, result.estimate) == (Verdict.UNDECIDED, "letters", None)
    assert result.reason == (
        "worst of 3 slices by genre, letters: 4 rows of accuracy cannot decide at 95 % confidence: at least 10 can;"
        " no verdict is possible on letters (4 rows), verse (9 rows)"
    )
    failing = one(by_genre(prose=(1000, 900, 90, 0), letters=(4, 4, 0, 0)), max_drop=0.01)
    assert (failing.verdict, failing.slice) == (Verdict.FAIL, "prose")
    assert failing.reason.endswith(": outside max_drop 0.01; no verdict is possible on letters (4 rows)")


def test_slices_that_cannot_fail_do_not_weaken_the_others() -> None:
    """Only one slice can be judged, so nothing is corrected."""
    result = one(by_genre(prose=(1000, 900, 90, 0), **{f"g{i}": (3, 3, 0, 0) for i in range(20)}), max_drop=0.01)
    assert result.slices[0].confidence == 0.95
    assert result.reason.endswith("g0 (3 rows), g1 (3 rows), g2 (3 rows), g3 (3 rows), g4 (3 rows) and 15 more")


def test_a_slice_without_a_number_fails_before_all_others() -> None:
    samples = by_genre(prose=(1000, 900, 90, 0), verse=FINE)
    samples = samples.model_copy(update={"values": {**samples.values, "int8": (*samples.values["int8"][:-1], None)}})
    result = one(samples, max_drop=0.01)
    assert (result.slice, result.verdict) == ("verse", Verdict.FAIL)
    assert result.reason == (
        "worst of 2 slices by genre, verse: accuracy of int8 is not a number in 1 of 1 000 rows; fails too: prose (1 000 rows)"
    )


def test_holm_goes_on_where_bonferroni_stops() -> None:
    """Slice b misses the bound at 97.5 % but not at 98.33 %: it fails once slice a has fallen, and not beside two that hold."""
    a, b = (1000, 900, 200, 0), (1000, 900, 21, 5)
    with_a = verdicts(one(by_genre(a=a, b=b, c=FINE), max_drop=0.005))
    assert with_a == {"a": "fail", "b": "fail", "c": "undecided"}
    assert verdicts(one(by_genre(a=FINE, b=b, c=FINE), max_drop=0.005))["b"] == "undecided"


def test_the_same_outcome_in_every_slice_passes_and_names_each_that_is_too_small_to_prove_it() -> None:
    result = one(by_genre(prose=(100, 90, 0, 0), verse=(30, 20, 0, 0)), max_drop=0.0)
    assert result.verdict is Verdict.PASS
    assert result.reason.endswith(
        "inside max_drop 0, though 100 rows are too few to rule out more; the same on every row, though too few to rule out more:"
        " verse (30 rows)"
    )
    behind = one(by_genre(prose=FINE, verse=(30, 20, 0, 0), drama=(1000, 900, 0, 0)), max_drop=0.02)
    assert (behind.verdict, behind.slice) == (Verdict.PASS, "prose")
    assert behind.reason.endswith(": inside max_drop 0.02; the same on every row, though too few to rule out more: verse (30 rows)")


def test_one_slice_is_all_rows() -> None:
    assert one(by_genre(prose=FINE), max_drop=0.02).reason.startswith("the only slice by genre, prose: accuracy of int8 did not change")


def test_bounds_on_values_and_quantiles_have_slices_too() -> None:
    value = one(by_genre(prose=FINE, verse=(100, 50, 0, 0)), min_value=0.8)
    assert (value.verdict, value.slice, value.baseline) == (Verdict.FAIL, "verse", None)
    cosine = Samples(
        metric=COSINE_P1,
        kind=Kind.PAIRED_ROWS,
        values={"int8": tuple(1 - i / 10_000 for i in range(1000))},
        slices={"genre": ("prose",) * 600 + ("verse",) * 400},
    )
    quantile = one(cosine, min_value=0.8)
    assert (quantile.verdict, quantile.slice) == (Verdict.PASS, "verse")
    assert [part.confidence for part in quantile.slices] == [0.95, 0.95]


def cosines(**genres: tuple[int, float]) -> Samples:
    """Rows of several genres, all rows of a genre alike."""
    values = tuple(value for rows, value in genres.values() for _ in range(rows))
    names = tuple(genre for genre, (rows, _) in genres.items() for _ in range(rows))
    return Samples(metric=COSINE_P1, kind=Kind.PAIRED_ROWS, values={"int8": values}, slices={"genre": names})


def test_a_slice_passes_a_quantile_s_bound_with_the_rows_that_one_slice_needs() -> None:
    """At 95 % that is 368; at the 97.5 % at which one of two slices is asked whether it fails it would be 437."""
    assert one(cosines(prose=(400, 0.95), verse=(400, 0.95)), min_value=0.9).verdict is Verdict.PASS
    few = one(cosines(prose=(400, 0.95), verse=(367, 0.95)), min_value=0.9)
    assert verdicts(few) == {"verse": "undecided", "prose": "pass"}
    assert "367 rows of output_cosine_p1 cannot decide at 95 % confidence: at least 368 can" in few.reason


def test_a_slice_with_too_few_rows_for_the_corrected_confidence_cannot_fail_and_shows_the_gate_s_own_interval() -> None:
    result = one(cosines(prose=(400, 0.95), verse=(400, 0.5)), min_value=0.9)
    assert (result.verdict, result.slice, result.interval, result.slices[0].confidence) == (Verdict.UNDECIDED, "verse", (0.5, 0.5), 0.95)
    assert result.reason == (
        "worst of 2 slices by genre, verse: output_cosine_p1 of int8 is 0.5 (95 % interval 0.5 to 0.5, 400 rows): undecided against"
        " min_value 0.9; about 440 rows of it would decide at this rate (95 % corrected for 2 slices by Holm's method)"
    )
    with_one_that_falls_first = one(cosines(prose=(500, 0.5), verse=(400, 0.5)), min_value=0.9)
    assert verdicts(with_one_that_falls_first) == {"prose": "fail", "verse": "fail"}


def test_a_slice_that_is_stopped_does_not_ask_more_rows_of_the_others() -> None:
    assert verdicts(one(cosines(prose=(400, 0.5), verse=(10, 0.5)), min_value=0.9)) == {"prose": "fail", "verse": "undecided"}


def test_what_cannot_be_sliced_says_so() -> None:
    unknown = one(by_genre(prose=FINE), slices="gnre", max_drop=0.1)
    assert (unknown.verdict, unknown.slices) == (Verdict.FAIL, ())
    assert unknown.reason == (
        "accuracy of int8 cannot be judged: no slices by 'gnre' were kept; there are genre (did you mean 'genre'?)"
    )
    blocks = Samples(metric=LATENCY, kind=Kind.BLOCKS, values={"int8": (1.0,) * 10, "source": (2.0,) * 10})
    assert one(blocks, max_ratio=1).reason == (
        "latency_p50_ms of int8 cannot be judged: slices are of rows, and this metric is not measured on rows; leave `slices` out"
    )


# --- how often they are wrong


SIX = tuple(f"s{i}" for i in range(6))


def measured_again(rng: np.random.Generator, rows: int = 150) -> Samples:
    """A candidate that answers 4 % of the rows of every slice worse and 4 % better."""
    drawn = {name: rng.multinomial(rows, [0.04, 0.04, 0.92]) for name in SIX}
    return by_genre(**{name: (rows, rows // 2, int(lost), int(won)) for name, (lost, won, _) in drawn.items()})


def test_a_model_as_good_in_every_slice_is_failed_by_chance_no_more_than_the_nominal_rate() -> None:
    """6 slices with a true drop on the bound, 300 measurements: 2.5 % false alarms at most, which is 7 or 8 and seldom more than 15.

    Without the correction there would be five times as many, which the same measurements show.
    """
    rng = np.random.default_rng(1)
    failed = uncorrected = 0
    for _ in range(300):
        samples = measured_again(rng)
        failed += one(samples, max_drop=0.0).verdict is Verdict.FAIL
        uncorrected += any(fails_alone(samples, name) for name in SIX)
    assert failed <= 15
    assert uncorrected >= 25


def fails_alone(samples: Samples, name: str) -> bool:
    """Whether the slice would fail as if nobody had looked at the others."""
    rows = [i for i, each in enumerate(samples.slices["genre"]) if each == name]
    values = {model: tuple(column[i] for i in rows) for model, column in samples.values.items()}
    return one(samples.model_copy(update={"values": values}), slices=None, max_drop=0.0).verdict is Verdict.FAIL


def test_a_model_that_is_worse_in_one_slice_passes_by_chance_no_more_than_the_nominal_rate() -> None:
    """The slice that is worse is exactly on the bound: it passes in 2.5 % of all measurements, whatever the others do."""
    rng = np.random.default_rng(2)
    passed = 0
    for _ in range(300):
        lost, won, _ = rng.multinomial(400, [0.09, 0.04, 0.87])
        samples = by_genre(fine=FINE, worse=(400, 300, int(lost), int(won)))
        passed += one(samples, max_drop=0.05).verdict is Verdict.PASS
    assert passed <= 15
