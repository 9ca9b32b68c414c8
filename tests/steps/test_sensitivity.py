from __future__ import annotations

import math
from collections.abc import Collection
from types import SimpleNamespace
from typing import Any

import pytest

from ioptim.steps import _sensitivity
from ioptim.steps._sensitivity import Group, Loss, Sensitivity, fewest_in_float, loss_of

CLASSES: Any = SimpleNamespace(output="logits")
VECTORS: Any = SimpleNamespace(output="embedding")


def ranking(*distances: float, saved: float | None = None) -> list[Sensitivity]:
    return [Sensitivity(Group(f"g{i}", (f"n{i}",)), Loss(each, each), saved) for i, each in enumerate(distances)]


@pytest.mark.parametrize("needed", range(6))
def test_bisection_finds_the_fewest(needed: int) -> None:
    ranked = ranking(5, 4, 3, 2, 1)

    def drop(keep: Collection[str]) -> float:
        assert set(keep) == {f"n{i}" for i in range(len(keep))}, "the most sensitive first"
        return 0.0 if len(keep) >= needed else 1.0

    count, tried = fewest_in_float(ranked, 0.5, drop)
    assert count == needed
    assert len(tried) <= 3


def test_loss_of_classes_and_of_vectors() -> None:
    import numpy as np

    reference = [{"logits": np.array([[2.0, 0.0]])}, {"logits": np.array([[0.0, 2.0]])}]
    flipped = [reference[0], {"logits": np.array([[2.0, 0.0]])}]
    found = loss_of(flipped, reference, CLASSES)
    p = 1 / (1 + math.exp(-2.0))
    assert found.drop == 0.5
    assert found.distance == pytest.approx((2 * p - 1) * 2 / 2), "KL of the second row, mean of two"
    vectors = [{"embedding": np.array([[1.0, 0.0]])}]
    turned = [{"embedding": np.array([[1.0, 1.0]])}]
    assert loss_of(turned, vectors, VECTORS).distance == pytest.approx(1 - math.sqrt(0.5))
    assert loss_of(vectors, vectors, VECTORS) == Loss(0.0, 0.0)


def test_what_is_not_a_number_is_the_worst() -> None:
    import numpy as np

    reference = [{"embedding": np.array([[1.0, 0.0]])}]
    assert loss_of([{"embedding": np.array([[np.nan, 0.0]])}], reference, VECTORS) == Loss(math.inf, math.inf)


def test_the_table_ranks_and_says_what_runs_in_float() -> None:
    found = _sensitivity.table(ranking(0.5, 0.25, math.inf), VECTORS, {"n0"})
    assert found.rows == (("g0", 1, 0.5, "float"), ("g1", 1, 0.25, "int8"), ("g2", 1, None, "int8"))
    timed = _sensitivity.table(ranking(0.5, saved=0.002), CLASSES)
    assert timed.columns[-1] == "ms saved per row"
    assert timed.rows == (("g0", 1, 0.5, 0.5, 2.0),)


def test_the_chart_is_of_loss_against_time_where_that_was_measured() -> None:
    points = _sensitivity.chart(ranking(0.5, 0.25, saved=0.002), VECTORS)
    (series,) = points.series
    assert (points.kind, series.x, series.y, series.labels) == ("points", (2.0, 2.0), (0.5, 0.25), ("g0", "g1"))
    bars = _sensitivity.chart(ranking(0.5, 0.25), VECTORS, {"n0"})
    assert bars.kind == "bars"
    assert {series.name: series.x for series in bars.series} == {"runs in int8": ("g1",), "runs in float": ("g0",)}


@pytest.mark.parametrize(("scope", "block"), [
    ("encoder.layer.0.attention.self.query", "encoder.layer.0"),
    ("model.layers.11.mlp.up_proj", "model.layers.11"),
    ("transformer.h.3.attn", "transformer.h.3"),
    ("/encoder/layer.0/attention/self/query/MatMul", "/encoder/layer.0"),
    ("classifier", None),
    ("with.3", None),
])  # fmt: skip
def test_blocks_by_name(scope: str, block: str | None) -> None:
    match = _sensitivity._BLOCK.match(scope)
    assert (match[1] if match else None) == block
