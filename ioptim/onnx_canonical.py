"""Attention spelled the way that ONNX Runtime's transformer fusions know.

`onnxruntime.transformers.optimizer` recognizes subgraphs by their exact shape, as TorchScript used to export them. The graphs of
the dynamo exporter compute the same things with other nodes, so none of their attention fuses. These places differ:

    attention mask   Range, GreaterOrEqual, GatherND, Where ...  ->  (1 - mask[:, None, None, :]) * lowest, or none
    scale            scores * c                                 ->  scores / (1 / c)
    positions        Slice(position_ids, Shape(token_type_ids))  ->  Slice(position_ids, Shape(input_ids)[1])
    split of heads   Reshape(x, Concat(batch, sequence, -1, h))  ->  Reshape(x, [0, 0, heads, h])
    normalization    LayerNormalization(x, scale)                ->  LayerNormalization(x, scale, zeros)

Masks, positions and heads are rewritten only after their subgraph was evaluated on random inputs of several shapes and gave
exactly these values: what counts is what it computes, not how it is written, so a causal or relative mask stays as it is.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import onnx

TRIAL_SHAPES = ((2, 7), (3, 5), (1, 4))
"""Batch and sequence of the trials."""

MASK_SHAPES = (*TRIAL_SHAPES, (1, 1030))
"""Of the trials of masks: one is longer than the windows that local attention looks through (128 tokens in ModernBERT)."""

MASKED_BELOW = -1e4
"""What is added to the scores at padding is at most this; softmax makes 0 of it."""

LARGE_BYTES = 1 << 20
"""Neither a mask nor an index reads weights of this size."""

SHAPE_BYTES = 1 << 10
"""Nor is a shape written in a constant of this size."""

OPSET = 13
"""The oldest that graphs are rewritten in: Unsqueeze takes its axes as an input, DequantizeLinear a scale for each channel."""


def canonicalize(model: onnx.ModelProto) -> tuple[int, int]:
    """Rewrite mask, scale, positions and head splits in place, where they provably are what the fusions look for.

    Returns the number of heads and the width they split, (0, 0) where the graph does not tell or tells several.
    """
    graph = _Editable(model)
    recent = any(opset.domain in ("", "ai.onnx") and opset.version >= OPSET for opset in model.opset_import)
    if recent:
        _rewrite_masks(graph)
    _rewrite_scales(graph)
    if recent:
        _rewrite_positions(graph)
    _rewrite_norms(graph)
    splits = _rewrite_head_splits(graph)
    graph.finish()
    return splits.pop() if len(splits) == 1 else (0, 0)


class _Editable:
    """A graph with its lookups, and evaluation of the part of it that computes one value from the inputs alone."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.graph = model.graph
        self.producer = {name: node for node in self.graph.node for name in node.output}
        self.initializers = {tensor.name: tensor for tensor in self.graph.initializer}
        self.inputs = {value.name: value for value in self.graph.input if value.name not in self.initializers}
        self.added: list[onnx.NodeProto] = []
        self.taken = {*self.producer, *self.initializers, *self.inputs, *(node.name for node in self.graph.node)}

    @cached_property
    def ranks(self) -> dict[str, int]:
        """How many axes a value has, where shape inference tells. It reads no large weights, only their shapes."""
        from onnx import helper, shape_inference

        tensors = {name: tensor for name, tensor in self.initializers.items() if tensor.ByteSize() <= SHAPE_BYTES}
        large = [tensor for name, tensor in self.initializers.items() if name not in tensors]
        inputs = [*self.inputs.values(), *(helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in large)]
        graph = helper.make_graph([*self.added, *self.graph.node], "shapes", inputs, [], list(tensors.values()))
        model = helper.make_model(graph, opset_imports=self.model.opset_import, ir_version=max(self.model.ir_version, 4))
        try:
            found = shape_inference.infer_shapes(model, data_prop=True).graph.value_info
        except shape_inference.InferenceError:
            return {}
        return {value.name: len(value.type.tensor_type.shape.dim) for value in found if value.type.tensor_type.HasField("shape")}

    def parent(self, name: str, *op_types: str) -> onnx.NodeProto | None:
        """The node that computes `name`, if it is one of these operators."""
        node = self.producer.get(name)
        return node if node is not None and node.op_type in op_types else None

    def constant(self, name: str) -> np.ndarray | None:
        from onnx import numpy_helper

        node = self.parent(name, "Constant")
        tensor = next((a.t for a in node.attribute if a.name == "value"), None) if node is not None else None
        tensor = self.initializers.get(name, tensor)
        value: np.ndarray | None = numpy_helper.to_array(tensor) if tensor is not None else None
        return value

    def add(self, op_type: str, inputs: list[str], **attributes: Any) -> str:
        """Append a node with one output; nodes are sorted when all rewriting is done."""
        from onnx import helper

        name = self._fresh(op_type)
        node = helper.make_node(op_type, inputs, [name], name=name, **attributes)
        self.added.append(node)
        self.producer[name] = node
        return name

    def add_constant(self, value: np.ndarray) -> str:
        from onnx import numpy_helper

        name = self._fresh("constant")
        tensor = numpy_helper.from_array(value, name)
        self.graph.initializer.append(tensor)
        self.initializers[name] = tensor
        return name

    def _fresh(self, kind: str) -> str:
        """A name that nothing has; not even what an earlier call on this graph added."""
        name = next(name for i in itertools.count(len(self.added) + 1) if (name := f"canonical_{kind}_{i}") not in self.taken)
        self.taken.add(name)
        return name

    def part(self, output: str, limit: int = 100) -> tuple[list[onnx.NodeProto], list[str]] | None:
        """Nodes (in order) and graph inputs that `output` depends on; None when there are too many to be a mask or an index."""
        wanted, names, waiting = set(), set(), [output]
        while waiting:
            name = waiting.pop()
            if name in self.inputs:
                names.add(name)
            node = self.producer.get(name)
            if node is not None and id(node) not in wanted:
                wanted.add(id(node))
                waiting.extend(node.input)
            if len(wanted) > limit:
                return None
        return [node for node in (*self.added, *self.graph.node) if id(node) in wanted], sorted(names)

    def values_read(self, output: str) -> set[str]:
        """The graph inputs whose values `output` depends on, not only their shapes."""
        nodes, names = self.part(output) or ([], list(self.inputs))
        read = {name for node in nodes if node.op_type not in ("Shape", "Size") for name in node.input}
        return read & set(names) if nodes else set(names)

    def trials(self, output: str, shapes: Sequence[tuple[int, int]] = TRIAL_SHAPES) -> list[tuple[dict[str, np.ndarray], np.ndarray]]:
        """Feeds (random zeros and ones, one shape for all) and the value of `output`; empty where it cannot be told."""
        import numpy as np
        import onnxruntime
        from onnx import helper
        from onnxruntime.capi import onnxruntime_pybind11_state as errors

        part = self.part(output)
        model = self._submodel(output, *part) if part is not None and part[1] else None
        if part is None or model is None:
            return []
        random = np.random.default_rng(0)
        found = []
        try:
            session = onnxruntime.InferenceSession(model.SerializeToString(), _quiet(), providers=["CPUExecutionProvider"])
            for shape in shapes:
                feeds = {}
                for name in part[1]:
                    kind = self.inputs[name].type.tensor_type
                    sizes = [d.dim_value or shape[min(i, 1)] for i, d in enumerate(kind.shape.dim)]
                    feeds[name] = random.integers(0, 2, sizes).astype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
                found.append((feeds, session.run([output], feeds)[0]))
        except (errors.Fail, errors.InvalidArgument, errors.InvalidGraph, errors.NotImplemented, errors.RuntimeException):
            return []  # it takes no such inputs, so it stays as it is
        return found

    def _submodel(self, output: str, nodes: list[onnx.NodeProto], names: list[str]) -> onnx.ModelProto | None:
        """These nodes as a model of their own; None when they read large weights."""
        import onnx
        from onnx import helper

        used = {name for node in nodes for name in node.input}
        tensors = [tensor for name, tensor in self.initializers.items() if name in used]
        if sum(tensor.ByteSize() for tensor in tensors) > LARGE_BYTES:
            return None
        inputs = [self.inputs[name] for name in names]
        graph = helper.make_graph(nodes, "part", inputs, [onnx.ValueInfoProto(name=output)], tensors)
        return helper.make_model(graph, opset_imports=self.model.opset_import, ir_version=self.model.ir_version)

    def replace(self, old: str, new: str) -> None:
        """Let every reader of `old` read `new`."""
        for node in self.graph.node:
            for i, name in enumerate(node.input):
                if name == old:
                    node.input[i] = new

    def finish(self) -> None:
        """Put added nodes first (they depend on inputs only) and drop what nothing reads any more."""
        nodes = [*self.added, *self.graph.node]
        read = {value.name for value in self.graph.output}
        kept: list[onnx.NodeProto] = []
        for node in reversed(nodes):
            if any(name in read for name in node.output):
                kept.append(node)
                read.update(_names_read(node))
        del self.graph.node[:]
        self.graph.node.extend(reversed(kept))


def _rewrite_masks(graph: _Editable) -> None:
    """Softmax(scores + M), where M is 0 at tokens that an input marks with 1 and lowest elsewhere."""
    import numpy as np

    for softmax in [node for node in graph.graph.node if node.op_type == "Softmax"]:
        add = graph.parent(softmax.input[0], "Add")
        masks = [name for name in add.input if not graph.parent(name, "MatMul", "Mul", "Div")] if add is not None else []
        if add is None or len(masks) != 1:
            continue
        if _masks_nothing(graph, masks[0]):
            softmax.input[0] = next(name for name in add.input if name != masks[0])
            continue
        found = _padding_mask(graph, masks[0])
        if found is None:
            continue
        mask_input, lowest = found
        rows = graph.add("Unsqueeze", [mask_input, graph.add_constant(np.array([1]))])
        columns = graph.add("Unsqueeze", [rows, graph.add_constant(np.array([2]))])
        kept = graph.add("Cast", [columns], to=1)
        dropped = graph.add("Sub", [graph.add_constant(np.array(1, np.float32)), kept])
        graph.replace(masks[0], graph.add("Mul", [dropped, graph.add_constant(np.array(lowest, np.float32))]))


def _masks_nothing(graph: _Editable, name: str) -> bool:
    """Whether `name` is zero whatever the inputs are: the mask that a model without padding (ViT) carries along.

    One that reads the values of an input is not: a trial has no token but 0 and 1, and padding may be another.
    """
    constant = graph.constant(name)
    if constant is not None:
        return not constant.any()
    trials = [] if graph.values_read(name) else graph.trials(name, MASK_SHAPES)
    return bool(trials) and not any(value.any() for _, value in trials)


def _padding_mask(graph: _Editable, name: str) -> tuple[str, float] | None:
    """The input of which `name` is the additive padding mask, and its value at padding; None where it is anything else.

    It must read the values of that input alone, and they may not be token ids: `ids != 0` is a mask that zeros and ones do not tell
    from `ids == 1`.
    """
    import numpy as np

    ids = {node.input[1] for node in graph.graph.node if node.op_type == "Gather" and node.input[0] in graph.initializers}
    candidates, lowest, seen = graph.values_read(name), 0.0, 0
    if len(candidates) != 1 or candidates & ids:
        return None
    for feeds, value in graph.trials(name, MASK_SHAPES):
        seen += 1
        lowest = min(lowest, float(value.min()))
        candidates &= {n for n, x in feeds.items() if x.ndim == 2 and _same(value, np.where(x[:, None, None, :] == 1, 0.0, lowest))}
    if not seen or not candidates or lowest > MASKED_BELOW:
        return None
    return candidates.pop(), max(lowest, float(np.finfo(np.float32).min))  # 0 times -inf would be no number


def _rewrite_scales(graph: _Editable) -> None:
    """Softmax(scores * c), masked or not: a division, or the fusion takes this Mul for the mask's (or finds no path at all)."""
    for softmax in [node for node in graph.graph.node if node.op_type == "Softmax"]:
        add = graph.parent(softmax.input[0], "Add")
        scaled = [graph.parent(name, "Mul") for name in (add.input if add is not None else softmax.input)]
        for mul in scaled:
            scale = graph.constant(mul.input[1]) if mul is not None and graph.parent(mul.input[0], "MatMul") else None
            if mul is not None and scale is not None and scale.size == 1:
                mul.op_type = "Div"
                mul.input[1] = graph.add_constant((1 / scale).astype(scale.dtype))


def _rewrite_positions(graph: _Editable) -> None:
    """Gather(table, 0..sequence-1): the fusion wants the range cut from a constant by the length of the token ids."""
    import numpy as np

    gathers = [n for n in graph.graph.node if n.op_type == "Gather" and n.input[0] in graph.initializers]
    tokens = [n for n in gathers if n.input[1] in graph.inputs]
    if not tokens:
        return
    words = max(tokens, key=lambda n: graph.initializers[n.input[0]].dims[0])
    for gather in gathers:
        values = graph.trials(gather.input[1]) if gather.input[1] not in graph.inputs else []
        if not values or not all(_same(v, np.arange(_shape(x)[1])[None]) and v.ndim == 2 for x, v in values):
            continue
        length = graph.add("Gather", [graph.add("Shape", [words.input[1]]), graph.add_constant(np.array(1))], axis=0)
        end = graph.add("Unsqueeze", [length, graph.add_constant(np.array([0]))])
        everything = np.arange(graph.initializers[gather.input[0]].dims[0])[None]
        bounds = [graph.add_constant(np.array([value])) for value in (0, 1, 1)]
        gather.input[1] = graph.add("Slice", [graph.add_constant(everything), bounds[0], end, bounds[1], bounds[2]])


def _rewrite_norms(graph: _Editable) -> None:
    """LayerNormalization without a bias: the fusion reads one without asking (IndexError in fusion_skiplayernorm.py)."""
    import numpy as np

    for norm in [node for node in graph.graph.node if node.op_type == "LayerNormalization" and len(node.input) == 2]:
        scale = graph.constant(norm.input[1])
        if scale is not None:
            norm.input.append(graph.add_constant(np.zeros_like(scale)))


RANK = 3
"""Axes of (batch, sequence, width)."""


def _rewrite_head_splits(graph: _Editable) -> set[tuple[int, int]]:
    """Reshape of (batch, sequence, width) to (batch, sequence, heads, head size): a constant that names the heads."""
    import numpy as np

    found: set[tuple[int, int]] = set()
    known: dict[tuple[str, int], str | None] = {}
    for reshape in [node for node in graph.graph.node if node.op_type == "Reshape"]:
        width = _width(graph, reshape.input[0])
        concat = graph.parent(reshape.input[1], "Concat")
        if width is None or concat is None or len(concat.input) != 4:
            continue
        if graph.ranks.get(reshape.input[0], RANK) != RANK:
            continue  # (batch · sequence, width): its first two axes are not batch and sequence
        found |= _split_by_constants(graph, concat, width)
        key = (reshape.input[1], width)
        if key not in known:
            split = _head_split(graph, *key)
            known[key] = graph.add_constant(np.array([0, 0, *split])) if split else None
        if known[key] is not None:
            reshape.input[1] = str(known[key])
            del reshape.attribute[:]  # allowzero: a 0 now means "as in the input"
    return found


def _split_by_constants(graph: _Editable, concat: onnx.NodeProto, width: int) -> set[tuple[int, int]]:
    """Heads and width as the last two numbers of a shape tell them, whatever the first two are computed from."""
    numbers = [graph.constant(name) for name in concat.input[2:]]
    heads, size = (int(n.item()) if n is not None and n.size == 1 else 0 for n in numbers)
    heads = width // size if heads == -1 and size > 0 else heads
    return {(heads, width)} if heads > 0 and heads * size == width else set()


def _head_split(graph: _Editable, name: str, width: int) -> tuple[int, int] | None:
    """(heads, head size) when `name` is always (batch, sequence, heads or -1, head size)."""
    splits = set()
    for feeds, value in graph.trials(name):
        if tuple(value[:2]) != _shape(feeds)[:2]:
            return None
        splits.add((int(value[2]), int(value[3])))
    heads, size = splits.pop() if len(splits) == 1 else (0, 0)
    heads = width // size if heads == -1 and size > 0 else heads
    return (heads, size) if heads > 0 and heads * size == width else None


def _width(graph: _Editable, name: str) -> int | None:
    """Last dimension of a linear layer's output (MatMul with a constant, then a bias)."""
    add = graph.parent(name, "Add")
    for matmul in (graph.parent(n, "MatMul") for n in add.input) if add is not None else ():
        if matmul is not None and matmul.input[1] in graph.initializers:
            return int(graph.initializers[matmul.input[1]].dims[-1])
    return None


def _same(value: np.ndarray, wanted: np.ndarray) -> bool:
    import numpy as np

    try:
        return bool(np.array_equal(value, np.broadcast_to(wanted, value.shape)))
    except ValueError:
        return False


def _shape(feeds: Mapping[str, np.ndarray]) -> tuple[int, ...]:
    shape: tuple[int, ...] = next(iter(feeds.values())).shape
    return shape


def _names_read(node: onnx.NodeProto) -> set[str]:
    """Names a node reads, by its inputs and inside the bodies it carries."""
    bodies = [a.g for a in node.attribute if a.HasField("g")]
    return set(node.input) | {name for body in bodies for inner in body.node for name in _names_read(inner)}


def _quiet() -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return options
