from __future__ import annotations

import pytest

from ioptim.steps._findings import Findings, Layer, Operator, advice, kind_of


@pytest.mark.parametrize(
    ("operator", "kind"),
    [
        ("aten::addmm", "matrix products"),
        ("aten::_softmax", "softmax"),
        ("Softmax", "softmax"),
        ("aten::native_layer_norm", "normalization"),
        ("aten::copy_", "copies and layout"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("DynamicQuantizeMatMul", "matrix products"),
        ("aten::relu_", "activations"),
        ("user::fancy", "other"),
    ],
)
def test_kinds(operator: str, kind: str) -> None:
    assert kind_of(operator) == kind


def test_shares_are_of_operator_time_largest_first() -> None:
    operators = [Operator("aten::gelu", 1, 1.0), Operator("aten::addmm", 2, 2.0), Operator("aten::mm", 1, 1.0)]
    assert list(Findings([1.0], operators).shares().items()) == [("matrix products", 0.75), ("activations", 0.25)]
    assert Findings([1.0]).shares() == {}


def test_advice_gives_the_most_that_int8_can_do() -> None:
    found = Findings(
        [1.0],
        [Operator("aten::addmm", 1, 3.0), Operator("aten::gelu", 1, 1.0)],
        [Layer("Embedding", 3, 600, 2400), Layer("Linear", 5, 400, 1600)],
    )
    assert advice(found) == (
        "Of the time in operators, 75% matrix products and 25% activations."
        " Matrix products and convolutions, which int8 shortens, are 75%: alone they can make the model at most 4.0 times as fast;"
        " fusing the rest in `compile` adds to that."
        " Embeddings hold 60% of the parameters and 0% of the time: quantizing them gains size, not speed."
    )


def test_advice_where_all_is_products() -> None:
    assert advice(Findings([1.0], [Operator("Conv", 1, 1.0)])) == (
        "Of the time in operators, 100% convolutions. Nearly all of it is matrix products and convolutions, which int8 shortens."
    )


def test_advice_on_a_model_that_is_int8_already() -> None:
    operators = [Operator("DynamicQuantizeMatMul", 1, 6.0), Operator("MatMul", 1, 1.0), Operator("BiasGelu", 1, 3.0)]
    assert advice(Findings([1.0], operators)) == (
        "Of the time in operators, 70% matrix products and 30% activations."
        " Matrix products and convolutions in int8 are 60%, those still in float 10%."
    )
