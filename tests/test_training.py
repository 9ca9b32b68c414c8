"""A training that is ended in the middle and gone on with is the training that was not ended."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ioptim import isolate, training
from ioptim.errors import StepError
from ioptim.steps.distill.processes import environment, meet, place
from ioptim.training import Progress, Settings, Training

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.integration

SETTINGS = Settings(
    epochs=3, learning_rate=0.05, warm_up=0.1, weight_decay=0.01, clip_norm=1.0, accumulate=2, max_minutes=None, patience=20, evaluations=2,
    seed=3, bf16=False,
)  # fmt: skip


class Regression:
    """y = x·w with noise of dropout, learned by a module of one layer."""

    def __init__(self, dropout: float = 0.2) -> None:
        torch.manual_seed(1)
        self.module = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Dropout(dropout), torch.nn.Linear(16, 1))
        draw = torch.Generator().manual_seed(2)
        rows = torch.randn(80, 4, generator=draw)
        self.batches = [(rows[i : i + 8], rows[i : i + 8].sum(1, keepdim=True)) for i in range(0, 80, 8)]
        self.seen = 0
        self.ends_at: int | None = None

    def loss(self, index: int, batch: Any) -> Any:
        self.seen += 1
        if self.ends_at is not None and self.seen > self.ends_at:
            raise KeyboardInterrupt
        return torch.nn.functional.mse_loss(self.module(batch[0]), batch[1])

    def quality(self) -> float:
        with torch.inference_mode():
            return -float(torch.stack([torch.nn.functional.mse_loss(self.module(x), y) for x, y in self.batches]).mean())

    def train(self, folder: Path, settings: Settings = SETTINGS, **changes: Any) -> Progress:
        order: Callable[[int], list[int]] = lambda epoch: sorted(range(10), key=lambda i: (i * 7 + epoch) % 10)  # noqa: E731
        given = {"loss": self.loss, "quality": self.quality} | changes
        return Training(
            self.module, self.batches, given["loss"], given["quality"], order, settings, folder, lambda done, text: None
        ).run()


def weights(module: Any) -> list[float]:
    return [float(value) for parameter in module.parameters() for value in parameter.detach().flatten()]


def test_weights_that_lie_otherwise_in_memory_are_saved_and_restored(tmp_path: Path) -> None:
    def network() -> Any:
        torch.manual_seed(1)
        return torch.nn.Conv2d(2, 4, 3).to(memory_format=torch.channels_last)

    draw = torch.randn(4, 2, 2, 5, 5, generator=torch.Generator().manual_seed(2))

    def train(folder: Path, ends_at: int | None) -> Any:
        module, seen = network(), iter(range(100))

        def loss(index: int, batch: Any) -> Any:
            if next(seen) == ends_at:
                raise KeyboardInterrupt
            return module(batch).square().mean()

        settings = replace(SETTINGS, accumulate=1, evaluations=4)
        task = Training(module, draw, loss, lambda: 0.0, lambda epoch: range(4), settings, folder, lambda done, text: None)
        task.run()
        return module

    whole = train(tmp_path / "whole", None)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", 6)
    assert weights(train(tmp_path / "killed", None)) == weights(whole)


def test_learns_and_keeps_the_best(tmp_path: Path) -> None:
    task = Regression()
    before = task.quality()
    progress = task.train(tmp_path)
    assert progress.ended == "after 3 epochs"
    looked = [point for point in progress.points if point.quality is not None]
    assert progress.step == 30 and [point.step for point in looked] == [5, 10, 15, 20, 25, 30]
    assert progress.best == max(point.quality for point in looked) > before / 4
    assert task.quality() == pytest.approx(progress.best)


def test_looks_at_most_as_often_as_was_asked(tmp_path: Path) -> None:
    progress = Regression().train(tmp_path, replace(SETTINGS, epochs=1, evaluations=6))
    assert [point.step for point in progress.points if point.quality is not None] == [2, 4, 6, 8, 10]


def train_in_processes(argument: dict[str, Any]) -> list[float]:
    """The training of one of two processes; runs in it."""
    meet(2, cpu=True)
    training.CHECKPOINT_S = 0.0
    task = Regression(dropout=0.0)
    task.ends_at = argument["ends_at"]
    try:
        task.train(Path(argument["folder"]), replace(SETTINGS, accumulate=1))
    except KeyboardInterrupt:
        os._exit(9)  # as if killed: nothing is tidied up
    return weights(task.module)


def two_processes(folder: Path, ends_at: int | None = None) -> list[Any]:
    """What both return, or the error of one that ended."""
    folder.mkdir(exist_ok=True)
    shared = environment(2, True, folder / f"meeting{ends_at}", threads=2)
    argument = {"folder": str(folder / "state"), "ends_at": ends_at}

    def one(rank: int) -> Any:
        env = {**shared, **place(rank), "PYTHONPATH": os.pathsep.join(sys.path)}
        try:
            return isolate.call("test_training:train_in_processes", argument, log=folder / f"{rank}.log", env=env)
        except StepError as error:
            return error

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(one, range(2)))


@pytest.mark.slow
def test_two_processes_are_one_that_adds_up_two_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in the middle and gone on with."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    alone = Regression(dropout=0.0)
    alone.train(tmp_path / "alone")
    assert all(isinstance(end, StepError) for end in two_processes(tmp_path / "two", ends_at=8))
    assert json.loads((tmp_path / "two/state/state.json").read_text())["step"] == 8
    first, second = two_processes(tmp_path / "two")
    assert first == second == pytest.approx(weights(alone.module), abs=1e-5)


@pytest.mark.parametrize("ends_at", [1, 7, 22])
def test_goes_on_after_an_end_as_if_there_had_been_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends_at: int) -> None:
    whole = Regression()
    whole_progress = whole.train(tmp_path / "whole")
    monkeypatch.setattr(training, "CHECKPOINT_S", 0.0)
    first = Regression()
    first.ends_at = ends_at
    with pytest.raises(KeyboardInterrupt):
        first.train(tmp_path / "halves")
    second = Regression()
    progress = second.train(tmp_path / "halves")
    assert weights(second.module) == weights(whole.module)
    assert [replace(point, seconds=0) for point in progress.points] == [replace(point, seconds=0) for point in whole_progress.points]
    assert progress.attempts == (1 if ends_at < SETTINGS.accumulate else 2)


def test_ends_when_nothing_gets_better(tmp_path: Path) -> None:
    values = iter([0.1, 0.5, *[0.4] * 50])
    settings = Settings(**{**SETTINGS.__dict__, "epochs": 50, "patience": 3})
    progress = Regression().train(tmp_path, settings, quality=lambda: next(values))
    assert progress.ended == "no better in 3 evaluations"
    assert (progress.best, progress.best_step) == (0.5, 10)


def test_of_equals_the_later_is_kept(tmp_path: Path) -> None:
    values = iter([0.1, 0.5, 0.5, 0.4, 0.5])
    settings = Settings(**{**SETTINGS.__dict__, "epochs": 50, "patience": 3})
    progress = Regression().train(tmp_path, settings, quality=lambda: next(values))
    assert (progress.ended, progress.best_step) == ("no better in 3 evaluations", 25)


def test_ends_with_the_time(tmp_path: Path) -> None:
    settings = Settings(**{**SETTINGS.__dict__, "epochs": 10_000, "max_minutes": 0.005, "patience": 10_000})
    progress = Regression().train(tmp_path, settings)
    assert progress.ended == "after 0.005 minutes"
    assert progress.points


def test_a_loss_that_is_no_number_keeps_the_best_before_it(tmp_path: Path) -> None:
    task = Regression()
    calls = iter(range(1000))
    broken: Callable[[Any], Any] = lambda index, batch: task.loss(index, batch) * (math.nan if next(calls) >= 12 else 1)  # noqa: E731
    progress = task.train(tmp_path, loss=broken)
    assert progress.ended == "the loss was not a number at step 13; the best before it was kept"
    assert all(map(math.isfinite, weights(task.module)))


def test_a_loss_that_never_is_a_number(tmp_path: Path) -> None:
    task = Regression()
    with pytest.raises(StepError) as caught:
        task.train(tmp_path, loss=lambda index, batch: task.loss(index, batch) * math.nan)
    assert str(caught.value) == "the loss is not a number at step 1, before anything was good enough to keep; lower learning_rate (0.05)"


def test_a_quality_that_is_no_number_is_never_the_best(tmp_path: Path) -> None:
    values = iter([0.5, math.nan])
    progress = Regression().train(tmp_path, quality=lambda: next(values))
    assert (progress.best, progress.best_step) == (0.5, 5)
    assert progress.ended == "the loss was not a number at step 11; the best before it was kept"
    with pytest.raises(StepError, match="before anything was good enough to keep"):
        Regression().train(tmp_path / "again", quality=lambda: math.nan)


def test_fewer_batches_than_an_update_needs(tmp_path: Path) -> None:
    settings = Settings(**{**SETTINGS.__dict__, "epochs": 1, "accumulate": 11})
    with pytest.raises(StepError) as caught:
        Regression().train(tmp_path, settings)
    assert str(caught.value) == "1 epochs of 10 batches are fewer than the 11 that make an update; lower accumulate or give more rows"


def test_the_learning_rate_never_exceeds_what_was_asked(tmp_path: Path) -> None:
    task = Regression()
    run = Training(task.module, task.batches, task.loss, task.quality, lambda e: range(10), SETTINGS, tmp_path, lambda d, t: None)
    run.total = 4  # fewer steps than 1 / warm_up
    rates = []
    for step in range(5):
        run.progress.step = step
        rates.append(run._rate())
    assert max(rates) == 1.0 and rates[-1] == pytest.approx(0)


def test_a_kill_between_the_best_and_the_state_keeps_them_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights of a better evaluation, whose state was never written, must not stand in for those that the state names."""
    monkeypatch.setattr(training, "CHECKPOINT_S", 0.0)
    first = Regression()
    first.ends_at = 7
    with pytest.raises(KeyboardInterrupt):
        first.train(tmp_path)
    (tmp_path / "999-best.safetensors").write_bytes(b"of an evaluation that nobody knows of")
    second = Regression()
    progress = second.train(tmp_path)
    assert second.quality() == pytest.approx(progress.best)


def test_what_it_leaves_is_no_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_S", 0.0)
    Regression().train(tmp_path)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".safetensors", ".safetensors"]
