"""What several steps and runtimes need to know about an ONNX graph: is it one, what is in it, can it be fused.

`fuse_transformer` runs the fusions of `onnxruntime.transformers.optimizer`. That optimizer recognizes subgraphs by their
exact shape, as TorchScript used to export them; the graphs of the dynamo exporter compute the same things with other nodes,
so none of their attention fuses. Four places differ, and `_canonicalize` rewrites them to the spelling that is recognized:

    attention mask   Range, GreaterOrEqual, GatherND, Where ...  ->  (1 - mask[:, None, None, :]) * lowest
    scale            scores * c                                 ->  scores / (1 / c)
    positions        Slice(position_ids, Shape(token_type_ids))  ->  Slice(position_ids, Shape(input_ids)[1])
    split of heads   Reshape(x, Concat(batch, sequence, -1, h))  ->  Reshape(x, [0, 0, heads, h])

Masks, positions and heads are rewritten only after their subgraph was evaluated on random inputs of several shapes and gave
exactly these values: what counts is what it computes, not how it is written, so a causal or relative mask stays as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ioptim.errors import StepError

if TYPE_CHECKING:
    import numpy as np
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

TRIAL_SHAPES = ((2, 7), (3, 5), (1, 4))
MASKED_BELOW = -1e4


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
    heads, width = _canonicalize(model)
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


def _canonicalize(model: onnx.ModelProto) -> tuple[int, int]:
    """Rewrite mask, scale, positions and head splits in place, where they provably are what the fusions look for.

    Returns the number of heads and the width they split, (0, 0) where the graph does not tell or tells several.
    """
    graph = _Editable(model)
    _rewrite_masks(graph)
    _rewrite_scales(graph)
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
        self.serial = 0

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

        self.serial += 1
        name = f"canonical_{op_type}_{self.serial}"
        node = helper.make_node(op_type, inputs, [name], name=name, **attributes)
        self.added.append(node)
        self.producer[name] = node
        return name

    def add_constant(self, value: np.ndarray) -> str:
        from onnx import numpy_helper

        self.serial += 1
        name = f"canonical_constant_{self.serial}"
        tensor = numpy_helper.from_array(value, name)
        self.graph.initializer.append(tensor)
        self.initializers[name] = tensor
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

    def trials(self, output: str) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
        """Feeds (random zeros and ones, one shape for all) and the value of `output`; nothing where it cannot be told."""
        import numpy as np
        import onnx
        import onnxruntime
        from onnx import helper

        part = self.part(output)
        if part is None or not part[1] or any(len(self.inputs[n].type.tensor_type.shape.dim) != 2 for n in part[1]):
            return
        nodes, names = part
        used = {name for node in nodes for name in node.input}
        graph = helper.make_graph(
            nodes,
            "part",
            [self.inputs[name] for name in names],
            [onnx.ValueInfoProto(name=output)],
            [tensor for name, tensor in self.initializers.items() if name in used],
        )
        model = helper.make_model(graph, opset_imports=self.model.opset_import, ir_version=self.model.ir_version)
        session = onnxruntime.InferenceSession(model.SerializeToString(), _quiet(), providers=["CPUExecutionProvider"])
        random = np.random.default_rng(0)
        for shape in TRIAL_SHAPES:
            feeds = {}
            for name in names:
                dtype = helper.tensor_dtype_to_np_dtype(self.inputs[name].type.tensor_type.elem_type)
                feeds[name] = random.integers(0, 2, shape).astype(dtype)
            yield feeds, session.run([output], feeds)[0]

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
        found = _padding_mask(graph, masks[0]) if len(masks) == 1 else None
        if found is None:
            continue
        mask_input, lowest = found
        rows = graph.add("Unsqueeze", [mask_input, graph.add_constant(np.array([1]))])
        columns = graph.add("Unsqueeze", [rows, graph.add_constant(np.array([2]))])
        kept = graph.add("Cast", [columns], to=1)
        dropped = graph.add("Sub", [graph.add_constant(np.array(1, np.float32)), kept])
        graph.replace(masks[0], graph.add("Mul", [dropped, graph.add_constant(np.array(lowest, np.float32))]))


def _padding_mask(graph: _Editable, name: str) -> tuple[str, float] | None:
    """The input of which `name` is the additive padding mask, and its value at padding; None where it is anything else."""
    import numpy as np

    candidates, lowest, seen = set(graph.inputs), 0.0, 0
    for feeds, value in graph.trials(name):
        seen += 1
        lowest = min(lowest, float(value.min()))
        candidates &= {n for n, x in feeds.items() if _same(value, np.where(x[:, None, None, :] == 1, 0.0, lowest))}
    return (candidates.pop(), lowest) if seen and len(candidates) == 1 and lowest <= MASKED_BELOW else None


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
        values = [(x, value) for x, value in graph.trials(gather.input[1])] if gather.input[1] not in graph.inputs else []
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
        key = (reshape.input[1], width)
        if key not in known:
            split = _head_split(graph, *key)
            known[key] = graph.add_constant(np.array([0, 0, *split])) if split else None
            found |= {(split[0], width)} if split else set()
        if known[key] is not None:
            reshape.input[1] = str(known[key])
            del reshape.attribute[:]  # allowzero: a 0 now means "as in the input"
    return found


def _head_split(graph: _Editable, name: str, width: int) -> tuple[int, int] | None:
    """(heads, head size) when `name` is always (batch, sequence, heads or -1, head size)."""
    splits = set()
    for feeds, value in graph.trials(name):
        if tuple(value[:2]) != _shape(feeds):
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


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)


def _quiet() -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return options


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
