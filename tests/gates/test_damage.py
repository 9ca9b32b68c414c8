"""Models that were hurt on purpose, on a real runtime: the gate that should stop each one does, and says why.

The classifier looks its words up, turns them by two layers and takes the mean. Its labels are its own answers but for 5 %.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from ioptim.core.artifact import Format, ModelArtifact, TensorSpec, seal
from ioptim.core.gate import Gate, GateResult, Verdict
from ioptim.core.runtime import Target
from ioptim.core.task import Table
from ioptim.errors import StepError
from ioptim.gates import judge
from ioptim.runtimes.onnxruntime import OnnxRuntime
from ioptim.steps.validate import Validate
from ioptim.tasks.text_classification import TextClassification

pytestmark = pytest.mark.integration
np = pytest.importorskip("numpy")
pytest.importorskip("onnxruntime")

WORDS, WIDTH, ROWS, LONGEST = 80, 8, 800, 60
TARGET = Target(name="cpu", threads=1, runtime=OnnxRuntime())


class Context:
    """As much of a step's context as `validate` uses, over real sessions."""

    def __init__(self, out: Path, models: Mapping[str, ModelArtifact], table: Table) -> None:
        self.out, self.rows, self.task = out, table, TextClassification()
        self.baselines = {"source": models["source"]}
        self.candidates = {name: model for name, model in models.items() if name != "source"}

    def table(self, role: str) -> Table:
        return self.rows

    def open(self, model: ModelArtifact) -> Any:
        return TARGET.runtime.open(model, TARGET)

    def progress(self, done: float, message: str) -> None:
        pass


Make = Callable[..., ModelArtifact]


@pytest.fixture
def classifier(tmp_path: Path) -> Make:
    """The classifier; with `noise` on its second layer, or with its answers turned round on inputs longer than `wrong_above`."""
    onnx = pytest.importorskip("onnx")
    tokenizers = pytest.importorskip("tokenizers")
    from onnx import helper, numpy_helper

    draw = np.random.default_rng(0)
    words = [f"w{i}" for i in range(WORDS)]
    table, first, last = (draw.normal(size=shape).astype("float32") for shape in ((WORDS, WIDTH), (WIDTH, WIDTH), (WIDTH, 2)))
    damage = draw.normal(size=(WIDTH, WIDTH)).astype("float32")

    def make(noise: float = 0.0, wrong_above: int = 10**6) -> ModelArtifact:
        folder = tmp_path / f"model{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="w0"))
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "config.json").write_text(json.dumps({"vocab_size": WORDS}))
        weights = {"table": table, "first": first + np.float32(noise) * damage, "last": last, "limit": np.array(wrong_above, "int64")}
        nodes = [
            helper.make_node("Gather", ["table", "input_ids"], ["words"]),
            helper.make_node("MatMul", ["words", "first"], ["turned"]),
            helper.make_node("Tanh", ["turned"], ["bent"]),
            helper.make_node("ReduceMean", ["bent", "axis"], ["mean"], keepdims=0),
            helper.make_node("MatMul", ["mean", "last"], ["right"]),
            helper.make_node("Neg", ["right"], ["wrong"]),
            helper.make_node("Shape", ["input_ids"], ["length"], start=1, end=2),
            helper.make_node("Greater", ["length", "limit"], ["long"]),
            helper.make_node("Where", ["long", "wrong", "right"], ["logits"]),
        ]
        tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in {**weights, "axis": np.array([1])}.items()]
        inputs = (TensorSpec(name="input_ids", dtype="int64", shape=("batch", "sequence")),)
        outputs = (TensorSpec(name="logits", dtype="float32", shape=("batch", 2)),)
        graph = helper.make_graph(
            nodes,
            "damaged",
            [helper.make_tensor_value_info("input_ids", onnx.TensorProto.INT64, ["batch", "sequence"])],
            [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 2])],
            tensors,
        )
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), folder / "model.onnx")
        return seal(ModelArtifact(path=folder, format=Format.ONNX, entry="model.onnx", inputs=inputs, outputs=outputs))

    return make


@pytest.fixture
def rows(classifier: Make) -> Table:
    """Texts of 1 to 60 words, with what the classifier answers, of which 5 % are turned round."""
    draw = np.random.default_rng(1)
    lengths = draw.integers(1, LONGEST + 1, ROWS)
    texts = [" ".join(f"w{i}" for i in draw.integers(0, WORDS, length)) for length in lengths]
    names = tuple(f"rows.tsv:{i + 2}" for i in range(ROWS))
    table = Table(columns={"sentence": texts, "label": [0] * ROWS}, rows=names, origin="rows.tsv")
    model = classifier()
    session = TARGET.runtime.open(model, TARGET)
    answers = [int(session.run(feeds)["logits"].argmax()) for feeds in TextClassification().examples(table, model)]
    session.close()
    labels = [answer ^ int(turned) for answer, turned in zip(answers, draw.random(ROWS) < 0.05, strict=True)]
    return table.model_copy(update={"columns": {"sentence": texts, "label": labels}})


PLAIN = Gate(metric="accuracy", max_drop=0.05)
BY_LENGTH = Gate(metric="accuracy", max_drop=0.05, slices="input_length")


def verdict(gate: Gate, source: ModelArtifact, candidate: ModelArtifact, rows: Table, out: Path) -> GateResult:
    context = Context(out, {"source": source, "int8": candidate}, rows)
    outcome = Validate().run(candidate, context)  # type: ignore[arg-type]
    (result,) = judge(gate, outcome.samples, ["int8"])
    return result


def test_an_identical_candidate_passes(classifier: Make, rows: Table, tmp_path: Path) -> None:
    for gate in (PLAIN, BY_LENGTH, Gate(metric="output_kl", max_value=1e-6), Gate(metric="output_cosine_p1", min_value=0.999999)):
        assert verdict(gate, classifier(), classifier(), rows, tmp_path).verdict is Verdict.PASS


def test_a_layer_perturbed_until_accuracy_falls_is_failed_by_the_accuracy_gate(classifier: Make, rows: Table, tmp_path: Path) -> None:
    found = []
    for noise in (0.01, 0.1, 0.3, 1.0, 3.0):
        result = verdict(PLAIN, classifier(), classifier(noise=noise), rows, tmp_path)
        assert result.estimate is not None
        found.append(result.verdict)
        if result.verdict is Verdict.FAIL:
            break
    assert found[0] is Verdict.PASS and found[-1] is Verdict.FAIL
    assert result.estimate > 0.05 and result.interval is not None and result.interval[0] > 0.05
    assert result.reason.startswith(f"accuracy of int8 fell by {result.estimate:.4g} against source (")
    assert result.reason.endswith(", 800 rows): outside max_drop 0.05")


def test_a_weight_that_is_no_number_is_named_with_its_layer(classifier: Make, rows: Table, tmp_path: Path) -> None:
    with pytest.raises(StepError) as raised:
        verdict(PLAIN, classifier(), classifier(noise=float("nan")), rows, tmp_path)
    assert str(raised.value) == (
        "int8: the output 'logits' is not a number (NaN) in 2 of its 2 values for rows.tsv:2;"
        " NaN begins in the layer 'turned' (MatMul), whose weight 'first' is not finite"
    )


def test_a_defect_on_long_inputs_passes_on_average_and_is_caught_by_the_slices(classifier: Make, rows: Table, tmp_path: Path) -> None:
    broken = classifier(wrong_above=LONGEST - 2)
    average = verdict(PLAIN, classifier(), broken, rows, tmp_path)
    assert average.verdict is Verdict.PASS
    sliced = verdict(BY_LENGTH, classifier(), broken, rows, tmp_path)
    assert sliced.verdict is Verdict.FAIL
    assert sliced.slice is not None and sliced.slice.endswith(f"-{LONGEST} tokens")
    assert sliced.reason.startswith(f"worst of 4 slices by input_length, {sliced.slice}: accuracy of int8 fell by ")
    assert [part.verdict for part in sliced.slices[1:]] == [Verdict.PASS] * 3
