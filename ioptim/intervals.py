"""Confidence intervals of what raw samples estimate. Two-sided at the confidence asked for; numbers in, numbers out.

NumPy alone, because `scipy.stats` takes 0.7 s to import and a run served from the cache still judges its gates; the tests hold
`bca` against `scipy.stats.bootstrap`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

Interval = tuple[float, float]
RESAMPLES = 9999
FEWEST_BINARY = 10
"""Below this many rows of 0 and 1 there is no verdict: ten equal outcomes still leave room for a true difference of 0.28."""
FEWEST_SCORES = 30
"""Below this many rows of other scores there is none: the bootstrap's 95 % are 85 % at 10 rows and 92 % at 30 (docs/gates.md)."""
_DRAWS = 200_000_000  # row draws per interval: above 20 000 rows fewer resamples are taken, never under 999
_CHUNK = 2_000_000  # row draws held in memory at once


def tango(lost: float, won: float, rows: float, confidence: float) -> Interval:
    """Score interval of the difference of two paired proportions, `(lost - won) / rows`.

    `lost` rows are right for the first model only, `won` rows for the second only. Unlike the Wald interval it keeps its coverage
    when few rows differ, and has a width when none does. The counts need not be whole: scaled ones tell what more would give.
    Source: Tango, Equivalence test and confidence interval for the difference in proportions for the paired-sample design,
    Statistics in Medicine 17 (1998) 891-908.
    """
    z = _z(confidence)
    estimate = (lost - won) / rows

    def score(difference: float) -> float:
        room = difference * (1 - difference)
        b = (2 * rows - lost + won) * difference - lost - won
        share = (math.sqrt(b * b + 8 * rows * won * room) - b) / (4 * rows)  # of rows won, most likely under this difference
        variance = rows * (2 * share + room)
        return (lost - won - rows * difference) / math.sqrt(variance) if variance > 0 else 0.0

    return _root(score, z, -1.0, estimate), _root(score, -z, estimate, 1.0)


def nam_blackwelder(both: float, lost: float, won: float, confidence: float) -> Interval:
    """Score interval of the ratio of two paired proportions, `(both + won) / (both + lost)`, which must not be 0 / 0 or over 0.

    `both` rows are right for both models, `lost` and `won` as for `tango`; those right for neither say nothing of a ratio. It has a
    width when no row differs, and the counts need not be whole.
    Source: Nam and Blackwelder, Analysis of the ratio of marginal probabilities in a matched-pair setting, Statistics in Medicine 21
    (2002) 689-699; in the form of Tang, Tang and Chan, Statistics in Medicine 22 (2003) 1217-1233.
    """
    z = _z(confidence)
    first, second, rows = both + won, both + lost, both + lost + won

    def score(place: float) -> float:
        ratio = place / (1 - place)
        b = second * (ratio * ratio - 1) - lost - won
        root = math.sqrt(max(0.0, b * b - 4 * (1 + ratio) * rows * lost * (1 - ratio)))
        share = (root - b) / (2 * (1 + ratio) * rows)  # of these rows lost, most likely under this ratio
        variance = rows * ((1 + ratio) * share + ratio - 1)
        return (first - ratio * second) / math.sqrt(variance) if variance > 0 else 0.0

    estimate = first / (first + second)  # the ratio r is sought as r / (1 + r), which stays below 1
    low, high = _root(score, z, 0.0, estimate), _root(score, -z, estimate, 1.0)
    return low / (1 - low), high / (1 - high)


def wilson(successes: float, rows: float, confidence: float) -> Interval:
    """Score interval of one proportion. Source: Wilson, Journal of the American Statistical Association 22 (1927) 209-212."""
    z = _z(confidence)
    share = successes / rows
    centre = (share + z * z / (2 * rows)) / (1 + z * z / rows)
    half = z / (1 + z * z / rows) * math.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows))
    return max(0.0, centre - half), min(1.0, centre + half)


def quantile_interval(values: Sequence[float], quantile: float, confidence: float, n: int | None = None) -> Interval | None:
    """Interval of a quantile between two order statistics: exact for any distribution, so one slow block cannot move that of a median.

    With `n`, the interval that n values distributed like these would give. None where there are too few values for this confidence
    (`fewest_for_quantile`). Source: Conover, Practical Nonparametric Statistics, section 3.2.
    """
    n = n or len(values)
    lower, upper = _ranks(n, quantile, confidence)
    if lower < 1 or upper > n:
        return None
    ordered = sorted(values)
    return ordered[math.ceil(lower * len(ordered) / n) - 1], ordered[-math.ceil((n + 1 - upper) * len(ordered) / n)]


def _ranks(n: int, quantile: float, confidence: float) -> tuple[int, int]:
    """The order statistics (counted from 1) between which the quantile lies at this confidence; 0 or n + 1 where none is far enough out.

    Of n values, Binomial(n, quantile) lie below the quantile: it is below value r only if fewer than r do.
    """
    if quantile > 0.5:  # the same from the other end, where the terms below do not vanish
        lower, upper = _ranks(n, 1 - quantile, confidence)
        return n + 1 - upper, n + 1 - lower
    tail = (1 - confidence) / 2
    if n * -math.log1p(-quantile) > 700:  # the first term would vanish, and the normal limit is right to a rank by then
        z, spread = _z(confidence), math.sqrt(n * quantile * (1 - quantile))
        skew = (1 - 2 * quantile) * (z * z - 1) / 6
        return math.floor(n * quantile - z * spread + skew + 0.5), math.ceil(n * quantile + z * spread + skew + 0.5)
    odds, term = quantile / (1 - quantile), (1 - quantile) ** n
    below, lower = term, 0  # P(at most `k` values lie below)
    for k in range(n):
        if below <= tail:
            lower = k + 1
        if below >= 1 - tail:
            return lower, k + 1
        term *= odds * (n - k) / (k + 1)
        below += term
    return lower, n + 1


def fewest(confidence: float, quantile: float | None, *, binary: bool) -> int:
    """How many rows or blocks any verdict needs: on their `quantile`, or on their mean when there is none."""
    if quantile is not None:
        return fewest_for_quantile(quantile, confidence)
    return FEWEST_BINARY if binary else FEWEST_SCORES


def fewest_for_quantile(quantile: float, confidence: float) -> int:
    """How many values `quantile_interval` needs: at 0.95, 6 for the median and 368 for the 1st percentile.

    Below it the rarer side of the quantile may not have been seen at all. Source: Wilks, Determination of Sample Sizes for Setting
    Tolerance Limits, Annals of Mathematical Statistics 12 (1941) 91-96; here both ends must hold at the confidence.
    """
    return math.ceil(math.log((1 - confidence) / 2) / math.log(max(quantile, 1 - quantile)))


def bca(
    columns: Sequence[Sequence[float]],
    statistic: Callable[[np.ndarray], np.ndarray],
    confidence: float,
    resamples: int = RESAMPLES,
) -> Interval:
    """Bias-corrected and accelerated bootstrap interval of a function of column means, rows resampled together.

    `columns`: (k, rows). `statistic` maps means (k, m) to (m,). The draw is seeded: the same samples give the same interval.
    A statistic that no resample moves has the interval (estimate, estimate); one that is not a finite number on each of them, as a ratio
    whose denominator is zero on some, has (NaN, NaN).
    Source: Efron, Better bootstrap confidence intervals, JASA 82 (1987) 171-185; z is widened for the sample size as in
    Hesterberg, What teachers should know about the bootstrap, The American Statistician 69 (2015) 371-386 (30 rows: else 93 %).
    """
    import numpy as np

    data = np.asarray(columns, dtype=float)  # (k, n)
    n = data.shape[1]
    estimate = float(statistic(data.mean(axis=1, keepdims=True))[0])
    if n < 2 or not np.ptp(data, axis=1).any():
        return estimate, estimate
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        moved = _resample(data, statistic, max(999, min(resamples, _DRAWS // n)))
        without = statistic((data.sum(axis=1, keepdims=True) - data) / (n - 1))  # (n,): the estimate without each row
    if not (np.isfinite(moved).all() and np.isfinite(without).all()):
        return math.nan, math.nan
    pull = without.mean() - without
    spread = float((pull**2).sum())
    if spread <= (1e-12 * max(1.0, abs(estimate))) ** 2:
        return estimate, estimate
    acceleration = float((pull**3).sum()) / (6 * spread**1.5)
    ends = np.quantile(moved, _shifted(moved, estimate, acceleration, widened_z(confidence, n)))
    return float(ends[0]), float(ends[1])


def _resample(data: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], draws: int) -> np.ndarray:
    """The statistic on `draws` resamples of the rows. data: (k, n) -> (draws,)."""
    import numpy as np

    rng = np.random.default_rng(0)
    n = data.shape[1]
    step = max(1, _CHUNK // n)
    parts = []
    for start in range(0, draws, step):
        rows = rng.integers(0, n, (min(step, draws - start), n), dtype=np.int32)
        parts.append(statistic(data[:, rows].mean(axis=2)))
    moved: np.ndarray = np.concatenate(parts)
    return moved


def _shifted(moved: np.ndarray, estimate: float, acceleration: float, z: float) -> tuple[float, float]:
    """The two quantiles of the resamples that BCa reads instead of the nominal ones."""
    import numpy as np

    near = np.isclose(moved, estimate, rtol=1e-12, atol=1e-15)  # ties differ by rounding, count half
    below = (np.count_nonzero((moved < estimate) & ~near) + np.count_nonzero(near) / 2) / len(moved)
    edge = 0.5 / len(moved)
    bias = NormalDist().inv_cdf(min(max(below, edge), 1 - edge))

    def quantile(at: float) -> float:
        return NormalDist().cdf(bias + (bias + at) / (1 - acceleration * (bias + at)))

    return quantile(-z), quantile(z)


def widened_z(confidence: float, n: int) -> float:
    """Student's t with n - 1 degrees of freedom (first terms of its Cornish-Fisher series) times sqrt(n / (n - 1))."""
    z, free = _z(confidence), n - 1
    t = z + (z**3 + z) / (4 * free) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)
    return t * math.sqrt(n / free)


def _z(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _root(falling: Callable[[float], float], level: float, low: float, high: float) -> float:
    """Where a falling function of (low, high) crosses `level`, by bisection to the last bit that matters."""
    for _ in range(60):
        middle = (low + high) / 2
        if falling(middle) > level:
            low = middle
        else:
            high = middle
    return (low + high) / 2
