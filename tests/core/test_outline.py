"""What follows from names and shapes alone is what the model then has."""

from __future__ import annotations

import pytest

from ioptim.core.outline import Outline
from ioptim.errors import StepError

WIDTH, NEURONS = 4, 8
LAYER = {
    "attention.query.weight": (WIDTH, WIDTH),
    "attention.key.weight": (WIDTH, WIDTH),
    "attention.value.weight": (WIDTH, WIDTH),
    "attention.out.weight": (WIDTH, WIDTH),
    "up.weight": (NEURONS, WIDTH),
    "up.bias": (NEURONS,),
    "down.weight": (WIDTH, NEURONS),
}


def encoder(layers: int = 3, **changes: int) -> Outline:
    shapes = {"embeddings.word_embeddings.weight": (100, WIDTH), "classifier.weight": (2, WIDTH)}
    for i in range(layers):
        shapes |= {f"encoder.layer.{i}.{name}": shape for name, shape in LAYER.items()}
    return Outline(shapes, **{"feed_forward": NEURONS, **changes})


def test_parameters_and_layers() -> None:
    assert encoder(3).layers == 3
    assert encoder(3).parameters == 400 + 8 + 3 * (4 * 16 + 2 * 32 + 8)


def test_operations_of_matrices_of_attention_and_of_the_head() -> None:
    """Per layer 128 weights for every token and twice tokens² x width; the classifier once; no look-up."""
    assert encoder(3).operations(10) == 3 * (128 * 10 + 2 * 100 * 4) + 8


def test_what_convolutions_take_does_not_follow_from_shapes() -> None:
    assert Outline({"conv.weight": (8, 1, 3, 3), "fc.weight": (2, 8)}).operations(10) is None
    assert Outline({"encoder.layer.0.conv.weight": (8, 1, 3)}).operations(10) is None


def test_two_stacks_of_layers_are_not_counted_as_one() -> None:
    assert Outline({"encoder.layers.0.a.weight": (2, 2), "decoder.layers.0.a.weight": (2, 2)}).layers == 0


def test_a_cut() -> None:
    smaller = encoder(3).cut((0, 2), 5)
    assert (smaller.layers, smaller.feed_forward) == (2, 5)
    assert smaller.shapes["encoder.layer.1.up.weight"] == (5, WIDTH) and "encoder.layer.2.up.weight" not in smaller.shapes
    assert smaller.shapes["embeddings.word_embeddings.weight"] == (100, WIDTH)


@pytest.mark.parametrize(
    ("layers", "width", "message"),
    [
        ((0, 5), None, "layers [5] were named; the model's are 0 to 2"),
        ((0, 1, 2), 9, "feed_forward is 9; the model's is 8 and cannot grow"),
        ((0, 1, 2), None, "nothing would become smaller (3 layers); name fewer layers or a narrower feed_forward"),
    ],
)
def test_a_cut_that_cannot_be(layers: tuple[int, ...], width: int | None, message: str) -> None:
    with pytest.raises(StepError) as caught:
        encoder(3).cut(layers, width)
    assert str(caught.value) == message
