from __future__ import annotations

import pytest

from ioptim import roofline
from ioptim.roofline import Roofs, Work

ROOFS = Roofs({"float32": 100.0, "int8": 400.0}, memory_bandwidth=10.0, cache_bandwidth=50.0, cache_bytes=1000)


@pytest.mark.parametrize(
    ("work", "model_weights", "bound", "roof_s"),
    [
        # 400 operations at 100/s take longer than 20 bytes at 10/s
        (Work(5.0, 400.0, 20.0, 0.0), 2000.0, "compute", 4.0),
        (Work(5.0, 100.0, 40.0, 0.0), 2000.0, "memory", 4.0),
        # the weights of the whole model fit in the cache
        (Work(5.0, 50.0, 40.0, 0.0), 900.0, "memory", 0.8),
        # activations come from the cache as long as they fit
        (Work(5.0, 0.0, 0.0, 900.0), 0.0, "memory", 18.0),
        (Work(500.0, 0.0, 0.0, 1100.0), 0.0, "memory", 110.0),
        (Work(5.0, 400.0, 0.0, 0.0, "int8"), 0.0, "compute", 1.0),
        # a precision that was not measured is held to float32's peak
        (Work(5.0, 400.0, 0.0, 0.0, "float16"), 0.0, "compute", 4.0),
        (Work(5.0, 4.0, 1.0, 1.0), 2000.0, "overhead", 0.12),
    ],
)
def test_the_bound_that_holds_a_layer(work: Work, model_weights: float, bound: str, roof_s: float) -> None:
    placed = ROOFS.place(work, model_weights)
    assert (placed.bound, placed.roof_s) == (bound, pytest.approx(roof_s))
    assert placed.share == pytest.approx(roof_s / work.seconds)


def test_the_ridge_is_where_both_bounds_meet() -> None:
    assert ROOFS.ridge("int8") == 40.0
    computing, moving = ROOFS.least_seconds(Work(1.0, 40.0 * 2000, 2000.0, 0.0, "int8"), 2000.0)
    assert computing == moving


def test_intensity_needs_bytes() -> None:
    assert Work(1.0, 6.0, 2.0, 1.0).intensity == 2.0
    assert Work(1.0, 6.0, 0.0, 0.0).intensity is None


def test_a_roof_is_raised_never_lowered() -> None:
    assert ROOFS.raised("float32", 90.0, "x") == ROOFS
    assert ROOFS.raised("float32", 120.0, "x").peaks == {"float32": 120.0, "int8": 400.0}


def test_a_precision_that_no_library_has_is_left_out() -> None:
    asked: list[str] = []

    def gemm(precision: str, threads: int) -> object:
        asked.append(precision)
        return (lambda: None) if precision == "float32" else None

    roofs = roofline.measure({"mine": gemm}, ["float32", "int8"], 1, {"L2": 1 << 20})  # type: ignore[dict-item]
    assert list(roofs.peaks) == ["float32"]
    assert asked == ["float32", "int8"]
    assert roofs.how["float32"] == "1024x1024 matrix product, mine"
    assert roofs.cache_bandwidth is None, "a cache of 1 MiB is too small to be timed by itself"
    assert roofs.memory_bandwidth > 0


@pytest.mark.integration
@pytest.mark.parametrize(
    ("gemm", "precisions"),
    [
        (roofline.torch_gemm, {"float32"}),
        (roofline.onnxruntime_gemm, {"float32", "int8"}),
        (roofline.openvino_gemm, {"float32", "int8"}),
    ],
)
def test_each_library_multiplies_what_it_says(gemm: roofline.Gemm, precisions: set[str]) -> None:
    import numpy as np

    for precision in precisions:
        call = gemm(precision, 1)
        assert call is not None
        result = call()
        product = np.asarray(result if gemm is roofline.torch_gemm else result[0])
        assert product.shape == (roofline.GEMM, roofline.GEMM)
        assert np.isfinite(product).all() and product.any()
    assert gemm("float8", 1) is None
