"""What rows come to, and what is kept of samples."""

from __future__ import annotations

from pathlib import Path

import pytest

from ioptim.core.metrics import Kind, Metric, Samples, read_samples, write_samples

WORST = Metric(name="output_cosine_p1", higher_is_better=True, description="", quantile=0.01)


@pytest.mark.parametrize(("rows", "value"), [(1, 1), (100, 1), (101, 2), (200, 2), (700, 7), (701, 8)])
def test_a_quantile_of_rows_is_the_smallest_value_that_its_share_does_not_exceed(rows: int, value: int) -> None:
    assert WORST.of_rows(list(range(rows, 0, -1))) == value


def test_the_centre_of_rows_and_of_blocks() -> None:
    metric = Metric(name="m", higher_is_better=True, description="")
    assert Samples(metric=metric, kind=Kind.PAIRED_ROWS, values={}).centre([1, 2, 6]) == 3
    assert Samples(metric=metric, kind=Kind.BLOCKS, values={}).centre([1, 2, 6]) == 2
    assert Samples(metric=metric, kind=Kind.BLOCKS, values={}).centre([]) is None


def test_samples_come_back_as_written_with_the_machine_they_were_taken_on(tmp_path: Path) -> None:
    samples = Samples(metric=WORST, kind=Kind.PAIRED_ROWS, values={"a": (1.0, None), "b": (0.5, 0.25)}, slices={"genre": ("x", "y")})
    write_samples(tmp_path, (samples,), "f00d")
    assert read_samples(tmp_path) == (samples.model_copy(update={"hardware": {"a": "f00d", "b": "f00d"}}),)
    write_samples(tmp_path, (samples,))
    assert read_samples(tmp_path) == (samples,)
    assert read_samples(tmp_path / "none") == ()
