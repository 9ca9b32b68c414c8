"""What several steps and runtimes need to know about an ONNX graph: is it one, what is in it, can it be fused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ioptim.errors import StepError
from ioptim.onnx_canonical import canonicalize

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

PROTOBUF_LIMIT_BYTES = 2 * 1024**3
"""Above this a model cannot be one protobuf file: its weights lie in a file beside it."""


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
    """Number of nodes by operator type, the bodies of If and Loop included; the weights are not read."""
    counts = Counter(node.op_type for node in _nodes(load_graph(path, weights=False).graph))
    return dict(sorted(counts.items()))


def fuse_transformer(
    source: Path, destination: Path, *, model_type: str = "bert", num_heads: int = 0, hidden_size: int = 0
) -> dict[str, int]:
    """Fuse attention, layer normalization, gelu and embeddings; write the model and count the fused nodes by operator.

    The result computes the same function in fp32 with contrib operators that only ONNX Runtime has. Nothing is written when
    nothing fused: the counts are then empty. A six-layer BERT has {"Attention": 6, "BiasGelu": 6,
    "EmbedLayerNormalization": 1, "SkipLayerNormalization": 12}.

    Args:
        model_type: an optimizer of ONNX Runtime; `bert` serves encoders of BERT's kind and vision transformers.
        num_heads: 0 to read it from the graph, which works where heads are split by a Reshape.
        hidden_size: 0 likewise.

    Raises:
        StepError: the file is not ONNX, or the library failed on it.
    """
    from onnxruntime.transformers.fusion_options import FusionOptions
    from onnxruntime.transformers.optimizer import optimize_by_fusion

    model = load_graph(source)
    before = Counter(node.op_type for node in model.graph.node)
    heads, width = canonicalize(model)
    if num_heads == 0:
        num_heads, hidden_size = heads, width
    options = FusionOptions(model_type)
    try:
        fused = optimize_by_fusion(model, model_type, num_heads=num_heads, hidden_size=hidden_size, optimization_options=options)
    except (IndexError, KeyError, AssertionError, AttributeError, TypeError, ValueError) as error:
        why = f"{type(error).__name__}: {error}"
        raise StepError(f"the transformer fusions of onnxruntime fail on {source.name} ({why}); switch them off") from error
    fused.topological_sort()
    if all(opset.domain != "com.microsoft" for opset in model.opset_import):
        model.opset_import.add(domain="com.microsoft", version=1)
    del model.graph.value_info[:]  # shapes of values that are gone; kept, they contradict the ones inferred later
    after = Counter(node.op_type for node in model.graph.node)
    counts = {op: after[op] - before[op] for op in FUSED_OPS if after[op] > before[op]}
    if counts:
        save_graph(model, destination)
    return counts


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)


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
