"""Intervals against their definitions, against SciPy, and by how often they hold the truth."""

from __future__ import annotations

import functools
import math

import pytest

from ioptim import intervals

np = pytest.importorskip("numpy")


def test_tango_without_a_differing_row_has_its_closed_form() -> None:
    """Nobody differs in 872 rows: the interval is ± z² / (n + z²), not of width zero."""
    low, high = intervals.tango(0, 0, 872, 0.95)
    z2 = 1.959963985**2
    assert high == pytest.approx(z2 / (872 + z2), rel=1e-6)
    assert low == pytest.approx(-high)


def test_tango_is_the_score_test_turned_round() -> None:
    """At both ends the score statistic under the likelihood maximised by brute force is z."""
    lost, won, rows = 15, 6, 200
    for end in intervals.tango(lost, won, rows, 0.95):
        share = np.linspace(max(0, -end), (1 - end) / 2, 200_001)[1:-1]  # of rows won; of rows lost: share + end
        likelihood = lost * np.log(share + end) + won * np.log(share) + (rows - lost - won) * np.log(1 - 2 * share - end)
        best = share[likelihood.argmax()]
        statistic = (lost - won - rows * end) / math.sqrt(rows * (2 * best + end - end**2))
        assert abs(statistic) == pytest.approx(1.96, abs=0.001)


def test_tango_stays_inside_and_turns_with_its_arguments() -> None:
    assert intervals.tango(50, 0, 50, 0.95)[1] == pytest.approx(1)
    low, high = intervals.tango(9, 3, 100, 0.95)
    assert intervals.tango(3, 9, 100, 0.95) == pytest.approx((-high, -low))


def test_tango_covers_95_percent_of_10000_pairs() -> None:
    rng = np.random.default_rng(3)
    interval = functools.cache(intervals.tango)
    for rows, lose, win in [(872, 0.03, 0.02), (872, 0.01, 0.005), (200, 0.05, 0.03)]:
        held = 0
        for lost, won, _ in rng.multinomial(rows, [lose, win, 1 - lose - win], 10_000):
            low, high = interval(int(lost), int(won), rows, 0.95)
            held += low <= lose - win <= high
        assert held / 10_000 == pytest.approx(0.95, abs=0.01)


def test_the_ratio_without_a_differing_row_has_its_closed_form() -> None:
    """Ten rows right for both and none for one alone: 1 + z² / 10 and its inverse, not a width of zero."""
    low, high = intervals.nam_blackwelder(10, 0, 0, 0.95)
    assert high == pytest.approx(1 + 1.959963985**2 / 10)
    assert low == pytest.approx(1 / high)


def test_the_ratio_is_the_score_test_turned_round() -> None:
    """At both ends the score statistic under the likelihood maximised by brute force is z."""
    both, lost, won, neither = 60, 15, 6, 40
    for ratio in intervals.nam_blackwelder(both, lost, won, 0.95):
        a, b = _most_likely(ratio, both, lost, won, neither)  # shares of rows right for both, and for the second alone
        variance = (ratio - 1) * a + ratio * b + ratio**2 * b + (1 - ratio) ** 2 * a
        statistic = (both + won - ratio * (both + lost)) / math.sqrt((both + lost + won + neither) * variance)
        assert abs(statistic) == pytest.approx(1.96, abs=0.001)


def _most_likely(ratio: float, both: int, lost: int, won: int, neither: int) -> tuple[float, float]:
    """By a grid that closes in on its best point."""
    box = [(0.0, 1.0), (0.0, 1.0)]
    for _ in range(12):
        a, b = np.meshgrid(*(np.linspace(low, high, 101) for low, high in box), indexing="ij")
        shares = np.stack([a, b, (ratio - 1) * a + ratio * b, 1 - ratio * a - (1 + ratio) * b])
        inside = (shares > 0).all(axis=0)
        likelihood = (np.array([both, lost, won, neither])[:, None, None] * np.log(np.where(inside, shares, 1))).sum(axis=0)
        at = np.unravel_index(np.where(inside, likelihood, -np.inf).argmax(), a.shape)
        best = float(a[at]), float(b[at])
        box = [(max(0.0, x - (high - low) / 20), x + (high - low) / 20) for x, (low, high) in zip(best, box, strict=True)]
    return best


def test_the_ratio_turns_with_its_arguments_and_its_extremes_are_finite() -> None:
    low, high = intervals.nam_blackwelder(60, 15, 6, 0.95)
    assert intervals.nam_blackwelder(60, 6, 15, 0.95) == pytest.approx((1 / high, 1 / low))
    assert intervals.nam_blackwelder(0, 50, 0, 0.95) == pytest.approx((0, 1.959963985**2 / 50))


def test_the_ratio_covers_95_percent_of_10000_pairs() -> None:
    rng = np.random.default_rng(3)
    interval = functools.cache(intervals.nam_blackwelder)
    for rows, right, lose, win in [(872, 0.85, 0.03, 0.02), (200, 0.5, 0.05, 0.03)]:
        held = 0
        for both, lost, won, _ in rng.multinomial(rows, [right, lose, win, 1 - right - lose - win], 10_000):
            low, high = interval(int(both), int(lost), int(won), 0.95)
            held += low <= (right + win) / (right + lose) <= high
        assert held / 10_000 == pytest.approx(0.95, abs=0.01)


def test_wilson() -> None:
    assert intervals.wilson(0, 20, 0.95)[0] == 0
    assert intervals.wilson(15, 148, 0.95) == pytest.approx((0.0624, 0.1605), abs=1e-4)  # Newcombe 1998, table I: 15 of 148


@pytest.mark.parametrize(("n", "ends"), [(5, None), (6, (1, 6)), (10, (2, 9)), (20, (6, 15))])
def test_interval_of_the_median_reads_the_tabled_order_statistics(n: int, ends: tuple[int, int] | None) -> None:
    assert intervals.quantile_interval(list(range(n, 0, -1)), 0.5, 0.95) == ends


def test_interval_of_the_median_of_more_values_like_these() -> None:
    values = list(range(1, 7))
    assert intervals.quantile_interval(values, 0.5, 0.95, 9) == (2, 5)
    assert intervals.quantile_interval(values, 0.5, 0.95, 10_000_000) == (3, 4)
    many = intervals.quantile_interval(list(range(1000)), 0.5, 0.95)
    assert many is not None
    assert intervals.quantile_interval(list(range(1000)), 0.5, 0.95, 1011) == pytest.approx(many, abs=2)


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
@pytest.mark.parametrize("quantile", [0.01, 0.5, 0.99])
def test_fewest_for_a_quantile_is_the_first_that_has_an_interval(quantile: float, confidence: float) -> None:
    fewest = intervals.fewest_for_quantile(quantile, confidence)
    assert intervals.quantile_interval([0.0] * fewest, quantile, confidence) == (0, 0)
    assert intervals.quantile_interval([0.0] * (fewest - 1), quantile, confidence) is None


def test_fewest_for_the_quantiles_that_gates_use() -> None:
    assert [intervals.fewest_for_quantile(q, 0.95) for q in (0.5, 0.01)] == [6, 368]


@pytest.mark.integration
@pytest.mark.parametrize("quantile", [0.01, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("n", [1000, 5000, 80_000])
def test_ends_of_a_quantile_hold_their_share_of_the_binomial(quantile: float, n: int) -> None:
    """Each end is the innermost whose tail is at most 2.5 %; above some thousand values, to a rank."""
    binom = pytest.importorskip("scipy.stats").binom
    ends = intervals.quantile_interval(list(range(1, n + 1)), quantile, 0.95)
    assert ends is not None
    low, high = ends
    slack = 1 if n > 5000 else 0
    assert binom.cdf(low - 1 - slack, n, quantile) <= 0.025 < binom.cdf(low + slack, n, quantile)
    assert binom.sf(high - 1 + slack, n, quantile) <= 0.025 < binom.sf(high - 2 - slack, n, quantile)


def test_the_interval_of_the_1st_percentile_covers_at_least_95_percent_of_10000_columns() -> None:
    """Order statistics cannot hit 95 % to the point: 500 rows have 98.0 % by the binomial, and never fewer than they say."""
    rng = np.random.default_rng(4)
    truth = float(np.log1p(-0.01) * -1)  # of the exponential distribution
    ordered = np.sort(rng.exponential(size=(10_000, 500)), axis=1)
    low, high = intervals.quantile_interval(list(range(500)), 0.01, 0.95) or (0, 0)
    held = ((ordered[:, int(low)] <= truth) & (truth <= ordered[:, int(high)])).mean()
    assert held == pytest.approx(0.980, abs=0.005)


def test_bca_is_deterministic_and_degenerates_to_the_estimate() -> None:
    values = list(np.random.default_rng(0).normal(size=50))
    assert intervals.bca([values], _mean, 0.95) == intervals.bca([values], _mean, 0.95)
    assert intervals.bca([[0.0] * 50], _mean, 0.95) == (0, 0)
    assert intervals.bca([[0.1] * 50], _mean, 0.95) == pytest.approx((0.1, 0.1))
    assert intervals.bca([values, values], lambda means: means[0] / means[1], 0.95) == pytest.approx((1, 1))


@pytest.mark.parametrize("few", [[1.0] + [0.0] * 39, [1.0] * 3 + [0.0] * 37, [1.0] + [1e-20] * 39])
def test_bca_of_a_ratio_whose_denominator_vanishes_on_a_resample_is_no_number(few: list[float], recwarn: pytest.WarningsRecorder) -> None:
    assert np.isnan(intervals.bca([[1.0] * 40, few], lambda means: means[0] / means[1], 0.95)).all()
    assert not recwarn.list


@pytest.mark.integration
def test_bca_is_scipys() -> None:
    """The same resamples, the same ends; SciPy is asked for the level that the widened z has."""
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(1).exponential(size=400)
    level = 2 * stats.norm.cdf(intervals.widened_z(0.95, 400)) - 1
    drawn = stats.bootstrap((values,), np.mean, confidence_level=level, method="BCa", rng=np.random.default_rng(7))
    theirs = drawn.confidence_interval
    width = theirs.high - theirs.low
    assert intervals.bca([values], _mean, 0.95) == pytest.approx((theirs.low, theirs.high), abs=0.03 * width)


@pytest.mark.integration
def test_widened_z_is_students_t() -> None:
    stats = pytest.importorskip("scipy.stats")
    for n in (10, 30, 1000):
        assert intervals.widened_z(0.95, n) == pytest.approx(stats.t.ppf(0.975, n - 1) * math.sqrt(n / (n - 1)), rel=3e-3)


@pytest.mark.integration
@pytest.mark.slow
def test_bca_covers_95_percent_of_10000_pairs() -> None:
    """Differences of a per-row score, half of them zero: what nDCG looks like. 200 rows."""
    rng = np.random.default_rng(5)
    held = 0
    for _ in range(10_000):
        low, high = intervals.bca([rng.normal(0.01, 0.2, 200) * (rng.random(200) < 0.5)], _mean, 0.95, resamples=999)
        held += low <= 0.005 <= high
    assert held / 10_000 == pytest.approx(0.95, abs=0.01)


def _mean(means):
    return means[0]
