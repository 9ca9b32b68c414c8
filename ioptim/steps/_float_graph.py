"""The float ONNX graph that a quantizer starts from: simplified, fused, or spelled the way that it runs fastest."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from ioptim.core.step import Level, Note
from ioptim.errors import StepError
from ioptim.onnx_canonical import OPSET, canonicalize
from ioptim.onnx_graph import attention_blocks, count_ops, fuse_transformer, load_graph, opset_of, raise_opset, save_graph
from ioptim.steps import _outputs, _qdq
from ioptim.steps._layers import name_nodes

if TYPE_CHECKING:
    import onnx

    from ioptim.core.task import Feeds, Outputs

FUSION_TOLERANCE = 1e-3
"""Largest difference a fusion may make, relative to the largest output: measured 1e-6 on BERT, a wrong mask makes 0.1."""


def float_graph(source: Path) -> tuple[onnx.ModelProto, tuple[Note, ...]]:
    """The graph at `source` as the schemes expect it: every weight an initializer and no input, at opset 13 or later where possible."""
    model = load_graph(source)
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) < len(model.graph.input):
        del model.graph.input[:]
        model.graph.input.extend(inputs)
        model.ir_version = max(model.ir_version, 4)  # the first in which a weight need not be an input
    _take_out_constants(model.graph)
    before, model = opset_of(model), raise_opset(model)
    raised = opset_of(model) > before
    return model, (Note(text=f"converted from opset {before} to {OPSET}, the oldest that graphs are rewritten in"),) if raised else ()


def _take_out_constants(graph: onnx.GraphProto) -> None:
    """Turn Constant nodes that hold a matrix, or more, of float32 into initializers."""
    outputs, kept = {value.name for value in graph.output}, []
    for node in graph.node:
        tensor = next((a.t for a in node.attribute if node.op_type == "Constant" and a.name == "value"), None)
        if tensor is None or tensor.data_type != tensor.FLOAT or len(tensor.dims) < 2 or node.output[0] in outputs:
            kept.append(node)
        else:
            graph.initializer.add().CopyFrom(tensor)
            graph.initializer[-1].name = node.output[0]
    copies = [type(node).FromString(node.SerializeToString()) for node in kept]  # clearing the list ends its nodes
    del graph.node[:]
    graph.node.extend(copies)


def simplify(source: Path, scratch: Path, fuse: bool) -> tuple[Path, tuple[Note, ...], dict[str, int]]:
    """The graph to quantize, in scratch: fused, or with constants folded and batch normalization put into convolutions."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    plain, prepared = scratch / "float.onnx", scratch / "prepared.onnx"
    graph, changed = float_graph(source)
    save_graph(graph, plain)
    del graph
    fused = fuse_transformer(plain, prepared) if fuse else None
    if fused:
        notes = [Note(text=f"fused before quantization: {fused}")]
        if attention_blocks(prepared) and "Attention" not in count_ops(prepared):
            text = "attention did not fuse, so its products are not quantized together; expect less speed"
            notes.append(Note(text=text, level=Level.WARNING))
    else:
        notes = [Note(text="fuse: there is nothing to fuse in this graph")] if fuse else []
        with quiet(scratch):
            quant_pre_process(plain, prepared, skip_symbolic_shape=True)
    graph = load_graph(prepared)
    name_nodes(graph)
    if fused:
        graph.ClearField("metadata_props")
    else:
        # The dynamo exporter's shapes of values; they contradict what the quantizer infers after it has changed a node.
        del graph.graph.value_info[:]
    save_graph(graph, prepared)
    return prepared, (*changed, *notes), dict(fused.counts) if fused else {}


def respell(path: Path, feeds: Sequence[Feeds], scratch: Path, threads: int) -> list[Note]:
    """Rewrite attention masks, heads and Gelu in the graph at `path` the way that ONNX Runtime runs them fastest, if that is the same."""
    graph = load_graph(path)
    canonicalize(graph)
    _qdq.spell_gelu(graph)
    _qdq.drop_unread(graph)
    name_nodes(graph)
    spelled = scratch / "spelled.onnx"
    save_graph(graph, spelled)
    reference = _outputs.run_onnx(path, feeds, threads)
    try:
        apart = _differences(_outputs.run_onnx(spelled, feeds, threads), reference)
    except StepError as error:
        apart = str(error)
    if apart:
        return [Note(text=f"left as exported, for a faster spelling of it does not compute the same: {apart}", level=Level.WARNING)]
    save_graph(graph, path)
    return []


def require_equal(changed: Sequence[Outputs], reference: Sequence[Outputs], what: str, instead: str) -> None:
    apart = _differences(changed, reference)
    if apart:
        raise StepError(f"{what} changed what the float model computes: {apart}. {instead}")


def _differences(changed: Sequence[Outputs], reference: Sequence[Outputs]) -> str:
    """The outputs that differ by more than rounding, in words; empty where none does."""
    found = _outputs.largest_difference(changed, reference).items()
    return "; ".join(
        f"the output {name!r} differs by {difference:.3g} (largest value {largest:.3g})"
        for name, (difference, largest) in found
        if not difference <= FUSION_TOLERANCE * max(1.0, largest)
    )


def untie_gemms(model: onnx.ModelProto) -> None:
    """Give a Gemm its own copy of a weight that others read: the library transposes it in place, for all of them."""
    readers: dict[str, int] = {}
    for node in model.graph.node:
        for name in set(node.input):
            readers[name] = readers.get(name, 0) + 1
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Gemm" and readers.get(node.input[1], 0) > 1 and node.input[1] in weights:
            copy = model.graph.initializer.add()
            copy.CopyFrom(weights[node.input[1]])
            copy.name = f"{node.input[1]}_of_{node.name}"
            node.input[1] = copy.name


def drop_unused_domains(model: onnx.ModelProto) -> None:
    """ONNX Runtime declares every domain it knows in what it saves; another runtime may refuse those it does not."""
    used = {node.domain for node in model.graph.node} | {""}
    kept = [opset for opset in model.opset_import if opset.domain in used or opset.domain == "ai.onnx"]
    del model.opset_import[:]
    model.opset_import.extend(kept)


@contextmanager
def quiet(scratch: Path) -> Iterator[None]:
    """The library's advice to pre-process (done) off the log, its prints into a file, its errors as a step's error."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with (scratch / "library.log").open("a") as log, redirect_stdout(log):
            yield
    except (ValueError, RuntimeError, AssertionError, TypeError, KeyError) as error:
        raise StepError(f"onnxruntime.quantization failed: {_outputs.one_line(error)}") from error
    finally:
        logger.setLevel(level)
