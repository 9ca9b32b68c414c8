"""Padding: attention reads masks as they are, and batches with much padding compute the other tokens alone, to the same answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ioptim import non_finite
from ioptim.core.artifact import ModelArtifact
from ioptim.core.runtime import Target
from ioptim.errors import StepError
from ioptim.onnx_graph import count_ops, fuse_transformer, load_graph, nodes_of, save_graph
from ioptim.onnx_padding import SWITCH, Removed, remove_padding, without_switch
from ioptim.runtimes import _onnx_compare, onnxruntime
from ioptim.runtimes.onnxruntime import OnnxRuntime
from ioptim.steps._smooth import smooth

pytestmark = pytest.mark.integration

np = pytest.importorskip("numpy")

MASKS = {
    "none": [[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]],
    "little": [[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]],
    "at the end": [[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]],
    "at the beginning": [[0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 1, 1]],
    "in the middle": [[1, 0, 1, 0, 1, 0], [1, 1, 0, 0, 0, 1]],
    "all of a row": [[1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]],
}
PACKED = ("at the end", "in the middle")
"""The batches that are computed without: much padding, and none in front."""


def feeds_of(padding: str) -> dict[str, Any]:
    mask = np.array(MASKS[padding])
    return {"input_ids": np.arange(3, 15).reshape(2, 6), "attention_mask": mask}


@pytest.fixture
def plain(bert: ModelArtifact, target_of: Callable[..., Target]) -> Any:
    """The model as it was exported."""
    return OnnxRuntime(graph_optimization="off", fusions=False).open(bert, target_of(OnnxRuntime()))


@pytest.fixture
def classifier(bert: ModelArtifact, tmp_path: Path) -> ModelArtifact:
    """The first token's vector."""
    from onnx import helper, numpy_helper

    model = load_graph(bert.model_path)
    (whole,) = model.graph.output
    model.graph.initializer.append(numpy_helper.from_array(np.array(0), "first"))
    model.graph.node.append(helper.make_node("Gather", [whole.name, "first"], ["logits"], "read", axis=1))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("logits", 1, ["batch", 64]))
    (folder := tmp_path / "classifier").mkdir()
    save_graph(model, folder / "model.onnx")
    output = bert.outputs[0].model_copy(update={"name": "logits", "shape": ("batch", 64)})
    return bert.model_copy(update={"path": folder, "outputs": (output,)})


@pytest.fixture(params=[False, True], ids=["", "smoothed"])
def int8(request: pytest.FixtureRequest, bert: ModelArtifact, tmp_path: Path) -> ModelArtifact:
    from onnxruntime.quantization import quantize_dynamic

    (folder := tmp_path / "int8").mkdir()
    fuse_transformer(bert.model_path, folder / "fused.onnx")
    if request.param:
        graph = load_graph(folder / "fused.onnx")
        linear = {node.name for node in graph.graph.node if node.op_type in ("Attention", "MatMul")}
        ctx: Any = SimpleNamespace(hardware=SimpleNamespace(threads=1), progress=lambda share, message: None)
        assert smooth(folder / "fused.onnx", 0.5, linear, [feeds_of("none")], ctx, tmp_path).inserted == 6
    quantize_dynamic(folder / "fused.onnx", folder / "model.onnx", extra_options={"DefaultTensorType": 1})
    return bert.model_copy(update={"path": folder})


@pytest.mark.parametrize("padding", list(MASKS))
@pytest.mark.parametrize("remove", [True, False])
def test_tokens_that_count_get_the_same_vectors(bert: ModelArtifact, plain: Any, compiled: Any, padding: str, remove: bool) -> None:
    outcome, _, session = compiled(OnnxRuntime(remove_padding=remove), bert)
    feeds = feeds_of(padding)
    counts = feeds["attention_mask"] == 1
    wanted, given = (one.run(feeds)["last_hidden_state"] for one in (plain, session))
    np.testing.assert_allclose(given[counts], wanted[counts], atol=1e-5)
    if remove and padding in PACKED:
        assert not given[~counts].any(), "what is not computed is 0"
    else:
        assert given[~counts].all()
    assert ("packed_nodes" in outcome.metrics) == remove


@pytest.mark.parametrize("padding", list(MASKS))
def test_the_token_that_a_classifier_reads_is_computed_even_if_it_is_masked(
    classifier: ModelArtifact, target_of: Callable[..., Target], compiled: Any, padding: str
) -> None:
    outcome, _, session = compiled(OnnxRuntime(), classifier)
    unfused = OnnxRuntime(graph_optimization="off", fusions=False).open(classifier, target_of(OnnxRuntime()))
    wanted, given = (one.run(feeds_of(padding))["logits"] for one in (unfused, session))
    np.testing.assert_allclose(given, wanted, atol=1e-5)
    assert outcome.metrics["packed_nodes"] > 10


def test_in_int8_padding_does_not_reach_the_tokens_that_count(int8: ModelArtifact, compiled: Any) -> None:
    outcome, artifact, session = compiled(OnnxRuntime(), int8)
    alone = {"input_ids": np.arange(3, 13).reshape(2, 5), "attention_mask": np.ones((2, 5), np.int64)}
    padded = {name: np.pad(array, ((0, 0), (0, 4))) for name, array in alone.items()}
    wanted, given = (session.run(feeds)["last_hidden_state"] for feeds in (alone, padded))
    np.testing.assert_allclose(given[:, :5], wanted, atol=0.02)
    assert outcome.metrics["packed_nodes"] > 40
    assert outcome.metrics["int8_products"] == 8, "each counted once, though the file has two ways to compute it"
    kinds = [node.op_type for node in nodes_of(load_graph(artifact.model_path).graph, both=True)]
    assert kinds.count("DynamicQuantizeMatMul") == 6 + 8 and "MatMul" not in kinds, "int8 in both"
    assert outcome.metrics["padding_max_difference"] < 1e-3
    assert [note.text for note in outcome.notes if "padding" in note.text] == [
        f"{outcome.metrics['packed_nodes']:g} nodes leave out padding where it is more than 15% of a batch; last_hidden_state is 0 there"
    ]
    assert artifact.model_path.stat().st_size < 1.5 * int8.model_path.stat().st_size, "weights are there once"


def test_what_is_profiled_is_what_ran(bert: ModelArtifact, target_of: Callable[..., Target], compiled: Any, tmp_path: Path) -> None:
    runtime = OnnxRuntime()
    _, artifact, _ = compiled(runtime, bert)
    session = runtime.open_profiled(artifact, target_of(runtime), tmp_path / "trace.json")
    for padding in ("none", "in the middle"):
        session.run(feeds_of(padding))
    whole, packed = session.finish()
    for run, tokens in ((whole, 12), (packed, 6)):
        assert not [layer for layer in run.layers if layer.operator == "If"], "its time is that of the nodes inside"
        norm = next(layer for layer in run.layers if layer.operator == "LayerNormalization")
        assert np.prod(norm.outputs[0].shape[:-1]) == tokens
        assert norm.inputs[1].weight
        assert sum(layer.seconds for layer in run.layers) <= run.seconds
    assert all(layer.name.startswith("packed/") for layer in packed.layers if layer.operator == "LayerNormalization")


@pytest.mark.parametrize(
    "change",
    [
        "fixed length",
        "old opset",
        "no mask",
        "two masks",
        "mask of lengths",
        "mask as output",
        "looks back only",
        "other weights",
        "float16 output",
        "a body inside",
    ],
)
def test_what_is_not_known_is_left_alone(bert: ModelArtifact, tmp_path: Path, change: str) -> None:
    from onnx import helper, numpy_helper

    fused = tmp_path / "fused.onnx"
    fuse_transformer(bert.model_path, fused)
    model = load_graph(fused)
    attention = [node for node in model.graph.node if node.op_type == "Attention"]
    match change:
        case "fixed length":
            model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 8
        case "old opset":
            next(one for one in model.opset_import if not one.domain).version = 12
        case "no mask":
            for node in attention:
                node.input[3] = ""
        case "two masks":
            attention[0].input[3] = "other"
        case "mask of lengths":
            model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "axis"))
            summed = helper.make_node("ReduceSum", [attention[0].input[3], "axis"], ["lengths"], keepdims=0)
            model.graph.node.insert(list(model.graph.node).index(attention[0]), summed)
            for node in model.graph.node:
                if node.op_type == "Attention":
                    node.input[3] = "lengths"
        case "mask as output":
            model.graph.output.append(helper.make_tensor_value_info(attention[0].input[3], 6, ["batch", "sequence"]))
        case "float16 output":
            model.graph.output[0].type.tensor_type.elem_type = 10
        case "a body inside":
            body = helper.make_graph(
                [helper.make_node("Abs", ["input_ids"], ["y"])], "b", [], [helper.make_tensor_value_info("y", 7, None)]
            )
            model.graph.node.append(helper.make_node("If", ["c"], ["z"], then_branch=body, else_branch=body))
        case "looks back only":
            attention[0].attribute.append(helper.make_attribute("unidirectional", 1))
        case "other weights":
            attention[0].input[1] = "computed"
    before = model.SerializeToString()
    assert remove_padding(model) is None
    assert model.SerializeToString() == before


def wrongly_packed(model: Any) -> Removed | None:
    """Keys for values."""
    removed = remove_padding(model)
    (switch,) = [node for node in model.graph.node if node.name == SWITCH]
    branch = next(attribute.g for attribute in switch.attribute if attribute.name == "else_branch")
    loop = next(node for node in branch.node if node.op_type == "Loop")
    attention = next(node for node in loop.attribute[0].g.node if node.op_type == "MultiHeadAttention")
    attention.input[2] = attention.input[1]
    return removed


def test_a_model_that_would_answer_otherwise_keeps_its_padding(bert: ModelArtifact, compiled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "remove_padding", wrongly_packed)
    outcome, artifact, _ = compiled(OnnxRuntime(), bert)
    (note,) = [note for note in outcome.notes if "padding" in note.text]
    assert note.level.value == "warning"
    assert note.text.startswith("padding is computed too: a graph that leaves it out did not pass the comparison (outputs differ by ")
    assert "If" not in count_ops(artifact.model_path)
    assert "packed_nodes" not in outcome.metrics


@pytest.mark.parametrize(("wrong", "accepted"), [(0, True), (1, True), (_onnx_compare.PADDING_DRAWS, False)])
def test_one_activation_rounded_elsewhere_is_no_other_model(monkeypatch: pytest.MonkeyPatch, wrong: int, accepted: bool) -> None:
    """Of several draws of inputs the first `wrong` ones differ by more than is accepted."""

    class Value:
        name, shape, type = "attention_mask", ["batch", "sequence"], "tensor(int64)"

    class Session:
        def __init__(self, error: float) -> None:
            self.error, self.calls = error, 0

        def get_inputs(self) -> list[Any]:
            return [Value]

    def outputs(session: Any, feeds: Any) -> list[np.ndarray]:
        draw = session.calls % max(wrong + 1, 1)
        session.calls += 1
        tokens = np.ones((*feeds["attention_mask"].shape, 4), np.float32)
        tokens[0, 0] += session.error if draw < wrong else 0.0
        return [tokens]

    monkeypatch.setattr(_onnx_compare, "_outputs", outputs)
    if accepted:
        assert _onnx_compare.padding_difference(Session(0.0), Session(0.1), "attention_mask", dynamic=True) == 0
    else:
        with pytest.raises(StepError, match="outputs differ by 0.1 of their largest value, at most 0.02 is accepted"):
            _onnx_compare.padding_difference(Session(0.0), Session(0.1), "attention_mask", dynamic=True)


@pytest.mark.parametrize("read", ["mean of all", "masked mean", "last token", "last that counts", "two axes", "both"])
def test_outputs_of_every_kind(bert: ModelArtifact, target_of: Callable[..., Target], compiled: Any, tmp_path: Path, read: str) -> None:
    """What a model computes of its hidden states, padding included, is what it was."""
    from onnx import helper, numpy_helper

    model = load_graph(bert.model_path)
    states = model.graph.output[0].name
    constants = {"tokens_axis": np.array([1]), "width_axis": np.array([2]), "last": np.array(-1), "root": np.array(0)}
    constants |= {"three": np.array([3]), "one": np.array([1])}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    nodes, shape = {
        "mean of all": ([helper.make_node("ReduceMean", [states, "tokens_axis"], ["out"], keepdims=0)], ["batch", 64]),
        "masked mean": (
            [
                helper.make_node("Cast", ["attention_mask"], ["kept"], to=1),
                helper.make_node("Unsqueeze", ["kept", "width_axis"], ["columns"]),
                helper.make_node("Mul", [states, "columns"], ["counted"]),
                helper.make_node("ReduceSum", ["counted", "tokens_axis"], ["out"], keepdims=0),
            ],
            ["batch", 64],
        ),
        "last token": ([helper.make_node("Gather", [states, "last"], ["out"], axis=1)], ["batch", 64]),
        "last that counts": (
            [
                helper.make_node("ReduceSum", ["attention_mask", "tokens_axis"], ["length"], keepdims=1),
                helper.make_node("Add", ["length", "last"], ["place"]),
                helper.make_node("Unsqueeze", ["place", "width_axis"], ["places"]),
                helper.make_node("Shape", [states], ["shape"]),
                helper.make_node("Slice", ["shape", "width_axis", "three"], ["width"]),
                helper.make_node("Concat", ["one", "one", "width"], ["wide"], axis=0),
                helper.make_node("Expand", ["places", "wide"], ["indices"]),
                helper.make_node("GatherElements", [states, "indices"], ["out"], axis=1),
            ],
            ["batch", 1, 64],
        ),
        "two axes": ([helper.make_node("Gather", [states, "root"], ["out"], axis=2)], ["batch", "sequence"]),
        "both": ([helper.make_node("Gather", [states, "root"], ["out"], axis=1)], ["batch", 64]),
    }[read]
    model.graph.node.extend(nodes)
    output = helper.make_tensor_value_info("out", 1, shape)
    if read == "both":
        model.graph.output.append(output)
    else:
        model.graph.output[0].CopyFrom(output)
    (folder := tmp_path / "reads").mkdir()
    save_graph(model, folder / "model.onnx")
    artifact = bert.model_copy(update={"path": folder, "outputs": ()})
    outcome, _, session = compiled(OnnxRuntime(), artifact)
    unfused = OnnxRuntime(graph_optimization="off", fusions=False).open(artifact, target_of(OnnxRuntime()))
    for padding in MASKS.keys() - ({"all of a row"} if read == "last that counts" else set()):
        feeds = feeds_of(padding)
        counts = feeds["attention_mask"] == 1
        wanted, given = unfused.run(feeds), session.run(feeds)
        for name in wanted:
            rows = counts if wanted[name].shape[:2] == counts.shape else ...
            np.testing.assert_allclose(given[name][rows], wanted[name][rows], atol=1e-5)
    assert ("packed_nodes" in outcome.metrics) == (read in ("masked mean", "two axes", "both")), "padding has an effect in these"


def test_attention_without_fused_embeddings_reads_its_mask_too(bert: ModelArtifact, plain: Any, compiled: Any, tmp_path: Path) -> None:
    """As in models whose embeddings ONNX Runtime does not know: positions that begin elsewhere."""
    from onnx import numpy_helper

    model = load_graph(bert.model_path)
    sums = [node for node in model.graph.node if node.op_type == "Add"]
    model.graph.initializer.append(numpy_helper.from_array(np.array(0, np.float32), "nothing"))
    words = next(node for node in model.graph.node if node.op_type == "Gather" and node.input[1] == "input_ids")
    reader = next(node for node in sums if words.output[0] in node.input)
    model.graph.node.insert(
        list(model.graph.node).index(reader), type(words)(op_type="Mul", input=[words.output[0], "one"], output=["scaled"], name="scaled")
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(1.0, np.float32), "one"))
    reader.input[list(reader.input).index(words.output[0])] = "scaled"
    (folder := tmp_path / "other").mkdir()
    save_graph(model, folder / "model.onnx")
    outcome, _, session = compiled(OnnxRuntime(), bert.model_copy(update={"path": folder}))
    assert outcome.metrics["fused_nodes.Attention"] == 2 and "fused_nodes.EmbedLayerNormalization" not in outcome.metrics
    for padding in MASKS:
        feeds = feeds_of(padding)
        counts = feeds["attention_mask"] == 1
        wanted, given = (one.run(feeds)["last_hidden_state"] for one in (plain, session))
        np.testing.assert_allclose(given[counts], wanted[counts], atol=1e-5)


def test_where_infinity_begins_is_found_in_a_compiled_model(bert: ModelArtifact, compiled: Any) -> None:
    _, artifact, _ = compiled(OnnxRuntime(), bert)
    model = load_graph(artifact.model_path)
    without_switch(model)
    assert not [node for node in model.graph.node if node.op_type == "If"]
    layers = list(non_finite._of_onnx(artifact, feeds_of("at the end")))
    assert {"Attention", "LayerNormalization"} <= {layer.operator for layer in layers}
    assert not any(layer.output for layer in layers)


@pytest.mark.parametrize(("rows", "tokens"), [(0, 6), (2, 0), (1, 1)])
def test_batches_of_nothing(bert: ModelArtifact, plain: Any, compiled: Any, rows: int, tokens: int) -> None:
    _, _, session = compiled(OnnxRuntime(), bert)
    feeds = {name: np.zeros((rows, tokens), np.int64) for name in ("input_ids", "attention_mask")}
    wanted, given = (one.run(feeds)["last_hidden_state"] for one in (plain, session))
    assert given.shape == wanted.shape == (rows, tokens, 64)


def test_without_padding_removed_there_is_one_way_to_compute(bert: ModelArtifact, compiled: Any) -> None:
    _, artifact, _ = compiled(OnnxRuntime(remove_padding=False), bert)
    assert "If" not in count_ops(artifact.model_path)
