"""A student is cut out of its teacher, trained to answer like it, and loads again without this project."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ioptim import training
from ioptim.core.artifact import ModelArtifact
from ioptim.core.metrics import Metric
from ioptim.core.step import Where
from ioptim.core.task import Table
from ioptim.errors import StepError
from ioptim.shrink import spread
from ioptim.steps.distill import Distill, Losses, Student
from ioptim.steps.distill.objective import Objective
from ioptim.steps.distill.rows import Rows as Batches
from ioptim.steps.distill.rows import split
from ioptim.steps.distill.student import Pair, Side
from ioptim.tasks.image_classification import ImageClassification
from tests.steps.conftest import HARDWARE, FakeContext, RandomTask, sealed


class Classes(RandomTask):
    """Random tokens with a label; the answer is right when it is the teacher's, which `label` holds."""

    metrics = (Metric(name="accuracy", higher_is_better=True, description="1 where the highest logit is the label's"),)
    columns = {"seed": "number", "label": "class"}
    auto_class = "AutoModelForSequenceClassification"
    output = "logits"
    max_length: int | None = None

    def class_ids(self, table: Table, model: ModelArtifact) -> list[int]:
        if "label" not in table.columns:
            raise StepError("data.tsv has no column 'label'; it has seed")
        return list(table.columns["label"])

    def score(self, outputs: Sequence[Mapping[str, Any]], table: Table, model: ModelArtifact) -> dict[str, list[float]]:
        pairs = zip(outputs, table.columns["label"], strict=True)
        return {"accuracy": [float(output["logits"][0].argmax() == label) for output, label in pairs]}


class Rows(FakeContext):
    """Training and dev rows with different seeds; `labels` says whether they have a label."""

    labels = True

    def table(self, role: str) -> Table:
        seeds = list(range(self.rows)) if role == "training" else list(range(1000, 1012))
        columns: dict[str, list[int]] = {"seed": seeds}
        if self.labels:
            columns["label"] = [seed % 2 for seed in seeds]
        return Table(columns=columns, rows=tuple(f"{role}.tsv:{i}" for i in seeds), origin=f"{role}.tsv")


def where(task: Any = None) -> Where:
    return Where(format="torch", targets=(), task=task or Classes(), hardware=HARDWARE, has_calibration=False)


def step(**fields: Any) -> Distill:
    given = {"student": {"layers": 1}, "epochs": 2, "learning_rate": 1e-3, "batch_size": 4, "patience": 100} | fields
    return Distill.model_validate(given).resolve(where())


@pytest.fixture
def rows(tmp_path: Path) -> Callable[..., Rows]:
    def make(**changes: Any) -> Rows:
        (out := tmp_path / f"out{len(list(tmp_path.glob('out*')))}").mkdir()
        made = Rows(out, task=Classes())
        made.scratch = tmp_path / "scratch"
        for name, value in changes.items():
            setattr(made, name, value)
        return made

    return make


# What the recipe may say


def test_layers_are_spread_from_the_first_to_the_last() -> None:
    assert spread(3, 6) == (0, 2, 5)
    assert spread(2, 6) == (0, 5)
    assert spread(1, 6) == (0,)
    assert spread(6, 6) == (0, 1, 2, 3, 4, 5)


def test_a_student_that_is_its_teacher_is_refused() -> None:
    message = "a student names `layers`, `feed_forward` or both, or a `checkpoint`; as it stands it is its teacher"
    with pytest.raises(ValidationError, match=message):
        Student()


def test_losses_without_a_weight_are_refused() -> None:
    message = "every loss has the weight 0; give one of logits, embedding, hidden, attention, labels a weight"
    with pytest.raises(ValidationError, match=message):
        Losses()


def test_the_task_decides_the_losses_and_the_cpu_the_precision() -> None:
    assert step().losses == Losses(logits=1.0, hidden=1.0)
    assert step().precision == "fp32"
    with_bf16 = where().model_copy(update={"hardware": HARDWARE.model_copy(update={"cpu_flags": ("avx512_bf16",)})})
    assert Distill(student=Student(layers=1)).resolve(with_bf16).precision == "bf16"


def test_losses_of_a_classifier_are_refused_elsewhere() -> None:
    class Sentences(Classes):
        task: Any = "feature-extraction"
        output = "last_hidden_state"

    found = Distill(student=Student(layers=1), losses=Losses(logits=1.0)).check(where(Sentences()))
    assert found == ["losses on logits and labels are for classifiers; for feature-extraction use embedding, hidden or attention"]


def test_the_loss_on_sentence_vectors_is_refused_for_a_classifier() -> None:
    found = Distill(student=Student(layers=1), losses=Losses(embedding=1.0)).check(where())
    assert found == ["the loss on embedding is for sentence vectors; for random use logits, hidden, attention or labels"]


def test_images_have_no_layers_to_compare() -> None:
    images = where(ImageClassification())
    assert Distill(teacher="source").resolve(images).losses == Losses(logits=1.0)
    assert Distill(teacher="source", losses=Losses(logits=1.0, labels=1.0)).check(images) == []
    assert Distill(teacher="source", losses=Losses(hidden=1.0)).check(images) == [
        "the losses on hidden states and attention compare the layers of encoders of text; for image-classification use logits or labels"
    ]


# Training


@pytest.mark.integration
def test_the_loss_on_attention_is_nothing_for_equal_maps(tiny_bert: ModelArtifact, tmp_path: Path) -> None:
    """The student in training mode: dropout of its maps would be far from nothing."""
    import torch

    from ioptim.shrink import cut
    from ioptim.torch_model import load_module

    teacher: Any = load_module(tiny_bert, attention="eager")
    pupil: Any = cut(teacher, [0], None)
    pupil.config._attn_implementation = "eager"
    pair = Pair(Side(teacher, tiny_bert, "teacher"), Side(pupil, tiny_bert, "student"))
    objective = Objective(pair, Losses(attention=1.0), 1.0, Classes(), Batches(Table(columns={}, rows=()), 0, [], []), tmp_path)
    objective.matched = (0,)
    for part in pupil.modules():
        if isinstance(part, torch.nn.Dropout) and part.p:
            part.p = 0.0  # of the embeddings: it changes what the maps are made from
    ids, ones = torch.tensor([[5, 6, 7, 8]]), torch.ones(1, 4, dtype=torch.long)
    feeds = {"input_ids": ids, "attention_mask": ones, "token_type_ids": 0 * ones}
    assert any(isinstance(p, torch.nn.Dropout) for p in pupil.modules())
    assert float(objective(0, (feeds, None)).detach()) == pytest.approx(0, abs=1e-5)


@pytest.mark.integration
def test_a_student_learns_and_loads_without_this_project(tiny_bert: ModelArtifact, rows: Callable[..., Rows]) -> None:
    import torch
    import transformers

    ctx = rows()
    outcome = step(student={"layers": [1], "feed_forward": 16}, losses={"logits": 1, "hidden": 1, "attention": 1, "labels": 1}).run(
        tiny_bert, ctx
    )
    model = sealed(outcome, ctx.out, tiny_bert)
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(model.path)
    assert loaded.config.num_hidden_layers == 1 and loaded.config.intermediate_size == 16
    with torch.inference_mode():
        assert loaded(input_ids=torch.ones(2, 5, dtype=torch.long)).logits.shape == (2, 2)
    assert outcome.metrics["parameters"] == sum(p.numel() for p in loaded.parameters())
    assert 0 < outcome.metrics["parameters_ratio"] < 1
    assert outcome.metrics["steps"] == 12  # 24 rows, 4 in a batch, 2 epochs
    assert [chart.title for chart in outcome.charts] == ["Distillation: loss", "Distillation: accuracy"]
    assert outcome.notes[0].text.startswith("the student has the layers 1, the teacher is the model that arrives: ")


@pytest.mark.integration
def test_training_brings_the_student_closer_to_its_teacher(tiny_bert: ModelArtifact, rows: Callable[..., Rows]) -> None:
    outcome = step(epochs=25, learning_rate=3e-3, patience=100).run(tiny_bert, rows(labels=False))
    before, after = outcome.metrics["dev_cosine_to_teacher_before"], outcome.metrics["dev_cosine_to_teacher"]
    assert 1 - after < (1 - before) / 2


@pytest.mark.integration
def test_goes_on_after_a_kill(tiny_bert: ModelArtifact, rows: Callable[..., Rows], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = step().run(tiny_bert, rows(scratch=rows().out / "whole"))
    monkeypatch.setattr(training, "CHECKPOINT_S", 0.0)
    ctx = rows()

    def kill(done: float, message: str) -> None:
        if done > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        step().run(tiny_bert, rows(progress=kill))
    again = step().run(tiny_bert, ctx)
    assert again.metrics["dev_accuracy"] == whole.metrics["dev_accuracy"]
    assert (ctx.out / "model/model.safetensors").is_file()
    assert "ended and gone on 1 times; the time counts all attempts" in [note.text for note in again.notes]


@pytest.mark.integration
def test_rows_held_out_are_not_trained_on(tiny_bert: ModelArtifact, rows: Callable[..., Rows]) -> None:
    outcome = step(held_out=8).run(tiny_bert, rows())
    assert outcome.notes[1].text.startswith("trained on 16 rows after 2 epochs")
    assert step(held_out=8).data_roles() == ("training",)
    with pytest.raises(StepError) as caught:
        step(held_out=24).run(tiny_bert, rows())
    assert str(caught.value) == "held_out is 24, and data.training has 24 rows"


def test_a_split_is_the_same_for_the_same_seed_and_loses_no_row() -> None:
    table = Table(columns={"seed": list(range(10))}, rows=tuple(map(str, range(10))), origin="t")
    kept, held = split(table, 3, seed=1)
    assert sorted(kept.rows + held.rows) == sorted(table.rows) and len(held) == 3
    assert (kept, held) == split(table, 3, seed=1) != split(table, 3, seed=2)
    assert [int(row) for row in held.rows] == held.columns["seed"]


# What it cannot do


@pytest.mark.integration
@pytest.mark.parametrize(
    ("student", "message"),
    [
        ({"layers": 3}, "student.layers is 3; the teacher has 2: a student cannot be larger"),
        ({"layers": [0, 5]}, "layers [5] were named; the model's are 0 to 1"),
        ({"layers": 1, "feed_forward": 100}, "feed_forward is 100; the model's is 64 and cannot grow"),
        (
            {"layers": 2},
            "nothing would become smaller (2 layers); name fewer layers or a narrower feed_forward",
        ),
    ],
)
def test_a_student_larger_than_its_teacher(tiny_bert: ModelArtifact, rows: Callable[..., Rows], student: Any, message: str) -> None:
    with pytest.raises(StepError) as caught:
        step(student=student).run(tiny_bert, rows())
    assert str(caught.value) == message


@pytest.mark.integration
def test_labels_missing_for_the_loss_on_labels(tiny_bert: ModelArtifact, rows: Callable[..., Rows]) -> None:
    with pytest.raises(StepError) as caught:
        step(losses={"labels": 1}).run(tiny_bert, rows(labels=False))
    assert str(caught.value) == "data.tsv has no column 'label'; it has seed"
