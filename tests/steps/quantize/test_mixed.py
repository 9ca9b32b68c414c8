"""`mixed_precision`: the fewest layers in float that meet the bound, on calibration rows."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from ioptim.core.artifact import Format, ModelArtifact, verify
from ioptim.core.step import Outcome, Where
from ioptim.core.target import Hardware
from ioptim.errors import StepError
from ioptim.steps.quantize import Quantize


def where(runtime: str = "onnxruntime") -> Where:
    targets = (SimpleNamespace(name="here", device="cpu", runtime=SimpleNamespace(runtime=runtime, execution_provider="auto")),)
    hardware = Hardware(cpu_model="", cpu_flags=("avx2", "avx512_vnni"), cores=1, threads=1, memory_bytes=1)
    return Where(format=Format.ONNX, targets=targets, task=None, hardware=hardware, has_calibration=True)


def run(model: ModelArtifact, ctx: Any, **fields: Any) -> Outcome:
    outcome = Quantize(**{"scheme": "int8-dynamic", "fuse": "off", **fields}).resolve(where()).run(model, ctx)
    assert verify(model) == [], "the input was changed"
    assert sorted(path.name for path in ctx.out.iterdir()) == ["model"], "something intermediate was left behind"
    return outcome


def test_it_needs_calibration_data_and_a_scheme_that_can() -> None:
    assert Quantize(scheme="int8-dynamic", mixed_precision={"max_drop": 0.01}).data_roles() == ("calibration",)
    assert Quantize(scheme="int8-dynamic").data_roles() == ()
    step = Quantize(scheme="openvino-int8", mixed_precision={"max_drop": 0.01}).resolve(where("openvino"))
    assert step.check(where("openvino")) == ["mixed_precision works with int8-dynamic and int8-static, not with openvino-int8; remove it"]


@pytest.mark.parametrize("drop", [0, 1, -0.1])
def test_the_bound_is_a_share(drop: float) -> None:
    with pytest.raises(ValidationError, match="max_drop"):
        Quantize(scheme="int8-dynamic", mixed_precision={"max_drop": drop})


@pytest.fixture
def fragile(make_onnx: Callable[..., ModelArtifact]) -> ModelArtifact:
    """Three layers; with one scale for all channels, the weight of `wide` (one large value beside small ones) loses nearly all of them."""
    import numpy as np
    from onnx import helper

    draw = np.random.default_rng(0)
    even = [draw.normal(size=(8, 8)).astype(np.float32) for _ in range(2)]
    wide = draw.normal(size=(8, 8)).astype(np.float32) * 0.01
    wide[0, 0] = 30.0
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], "first"),
        helper.make_node("Relu", ["h"], ["r"], "relu"),
        helper.make_node("MatMul", ["r", "w"], ["g"], "wide"),
        helper.make_node("Tanh", ["g"], ["t"], "tanh"),
        helper.make_node("MatMul", ["t", "b"], ["y"], "last"),
    ]
    return make_onnx(nodes, {"a": even[0], "w": wide, "b": even[1]}, {"x": 8}, {"y": 8})


@pytest.mark.integration
def test_the_layer_that_costs_most_stays_in_float(fragile: ModelArtifact, context: Callable[..., Any]) -> None:
    import onnx

    ctx = context()
    outcome = run(fragile, ctx, per_channel=False, mixed_precision={"max_drop": 0.002, "rows": 16})
    assert outcome.facts["kept_in_float"] == ["wide"]
    assert outcome.metrics["layers_kept_in_float"] == 1
    assert outcome.metrics["calibration_drop"] <= 0.002 < outcome.metrics["calibration_drop_all_int8"]
    assert outcome.metrics["layers_unsupported"] == 0, "left on purpose"
    ranking = next(table for table in outcome.tables if table.title == "Sensitivity")
    assert ranking.columns == ("group", "layers", "lost when it alone is int8 (1 - mean cosine)", "runs in")
    assert [row[-1] for row in ranking.rows] == ["float", "int8", "int8"]
    assert ranking.rows[0][0] == "wide"
    losses = [row[2] for row in ranking.rows]
    assert losses == sorted(losses, reverse=True)
    texts = [note.text for note in outcome.notes]
    assert "1 MatMul left in float: kept by mixed_precision, for quantizing it costs too much quality (wide)" in texts
    said = next(text for text in texts if text.startswith("mixed_precision"))
    assert said.startswith("mixed_precision: 1 of 3 layers stay in float (wide): all in int8 cost 0.")
    assert "(1 - mean cosine on 16 calibration examples), more than max_drop 0.002; so it is " in said
    nodes = {node.name: node.op_type for node in onnx.load(ctx.out / "model" / "model.onnx").graph.node}
    assert nodes["wide"] == "MatMul"
    assert list(nodes.values()).count("MatMulInteger") == 2


@pytest.mark.integration
def test_nothing_stays_where_all_meet_the_bound(fragile: ModelArtifact, context: Callable[..., Any]) -> None:
    outcome = run(fragile, context(), mixed_precision={"max_drop": 0.9, "rows": 16})
    assert outcome.metrics["layers_quantized"] == 3
    assert "kept_in_float" not in outcome.facts
    (said,) = [note.text for note in outcome.notes if "mixed_precision" in note.text]
    assert said.endswith("within max_drop 0.9; none is left in float")


@pytest.mark.integration
def test_a_bound_that_no_int8_meets_is_an_error(fragile: ModelArtifact, context: Callable[..., Any]) -> None:
    with pytest.raises(StepError) as caught:
        run(fragile, context(), mixed_precision={"max_drop": 1e-12, "rows": 16})
    assert str(caught.value).startswith(
        "mixed_precision: max_drop 1e-12 is met by no model with a layer in int8. All in int8 cost 0."
    )
    assert str(caught.value).endswith("Allow more, or leave this step out")


@pytest.mark.integration
def test_static_ranges_are_measured_once(tiny_bert_onnx: ModelArtifact, context: Callable[..., Any]) -> None:
    """A bound just below what all in int8 cost leaves some blocks in float and some in int8."""
    ctx = context()
    whole = run(tiny_bert_onnx, ctx, scheme="int8-static", calibration={"samples": 8}, mixed_precision={"max_drop": 0.99, "rows": 8})
    bound = whole.metrics["calibration_drop_all_int8"] * 0.9
    ctx = context()
    fields = {"scheme": "int8-static", "calibration": {"samples": 8}, "mixed_precision": {"max_drop": bound, "rows": 8, "by": "block"}}
    outcome = run(tiny_bert_onnx, ctx, **fields)
    assert 0 < outcome.metrics["layers_kept_in_float"] < outcome.metrics["layers_total"]
    assert outcome.metrics["calibration_drop"] <= bound
    assert sum(text.startswith("calibrating, 0 of") for text in ctx.said) == 1
    groups = [row[0] for row in next(table for table in outcome.tables if table.title == "Sensitivity").rows]
    assert {"bert.encoder.layer.0", "bert.encoder.layer.1", "classifier"} <= set(groups)
