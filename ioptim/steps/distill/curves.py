"""How a training went, for the report and for trackers."""

from __future__ import annotations

from ioptim.core.step import ChartFigure, Curve, Series
from ioptim.training import Progress


def charts(progress: Progress, metric: str, per_epoch: int) -> tuple[ChartFigure, ...]:
    """Loss on the training rows and quality on the dev rows, over epochs."""
    looked = [point for point in progress.points if point.quality is not None]
    both = (
        ("loss", "training rows", progress.points, [point.loss for point in progress.points]),
        (metric, "dev rows", looked, [point.quality for point in looked]),
    )
    made = []
    for label, rows, points, values in both:
        series = Series(name=rows, x=tuple(point.step / per_epoch for point in points), y=tuple(values), line=True)
        made.append(ChartFigure(title=f"Distillation: {label}", kind="points", x_label="epoch", y_label=label, series=(series,)))
    return tuple(made)


def curves(progress: Progress, metric: str) -> tuple[Curve, ...]:
    """The same and the learning rate, by step."""
    every = progress.points
    looked = [point for point in every if point.quality is not None]
    values = {
        "train/loss": (every, [point.loss for point in every]),
        "train/learning_rate": (every, [point.rate for point in every]),
        f"train/dev_{metric}": (looked, [point.quality for point in looked if point.quality is not None]),
    }
    return tuple(
        Curve(metric=name, steps=tuple(p.step for p in points), values=tuple(y), seconds=tuple(round(p.seconds, 3) for p in points))
        for name, (points, y) in values.items()
    )
