"""A student is cut out of its teacher, trained to answer like it, and loads again without this project."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ioptim import training
from ioptim.core.artifact import ModelArtifact, TensorSpec, seal
from ioptim.core.metrics import Metric
from ioptim.core.source import ModelSpec
from ioptim.core.step import Where
from ioptim.core.task import Table
from ioptim.errors import StepError
from ioptim.shrink import spread
from ioptim.sources import model_source
from ioptim.steps._curves import curves
from ioptim.steps.distill import Distill, Losses, Student, answers, losses
from ioptim.steps.distill.objective import Objective
from ioptim.steps.distill.rows import Rows as Batches
from ioptim.steps.distill.rows import _correlation, alike
from ioptim.steps.distill.student import Pair, Side
from ioptim.tasks.feature_extraction import FeatureExtraction
from ioptim.tasks.image_classification import ImageClassification
from ioptim.tasks.text_classification import TextClassification
from ioptim.training import Point, Progress
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


def test_compared_layers_without_a_loss_that_compares_are_refused() -> None:
    found = Distill(student=Student(layers=1), losses=Losses(logits=1.0), compared_layers=(1,)).check(where())
    assert found == ["compared_layers is for the losses hidden and attention, which have no weight here; leave it out"]
    assert Distill(student=Student(layers=1), compared_layers=(1,)).check(where()) == []


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
    kept, held = table.split(3, seed=1)
    assert sorted(kept.rows + held.rows) == sorted(table.rows) and len(held) == 3
    assert (kept, held) == table.split(3, seed=1) != table.split(3, seed=2)
    assert [int(row) for row in held.rows] == held.columns["seed"]


def test_what_repeats_a_held_out_row_is_not_trained_on() -> None:
    texts = ["a", "b"] * 6
    table = Table(columns={"sentence": texts}, rows=tuple(map(str, range(12))), origin="t")
    kept, held = table.split(1, seed=0)
    assert len(held) == 1 and len(kept) == 6 and not {*kept.columns["sentence"]} & {*held.columns["sentence"]}


def test_a_number_of_its_own_makes_no_other_text() -> None:
    """Data sets number their rows: what repeats is the text, whatever stands beside it."""
    texts = ["a", "b"] * 6
    columns = {"idx": list(range(12)), "sentence": texts, "label": [i % 3 for i in range(12)]}
    table = Table(columns=columns, rows=tuple(map(str, range(12))), origin="t")
    assert TextClassification().fed(table) == ("sentence",)
    kept, held = table.split(1, seed=0, by=("sentence",))
    assert len(held) == 1 and len(kept) == 6 and not {*kept.columns["sentence"]} & {*held.columns["sentence"]}
    pairs = Table(columns={"query": ["q"], "passage": ["p"], "topic": ["t"]}, rows=("1",), origin="t")
    assert FeatureExtraction().fed(pairs) == ("query", "passage")


def test_rows_that_cannot_be_trained_on_are_objected_to() -> None:
    unlabelled = Table(columns={"sentence": ["a", "b"]}, rows=("1", "2"), origin="rows.tsv")
    step_ = Distill(student=Student(layers=1), losses=Losses(labels=1.0), held_out=2)
    assert step_.check_training(unlabelled, Classes()) == [
        "losses.labels needs a column 'label'; rows.tsv has sentence. Map one with `columns: {label: <its name>}`, or leave the loss out",
        "held_out is 2, and data.training has 2 rows",
    ]
    assert Distill(student=Student(layers=1), held_out=1).check_training(unlabelled, Classes()) == []


@pytest.mark.parametrize(("rows_", "sizes"), [(3, [3]), (4, [4]), (5, [5]), (8, [4, 4]), (9, [4, 5]), (10, [4, 4, 2])])
def test_every_row_is_in_one_batch_and_none_is_alone(rows_: int, sizes: list[int]) -> None:
    np = pytest.importorskip("numpy")
    batches = alike([{"input_ids": np.zeros((1, 1 + i % 3))} for i in range(rows_)], 4, seed=0)
    assert [len(batch) for batch in batches] == sizes
    assert sorted(place for batch in batches for place in batch) == list(range(rows_))


@pytest.mark.parametrize(("students", "teachers", "expected"), [(3, 6, (1, 3, 5)), (2, 2, (0, 1)), (4, 2, (0, 0, 1, 1))])
def test_layers_are_compared_evenly(students: int, teachers: int, expected: tuple[int, ...]) -> None:
    assert losses.matched(students, teachers) == expected


@pytest.mark.integration
@pytest.mark.parametrize(("dropout", "expected"), [(None, 0.1), (0.0, 0.0), (0.3, 0.3)])
def test_the_student_learns_with_the_dropout_that_the_recipe_names(
    tiny_bert: ModelArtifact, tmp_path: Path, dropout: float | None, expected: float
) -> None:
    import torch

    from ioptim.shrink import cut
    from ioptim.torch_model import load_module

    teacher: Any = load_module(tiny_bert)
    pair = Pair(Side(teacher, tiny_bert, "teacher"), Side(cut(teacher, [1], None), tiny_bert, "student"))
    nothing = Batches(Table(columns={}, rows=()), 0, [], [])
    Objective(pair, Losses(hidden=1.0), 1.0, Classes(), nothing, tmp_path, dropout=dropout)
    assert {part.p for part in pair.student.module.modules() if isinstance(part, torch.nn.Dropout)} == {expected}


@pytest.mark.integration
def test_layers_are_compared_with_those_that_the_recipe_names(tiny_bert: ModelArtifact, tmp_path: Path) -> None:
    from ioptim.shrink import cut
    from ioptim.torch_model import load_module

    teacher: Any = load_module(tiny_bert)
    pair = Pair(Side(teacher, tiny_bert, "teacher"), Side(cut(teacher, [1], None), tiny_bert, "student"))
    nothing = Batches(Table(columns={}, rows=()), 0, [], [])
    assert Objective(pair, Losses(hidden=1.0), 1.0, Classes(), nothing, tmp_path).matched == (1,)
    assert Objective(pair, Losses(hidden=1.0), 1.0, Classes(), nothing, tmp_path, compared=(0,)).matched == (0,)
    text = r"compared_layers names \[0, 2\]; the student has 1 layers, each compared with one of the teacher's 0 to 1"
    with pytest.raises(StepError, match=text):
        Objective(pair, Losses(hidden=1.0), 1.0, Classes(), nothing, tmp_path, compared=(0, 2))



# What it cannot do


@pytest.mark.integration
@pytest.mark.parametrize(
    ("student", "message"),
    [
        ({"layers": 3}, "student.layers is 3; the model that arrives has 2, and a student is cut out of it"),
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


# Who teaches whom


@pytest.fixture
def pruned(tiny_bert: ModelArtifact, tmp_path: Path) -> ModelArtifact:
    """What `prune` leaves of the tiny BERT: one layer, half the feed-forward."""
    from ioptim import torch_model
    from ioptim.shrink import cut

    (folder := tmp_path / "pruned/model").mkdir(parents=True)
    torch_model.save_checkpoint(cut(torch_model.load_module(tiny_bert), [0], 32), folder, tiny_bert.entry)
    return seal(tiny_bert.model_copy(update={"path": folder, "files": {}}))


@pytest.fixture
def bert(tiny_bert: ModelArtifact, tmp_path: Path) -> Callable[..., ModelArtifact]:
    """Another BERT, with random weights: sizes and files as named."""

    def make(files: Mapping[str, str] | None = None, classes: int = 2, labels: Sequence[str] = (), **sizes: int) -> ModelArtifact:
        import torch
        import transformers

        torch.manual_seed(7)
        given = transformers.BertConfig.from_pretrained(tiny_bert.path).to_dict() | sizes | {"num_labels": classes}
        folder = tmp_path / f"bert{len(list(tmp_path.glob('bert*')))}"
        transformers.BertForSequenceClassification(transformers.BertConfig.from_dict(given)).save_pretrained(folder)
        for name, text in (files or {}).items():
            (folder / name).write_text(text)
        output = TensorSpec(name="logits", dtype="float32", shape=("batch", classes))
        facts = {**tiny_bert.facts, **({"labels": {str(i): name for i, name in enumerate(labels)}} if labels else {})}
        assets = ("config.json", *(files or {}))
        return seal(tiny_bert.model_copy(update={"path": folder, "files": {}, "outputs": (output,), "facts": facts, "assets": assets}))

    return make


def recovering(**fields: Any) -> Distill:
    given = {"teacher": "source", "epochs": 2, "learning_rate": 1e-3, "batch_size": 4, "patience": 100} | fields
    return Distill.model_validate(given).resolve(where())


@pytest.mark.integration
def test_a_pruned_model_recovers_by_its_teacher(tiny_bert: ModelArtifact, pruned: ModelArtifact, rows: Callable[..., Rows]) -> None:
    ctx = rows(labels=False, baselines={"source": tiny_bert, "teacher": tiny_bert})
    outcome = recovering(epochs=12, learning_rate=3e-3).run(pruned, ctx)
    assert outcome.metrics["dev_cosine_to_teacher"] > outcome.metrics["dev_cosine_to_teacher_before"] + 0.1
    assert outcome.notes[0].text.startswith("the student is the model that arrives, the teacher is source: ")
    assert outcome.metrics["parameters_ratio"] == pytest.approx(pruned.files["model.safetensors"].size_bytes / 98656, rel=0.1)
    import torch
    import transformers

    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(sealed(outcome, ctx.out, pruned).path)
    assert (loaded.config.num_hidden_layers, loaded.config.intermediate_size) == (1, 32)
    with torch.inference_mode():
        assert loaded(input_ids=torch.ones(2, 5, dtype=torch.long)).logits.shape == (2, 2)


@pytest.mark.integration
def test_a_student_of_another_width(tiny_bert: ModelArtifact, bert: Callable[..., ModelArtifact], rows: Callable[..., Rows]) -> None:
    """Its states are compared through learned projections, which it does not keep."""
    narrow = bert(hidden_size=16, intermediate_size=24, num_hidden_layers=1)
    ctx = rows(baselines={"student": narrow})
    outcome = step(student={"checkpoint": "narrow"}, losses={"logits": 1, "hidden": 1, "attention": 1}).run(tiny_bert, ctx)
    assert outcome.notes[0].text.startswith("the student is narrow, the teacher is the model that arrives: ")
    assert (ctx.out / "model/model.safetensors").stat().st_size == pytest.approx(narrow.size_bytes, rel=0.01)


@pytest.mark.integration
def test_maps_of_other_heads_cannot_be_compared(
    tiny_bert: ModelArtifact, bert: Callable[..., ModelArtifact], rows: Callable[..., Rows]
) -> None:
    ctx = rows(baselines={"student": bert(num_attention_heads=2)})
    with pytest.raises(StepError) as caught:
        step(student={"checkpoint": "s"}, losses={"attention": 1}).run(tiny_bert, ctx)
    assert str(caught.value) == (
        "the loss on attention compares head with head; the student has 2 in a layer and its teacher 4. Leave attention out;"
        " hidden takes any width"
    )


@pytest.mark.integration
@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"intermediate_size": 96},
            "the student (s) has 27,746 parameters and its teacher (the model that arrives) 23,586: a student cannot be larger",
        ),
        (
            {"classes": 3, "num_hidden_layers": 1},
            "the student (s) answers with 3 classes and its teacher (the model that arrives) with 2; both must be of the same task",
        ),
    ],
)
def test_a_student_that_cannot_learn_from_its_teacher(
    tiny_bert: ModelArtifact, bert: Callable[..., ModelArtifact], rows: Callable[..., Rows], other: Any, message: str
) -> None:
    with pytest.raises(StepError) as caught:
        step(student={"checkpoint": "s"}).run(tiny_bert, rows(baselines={"student": bert(**other)}))
    assert str(caught.value) == message


@pytest.mark.integration
def test_classes_by_other_names_are_noted_and_in_another_order_refused(
    bert: Callable[..., ModelArtifact], rows: Callable[..., Rows]
) -> None:
    teacher, other = bert(labels=("bad", "good")), bert(labels=("LABEL_0", "LABEL_1"), num_hidden_layers=1)
    outcome = step(student={"checkpoint": "s"}, losses={"logits": 1}, epochs=1).run(teacher, rows(baselines={"student": other}))
    assert outcome.notes[1].text == (
        "student and teacher name their classes differently (LABEL_0, LABEL_1 and bad, good); they are taken to be the same in this order"
    )
    with pytest.raises(StepError) as caught:
        swapped = bert(labels=("good", "bad"), num_hidden_layers=1)
        step(student={"checkpoint": "s"}).run(teacher, rows(baselines={"student": swapped}))
    assert str(caught.value) == (
        "the student (s) and its teacher (the model that arrives) number the same classes differently: good, bad and bad, good"
    )


def tokenizer(words: Sequence[str], *, lowercase: bool = False) -> dict[str, str]:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=words[0]))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    if lowercase:
        made.normalizer = normalizers.Lowercase()
    return {"tokenizer.json": made.to_str()}


class Sentences(Rows):
    """Rows of text."""

    def table(self, role: str) -> Table:
        texts = ["a b", "A b", "b b a"] * 4
        return Table(
            columns={"sentence": texts, "label": [0, 1] * 6}, rows=tuple(f"{role}.tsv:{i + 2}" for i in range(12)), origin=f"{role}.tsv"
        )


@pytest.mark.integration
@pytest.mark.parametrize(
    ("students", "message"),
    [
        (
            {"words": ["?", "a", "b"]},
            "the student (s) and its teacher (the model that arrives) read different vocabularies, of 3 and 4 tokens; a student needs its"
            " teacher's tokenizer. Trim a vocabulary after `distill`, not before",
        ),
        (
            {"words": ["?", "a", "b", "A"], "lowercase": True},
            "the tokenizers of the student (s) and its teacher (the model that arrives) cut row training.tsv:3 into different tokens; a"
            " student needs its teacher's tokenizer. Trim a vocabulary after `distill`, not before",
        ),
    ],
)
def test_a_student_that_reads_other_tokens(bert: Callable[..., ModelArtifact], tmp_path: Path, students: Any, message: str) -> None:
    teacher = bert(tokenizer(["?", "a", "b", "A"]), labels=("x", "y"))
    other = bert(tokenizer(**students), labels=("x", "y"), num_hidden_layers=1)
    (out := tmp_path / "out").mkdir()
    ctx: Any = Sentences(out, task=TextClassification())
    ctx.scratch, ctx.baselines = tmp_path / "scratch", {"student": other}
    with pytest.raises(StepError) as caught:
        step(student={"checkpoint": "s"}).run(teacher, ctx)
    assert str(caught.value) == message
    ctx.baselines = {"student": bert(tokenizer(["?", "a", "b", "A"]), labels=("x", "y"), num_hidden_layers=1)}
    assert step(student={"checkpoint": "s"}, losses={"logits": 1}).run(teacher, ctx).metrics["steps"] == 6


@pytest.mark.integration
def test_a_vocabulary_that_no_tokenizer_json_holds_is_compared_by_rows(bert: Callable[..., ModelArtifact], tmp_path: Path) -> None:
    """Of the older `vocab.txt` alone, transformers makes the tokenizer."""
    from transformers import AutoTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]
    old = bert({"vocab.txt": "\n".join(words)})
    new = bert({"tokenizer.json": AutoTokenizer.from_pretrained(old.path).backend_tokenizer.to_str()})
    (out := tmp_path / "out").mkdir()
    table = Sentences(out).table("training")
    Pair(Side(None, new, "t"), Side(None, old, "s")).check_tokens(table, TextClassification())
    swapped = bert({"vocab.txt": "\n".join([*words[:-2], "b", "a"])})
    with pytest.raises(StepError, match=r"^the tokenizers of the student \(s\) and its teacher \(t\) cut row training.tsv:2 into"):
        Pair(Side(None, new, "t"), Side(None, swapped, "s")).check_tokens(table, TextClassification())


# Images


CNN = """
from torch import nn

def build(width={width}):
    return nn.Sequential(nn.Conv2d(1, width, 3, 2), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.Linear(width * 9, 3))
"""


class Images(Rows):
    """Three kinds of images, told apart by which third is bright."""

    def table(self, role: str) -> Table:
        import numpy as np

        draw = np.random.default_rng(len(role))
        labels = [i % 3 for i in range(48)]
        images = []
        for label in labels:
            image = draw.random((1, 8, 8)).astype(np.float32)
            image[:, :, label * 2 + 1 : label * 2 + 3] += 2
            images.append(image)
        return Table(columns={"image": images, "label": labels}, rows=tuple(f"{role}:{i}" for i in range(48)), origin=role)


@pytest.fixture
def cnn(tmp_path: Path) -> Callable[[int], ModelArtifact]:
    """A convolutional network from a factory, with weights drawn at random."""

    def make(width: int) -> ModelArtifact:
        (beside := tmp_path / f"of{width}").mkdir()
        (beside / f"net{width}.py").write_text(CNN.format(width=width))
        task = ImageClassification(image_shape=(1, 8, 8))
        written = model_source(ModelSpec(source=f"python:net{width}:build"), beside, None).fetch(beside, task).written
        assert written is not None
        return seal(ModelArtifact(path=beside / "model", **written.model_dump()))

    return make


@pytest.mark.integration
def test_a_smaller_network_learns_from_a_larger(cnn: Callable[[int], ModelArtifact], tmp_path: Path) -> None:
    (out := tmp_path / "out").mkdir()
    ctx: Any = Images(out, task=ImageClassification(image_shape=(1, 8, 8)))
    teacher, student = cnn(12), cnn(4)
    ctx.scratch, ctx.baselines = tmp_path / "scratch", {"student": student}
    given = {"student": {"checkpoint": "python:net4:build"}, "losses": {"logits": 1, "labels": 1}, "epochs": 12, "learning_rate": 0.02}
    outcome = Distill.model_validate(given).resolve(where(ctx.task)).run(teacher, ctx)
    assert outcome.metrics["dev_accuracy"] > 0.9 > outcome.metrics["dev_accuracy_before"]
    made = sealed(outcome, out, student)
    assert set(made.files) == set(student.files)
    assert made.facts["loader"] == student.facts["loader"]
    from ioptim.torch_model import load_module

    answers = dict(load_module(made).state_dict())
    assert (answers["0.weight"].shape, int(answers["1.num_batches_tracked"]) > 0) == ((4, 1, 3, 3), True)


@pytest.mark.integration
def test_a_network_without_layers_that_are_known(cnn: Callable[[int], ModelArtifact], tmp_path: Path) -> None:
    (out := tmp_path / "out").mkdir()
    ctx: Any = Images(out, task=ImageClassification(image_shape=(1, 8, 8)))
    teacher = cnn(12)
    ctx.scratch, ctx.baselines = tmp_path / "scratch", {"student": cnn(4)}
    with pytest.raises(StepError) as caught:
        step(student={"checkpoint": "s"}, losses={"hidden": 1}).run(teacher, ctx)
    assert str(caught.value) == (
        "the losses hidden and attention compare the layers of transformers encoders; Sequential (s) has no config with"
        " num_hidden_layers. Use logits, embedding or labels"
    )
    with pytest.raises(StepError) as caught:
        step(student={"layers": 1}, losses={"logits": 1}).run(teacher, ctx)
    assert str(caught.value) == (
        "a student is cut out of a transformers encoder; Sequential has no config with num_hidden_layers. Name the student as a"
        " `checkpoint`, or prune first and name the `teacher`"
    )


# What the teacher says is asked once


@pytest.mark.integration
def test_answers_are_asked_once_and_outlive_a_kill(
    tiny_bert: ModelArtifact, rows: Callable[..., Rows], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    plain = Objective._asked

    def counted(self: Objective, index: int) -> Any:
        asked.append(index)
        return plain(self, index)

    monkeypatch.setattr(Objective, "_asked", counted)
    monkeypatch.setattr(answers, "KEEP_S", 0.0)
    monkeypatch.setattr(training, "CHECKPOINT_S", 0.0)

    def kill(done: float, message: str) -> None:
        if done > 0.4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        step(losses={"logits": 1}, epochs=3).run(tiny_bert, rows(progress=kill))
    assert sorted(asked) == [0, 1, 2, 3, 4, 5]  # 24 rows, 4 in a batch; the second epoch asked nothing
    step(losses={"logits": 1}, epochs=3).run(tiny_bert, rows())
    assert sorted(asked) == [0, 1, 2, 3, 4, 5]


def test_sentence_vectors_of_other_widths_are_compared_by_their_similarities() -> None:
    torch = pytest.importorskip("torch")
    vectors = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
    wider = torch.cat([vectors, torch.zeros(6, 3)], 1)
    assert float(losses.embedding(wider, vectors)) == pytest.approx(0, abs=1e-6)
    assert float(losses.embedding(wider.flip(0), vectors)) > 0.01
    assert _correlation(wider.numpy(), vectors.numpy()) == pytest.approx(1)
    assert _correlation(wider.flip(0).numpy(), vectors.numpy()) < 0.9


def test_curves_are_by_step_and_quality_where_it_was_looked_at() -> None:
    points = [Point(2, 0.1, 0.9, 0.01), Point(4, 0.2, 0.8, 0.02, quality=0.5), Point(6, 0.3, 0.7, 0.01, quality=0.6)]
    loss, rate, quality = curves(Progress(step=6, points=points), "accuracy")
    assert (loss.metric, loss.steps, loss.values, loss.seconds) == ("train/loss", (2, 4, 6), (0.9, 0.8, 0.7), (0.1, 0.2, 0.3))
    assert (rate.metric, rate.values) == ("train/learning_rate", (0.01, 0.02, 0.01))
    assert (quality.metric, quality.steps, quality.values) == ("train/dev_accuracy", (4, 6), (0.5, 0.6))


# Devices


def test_the_device_and_the_processes_are_what_the_machine_has() -> None:
    assert (step().device, step().processes) == ("cpu", 1)
    gpu = {"name": "a GPU", "compute_capability": "9.0"}
    two = where().model_copy(update={"hardware": HARDWARE.model_copy(update={"gpus": (gpu, gpu)})})
    resolved = Distill(student=Student(layers=1)).resolve(two)
    assert (resolved.device, resolved.processes, resolved.precision) == ("gpu", 2, "bf16")
    new = where().model_copy(update={"hardware": HARDWARE.model_copy(update={"gpus": ({**gpu, "compute_capability": "12.0"},)})})
    assert Distill(student=Student(layers=1)).resolve(new).precision == "bf16"
    old = where().model_copy(update={"hardware": HARDWARE.model_copy(update={"gpus": ({**gpu, "compute_capability": "7.5"},)})})
    assert Distill(student=Student(layers=1)).resolve(old).precision == "fp32"


def test_gpus_that_are_not_there() -> None:
    assert Distill(student=Student(layers=1), device="gpu").resolve(where()).check(where()) == [
        "device: gpu needs 1 of them, and this machine has none; use `device: cpu` or `auto`"
    ]
