"""Ranges of activations, from data: what a static scheme maps onto 8 bits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np

    from ioptim.core.step import Context
    from ioptim.core.task import Feeds

Method = Literal["minmax", "entropy", "percentile", "mse"]

BINS = {"entropy": 2048, "mse": 8192}
"""Of a histogram, at first: it grows with the values. The library's own 128 for entropy leave one candidate, the whole range; mse
gets 32 for each of the 256 values that 8 bits have."""

ENTROPY_LEVELS = 128

SHRUNK_TO = 0.2
"""The smallest part of a range that mse tries, in steps of a hundredth."""


def measure(
    path: Path,
    kinds: Sequence[str],
    method: Method,
    percentile: float,
    symmetric: bool,
    reading: Sequence[Feeds],
    ctx: Context,
    scratch: Path,
) -> Any:
    """Ranges of all activations (the library's TensorsData). Fed one batch at a time: its histograms take no two lengths at once.

    Args:
        symmetric: the range will be made symmetric around zero, so that is how `mse` chooses it.
    """
    from onnxruntime.quantization import CalibrationMethod, create_calibrator
    from onnxruntime.quantization.calibrate import TensorsData

    extra: dict[str, Any] = {}
    if method in BINS:  # the library collects the histogram; what follows from it is chosen here
        kind, extra = CalibrationMethod.Percentile, {"symmetric": False, "num_bins": BINS[method]}
    elif method == "percentile":
        kind, extra = CalibrationMethod.Percentile, {"percentile": percentile}
    else:
        kind = CalibrationMethod.MinMax
    calibrator = create_calibrator(path, list(kinds), str(scratch / "augmented.onnx"), kind, extra_options=extra)
    for index, feed in enumerate(reading):
        if index % 16 == 0:
            ctx.progress(0.3 + 0.4 * index / len(reading), f"calibrating, {index} of {len(reading)} done")
        calibrator.collect_data(_One(feed))
    if method not in BINS:
        return calibrator.compute_data()
    found = {}
    for name, (counts, edges, low, high, *_) in calibrator.collector.get_histogram_dict().items():
        reach = least_information_lost(counts, edges) if method == "entropy" else None
        ends = least_error(counts, edges, low, high, symmetric=symmetric) if reach is None else (max(low, -reach), min(high, reach))
        found[name] = tuple(_float32(end) for end in ends)
    return TensorsData(CalibrationMethod.MinMax, found)


def least_information_lost(counts: np.ndarray, edges: np.ndarray, levels: int = ENTROPY_LEVELS) -> float:
    """How far from zero the range reaches that, cut into `levels`, keeps most of what a histogram tells (KL divergence).

    `edges` reach equally far to both sides of zero. Source: Migacz, 8-bit Inference with TensorRT, GTC 2017, slides 19-34.
    """
    import numpy as np

    middle = len(counts) // 2
    best, chosen = np.inf, float(edges[-1])
    for half in range(levels // 2, middle + 1):
        inside: np.ndarray = counts[middle - half : middle + half].astype(np.float64)
        exact = inside.copy()
        exact[0] += counts[: middle - half].sum()
        exact[-1] += counts[middle + half :].sum()
        level: np.ndarray = np.arange(2 * half) * levels // (2 * half)
        seen = exact > 0
        spread = np.bincount(level, inside, levels)[level] / np.maximum(np.bincount(level, seen, levels)[level], 1)
        p, q = exact[seen] / exact.sum(), np.maximum(spread[seen] / max(1.0, inside.sum()), 1e-9)
        lost = float((p * np.log(p / q)).sum())
        if lost < best:
            best, chosen = lost, float(edges[middle + half])
    return chosen


def least_error(
    counts: np.ndarray, edges: np.ndarray, smallest: float, largest: float, *, symmetric: bool, levels: int = 256
) -> tuple[float, float]:
    """The range whose 8-bit values are nearest, in the mean of squares, to what a histogram holds.

    Of a value inside the range the error is a twelfth of a step's square; of one outside, its distance. Each end is shrunk by
    itself, the upper one first; with `symmetric` both at once. Source: Nagel et al., A White Paper on Neural Network
    Quantization, https://arxiv.org/abs/2106.08295, section 3.1 (MSE).
    """
    import numpy as np

    values, weights = (edges[:-1] + edges[1:]) / 2, counts / max(1, counts.sum())
    low, high = min(float(smallest), 0.0), max(float(largest), 0.0)
    parts = np.arange(round(SHRUNK_TO * 100), 101) / 100

    def error(low: float, high: float) -> float:
        outside = np.maximum(values - high, 0) + np.maximum(low - values, 0)
        inside = weights[outside == 0].sum()
        return float(((high - low) / (levels - 1)) ** 2 / 12 * inside + (weights * outside**2).sum())

    if symmetric:
        reach = max(-low, high)
        best = min(parts, key=lambda part: error(-reach * part, reach * part))
        return -reach * float(best), reach * float(best)
    high *= float(min(parts, key=lambda part: error(low, high * part)))
    low *= float(min(parts, key=lambda part: error(low * part, high)))
    return low, high


def _float32(value: float) -> Any:
    import numpy as np

    return np.array(value, np.float32)


class _One:
    """A calibration data reader of one feed."""

    def __init__(self, feed: Feeds) -> None:
        self.feed: Feeds | None = feed

    def get_next(self) -> Feeds | None:
        feed, self.feed = self.feed, None
        return feed
