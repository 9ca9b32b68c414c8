"""How a training went, for the report and for trackers."""

from __future__ import annotations

from collections.abc import Sequence

from ioptim.core.step import ChartFigure, Curve, Series
from ioptim.training import Point, Progress


def charts(training: str, progress: Progress, metric: str, per_epoch: int, lower_is_better: bool = False) -> tuple[ChartFigure, ...]:
    """Loss on the training rows and `metric` on the dev rows, over epochs. `training` heads the titles."""
    looked = [point for point in progress.points if point.quality is not None]
    both = (
        ("loss", "training rows", progress.points, [point.loss for point in progress.points]),
        (metric, "dev rows", looked, _qualities(looked, lower_is_better)),
    )
    made = []
    for label, rows, points, values in both:
        series = Series(name=rows, x=tuple(point.step / per_epoch for point in points), y=tuple(values), line=True)
        made.append(ChartFigure(title=f"{training}: {label}", kind="points", x_label="epoch", y_label=label, series=(series,)))
    return tuple(made)


def curves(progress: Progress, metric: str, lower_is_better: bool = False) -> tuple[Curve, ...]:
    """The same and the learning rate, by step."""
    every = progress.points
    looked = [point for point in every if point.quality is not None]
    values = {
        "train/loss": (every, [point.loss for point in every]),
        "train/learning_rate": (every, [point.rate for point in every]),
        f"train/dev_{metric}": (looked, _qualities(looked, lower_is_better)),
    }
    return tuple(
        Curve(metric=name, steps=tuple(p.step for p in points), values=tuple(y), seconds=tuple(round(p.seconds, 3) for p in points))
        for name, (points, y) in values.items()
    )


def _qualities(looked: Sequence[Point], lower_is_better: bool) -> list[float]:
    """The metric as it is told: a training brings up its negative where less of it is better."""
    sign = -1 if lower_is_better else 1
    return [sign * point.quality for point in looked if point.quality is not None]
