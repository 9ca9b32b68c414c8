"""Scores row by row, fidelity, what is told of changed rows, and what a broken model gets. Models are Python functions."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from ioptim.core.artifact import Format, ModelArtifact, TensorSpec
from ioptim.core.gate import Gate
from ioptim.core.metrics import Kind, Metric, Samples
from ioptim.core.step import Level, Outcome, Where
from ioptim.core.target import Hardware
from ioptim.core.task import Table, Task
from ioptim.errors import StepError
from ioptim.steps.validate import Validate

np = pytest.importorskip("numpy")

TEXTS = ("one", "four", "three", "two", "five", "seven")
LABELS = (1, 0, 1, 1, 1, 1)  # that of five is wrong
TABLE = Table(
    columns={"sentence": TEXTS, "label": LABELS},
    rows=tuple(f"test.tsv:{i + 2}" for i in range(len(TEXTS))),
    origin="test.tsv",
)


class LengthTask(Task):
    """The class is whether a text has an odd number of letters; a text is fed as its letters."""

    task: Literal["length"] = "length"
    metrics = (
        Metric(name="accuracy", higher_is_better=True, description="right"),
        Metric(name="loss", higher_is_better=False, description="wrongness"),
    )
    columns = {"sentence": "text", "label": "class"}
    calibration_columns = {"sentence": "text"}
    output = "logits"
    length_unit = "letters"

    def input_lengths(self, table: Table, model: ModelArtifact) -> list[int]:
        return [len(text) for text in table.columns["sentence"]]

    def examples(self, table: Table, model: ModelArtifact) -> Iterator[dict[str, Any]]:
        for text in table.columns["sentence"]:
            yield {"letters": np.array([[ord(c) for c in text]])}

    def collate(self, examples: Sequence[dict[str, Any]], model: ModelArtifact) -> dict[str, Any]:
        return {"letters": np.concatenate([e["letters"] for e in examples])}

    def score(self, outputs: Sequence[Mapping[str, Any]], table: Table, model: ModelArtifact) -> dict[str, list[float]]:
        logits = np.concatenate([output["logits"] for output in outputs])
        right = (logits.argmax(1) == np.array(table.columns["label"])).astype(float)
        return {"accuracy": right.tolist(), "loss": (1 - right).tolist()}

    def dummy_feeds(self, model: ModelArtifact, batch: int, length: int) -> dict[str, Any]:
        return {"letters": np.zeros((batch, length))}

    def notes(self, table: Table, model: ModelArtifact) -> list[str]:
        return ["1 of 6 texts were cut at 5 tokens"]


Forward = Callable[[Any], dict[str, Any]]


def parity(letters: Any) -> dict[str, Any]:
    """Right on every row but one: the label of five is wrong."""
    odd = np.full((len(letters), 1), letters.shape[1] % 2, dtype="float32")
    return {"logits": np.concatenate([1 - odd, odd], axis=1)}


def afraid_of_v(letters: Any) -> dict[str, Any]:
    """Wrong on texts with a v: five and seven."""
    logits = parity(letters)["logits"]
    return {"logits": np.where((letters == ord("v")).any(1, keepdims=True), logits[:, ::-1], logits)}


class FakeSession:
    def __init__(self, forward: Forward, batch: int | str = "batch") -> None:
        self.forward = forward
        self.inputs = (TensorSpec(name="letters", dtype="int64", shape=(batch, "length")),)
        self.outputs = (TensorSpec(name="logits", dtype="float32", shape=(batch, 2)),)
        self.facts = {"threads": 1}
        self.calls: list[tuple[int, ...]] = []
        self.closed = False

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        self.calls.append(feeds["letters"].shape)
        return self.forward(feeds["letters"])

    def close(self) -> None:
        self.closed = True


class FakeContext:
    """Opens the session that stands for a model's digest."""

    def __init__(self, out: Path, sessions: dict[str, FakeSession], candidates: Sequence[str], table: Table = TABLE) -> None:
        self.out = out
        self.task = LengthTask()
        self.sessions = sessions
        models = {name: ModelArtifact(path=out, format=Format.NULL, entry="m", digest=name) for name in sessions}
        self.candidates = {name: models[name] for name in candidates}
        self.baselines = {name: model for name, model in models.items() if name not in candidates}
        self.rows = table
        self.opened: list[str] = []
        self.told: list[tuple[float, str]] = []

    def table(self, role: str) -> Table:
        assert role == "validation"
        return self.rows

    def open(self, model: ModelArtifact) -> FakeSession:
        assert all(session.closed for name, session in self.sessions.items() if name in self.opened), "two models in memory at once"
        self.opened.append(model.digest)
        return self.sessions[model.digest]

    def progress(self, done: float, message: str) -> None:
        self.told.append((done, message))


def run(out: Path, candidates: Sequence[str] = ("int8",), step: Validate | None = None, **forwards: Forward) -> tuple[Outcome, FakeContext]:
    ctx = FakeContext(out, {name: FakeSession(forward) for name, forward in forwards.items()}, candidates)
    outcome = (step or Validate()).run(ModelArtifact(path=out, format=Format.NULL, entry="m"), ctx)  # type: ignore[arg-type]
    return outcome, ctx


def sample(outcome: Outcome, name: str) -> Samples:
    return next(s for s in outcome.samples if s.metric.name == name)


def test_every_row_of_every_model_is_kept_in_the_order_of_the_data(tmp_path: Path) -> None:
    outcome, ctx = run(tmp_path, source=parity, int8=afraid_of_v)
    accuracy = sample(outcome, "accuracy")
    assert accuracy.kind is Kind.PAIRED_ROWS
    assert accuracy.rows == TABLE.rows
    assert accuracy.values == {"source": (1, 1, 1, 1, 0, 1), "int8": (1, 1, 1, 1, 1, 0)}
    kept = [json.loads(line) for line in (tmp_path / "files" / "rows.jsonl").read_text().splitlines()]
    assert kept[4] == {
        "row": "test.tsv:6",
        "accuracy": {"source": 0.0, "int8": 1.0},
        "loss": {"source": 1.0, "int8": 0.0},
        "output_cosine_mean": {"source": 1.0, "int8": 0.0},
        "top1_agreement": {"source": 1.0, "int8": 0.0},
        "output_kl": {"source": 0.0, "int8": pytest.approx(math.tanh(0.5))},
    }
    assert ctx.told[-1] == (1.0, "scoring")
    assert [done for done, _ in ctx.told] == sorted(done for done, _ in ctx.told)


def test_metrics_of_a_single_candidate_say_how_much_worse_it_is(tmp_path: Path) -> None:
    def always_zero(letters: Any) -> dict[str, Any]:
        return {"logits": np.tile(np.array([[1.0, 0.0]]), (len(letters), 1))}

    outcome, _ = run(tmp_path, source=parity, int8=always_zero)
    assert outcome.subjects["source"]["accuracy"] == pytest.approx(5 / 6)
    assert outcome.metrics["accuracy"] == pytest.approx(1 / 6)
    assert outcome.metrics["accuracy_drop_vs_source"] == pytest.approx(4 / 6)
    assert outcome.metrics["loss_drop_vs_source"] == pytest.approx(4 / 6)
    assert outcome.metrics["top1_agreement"] == pytest.approx(2 / 6)
    assert outcome.facts["executed"] == {"source": {"threads": 1}, "int8": {"threads": 1}}
    assert outcome.facts["rows"] == 6


def test_several_candidates_are_subjects(tmp_path: Path) -> None:
    outcome, _ = run(tmp_path, candidates=("a", "b"), source=parity, a=afraid_of_v, b=parity)
    assert outcome.metrics == {}
    assert set(outcome.subjects) == {"source", "a", "b"}
    assert [table.title for table in outcome.tables] == ["Quality on the same rows", "Rows that changed in a (2 of 2)"]


def test_notes_count_changed_rows_and_pass_on_what_was_cut(tmp_path: Path) -> None:
    outcome, _ = run(tmp_path, source=parity, int8=afraid_of_v)
    assert [note.text for note in outcome.notes] == [
        "1 of 6 texts were cut at 5 tokens",
        "accuracy of int8 differs from source's in 2 of 6 rows: 1 worse, 1 better",
        "loss of int8 differs from source's in 2 of 6 rows: 1 worse, 1 better",
        "output_cosine_p1 is not reported: it needs at least 299 rows, and there are 6",
    ]


def test_rows_that_repeat_others_are_counted(tmp_path: Path) -> None:
    again = Table(columns={name: [*column, column[0]] for name, column in TABLE.columns.items()}, rows=(*TABLE.rows, "again"), origin="t")
    ctx = FakeContext(tmp_path, {"source": FakeSession(parity), "int8": FakeSession(parity)}, ["int8"], again)
    notes = Validate().run(ctx.candidates["int8"], ctx).notes  # type: ignore[arg-type]
    text = "1 of 7 rows repeat another: they are no further evidence, and intervals are narrower than they should be"
    assert (notes[0].text, notes[0].level) == (text, Level.WARNING)


def test_changed_rows_are_shown_losses_first(tmp_path: Path) -> None:
    outcome, _ = run(tmp_path, source=parity, int8=afraid_of_v)
    changed = outcome.tables[1]
    assert changed.columns == ("row", "sentence", "label", "accuracy, source", "int8")
    assert changed.rows == (("test.tsv:7", "seven", "1", 1.0, 0.0), ("test.tsv:6", "five", "1", 0.0, 1.0))
    outcome, _ = run(tmp_path, step=Validate(changed_rows=0), source=parity, int8=afraid_of_v)
    assert len(outcome.tables) == 1


@pytest.mark.parametrize("batch_size", [1, 2, 4, 100])
def test_batches_hold_equal_shapes_and_change_no_result(tmp_path: Path, batch_size: int) -> None:
    outcome, ctx = run(tmp_path, step=Validate(batch_size=batch_size), source=parity, int8=afraid_of_v)
    alone, _ = run(tmp_path / "files", source=parity, int8=afraid_of_v)
    assert outcome.samples == alone.samples
    calls = ctx.sessions["int8"].calls
    assert sum(batch for batch, _ in calls) == 6
    assert {length for _, length in calls} == {3, 4, 5}
    assert len(calls) == {1: 6, 2: 3, 4: 3, 100: 3}[batch_size]


def test_a_model_with_two_names_runs_once(tmp_path: Path) -> None:
    ctx = FakeContext(tmp_path, {"source": FakeSession(parity)}, [])
    ctx.candidates = {"compile": ctx.baselines["source"]}
    outcome = Validate().run(ctx.baselines["source"], ctx)  # type: ignore[arg-type]
    assert ctx.opened == ["source"]
    assert sample(outcome, "accuracy").values["compile"] == sample(outcome, "accuracy").values["source"]


def test_a_model_that_two_targets_share_runs_on_each(tmp_path: Path) -> None:
    ctx = FakeContext(tmp_path, {"source": FakeSession(parity)}, [])
    source = ctx.baselines["source"]
    ctx.candidates = {f"compile@{name}": source.model_copy(update={"target": name}) for name in ("one", "two")}
    Validate().run(source, ctx)  # type: ignore[arg-type]
    assert len(ctx.opened) == 3


def test_nan_in_an_output_names_model_output_and_row(tmp_path: Path) -> None:
    def broken(letters: Any) -> dict[str, Any]:
        return {"logits": parity(letters)["logits"] * (np.nan if letters.shape[1] == 5 else 1)}

    with pytest.raises(StepError) as raised:
        run(tmp_path, source=parity, int8=broken)
    assert str(raised.value) == "int8: the output 'logits' is not a number (NaN) in 2 of its 2 values for test.tsv:4"


def test_sessions_are_closed_when_a_model_fails(tmp_path: Path) -> None:
    ctx = FakeContext(tmp_path, {"source": FakeSession(lambda letters: {"logits": np.float32(1)})}, ["source"])
    with pytest.raises(StepError, match="its first axis must be the batch"):
        Validate().run(ctx.candidates["source"], ctx)  # type: ignore[arg-type]
    assert ctx.sessions["source"].closed


def test_a_fixed_batch_axis_is_said_before_anything_runs(tmp_path: Path) -> None:
    ctx = FakeContext(tmp_path, {"source": FakeSession(parity, batch=1)}, ["source"])
    with pytest.raises(StepError) as raised:
        Validate(batch_size=8).run(ctx.candidates["source"], ctx)  # type: ignore[arg-type]
    assert str(raised.value) == (
        "source takes batches of 1 only (input 'letters' has shape [1, 'length']), and batch_size is 8."
        " Export it with a varying batch axis, or set batch_size: 1"
    )


def test_outputs_of_another_shape_have_no_fidelity_and_that_is_said(tmp_path: Path) -> None:
    def padded(letters: Any) -> dict[str, Any]:
        return {"logits": np.concatenate([parity(letters)["logits"], np.full((len(letters), 1), -9.0)], axis=1)}

    outcome, _ = run(tmp_path, source=parity, int8=padded)
    assert "int8" not in sample(outcome, "output_cosine_mean").values
    assert outcome.notes[-1].level is Level.WARNING
    assert outcome.notes[-1].text == "the outputs of int8 have other shapes than the source model's: their fidelity was not measured"


def test_a_row_without_a_number_leaves_no_mean(tmp_path: Path) -> None:
    class Holed(LengthTask):
        def score(self, outputs: Any, table: Table, model: ModelArtifact) -> dict[str, list[float]]:
            scores = super().score(outputs, table, model)
            return scores if model.digest == "source" else {**scores, "accuracy": [float("nan"), *scores["accuracy"][1:]]}

    ctx = FakeContext(tmp_path, {"source": FakeSession(parity), "int8": FakeSession(parity)}, ["int8"])
    ctx.task = Holed()
    outcome = Validate().run(ctx.candidates["int8"], ctx)  # type: ignore[arg-type]
    assert sample(outcome, "accuracy").values["int8"][0] is None
    assert "accuracy" not in outcome.metrics and "accuracy_drop_vs_source" not in outcome.metrics
    assert "accuracy of int8 is not a number in 1 of 6 rows: it has no mean" in [note.text for note in outcome.notes]


def test_gates_may_use_the_task_s_metrics_and_the_fidelity_but_no_speedup() -> None:
    step = Validate(gates=(Gate(metric="accuracy", min_speedup=2),))
    assert step.metric_names(LengthTask()) == ["accuracy", "loss", "output_cosine_mean", "output_cosine_p1", "top1_agreement", "output_kl"]
    assert step.check(None) == [  # type: ignore[arg-type]
        "gate on accuracy: min_speedup is for times and throughputs; on rows use max_drop, min_ratio or min_value"
    ]


def test_a_gate_on_a_quantile_bounds_a_value() -> None:
    step = Validate(gates=(Gate(metric="output_cosine_p1", max_drop=0.1), Gate(metric="output_cosine_p1", min_value=0.9)))
    assert step.check(None) == [  # type: ignore[arg-type]
        "gate on output_cosine_p1: max_drop does not fit a quantile of rows; use min_value or max_value"
    ]


# --- slices


def test_the_samples_say_which_slice_each_row_is_in(tmp_path: Path) -> None:
    outcome, _ = run(tmp_path, source=parity, int8=afraid_of_v)
    for each in outcome.samples:
        assert each.slices == {
            "label": ("1", "0", "1", "1", "1", "1"),
            "sentence": TEXTS,
            "input_length": ("3 letters", "4 letters", "5 letters", "3 letters", "4 letters", "5 letters"),
        }


@pytest.mark.parametrize(
    ("name", "objection"),
    [
        ("lable", "test.tsv has no column 'lable' to slice by; did you mean 'label'? There are: label, input_length"),
        ("topic", "test.tsv has no column 'topic' to slice by. There are: label, input_length"),
        ("sentence", "the column 'sentence' does not slice the rows: it has 60 different values, and 2 to 50 can be judged"),
        ("fold", "the column 'fold' does not slice the rows: it has 1 different value, and 2 to 50 can be judged"),
        ("image", "the column 'image' does not slice the rows: its values are no names, and 2 to 50 can be judged"),
    ],
)
def test_slices_that_the_rows_do_not_have_are_refused_before_anything_runs(tmp_path: Path, name: str, objection: str) -> None:
    columns = {"sentence": [f"text {i}" for i in range(60)], "label": [0, 1] * 30, "fold": ["a"] * 60, "image": [np.zeros(2)] * 60}
    table = Table(columns=columns, rows=tuple(map(str, range(60))), origin="test.tsv")
    step = Validate(gates=(Gate(metric="accuracy", max_drop=0.1, slices=name),))
    assert step.check_rows(table, LengthTask()) == [f"gate on accuracy: {objection}"]
    ctx = FakeContext(tmp_path, {"source": FakeSession(parity)}, ["source"], table)
    with pytest.raises(StepError, match="gate on accuracy: "):
        step.run(ctx.candidates["source"], ctx)  # type: ignore[arg-type]
    assert not ctx.opened


def test_inputs_of_one_size_have_no_length_to_slice_by() -> None:
    class Square(LengthTask):
        length_unit = ""

    step = Validate(gates=(Gate(metric="accuracy", max_drop=0.1, slices="input_length"),))
    assert step.check(where(Square())) == [
        "gate on accuracy: all inputs of length have the same size, so there is no input_length; slice by a column, for example label"
    ]
    assert step.check(where(LengthTask())) == []
    assert step.check_rows(rows_of(40), LengthTask()) == []
    assert step.check_rows(rows_of(40), Square()) == [
        "gate on accuracy: test.tsv has no column 'input_length' to slice by. There are: sentence, label"
    ]


@pytest.mark.parametrize(
    ("metric", "bound", "least"),
    [("accuracy", "max_drop", 10), ("output_cosine_mean", "min_value", 30), ("output_cosine_p1", "min_value", 368)],
)
def test_rows_too_few_for_any_verdict_are_objected_to(metric: str, bound: str, least: int) -> None:
    step = Validate(gates=(Gate.model_validate({"metric": metric, bound: 0.1}),))
    said = f"gate on {metric}: {least - 1} rows of test.tsv can never decide at 95 % confidence; at least {least} can"
    objections = step.check_rows(rows_of(least - 1), LengthTask())
    assert objections == [f"{said}. Take more rows, or say what undecided shall do (`undecided: warn`)"]
    assert step.check_rows(rows_of(least), LengthTask()) == []


def test_rows_too_few_that_no_plan_could_read_are_measured_all_the_same(tmp_path: Path) -> None:
    """Their gate is undecided, and the others are judged."""
    outcome, _ = run(tmp_path, step=Validate(gates=(Gate(metric="accuracy", max_drop=0.1),)), source=parity, int8=parity)
    assert outcome.subjects["int8"]["accuracy"] == outcome.subjects["source"]["accuracy"]


def test_rows_too_few_are_taken_where_undecided_does_not_block() -> None:
    gate = Gate(metric="accuracy", max_drop=0.1, undecided="warn")
    assert Validate(gates=(gate,)).check_rows(rows_of(2), LengthTask()) == []


def rows_of(count: int) -> Table:
    columns = {"sentence": [f"text {i}" for i in range(count)], "label": [i % 2 for i in range(count)]}
    return Table(columns=columns, rows=tuple(map(str, range(count))), origin="test.tsv")


def test_a_step_that_scores_no_rows_takes_no_slices() -> None:
    class Timed(Validate):
        scores_rows = False

    with pytest.raises(ValueError, match="slices are of rows, which this step does not score; leave `slices` out of the gate on accuracy"):
        Timed(gates=(Gate(metric="accuracy", max_drop=0.1, slices="label"),))


def where(task: Task) -> Where:
    hardware = Hardware(cpu_model="test", cpu_flags=(), cores=1, threads=1, memory_bytes=1)
    return Where(format=Format.ONNX, targets=(), task=task, hardware=hardware, has_calibration=False)


# --- fidelity


def classifier(*logits: float) -> Forward:
    return lambda letters: {"logits": np.tile(np.array([logits], dtype="float32"), (len(letters), 1))}


def test_divergence_is_that_of_the_probabilities_in_nats(tmp_path: Path) -> None:
    outcome, _ = run(tmp_path, source=classifier(math.log(3), 0), int8=classifier(0, 0))
    kl = sample(outcome, "output_kl").values
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert kl["int8"] == pytest.approx([expected] * 6, rel=1e-6)
    assert kl["source"] == (0,) * 6


def test_divergence_of_huge_logits_is_a_number_and_of_infinite_ones_is_none(tmp_path: Path) -> None:
    outcome, _ = run(tmp_path, source=classifier(0, 0), int8=classifier(2000, 0), broken=classifier(float("inf"), 0))
    kl = sample(outcome, "output_kl").values
    assert kl["int8"] == pytest.approx([1000 - math.log(2)] * 6)
    assert kl["broken"] == (None,) * 6


def test_the_1st_percentile_of_the_cosine_is_reported_from_299_rows_on(tmp_path: Path) -> None:
    def wrong_on_long(letters: Any) -> dict[str, Any]:
        logits = parity(letters)["logits"]
        return {"logits": logits[:, ::-1] if letters.shape[1] == 9 else logits}

    texts = ["eight nn"] * 295 + ["nine nine"] * 5
    columns = {"sentence": texts, "label": [0] * 300}
    for rows, expected in ((300, 0.0), (299, 0.0), (298, None)):
        table = Table(columns={k: v[300 - rows :] for k, v in columns.items()}, rows=tuple(map(str, range(rows))), origin="t")
        ctx = FakeContext(tmp_path, {"source": FakeSession(parity), "int8": FakeSession(wrong_on_long)}, ["int8"], table)
        outcome = Validate().run(ctx.candidates["int8"], ctx)  # type: ignore[arg-type]
        assert outcome.metrics.get("output_cosine_p1") == expected
        assert outcome.metrics["output_cosine_mean"] == pytest.approx((rows - 5) / rows)
