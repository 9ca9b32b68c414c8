"""Padding: attention reads masks as they are, and batches with much padding compute the other tokens alone, to the same answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ioptim.core.artifact import ModelArtifact
from ioptim.core.runtime import Target
from ioptim.errors import StepError
from ioptim.onnx_graph import count_ops, fuse_transformer, load_graph, save_graph
from ioptim.onnx_padding import SWITCH, remove_padding
from ioptim.runtimes import _onnx_compare
from ioptim.runtimes.onnxruntime import OnnxRuntime

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
LITTLE = ("none", "little")


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


@pytest.fixture
def int8(bert: ModelArtifact, tmp_path: Path) -> ModelArtifact:
    from onnxruntime.quantization import quantize_dynamic

    (folder := tmp_path / "int8").mkdir()
    fuse_transformer(bert.model_path, folder / "fused.onnx")
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
    if remove and padding not in LITTLE:
        assert not given[~counts].any(), "what is not computed is 0"
    elif not remove or padding == "little":
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
    alone = {"input_ids": np.arange(3, 8)[None], "attention_mask": np.ones((1, 5), np.int64)}
    padded = {name: np.pad(array, ((0, 0), (0, 4))) for name, array in alone.items()}
    wanted, given = (session.run(feeds)["last_hidden_state"] for feeds in (alone, padded))
    np.testing.assert_allclose(given[:, :5], wanted, atol=0.02)
    assert outcome.metrics["int8_products"] == 8, "each counted once, though the file has two ways to compute it"
    assert outcome.metrics["padding_max_difference"] < 1e-3
    assert [note.text for note in outcome.notes if "padding" in note.text] == [
        f"{outcome.metrics['packed_nodes']:g} nodes leave out padding where it is more than 15% of a batch"
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


@pytest.mark.parametrize("change", ["fixed length", "old opset", "no mask", "two masks", "looks back only", "other weights"])
def test_what_is_not_known_is_left_alone(bert: ModelArtifact, tmp_path: Path, change: str) -> None:
    from onnx import helper

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
        case "looks back only":
            attention[0].attribute.append(helper.make_attribute("unidirectional", 1))
        case "other weights":
            attention[0].input[1] = "computed"
    before = model.SerializeToString()
    assert remove_padding(model) is None
    assert model.SerializeToString() == before


def test_a_graph_that_computes_something_else_is_refused(
    bert: ModelArtifact, target_of: Callable[..., Target], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = OnnxRuntime._remove_padding

    def wrong(self: OnnxRuntime, source: Path, target: Target, scratch: Path) -> Any:
        packed, removed = real(self, source, target, scratch)
        model = load_graph(packed)
        (switch,) = [node for node in model.graph.node if node.name == SWITCH]
        branch = next(attribute.g for attribute in switch.attribute if attribute.name == "else_branch")
        place = next(node for node in branch.node if node.name == "packed/padding_before")
        place.input[1] = place.input[0]  # every token has the place of the first
        save_graph(model, packed)
        return packed, removed

    monkeypatch.setattr(OnnxRuntime, "_remove_padding", wrong)
    monkeypatch.setattr(_onnx_compare, "FUSION_TOLERANCE", 10)
    (tmp_path / "out").mkdir()
    with pytest.raises(StepError, match=r"without padding the model's outputs differ by .* set `remove_padding: false`"):
        OnnxRuntime().compile(bert, target_of(OnnxRuntime()), tmp_path / "out")


def test_without_padding_removed_there_is_one_way_to_compute(bert: ModelArtifact, compiled: Any) -> None:
    _, artifact, _ = compiled(OnnxRuntime(remove_padding=False), bert)
    assert "If" not in count_ops(artifact.model_path)
