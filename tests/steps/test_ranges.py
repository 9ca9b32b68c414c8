"""Ranges that a histogram leads to."""

from __future__ import annotations

from typing import Any

import pytest

from ioptim.steps._ranges import SHRUNK_TO, least_error, least_information_lost

np = pytest.importorskip("numpy")


def histogram(values: Any, bins: int = 2048) -> tuple[Any, Any, float, float]:
    reach = abs(values).max()
    counts, edges = np.histogram(values, bins, range=(-reach, reach))
    return counts, edges, float(values.min()), float(values.max())


def squared_error(values: Any, low: float, high: float) -> float:
    step = (high - low) / 255
    zero = round(-low / step)
    return float(((np.clip(np.rint(values / step) + zero, 0, 255) - zero) * step - values).__pow__(2).mean())


@pytest.fixture
def skewed() -> Any:
    """Mostly small, a few large to one side: as what leaves a Gelu."""
    draw = np.random.default_rng(0)
    return np.concatenate([draw.normal(size=100_000), [40.0, 41.0, 42.0]])


def test_the_least_error_is_smaller_than_that_of_all_values(skewed: Any) -> None:
    low, high = least_error(*histogram(skewed), symmetric=False)
    assert SHRUNK_TO * 42 <= high < 42
    assert squared_error(skewed, low, high) < squared_error(skewed, float(skewed.min()), float(skewed.max()))
    nearby = [(low * a, high * b) for a in (0.9, 1, 1.1) for b in (0.8, 1, 1.25)]
    assert squared_error(skewed, low, high) <= 1.02 * min(squared_error(skewed, *ends) for ends in nearby)


def test_symmetric_ends_are_opposite(skewed: Any) -> None:
    low, high = least_error(*histogram(skewed), symmetric=True)
    assert low == -high


def test_zero_is_always_inside() -> None:
    low, high = least_error(*histogram(np.linspace(2, 3, 1000)), symmetric=False)
    assert low == 0
    assert high == pytest.approx(3)


def test_entropy_cuts_what_is_rare_and_keeps_what_is_even(skewed: Any) -> None:
    counts, edges, *_ = histogram(skewed)
    assert 3 < least_information_lost(counts, edges) < 10
    counts, edges, *_ = histogram(np.linspace(-1, 1, 100_001))
    assert least_information_lost(counts, edges) > 0.9
