"""A smooth picture of how samples are spread, without a numerical library: the report draws it from thousands of samples as 200 points."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

POINTS = 200


def density(samples: Sequence[float], low: float, high: float) -> list[float]:
    """Gaussian kernel density at `POINTS` places evenly from `low` to `high`, scaled so that its peak is 1.

    Binned first, so that the cost does not grow with the samples beyond one pass. The bandwidth is Silverman's rule with the
    narrower of standard deviation and quartile range, so that a tail does not blur the body.
    Source: Silverman, Density Estimation for Statistics and Data Analysis (1986), section 3.4.
    """
    step = (high - low) / (POINTS - 1)
    counts = [0.0] * POINTS
    for sample in samples:
        place = min(max((sample - low) / step, 0.0), POINTS - 1.0)
        left = min(int(place), POINTS - 2)
        counts[left + 1] += place - left
        counts[left] += 1 - (place - left)
    kernel = _kernel(max(_bandwidth(samples), step) / step)
    reach = len(kernel) - 1
    smooth = [0.0] * POINTS
    for i, count in enumerate(counts):
        if count:
            for j in range(max(0, i - reach), min(POINTS, i + reach + 1)):
                smooth[j] += count * kernel[abs(i - j)]
    peak = max(smooth)
    return [value / peak for value in smooth]


def _bandwidth(samples: Sequence[float]) -> float:
    first, _, third = statistics.quantiles(samples, n=4)
    spreads = [spread for spread in (statistics.stdev(samples), (third - first) / 1.34) if spread > 0]
    return 0.9 * min(spreads, default=0.0) * float(len(samples) ** -0.2)


def _kernel(width: float) -> list[float]:
    """A Gaussian by distance in places, to four standard deviations."""
    return [math.exp(-0.5 * (i / width) ** 2) for i in range(min(POINTS, math.ceil(4 * width)) + 1)]
