from __future__ import annotations

import pytest

from ioptim.core.runtime import LayerRun, Operand, ProfiledRun
from ioptim.roofline import Roofs
from ioptim.steps.profile import figures
from ioptim.steps.profile.executed import gather
from ioptim.steps.profile.findings import Findings, Layer, Operator

ROOFS = Roofs({"float32": 100e9, "int8": 400e9}, memory_bandwidth=10e9)


def test_shares_are_of_operator_time_largest_first() -> None:
    operators = [Operator("aten::gelu", 1, 1.0), Operator("aten::addmm", 2, 2.0), Operator("aten::mm", 1, 1.0)]
    assert list(Findings([1.0], operators).shares().items()) == [("matrix products", 0.75), ("activations", 0.25)]
    assert Findings([1.0]).shares() == {}


def matmul(seconds: float, tokens: int, operator: str = "MatMul", dtype: str = "float32") -> LayerRun:
    operands = (Operand("float32", (1, tokens, 8)), Operand(dtype, (8, 16), True))
    return LayerRun("m", operator, seconds, operands, (Operand("float32", (1, tokens, 16)),))


def test_layers_add_up_over_the_passes() -> None:
    range_ = LayerRun("r", "Fancy", 0.5, (), (Operand("int64", (4,)),))
    runs = [ProfiledRun(3.0, (matmul(1.0, 5), range_)), ProfiledRun(2.0, (matmul(0.5, 7), range_))]
    product, fancy = gather(runs)
    operations = 2 * 12 * 8 * 16
    assert product == Layer("m", "MatMul", 2, 1.5, operations, 2 * 512, 4 * 12 * 24, 4 * 12 * 16, product_operations=operations)
    assert (fancy.seconds, fancy.operations, fancy.output_bytes) == (1.0, None, 64)
    found = Findings([1.0, 1.0], layers=(product, fancy), profiled_s=5.0)
    assert found.uncounted == {"Fancy": 0.4}
    assert found.flops == 2 * 12 * 8 * 16
    table = next(table for table in figures.tables(found, []) if table.title == "Layers by time")
    assert [(row[0], row[3]) for row in table.rows] == [("m", 750.0), ("r", 500.0), ("outside layers", 1250.0)]
    assert sum(row[3] for row in table.rows) == 5.0 / 2 * 1e3  # type: ignore[misc]


def test_int8_is_told_by_what_executed() -> None:
    quantized = LayerRun("q", "DynamicQuantizeLinear", 0.25, (Operand("float32", (8,)),), (Operand("uint8", (8,)),))
    operands = (Operand("float32", (1, 8)), Operand("float32", (8, 2), True))
    float_left = LayerRun("f", "MatMul", 0.25, operands, (Operand("float32", (1, 2)),))
    layers = gather([ProfiledRun(1.0, (matmul(0.5, 5, "DynamicQuantizeMatMul", "int8"), quantized, float_left))])
    found = Findings([1.0], layers=layers)
    table = next(table for table in figures.tables(found, []) if table.title == "What runs in int8")
    assert table.rows == (
        ("in int8", "DynamicQuantizeMatMul", "int8", 1, 50.0),
        ("product in float", "MatMul", "float32", 1, 25.0),
        ("conversion", "DynamicQuantizeLinear", "", 1, 25.0),
    )
    assert (len(found.int8_layers), len(found.reorders), found.share(found.int8_layers)) == (1, 1, 0.5)


def test_a_float_model_has_no_int8_table() -> None:
    found = Findings([1.0], layers=gather([ProfiledRun(1.0, (matmul(0.5, 5),))]))
    assert "What runs in int8" not in [table.title for table in figures.tables(found, [])]


def test_a_layer_faster_than_the_roof_raises_it_and_says_so() -> None:
    fast = Layer("fast", "MatMul", 1, 1.0, 200e9, 4.0)
    found = Findings([1.0], layers=[fast]).under(ROOFS)
    assert found.roofs is not None and found.roofs.peaks == {"float32": 200e9, "int8": 400e9}
    assert found.roofs.how["float32"] == "attained by fast, more than a matrix product by itself"
    assert list(found.notes) == [
        "layers ran above the measured roof, which was raised (float32 to 2.0 times): the machine was busy when it was measured"
    ]
    slow = Findings([1.0], layers=[Layer("slow", "MatMul", 1, 1.0, 50e9, 4.0)]).under(ROOFS)
    assert slow.notes == () and slow.roofs == ROOFS


def test_the_roofline_chart_has_roofs_as_lines_and_layers_as_points() -> None:
    layers = [
        Layer("busy", "MatMul", 1, 1.0, 50e9, 1e9),
        Layer("small", "Add", 1, 1.0, 1e6, 0.0, 1e6),
        Layer("move", "Transpose", 1, 0.5, 0.0, 0.0, 1e6),
    ]
    found = Findings([1.0], [Operator("MatMul", 1, 1.0)], layers, roofs=ROOFS)
    time, roofline = figures.charts(found)
    assert (time.title, time.kind, time.series[0].x) == ("Time by operator", "bars", ("MatMul",))
    assert (roofline.title, roofline.kind, roofline.log_x, roofline.log_y) == ("Roofline", "points", True, True)
    lines = {series.name: (series.x, series.y) for series in roofline.series if series.line}
    assert lines["float32 roof"] == ((0.5, 10.0, 160.0), (5.0, 100.0, 100.0))
    assert lines["int8 roof"] == ((0.5, 40.0, 160.0), (5.0, 400.0, 400.0))
    points = {series.name: (series.x, series.y, series.labels) for series in roofline.series if not series.line}
    assert points["matrix products"] == ((50.0,), (50.0,), ("busy: compute, 50% of its roof",))
    assert points["elementwise"] == ((1.0,), (0.001,), ("small: overhead, 0% of its roof",))
    assert len(points) == 2, "what only moves bytes has no place on a logarithmic axis"
    assert roofline.note == (
        "40% of the time is held by compute, 0% of the time is held by memory, and 60% is below 10% of both roofs: the cost of starting"
        " small operators."
    )


def test_the_device_has_one_spelling() -> None:
    assert Findings([1.0], facts={"device": "CPU"}).device == Findings([1.0]).device == "cpu", "OpenVINO writes it in capitals"


@pytest.mark.parametrize(("shares", "text"), [
    ({"A": 0.06, "B": 0.002}, "A 6%, B 0.2%"),
    (dict.fromkeys("ABCDEF", 0.01), "A 1%, B 1%, C 1%, D 1% and 2 more"),
])  # fmt: skip
def test_shares_in_words(shares: dict[str, float], text: str) -> None:
    assert figures.share_list(shares) == text
