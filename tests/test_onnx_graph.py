"""Files that are not ONNX are told apart; only what provably is a padding mask is fused as one; unread tokens are not computed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ioptim.errors import StepError
from ioptim.onnx_canonical import canonicalize
from ioptim.onnx_graph import attention_blocks, count_ops, fuse_transformer, load_graph, opset_of, raise_opset, save_graph

pytestmark = pytest.mark.integration

onnx = pytest.importorskip("onnx")
np = pytest.importorskip("numpy")

HEADS, WIDTH = 2, 8


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it is empty"),
        (b"PK\x03\x04 and more", "it is a zip archive (a torch checkpoint?)"),
        (b"\x80\x02}q\x00.", "it is a Python pickle"),
        (b'{"architectures": []}', "it is text (XML or JSON)"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it is a Git LFS pointer; fetch the file with `git lfs pull`"),
        (b"\x08\x0a\x3a\xff\xff", "its content cannot be read as a model (truncated?)"),
    ],
)
def test_what_is_not_onnx_is_called_by_its_name(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(StepError) as caught:
        load_graph(path)
    assert str(caught.value) == f"{path} is not an ONNX file: {why}"


def test_nodes_in_bodies_are_counted(tmp_path: Path) -> None:
    from onnx import helper

    body = helper.make_graph([helper.make_node("Abs", ["x"], ["y"])], "body", [], [helper.make_tensor_value_info("y", 1, ["n"])])
    other = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "other", [], [helper.make_tensor_value_info("y", 1, ["n"])])
    node = helper.make_node("If", ["c"], ["z"], then_branch=body, else_branch=other)
    inputs = [helper.make_tensor_value_info("c", 9, []), helper.make_tensor_value_info("x", 1, ["n"])]
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("z", 1, ["n"])])
    save_graph(helper.make_model(graph), tmp_path / "if.onnx")
    assert count_ops(tmp_path / "if.onnx") == {"Abs": 1, "If": 1, "Neg": 1}


PADDING = [
    ("Cast", ["mask"], "kept", {"to": 9}),
    ("Unsqueeze", ["kept", "axes"], "columns", {}),
    ("Where", ["columns", "zero", "lowest"], "added", {}),
]
"""Not as any exporter writes it: batch, 1, 1, sequence; 0 at tokens and the lowest float at padding."""


def test_a_padding_mask_is_fused_however_it_is_spelled(tmp_path: Path) -> None:
    plain, fused = _attention(tmp_path, PADDING), tmp_path / "fused.onnx"
    assert fuse_transformer(plain, fused).counts["Attention"] == 1
    _require_same(plain, fused)


def test_a_graph_may_be_respelled_twice(tmp_path: Path) -> None:
    plain, twice = _attention(tmp_path, PADDING), tmp_path / "twice.onnx"
    model = load_graph(plain)
    canonicalize(model)
    norm = next(node for node in model.graph.node if node.op_type == "LayerNormalization")
    norm.input.pop()  # something for the second time to do
    canonicalize(model)
    names = [tensor.name for tensor in model.graph.initializer]
    assert len(norm.input) == 3 and len(names) == len(set(names))
    save_graph(model, twice)
    onnx.checker.check_model(twice)
    _require_same(plain, twice)


@pytest.mark.parametrize(
    "mask",
    [
        pytest.param([*PADDING[:2], ("Where", ["columns", "bias", "lowest"], "added", {})], id="adds something at the tokens it keeps"),
        pytest.param(
            [
                *PADDING[:2],
                ("Shape", ["mask"], "lengths", {"start": 1, "end": 2}),
                ("Concat", ["lengths", "lengths"], "square", {"axis": 0}),
                ("ConstantOfShape", ["square"], "nothing", {"value": onnx.helper.make_tensor("v", 1, [1], [1.0])}),
                ("Trilu", ["nothing"], "lower", {"upper": 0}),
                ("Cast", ["lower"], "past", {"to": 9}),
                ("And", ["columns", "past"], "seen", {}),
                ("Where", ["seen", "zero", "lowest"], "added", {}),
            ],
            id="causal",
        ),
        pytest.param(
            [
                *PADDING[:2],
                ("Shape", ["mask"], "length", {"start": 1, "end": 2}),
                ("Squeeze", ["length"], "count", {}),
                ("Range", ["first", "count", "step"], "places", {}),
                ("Unsqueeze", ["places", "last"], "down", {}),
                ("Sub", ["places", "down"], "apart", {}),
                ("Abs", ["apart"], "distance", {}),
                ("LessOrEqual", ["distance", "window"], "near", {}),
                ("And", ["columns", "near"], "seen", {}),
                ("Where", ["seen", "zero", "lowest"], "added", {}),
            ],
            id="a window of 64 tokens",
        ),
        pytest.param(
            [
                ("Equal", ["ids", "first"], "padding", {}),
                ("Not", ["padding"], "kept", {}),
                *PADDING[1:],
            ],
            id="made of token ids, padding 0",
        ),
        pytest.param(
            [
                ("Equal", ["ids", "three"], "padding", {}),
                ("Not", ["padding"], "kept", {}),
                *PADDING[1:],
            ],
            id="made of token ids, padding 3",
        ),
    ],
)
def test_any_other_mask_is_left_alone(tmp_path: Path, mask: list[Any]) -> None:
    plain, fused = _attention(tmp_path, mask), tmp_path / "fused.onnx"
    assert fuse_transformer(plain, fused, cpu=False).counts == {"SkipLayerNormalization": 1}
    _require_same(plain, fused)
    _require_same(plain, fused, sequence=200)


def test_a_mask_of_infinity_becomes_one_that_can_be_multiplied(tmp_path: Path) -> None:
    infinite = [*PADDING[:2], ("Where", ["columns", "zero", "infinite"], "added", {})]
    plain, fused = _attention(tmp_path, infinite), tmp_path / "fused.onnx"
    model = load_graph(plain)
    canonicalize(model)
    save_graph(model, fused)
    _require_same(plain, fused)
    assert fuse_transformer(plain, fused).counts["Attention"] == 1
    _require_same(plain, fused)


@pytest.mark.parametrize("token", [0, 2, -1])
def test_of_a_layer_whose_one_token_is_read_only_that_one_is_computed(tmp_path: Path, token: int) -> None:
    plain, fused = _attention(tmp_path, PADDING, token), tmp_path / "fused.onnx"
    found = fuse_transformer(plain, fused)
    assert found.counts == {"MultiHeadAttention": 1}
    assert found.narrowed == 5  # attention, product, bias, residual, normalization
    assert str(found) == "1 MultiHeadAttention; 5 nodes compute only the token that is read"
    _require_same(plain, fused)


def test_a_layer_that_is_an_output_is_computed_whole(tmp_path: Path) -> None:
    plain, fused = _attention(tmp_path, PADDING, 0), tmp_path / "fused.onnx"
    model = load_graph(plain)
    model.graph.output.append(onnx.helper.make_tensor_value_info("y", 1, ["batch", "sequence", WIDTH]))
    save_graph(model, plain)
    found = fuse_transformer(plain, fused)
    assert (found.counts, found.narrowed) == ({"Attention": 1}, 0)
    _require_same(plain, fused)


def test_for_a_gpu_every_fusion_is_made_and_every_token_computed(tmp_path: Path) -> None:
    plain, fused = _attention(tmp_path, PADDING, 0), tmp_path / "fused.onnx"
    found = fuse_transformer(plain, fused, cpu=False)
    assert (found.counts, found.narrowed) == ({"Attention": 1, "SkipLayerNormalization": 1}, 0)


@pytest.mark.parametrize("opset", [11, 12, 14])
def test_attention_of_an_older_opset_fuses(tmp_path: Path, attention_at: Callable[..., Path], opset: int) -> None:
    plain, fused = attention_at(opset), tmp_path / "fused.onnx"
    assert fuse_transformer(plain, fused).counts["Attention"] == 1
    assert (opset_of(load_graph(plain)), opset_of(load_graph(fused))) == (opset, max(opset, 13))
    _require_same(plain, fused)


def test_an_opset_that_cannot_be_raised_stays_and_so_do_its_mask_and_positions(attention_at: Callable[..., Path], tmp_path: Path) -> None:
    plain, again = attention_at(11), tmp_path / "again.onnx"
    model = load_graph(plain)
    canonicalize(model)  # nothing is written that opset 11 does not know
    save_graph(model, again)
    _require_same(plain, again)
    model.graph.node[0].domain = "somebody.else"
    assert raise_opset(model) is model


@pytest.mark.parametrize("opset", [11, 14])
def test_heads_of_all_tokens_in_one_row_are_not_split_by_two_axes(tmp_path: Path, attention_at: Callable[..., Path], opset: int) -> None:
    plain, again = attention_at(opset, flat=True), tmp_path / "again.onnx"
    model = raise_opset(load_graph(plain))
    canonicalize(model)
    save_graph(model, again)
    _require_same(plain, again)


def test_the_softmax_of_a_classifier_is_no_attention(tmp_path: Path, attention_at: Callable[..., Path]) -> None:
    from onnx import helper

    plain = attention_at(14)
    assert attention_blocks(plain) == 1
    model = load_graph(plain)
    model.graph.node.append(helper.make_node("Softmax", ["y"], ["classes"]))
    model.graph.output[0].name = "classes"
    save_graph(model, plain)
    assert (attention_blocks(plain), count_ops(plain)["Softmax"]) == (1, 2)


def _attention(folder: Path, mask: list[Any], token: int | None = None) -> Path:
    """One layer of self-attention on embeddings, with a residual and two normalizations; `mask` computes `added`.

    With `token` the output is that token alone.
    """
    from onnx import helper, numpy_helper

    draw = np.random.default_rng(0)
    weights = {name: draw.normal(size=(WIDTH, WIDTH)).astype(np.float32) for name in ("wq", "wk", "wv", "wo")}
    weights |= {name: draw.normal(size=WIDTH).astype(np.float32) for name in ("bq", "bk", "bv", "bo", "scale")}
    weights |= {"words": draw.normal(size=(10, WIDTH)).astype(np.float32), "heads": np.array([0, 0, HEADS, WIDTH // HEADS])}
    weights |= {"joined": np.array([0, 0, WIDTH]), "axes": np.array([1, 2]), "root": np.array(0.5, np.float32)}
    weights |= {"zero": np.array(0, np.float32), "bias": np.array(-1, np.float32), "lowest": np.array(np.finfo("f4").min)}
    weights |= {"infinite": np.array(-np.inf, np.float32), "last": np.array([1]), "window": np.array(64)}
    weights |= {"first": np.array(0), "step": np.array(1), "three": np.array(3)}
    nodes = [helper.make_node(op, inputs, [output], output, **more) for op, inputs, output, more in mask]
    nodes += [
        helper.make_node("Gather", ["words", "ids"], ["x"], "x"),
        helper.make_node("LayerNormalization", ["x", "scale"], ["n"], "n"),
    ]
    for part in "qkv":
        nodes += [
            helper.make_node("MatMul", ["n", f"w{part}"], [f"m{part}"], f"m{part}"),
            helper.make_node("Add", [f"m{part}", f"b{part}"], [f"a{part}"], f"a{part}"),
            helper.make_node("Reshape", [f"a{part}", "heads"], [f"r{part}"], f"r{part}"),
            helper.make_node("Transpose", [f"r{part}"], [part], part, perm=[0, 2, 3, 1] if part == "k" else [0, 2, 1, 3]),
        ]
    nodes += [
        helper.make_node("MatMul", ["q", "k"], ["scores"], "scores"),
        helper.make_node("Mul", ["scores", "root"], ["scaled"], "scaled"),
        helper.make_node("Add", ["scaled", "added"], ["masked"], "masked"),
        helper.make_node("Softmax", ["masked"], ["p"], "p", axis=-1),
        helper.make_node("MatMul", ["p", "v"], ["c"], "c"),
        helper.make_node("Transpose", ["c"], ["t"], "t", perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["t", "joined"], ["j"], "j"),
        helper.make_node("MatMul", ["j", "wo"], ["o"], "o"),
        helper.make_node("Add", ["o", "bo"], ["ob"], "ob"),
        helper.make_node("Add", ["ob", "n"], ["s"], "s"),
        helper.make_node("LayerNormalization", ["s", "scale"], ["y"], "y"),
    ]
    inputs = [helper.make_tensor_value_info(name, 7, ["batch", "sequence"]) for name in ("ids", "mask")]
    outputs = [helper.make_tensor_value_info("y", 1, ["batch", "sequence", WIDTH])]
    if token is not None:
        weights["token"] = np.array(token)
        nodes.append(helper.make_node("Gather", ["y", "token"], ["read"], "read", axis=1))
        outputs = [helper.make_tensor_value_info("read", 1, ["batch", WIDTH])]
    graph = helper.make_graph(nodes, "attention", inputs, outputs, [numpy_helper.from_array(v, n) for n, v in weights.items()])
    path = folder / "plain.onnx"
    save_graph(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def _require_same(plain: Path, fused: Path, sequence: int = 6) -> None:
    """Without token 0 in the first place: the row that nothing is kept of would be anything."""
    import onnxruntime

    mask = np.ones((2, sequence), np.int64)
    mask[1, -2:] = 0
    feeds = {"ids": np.arange(1, 1 + 2 * sequence).reshape(2, sequence) % 10, "mask": mask}
    feeds |= {"input_ids": feeds["ids"], "attention_mask": mask}
    results = []
    for path in (plain, fused):
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        results.append(session.run(None, {value.name: feeds[value.name] for value in session.get_inputs()})[0])
    assert np.abs(results[0] - results[1]).max() < 1e-5
