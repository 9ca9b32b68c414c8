"""What several steps and runtimes need to know about an ONNX graph: is it one, what is in it, can it be fused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ioptim.errors import StepError
from ioptim.onnx_canonical import OPSET, canonicalize
from ioptim.onnx_padding import SWITCH
from ioptim.onnx_tokens import narrow

if TYPE_CHECKING:
    import onnx

FUSED_OPS = (
    "Attention",
    "MultiHeadAttention",
    "EmbedLayerNormalization",
    "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization",
    "BiasGelu",
    "FastGelu",
    "Gelu",
)
"""Operators that a fusion puts in place of several; `Gelu` counts too, since up to opset 19 only a fusion makes one."""

LOSING_FUSIONS = ("SkipLayerNormFusion", "BiasGeluFusion")
"""Optimizers of ONNX Runtime that cost time on the CPU, where SkipLayerNormalization and BiasGelu have slow kernels. Measured by
`benchmarks/peers.py`."""

_PASSING = ("Cast", "Dropout", "Identity", "Reshape", "Transpose", "Where")
"""Operators that may stand between attention's Softmax and the product with its values."""

PROTOBUF_LIMIT_BYTES = 2 * 1024**3
"""Above this a model cannot be one protobuf file: its weights lie in a file beside it."""


@dataclass(frozen=True)
class Fused:
    """What became of a graph: fused nodes by operator, and how many nodes compute the one token that is read instead of all."""

    counts: Mapping[str, int]
    narrowed: int

    def __bool__(self) -> bool:
        return bool(self.counts)

    def __str__(self) -> str:
        """`5 Attention, 6 Gelu; 12 nodes compute only the token that is read`."""
        names = ", ".join(f"{count} {op}" for op, count in sorted(self.counts.items()))
        return f"{names}; {self.narrowed} nodes compute only the token that is read" if self.narrowed else names


def load_graph(path: Path, *, weights: bool = True) -> onnx.ModelProto:
    """Read an ONNX file; without `weights`, external data is left where it is.

    Raises:
        StepError: the file is not ONNX (says what it looks like).
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(str(path), load_external_data=weights)
    except FileNotFoundError as error:
        raise StepError(f"there is no file {path}, which the model needs") from error
    except (DecodeError, onnx.checker.ValidationError) as error:
        raise StepError(f"{path} is not an ONNX file: {_looks_like(path)}") from error
    if not model.graph.node or not model.opset_import:
        raise StepError(f"{path} is not an ONNX file: {_looks_like(path)}")
    return model


def save_graph(model: onnx.ModelProto, path: Path) -> None:
    """Write one file; weights go to `<name>.data` beside it only when one protobuf file cannot hold them."""
    import onnx

    if model.ByteSize() < PROTOBUF_LIMIT_BYTES:
        onnx.save_model(model, str(path))
    else:
        onnx.save_model(model, str(path), save_as_external_data=True, location=f"{path.name}.data", convert_attribute=False)


def count_ops(path: Path) -> dict[str, int]:
    """Number of nodes by operator type, counted as `nodes_of` finds them; the weights are not read."""
    counts = Counter(node.op_type for node in nodes_of(load_graph(path, weights=False).graph))
    return dict(sorted(counts.items()))


def attention_blocks(path: Path) -> int:
    """Softmax nodes whose output multiplies another computed value. A classifier's Softmax is none."""
    graph = load_graph(path, weights=False).graph
    nodes = list(nodes_of(graph))
    weights = {tensor.name for tensor in graph.initializer} | {node.output[0] for node in nodes if node.op_type == "Constant"}
    products = [set(node.input) for node in nodes if node.op_type == "MatMul"]
    multiplied = {name for names in products if not names & weights for name in names}
    for node in reversed(nodes):
        if node.op_type in _PASSING and multiplied & set(node.output):
            multiplied.update(node.input)
    return sum(node.op_type == "Softmax" and node.output[0] in multiplied for node in nodes)


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the standard operators; 0 where the model declares none."""
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def raise_opset(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model at `OPSET` where it is of an older one.

    As it came where it is not, where it has other operators than the standard ones, or where `onnx.version_converter` cannot do it.
    """
    import onnx
    from google.protobuf.message import EncodeError

    standard = all(node.domain in ("", "ai.onnx") for node in nodes_of(model.graph))
    if not 0 < opset_of(model) < OPSET or not standard:
        return model
    ranked = type(model)()
    ranked.CopyFrom(model)
    # Softmax flattened its input before 13. The converter writes the plain one only where it knows the rank, which inference does not
    # tell behind a Reshape to a computed shape; in attention a Transpose comes after it.
    known = {value.name for value in (*model.graph.value_info, *model.graph.output)}
    for node in model.graph.node:
        axes = next((len(a.ints) for a in node.attribute if node.op_type == "Transpose" and a.name == "perm"), 0)
        if axes and node.output[0] not in known:
            ranked.graph.value_info.append(onnx.helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, [None] * axes))
    try:
        made: onnx.ModelProto = onnx.version_converter.convert_version(onnx.shape_inference.infer_shapes(ranked), OPSET)
        del made.graph.value_info[:]
        onnx.checker.check_model(made)
    except (RuntimeError, ValueError, EncodeError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return model
    return made


def fuse_transformer(
    source: Path, destination: Path, *, model_type: str = "bert", num_heads: int = 0, hidden_size: int = 0, cpu: bool = True
) -> Fused:
    """Fuse attention, gelu and embeddings; write the model and say what fused.

    The result computes the same function in fp32 with contrib operators that only ONNX Runtime has. Nothing is written when
    nothing fused. A six-layer BERT has {"Attention": 6, "EmbedLayerNormalization": 1, "Gelu": 6}.

    On the CPU two things differ from what ONNX Runtime does for every device: normalization is not fused with the sum before it, nor
    gelu with its bias (`LOSING_FUSIONS`), and where one token alone is read, the last layer computes that token alone
    (`ioptim.onnx_tokens`): one Attention is then a MultiHeadAttention.

    On every device attention reads the mask itself. By ONNX Runtime's default it reads the number of tokens, which a GPU has faster kernels
    for, but which is right only where all padding is at the end: texts padded on the left would silently get other answers.

    Args:
        model_type: an optimizer of ONNX Runtime; `bert` serves encoders of BERT's kind and vision transformers.
        num_heads: 0 to read it from the graph, which works where heads are split by a Reshape.
        hidden_size: 0 likewise.
        cpu: whether the result is to run on the CPU; with False everything is fused that ONNX Runtime can fuse.

    Raises:
        StepError: the file is not ONNX, or the library failed on it.
    """
    from onnxruntime.transformers.fusion_options import FusionOptions
    from onnxruntime.transformers.optimizer import optimize_by_fusion

    model = raise_opset(load_graph(source))
    before = Counter(node.op_type for node in model.graph.node)
    heads, width = canonicalize(model)
    if num_heads == 0:
        num_heads, hidden_size = heads, width
    options = FusionOptions(model_type)
    options.use_raw_attention_mask()
    if cpu:
        options.enable_skip_layer_norm = options.enable_bias_skip_layer_norm = options.enable_bias_gelu = False
    try:
        fused = optimize_by_fusion(model, model_type, num_heads=num_heads, hidden_size=hidden_size, optimization_options=options)
    except (IndexError, KeyError, AssertionError, AttributeError, TypeError, ValueError) as error:
        why = f"{type(error).__name__}: {error}"
        raise StepError(f"the transformer fusions of onnxruntime fail on {source.name} ({why}); switch them off") from error
    fused.topological_sort()
    if all(opset.domain != "com.microsoft" for opset in model.opset_import):
        model.opset_import.add(domain="com.microsoft", version=1)
    del model.graph.value_info[:]  # shapes of values that are gone; kept, they contradict the ones inferred later
    narrowed = narrow(model) if cpu else 0
    after = Counter(node.op_type for node in model.graph.node)
    counts = {op: after[op] - before[op] for op in FUSED_OPS if after[op] > before[op]}
    if counts:
        save_graph(model, destination)
    return Fused(counts, narrowed)


def keep_apart(path: Path) -> None:
    """Write the sums before normalizations of a compiled graph as Sum, which is as fast as Add and fuses with nothing.

    Whoever opens the file with ONNX Runtime's default options would else have them fused again, and lose what compiling won.
    """
    model = load_graph(path)
    bodies = [attribute.g for node in model.graph.node for attribute in node.attribute if attribute.HasField("g")]
    sums: list[onnx.NodeProto] = []
    for graph in (model.graph, *bodies):
        normalized = {node.input[0] for node in graph.node if node.op_type == "LayerNormalization"}
        sums += [node for node in graph.node if node.op_type == "Add" and node.output[0] in normalized]
    for node in sums:
        node.op_type = "Sum"
    if sums:
        save_graph(model, path)


def nodes_of(graph: onnx.GraphProto, *, both: bool = False) -> Iterator[onnx.NodeProto]:
    """All nodes, the bodies of If and Loop included.

    Of the two ways to compute that `remove_padding` leaves in a graph only the one with padding, unless `both` are wanted.
    """
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g") and (both or (node.name, attribute.name) != (SWITCH, "else_branch")):
                yield from nodes_of(attribute.g, both=both)


def _looks_like(path: Path) -> str:
    head = path.read_bytes()[:64] if path.stat().st_size < 1 << 20 else path.open("rb").read(64)
    if not head:
        return "it is empty"
    kinds: tuple[tuple[Callable[[bytes], bool], str], ...] = (
        (lambda b: b.startswith(b"PK"), "it is a zip archive (a torch checkpoint?)"),
        (lambda b: b.startswith(b"\x80"), "it is a Python pickle"),
        (lambda b: b.lstrip().startswith((b"<", b"{")), "it is text (XML or JSON)"),
        (lambda b: b.startswith(b"version https://git-lfs"), "it is a Git LFS pointer; fetch the file with `git lfs pull`"),
    )
    return next((text for test, text in kinds if test(head)), "its content cannot be read as a model (truncated?)")
