"""No work on padding: encoders that compute, of a batch of texts with much padding, the other tokens alone.

Texts of a batch have different lengths and are padded to the longest. Here the tokens that count are gathered from all texts, (batch,
tokens, width) to (those, width). What computes token by token (products with weights, normalization, activation) goes on with these;
attention, which must know what belongs together, goes through them text by text. In batches of mixed lengths that saves more than half of
the time; a text alone has no padding, and the gathering is in vain: a graph gets both ways to compute.

Source: Zhai et al., ByteTransformer (arXiv:2210.03052), there for GPUs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ioptim.onnx_tokens import TOKENS

if TYPE_CHECKING:
    import numpy as np
    import onnx

ATTENTION = {"Attention": 3, "QAttention": 5}
"""Fused attention (com.microsoft), and where it reads its mask."""

SWITCH, TOO_LITTLE = "padding/switch", 0.15
"""The node that decides between the two ways to compute, and the share of padding up to which everything is computed."""

OPSET, FLOAT, INT64, BOOL = 13, 1, 7, 9
"""The first opset with all operators used here; data types of ONNX."""

COUNTS, KEPT, PLACES = "padding/counts", "padding/kept", "padding/places"
STARTS, ENDS, NUMBER_OF_TEXTS = "padding/starts", "padding/ends", "padding/number_of_texts"
"""Values that are added. With the mask [[1, 1, 0], [1, 0, 0]]: COUNTS is that, as truth values; KEPT, where the tokens that count are in
the batch, [0, 1, 3]; PLACES, which of them stands where, [[0, 1, 1], [2, 2, 2]] (at padding the one before it); STARTS and ENDS of the
texts among them, [0, 2] and [2, 3]; NUMBER_OF_TEXTS 2."""

_ONE_INPUT = frozenset({"BiasGelu", "Cast", "Dropout", "Erf", "FastGelu", "Gelu", "Identity", "Relu", "Sigmoid", "Tanh"})
"""Operators that read tokens at their first input and compute each number by itself."""

_SEVERAL_INPUTS = frozenset({"Add", "Div", "Mul", "SkipLayerNormalization", "Sub", "Sum"})
"""Operators that read tokens at one input or several, and what is the same for all tokens at the others."""

_PRODUCTS = frozenset({"DynamicQuantizeMatMul", "MatMul", "MatMulInteger", "MatMulIntegerToFloat"})
"""Products with a matrix of weights at the second input."""


@dataclass(frozen=True)
class Removed:
    """How many nodes compute only the tokens that count, in batches with much padding; the input of the graph that says which count; the
    outputs that are 0 at padding then."""

    nodes: int
    mask: str
    outputs: tuple[str, ...]


def remove_padding(model: onnx.ModelProto) -> Removed | None:
    """Rewrite the graph in place so that batches with much padding compute the other tokens alone.

    The graph decides at every call (`SWITCH`): where at most `TOO_LITTLE` of a batch is padding, or a text's first token is (padding on
    the left), it computes everything as it did, else only the tokens that count. Weights are there once.

    None, and nothing is changed, where attention is not fused to one of `ATTENTION` with one mask of (batch, tokens). Ranks of other values
    are not known here: what is token by token is told from the operators alone, so whoever calls compares outputs.
    """
    found = _mask_of(model)
    if found is None:
        return None
    mask, given = found
    packing = _Packing(model, mask, _attended(model))
    for node in model.graph.node:
        packing.take(node)
    nodes, outputs = packing.finished()
    _switch(model, mask, nodes)
    return Removed(packing.count, given, outputs)


def without_switch(model: onnx.ModelProto) -> None:
    """Undo `remove_padding`: what is left computes everything, with the same weights."""
    graph = model.graph
    switch = next((node for node in graph.node if node.name == SWITCH), None)
    if switch is None:
        return
    body = next(attribute.g for attribute in switch.attribute if attribute.name == "then_branch")
    ends = dict(zip((value.name for value in body.output), switch.output, strict=True))
    nodes = [_copy(node) for node in (*graph.node, *body.node) if node.name != SWITCH]
    for node in nodes:
        _rename(node, ends)
    graph.initializer.extend(map(_copy, body.initializer))
    del graph.node[:]
    graph.node.extend(nodes)


# What can be rewritten


def is_masked(model: onnx.ModelProto) -> bool:
    """Whether some fused attention reads a mask: of an image there is none, and no padding."""
    attentions = [node for node in model.graph.node if node.op_type in ATTENTION]
    return any(len(node.input) > ATTENTION[node.op_type] and node.input[ATTENTION[node.op_type]] for node in attentions)


def _mask_of(model: onnx.ModelProto) -> tuple[str, str] | None:
    """The mask that all attention reads, and the input of the graph that it is; None where the graph is not one to rewrite."""
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    inputs = {value.name: value for value in graph.input if value.name not in weights}
    attentions = [node for node in graph.node if node.op_type in ATTENTION]
    masks = {node.input[place] if len(node.input) > (place := ATTENTION[node.op_type]) else "" for node in attentions}
    mask = given = masks.pop() if len(masks) == 1 else ""
    chain = _ancestors(graph.node, mask)
    while (made := next((node for node in chain if given in node.output), None)) is not None and made.op_type in ("Cast", "Identity"):
        given = made.input[0]
    opset = next((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), 0)
    possible = (
        opset >= OPSET
        and given in inputs
        and all(map(_is_text, inputs.values()))
        and all(_is_plain(model, node) for node in attentions)
        and not any(attribute.HasField("g") for node in graph.node for attribute in node.attribute)
        and not {name for node in chain for name in node.output}.union(inputs) & {value.name for value in graph.output}
        and all(value.type.tensor_type.elem_type == FLOAT for value in graph.output)
    )
    return (mask, given) if possible else None


def _is_text(value: onnx.ValueInfoProto) -> bool:
    """Whether an input has two axes, batch and tokens, and both are free."""
    shape = value.type.tensor_type.shape
    return len(shape.dim) == 2 and not any(axis.HasField("dim_value") for axis in shape.dim)


def _is_plain(model: onnx.ModelProto, attention: onnx.NodeProto) -> bool:
    """Whether it looks at all tokens of its text and nothing else, with the weights of query, keys and values in one matrix."""
    usual = 4 if attention.op_type == "Attention" else 8
    other = {a.name for a in attention.attribute if (a.name in ("unidirectional", "do_rotary") and a.i) or a.name == "qkv_hidden_sizes"}
    shape: Sequence[int] = next((tensor.dims for tensor in model.graph.initializer if tensor.name == attention.input[1]), ())
    complete = len(attention.input) >= usual and not any(attention.input[usual:]) and not any(attention.output[1:])
    return complete and not other and len(shape) == 2 and shape[1] % 3 == 0


def _attended(model: onnx.ModelProto) -> frozenset[str]:
    """The values of (batch, tokens, width) that attention reads, before they are scaled (SmoothQuant) and quantized for it."""
    read = {node.input[0] for node in model.graph.node if node.op_type in ATTENTION}
    read |= {node.input[0] for node in model.graph.node if node.op_type == "DynamicQuantizeLinear" and node.output[0] in read}
    weights = {tensor.name for tensor in model.graph.initializer}
    scaled = [node for node in model.graph.node if node.op_type == "Mul" and node.output[0] in read and weights.intersection(node.input)]
    return frozenset(read.union(name for node in scaled for name in node.input if name not in weights))


# Both ways in one graph


def _switch(model: onnx.ModelProto, mask: str, packed: list[onnx.NodeProto]) -> None:
    """Put both ways to compute the graph into it: its nodes, and `packed`. What the mask is made of is before them."""
    import numpy as np
    from onnx import helper, numpy_helper

    graph = model.graph
    before = _ancestors(graph.node, mask)
    made = {name for node in before for name in node.output}
    whole = [_copy(node) for node in graph.node if not made & set(node.output)]
    packed = [node for node in packed if not made & set(node.output)]
    branches = {
        "then_branch": _branch(graph, "whole", whole, [value.name for value in graph.output]),
        "else_branch": _branch(graph, "packed", packed, {name for node in packed for name in node.output if name}),
    }
    constants = {"zero": np.array(0, np.float32), "begin": np.array([0]), "end": np.array([1]), "axis": np.array([TOKENS])}
    constants |= {"too_little": np.array(TOO_LITTLE, np.float32)}
    graph.initializer.extend(numpy_helper.from_array(value, f"padding/{name}") for name, value in constants.items())
    decision = [
        _node("Cast", [mask], "padding/mask", to=BOOL),
        _node("Not", ["padding/mask"], "padding/is"),
        _node("Cast", ["padding/is"], "padding/ones", to=FLOAT),
        _node("ReduceSum", ["padding/ones"], "padding/amount", keepdims=0),
        _node("Size", ["padding/ones"], "padding/size"),
        _node("Cast", ["padding/size"], "padding/of", to=FLOAT),
        _node("Mul", ["padding/of", "padding/too_little"], "padding/limit"),
        _node("LessOrEqual", ["padding/amount", "padding/limit"], "padding/is_little"),
        _node("Slice", ["padding/ones", "padding/begin", "padding/end", "padding/axis"], "padding/first"),
        _node("ReduceSum", ["padding/first"], "padding/on_the_left", keepdims=0),
        _node("Greater", ["padding/on_the_left", "padding/zero"], "padding/is_on_the_left"),
        _node("Or", ["padding/is_little", "padding/is_on_the_left"], "padding/whole"),
        helper.make_node("If", ["padding/whole"], [value.name for value in graph.output], SWITCH, **branches),
    ]
    nodes = [*map(_copy, before), *decision]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)


def _branch(graph: onnx.GraphProto, name: str, nodes: list[onnx.NodeProto], renamed: Collection[str]) -> onnx.GraphProto:
    """A branch that ends in the graph's outputs. Those of its values that are `renamed` are `name/...`, and nodes but those of `whole`."""
    from onnx import helper

    names = {value: f"{name}/{value}" for value in renamed}
    for node in nodes:
        _rename(node, names)
        node.name = node.name or next(value for value in node.output if value)  # a profile knows nodes by their names
        for inner in (node, *_inside(node)):
            inner.name = inner.name if name == "whole" else f"{name}/{inner.name}"
    ends = [_copy(value) for value in graph.output]
    for value in ends:
        value.name = names[value.name]
    return helper.make_graph(nodes, name, [], ends)


def _rename(node: onnx.NodeProto, names: Mapping[str, str]) -> None:
    """Give what a node reads and writes, and what is read inside it, other names."""
    node.output[:] = [names.get(value, value) for value in node.output]
    for one in (node, *_inside(node)):
        one.input[:] = [names.get(value, value) for value in one.input]


def _inside(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    return [inner for attribute in node.attribute for inner in attribute.g.node]


def _ancestors(nodes: Sequence[onnx.NodeProto], name: str) -> list[onnx.NodeProto]:
    """The nodes that a value is made by, in order."""
    wanted, found = {name}, []
    for node in reversed(nodes):
        if wanted & set(node.output):
            wanted.update(node.input)
            found.append(node)
    return found[::-1]


def _node(op_type: str, inputs: Sequence[str], output: str, domain: str = "", **attributes: object) -> onnx.NodeProto:
    """A node with one output, by whose name it goes."""
    from onnx import helper

    return helper.make_node(op_type, list(inputs), [output], output, domain=domain, **attributes)


def _copy(proto: Any) -> Any:
    """A protobuf message that lives on when the graph that held it is emptied."""
    return type(proto).FromString(proto.SerializeToString())


# The way without padding


@dataclass
class _Packing:
    """A graph that is written anew, node by node.

    `packed` names, for a value of (batch, tokens, width), the one of (tokens that count, width) that goes on in its place. `there` are
    values of that kind that exist as they were, or are 0 at padding. `same` are values that all tokens share: scales and zero points.
    """

    model: onnx.ModelProto
    mask: str
    attended: Collection[str]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    packed: dict[str, str] = field(default_factory=dict)
    there: set[str] = field(default_factory=set)
    spread: dict[str, str] = field(default_factory=dict)
    same: set[str] = field(default_factory=set)
    constants: dict[str, str] = field(default_factory=dict)
    count: int = 0

    def __post_init__(self) -> None:
        self.weights = {tensor.name: tensor for tensor in self.model.graph.initializer}
        self._index()

    def take(self, original: onnx.NodeProto) -> None:
        """Append the node, or what takes its place."""
        node = _copy(original)
        read = [name for name in node.input if name in self.packed]
        if read and node.op_type in ATTENTION:
            self._attend(node)
        elif read and self._token_by_token(node):
            self._take_packed(node)
        elif read and self._cuts_first(node):
            self._cut_first(node)
        elif read and node.op_type == "MultiHeadAttention":
            node.input[:] = [self._spread(name) if name in self.packed else name for name in node.input]
            self.nodes.append(node)
        else:
            for name in read:
                self._unpack(name)
            self.nodes.append(node)
            if node.op_type in ("DequantizeLinear", "Mul") and all(map(self._is_same, node.input)):
                self.same.update(node.output)
        for name in set(node.output) & set(self.attended) - self.packed.keys():
            flat = self._add("Flatten", [name], f"{name}/flat", axis=2)
            self.packed[name] = self._add("Gather", [flat, KEPT], f"{name}/packed")
            self.there.add(name)

    def finished(self) -> tuple[list[onnx.NodeProto], tuple[str, ...]]:
        """The nodes, in an order in which they can run, and the outputs that are 0 at padding."""
        outputs = [value.name for value in self.model.graph.output if value.name in self.packed]
        zeroed = tuple(name for name in outputs if name not in self.there)
        for name in outputs:
            self._unpack(name)
        return self.nodes, zeroed

    # Nodes

    def _token_by_token(self, node: onnx.NodeProto) -> bool:
        """Whether each token of the output depends on the same token of the inputs."""
        if node.op_type == "DynamicQuantizeLinear":
            return True
        if any(node.output[1:]):
            return False
        match node.op_type:
            case "LayerNormalization":
                return next((a.i for a in node.attribute if a.name == "axis"), -1) == -1
            case op if op in _PRODUCTS:
                matrix = self.weights.get(node.input[1])
                return matrix is not None and len(matrix.dims) == 2 and all(map(self._is_same, node.input[2:]))
            case op if op in _SEVERAL_INPUTS:
                return all(name in self.packed or self._is_same(name) for name in node.input)
            case op:
                return op in _ONE_INPUT and all(map(self._is_same, node.input[1:]))

    def _is_same(self, name: str) -> bool:
        return not name or name in self.same or (name in self.weights and len(self.weights[name].dims) <= 1)

    def _take_packed(self, node: onnx.NodeProto) -> None:
        name = node.output[0]
        node.input[:] = [self.packed.get(read, read) for read in node.input]
        self.packed[name] = node.name = node.output[0] = f"{name}/packed"
        self.same.update(node.output[1:])  # of DynamicQuantizeLinear: one scale for all tokens
        self.nodes.append(node)
        self.count += 1

    def _cuts_first(self, node: onnx.NodeProto) -> bool:
        """Whether it takes the first token out of every text, by constants."""
        from onnx import numpy_helper

        if not all(name in self.weights for name in node.input[1:]):
            return False
        constants = [numpy_helper.to_array(self.weights[name]).ravel().tolist() for name in node.input[1:]]
        if node.op_type == "Slice":
            return constants in ([[0], [1], [TOKENS]], [[0], [1], [TOKENS], [1]])
        return node.op_type == "Gather" and constants == [[0]] and any(a.name == "axis" and a.i == TOKENS for a in node.attribute)

    def _cut_first(self, node: onnx.NodeProto) -> None:
        """Cut the places of the tokens, and gather only those."""
        name, tokens = node.output[0], self.packed[node.input[0]]
        node.input[0], node.output[0], node.name = PLACES, f"{name}/place", f"{name}/place"
        self.nodes.append(node)
        self._add("Gather", [tokens, node.output[0]], name)

    def _attend(self, node: onnx.NodeProto) -> None:
        """Query, keys and values of the tokens that count, and attention over each text's."""
        import numpy as np
        from onnx import helper

        name, x, weight = node.output[0], self.packed[node.input[0]], node.input[1]
        if node.op_type == "QAttention":
            scale, weight_scale, _, zero, weight_zero = node.input[3:8]
            summed = self._add("MatMulInteger", [x, weight, zero, weight_zero], f"{name}/summed")
            scales = self._add("Mul", [scale, weight_scale], f"{name}/scales")
            product = self._add("Mul", [self._add("Cast", [summed], f"{name}/cast", to=FLOAT), scales], f"{name}/product")
        else:
            product = self._add("MatMul", [x, weight], f"{name}/product")
        states = self._add("Add", [product, node.input[2]], f"{name}/states") if node.input[2] else product
        thirds = self._constant(np.array([self.weights[weight].dims[1] // 3] * 3))
        parts = [f"{name}/{part}" for part in ("query", "key", "value")]
        self.nodes.append(helper.make_node("Split", [states, thirds], parts, f"{name}/split", axis=-1))
        kept = {a.name: helper.get_attribute_value(a) for a in node.attribute if a.name in ("num_heads", "scale")}
        self.packed[name] = self._text_by_text(name, parts, kept)
        self.count += 1

    def _text_by_text(self, name: str, parts: Sequence[str], attributes: Mapping[str, Any]) -> str:
        """Attention over the tokens of each text, one text after the other: from three times (tokens that count, width) to one."""
        import numpy as np
        from onnx import helper

        axis, inside = self._constant(np.array([0])), f"{name}/text/"
        body = [
            _node("Unsqueeze", [f"{inside}number", axis], f"{inside}text"),
            _node("Gather", [STARTS, f"{inside}text"], f"{inside}start"),
            _node("Gather", [ENDS, f"{inside}text"], f"{inside}end"),
        ]
        for part in parts:
            body.append(_node("Slice", [part, f"{inside}start", f"{inside}end", axis], f"{part}/tokens"))
            body.append(_node("Unsqueeze", [f"{part}/tokens", axis], f"{part}/text"))
        read = [f"{part}/text" for part in parts]
        body += [
            _node("MultiHeadAttention", read, f"{inside}attended", domain="com.microsoft", **attributes),
            _node("SequenceInsert", [f"{inside}before", f"{inside}attended"], f"{inside}after"),
            _node("Identity", [f"{inside}go"], f"{inside}on"),
        ]
        before, after = (helper.make_tensor_sequence_value_info(f"{inside}{when}", FLOAT, None) for when in ("before", "after"))
        kinds = {"number": INT64, "go": BOOL, "on": BOOL}
        number, go, on = (helper.make_tensor_value_info(f"{inside}{value}", kind, []) for value, kind in kinds.items())
        graph = helper.make_graph(body, f"{name}/text", [number, go, before], [on, after])
        nothing = self._add("SequenceEmpty", [], f"{name}/nothing", dtype=FLOAT)
        attended = self._add("Loop", [NUMBER_OF_TEXTS, "", nothing], f"{name}/attended", body=graph)
        return self._add("Squeeze", [self._add("ConcatFromSequence", [attended], f"{name}/row", axis=1), axis], f"{name}/packed")

    # From texts to the tokens that count, and back

    def _index(self) -> None:
        """Compute where the tokens that count are. Each text has some: its first token."""
        import numpy as np

        zero, one, axis = self._constant(np.array(0)), self._constant(np.array(1)), self._constant(np.array([TOKENS]))
        counts = self._add("Cast", [self.mask], COUNTS, to=BOOL)
        shape = self._add("Shape", [counts], "padding/shape")
        self._add("Gather", [shape, zero], NUMBER_OF_TEXTS)
        ones = self._add("Cast", [counts], "padding/numbers", to=INT64)
        lengths = self._add("ReduceSum", [ones, axis], "padding/lengths", keepdims=0)
        ends = self._add("CumSum", [lengths, zero], ENDS)
        self._add("Sub", [ends, lengths], STARTS)
        flat = self._add("Reshape", [ones, self._constant(np.array([-1]))], "padding/flat")
        self._add("Squeeze", [self._add("NonZero", [flat], "padding/found"), self._constant(np.array([0]))], KEPT)
        before = self._add("Sub", [self._add("CumSum", [flat, zero], "padding/ordinal"), one], "padding/before")
        self._add("Reshape", [before, shape], PLACES)

    def _spread(self, name: str) -> str:
        """The tokens of `name` in whole texts, with another token's values at padding: for attention, which is told what counts."""
        if name not in self.spread:
            self.spread[name] = self._add("Gather", [self.packed[name], PLACES], f"{name}/spread")
        return self.spread[name]

    def _unpack(self, name: str) -> None:
        """The value under its own name, in whole texts, 0 at padding: for nodes that are not known, and where it leaves the graph."""
        import numpy as np

        if name not in self.there:
            self.there.add(name)
            counts = self._add("Cast", [COUNTS], f"{name}/counts", to=FLOAT)
            columns = self._add("Unsqueeze", [counts, self._constant(np.array([2]))], f"{name}/columns")
            self._add("Mul", [self._spread(name), columns], name)

    def _add(self, op_type: str, inputs: Sequence[str], name: str, domain: str = "", **attributes: object) -> str:
        self.nodes.append(_node(op_type, inputs, name, domain, **attributes))
        return name

    def _constant(self, value: np.ndarray) -> str:
        from onnx import numpy_helper

        key = str(value.tolist())
        if key not in self.constants:
            self.constants[key] = f"padding/constant/{len(self.constants)}"
            self.model.graph.initializer.append(numpy_helper.from_array(value, self.constants[key]))
        return self.constants[key]
