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

SWITCH, WORTH_KEPT = "padding_switch", 0.85
"""The node that decides between the two ways to compute, and the share of tokens that count from which on all are computed."""

OPSET, FLOAT, INT32, INT64, BOOL = 13, 1, 6, 7, 9
"""The first opset with all operators used here; data types of ONNX."""

COUNTS, KEPT, PLACE = "padding_counts", "padding_kept", "padding_place"
"""Values that are added: which tokens count, (batch, tokens); where they are in the batch, (those,); which of them stands where, (batch,
tokens)."""

STARTS, ENDS, TEXTS, KEYS = "padding_starts", "padding_ends", "padding_texts", "padding_keys"
"""Where each text's tokens begin among those and where they end, (batch,); how many texts there are; the mask of those, (those,)."""

_ONE_INPUT = frozenset({"BiasGelu", "Cast", "Dropout", "Erf", "FastGelu", "Gelu", "Identity", "Relu", "Sigmoid", "Tanh"})
"""Operators that read tokens at their first input and compute each number by itself."""

_SEVERAL_INPUTS = frozenset({"Add", "Div", "Mul", "SkipLayerNormalization", "Sub", "Sum"})
"""Operators that read tokens at one input or several, and what is the same for all tokens at the others."""

_PRODUCTS = frozenset({"DynamicQuantizeMatMul", "MatMul", "MatMulInteger", "MatMulIntegerToFloat"})
"""Products with a matrix of weights at the second input."""


@dataclass(frozen=True)
class Removed:
    """How many nodes compute only the tokens that count, in batches with much padding, and the input of the graph that says which count."""

    nodes: int
    mask: str


def remove_padding(model: onnx.ModelProto) -> Removed | None:
    """Rewrite the graph in place so that batches with much padding compute the other tokens alone.

    The graph decides at every call (`SWITCH`): where at least `WORTH_KEPT` of a batch counts it computes everything as it did, else only
    the tokens that count, and hidden states that are outputs are then 0 at padding. Weights are there once.

    None, and nothing is changed, where attention is not fused to one of `ATTENTION` with one mask of (batch, tokens). Ranks of other values
    are not known here: what is token by token is told from the operators alone, so whoever calls compares outputs.
    """
    found = _mask_of(model)
    if found is None:
        return None
    mask, given = found
    packing = _Packing(model, mask, _texts(model))
    for node in model.graph.node:
        packing.take(node)
    _switch(model, mask, packing.finished())
    return Removed(packing.count, given)


def without_switch(model: onnx.ModelProto) -> None:
    """Undo `remove_padding`: what is left computes everything, with the same weights."""
    graph = model.graph
    switch = next((node for node in graph.node if node.name == SWITCH), None)
    if switch is None:
        return
    body = next(attribute.g for attribute in switch.attribute if attribute.name == "then_branch")
    ends = dict(zip((value.name for value in body.output), switch.output, strict=True))
    nodes = [*map(_copy, graph.node), *map(_copy, body.node)]
    for node in nodes:
        node.input[:] = [ends.get(name, name) for name in node.input]
        node.output[:] = [ends.get(name, name) for name in node.output]
    graph.initializer.extend(map(_copy, body.initializer))
    del graph.node[:]
    graph.node.extend(node for node in nodes if node.name != SWITCH)


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


def _texts(model: onnx.ModelProto) -> frozenset[str]:
    """The values of (batch, tokens, width) that attention reads, before they are quantized for it."""
    read = {node.input[0] for node in model.graph.node if node.op_type in ATTENTION}
    quantized = {node.input[0] for node in model.graph.node if node.op_type == "DynamicQuantizeLinear" and node.output[0] in read}
    return frozenset(read | quantized)


def _switch(model: onnx.ModelProto, mask: str, packed: Sequence[onnx.NodeProto]) -> None:
    """Put both ways to compute the graph into it: its nodes, and `packed`. What the mask is made of is before them."""
    import numpy as np
    from onnx import helper, numpy_helper

    graph = model.graph
    before = _ancestors(graph.node, mask)
    made = {name for node in before for name in node.output}
    bodies = {}
    for name, nodes in (("padded", graph.node), ("packed", packed)):
        own = [_copy(node) for node in nodes if not made & set(node.output)]
        bodies[name] = _body(graph, name, own)
    graph.initializer.append(numpy_helper.from_array(np.array(WORTH_KEPT, np.float32), "padding_worth"))
    nodes = [
        *map(_copy, before),
        _node("Cast", [mask], "padding_mask", to=BOOL),
        _node("Cast", ["padding_mask"], "padding_mask_numbers", to=FLOAT),
        _node("ReduceMean", ["padding_mask_numbers"], "padding_share", keepdims=0),
        _node("GreaterOrEqual", ["padding_share", "padding_worth"], "padding_little"),
        helper.make_node(
            "If",
            ["padding_little"],
            [value.name for value in graph.output],
            SWITCH,
            then_branch=bodies["padded"],
            else_branch=bodies["packed"],
        ),
    ]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)


def _ancestors(nodes: Sequence[onnx.NodeProto], name: str) -> list[onnx.NodeProto]:
    """The nodes that a value is made by, in order."""
    wanted, found = {name}, []
    for node in reversed(nodes):
        if wanted & set(node.output):
            wanted.update(node.input)
            found.append(node)
    return found[::-1]


def _body(graph: onnx.GraphProto, name: str, nodes: list[onnx.NodeProto]) -> onnx.GraphProto:
    """A branch that ends in the graph's outputs. Its values and nodes have names of their own: `packed/...`, and outputs `padded/...`."""
    from onnx import helper

    outputs = [value.name for value in graph.output]
    for node in nodes:  # a profile knows nodes by their names
        node.name = node.name or next(value for value in node.output if value)
    produced = {value for node in nodes for value in node.output if value and (name == "packed" or value in outputs)}
    for node in nodes:
        for inner in (node, *(one for attribute in node.attribute for one in attribute.g.node)):  # a loop's body reads values from here
            inner.input[:] = [f"{name}/{value}" if value in produced else value for value in inner.input]
            inner.name = f"{name}/{inner.name}" if name == "packed" else inner.name
        node.output[:] = [f"{name}/{value}" if value in produced else value for value in node.output]
    ends = [_copy(value) for value in graph.output]
    for value in ends:
        value.name = f"{name}/{value.name}"
    return helper.make_graph(nodes, name, [], ends)


def _node(op_type: str, inputs: Sequence[str], output: str, domain: str = "", **attributes: object) -> onnx.NodeProto:
    """A node with one output, by whose name it goes."""
    from onnx import helper

    return helper.make_node(op_type, list(inputs), [output], output, domain=domain, **attributes)


def _copy(proto: Any) -> Any:
    """A protobuf message that lives on when the graph that held it is emptied."""
    return type(proto).FromString(proto.SerializeToString())


@dataclass
class _Packing:
    """A graph that is written anew, node by node.

    `packed` names, for a value of (batch, tokens, width), the one of (tokens that count, width) that goes on in its place; `whole` are
    values that exist in whole texts too. `same` are values that all tokens share: scales and zero points.
    """

    model: onnx.ModelProto
    mask: str
    texts: Collection[str]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    packed: dict[str, str] = field(default_factory=dict)
    whole: set[str] = field(default_factory=set)
    same: set[str] = field(default_factory=set)
    count: int = 0

    def __post_init__(self) -> None:
        self.weights = {tensor.name: tensor for tensor in self.model.graph.initializer}
        self.outputs = [value.name for value in self.model.graph.output]
        self._index()

    def take(self, original: onnx.NodeProto) -> None:
        """Append the node, or what takes its place."""
        node = _copy(original)
        read = [name for name in node.input if name in self.packed]
        if read and node.op_type in ATTENTION:
            self._attend(node)
        elif read and self._token_by_token(node):
            self._take_packed(node)
        elif read and self._cuts_tokens(node):
            self._cut(node)
        elif read and node.op_type == "MultiHeadAttention":
            node.input[:] = [self._spread(name) if name in self.packed else name for name in node.input]
            self.nodes.append(node)
        else:
            for name in read:
                self._unpack(name)
            self.nodes.append(node)
            if node.op_type == "Mul" and all(map(self._is_same, node.input)):
                self.same.update(node.output)
        for name in set(node.output) & set(self.texts) - self.packed.keys():
            flat = self._add("Flatten", [name], f"{name}_flat", axis=2)
            self.packed[name] = self._add("Gather", [flat, KEPT], f"{name}_packed")
            self.whole.add(name)

    def finished(self) -> list[onnx.NodeProto]:
        """The nodes in an order in which they can run, what leaves the graph in whole texts."""
        for name in self.outputs:
            if name in self.packed:
                self._unpack(name)
        return self.nodes

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
        node.input[:] = [self.packed.get(name, name) for name in node.input]
        name, node.output[0] = node.output[0], f"{node.output[0]}_packed"
        self.packed[name] = node.name = node.output[0]
        self.same.update(node.output[1:])  # of DynamicQuantizeLinear: one scale for all tokens
        self.nodes.append(node)
        self.count += 1

    def _cuts_tokens(self, node: onnx.NodeProto) -> bool:
        """Whether it takes the first token out of every text, by constants."""
        from onnx import numpy_helper

        if not all(name in self.weights for name in node.input[1:]):
            return False
        constants = [numpy_helper.to_array(self.weights[name]).ravel().tolist() for name in node.input[1:]]
        if node.op_type == "Slice":
            return constants == [[0], [1], [TOKENS]]
        return node.op_type == "Gather" and constants == [[0]] and any(a.name == "axis" and a.i == TOKENS for a in node.attribute)

    def _cut(self, node: onnx.NodeProto) -> None:
        """Cut the places of the tokens, and gather only those."""
        name, tokens = node.output[0], self.packed[node.input[0]]
        node.input[0], node.output[0], node.name = PLACE, f"{name}_place", f"{name}_place"
        self.nodes.append(node)
        self._add("Gather", [tokens, node.output[0]], name)

    def _attend(self, node: onnx.NodeProto) -> None:
        """Query, keys and values of the tokens that count, and attention over each text's."""
        import numpy as np
        from onnx import helper

        name, x, weight = node.output[0], self.packed[node.input[0]], node.input[1]
        if node.op_type == "QAttention":
            scale, weight_scale, _, zero, weight_zero = node.input[3:8]
            summed = self._add("MatMulInteger", [x, weight, zero, weight_zero], f"{name}_summed")
            scales = self._add("Mul", [scale, weight_scale], f"{name}_scales")
            product = self._add("Mul", [self._add("Cast", [summed], f"{name}_cast", to=FLOAT), scales], f"{name}_product")
        else:
            product = self._add("MatMul", [x, weight], f"{name}_product")
        states = self._add("Add", [product, node.input[2]], f"{name}_states") if node.input[2] else product
        thirds = self._constant(np.array([self.weights[weight].dims[1] // 3] * 3))
        parts = [f"{name}_{part}" for part in ("query", "key", "value")]
        self.nodes.append(helper.make_node("Split", [states, thirds], parts, f"{name}_split", axis=-1))
        kept = {a.name: helper.get_attribute_value(a) for a in node.attribute if a.name in ("num_heads", "mask_filter_value", "scale")}
        self.packed[name] = self._text_by_text(name, parts, kept)
        self.count += 1

    def _text_by_text(self, name: str, parts: Sequence[str], attributes: Mapping[str, Any]) -> str:
        """Attention over the tokens of each text, one text after the other: from three times (tokens that count, width) to one.

        The mask is for a first token that counts though it is masked; there are no others.
        """
        import numpy as np
        from onnx import helper

        axis, inside = self._constant(np.array([0])), f"{name}_text/"
        body = [
            _node("Unsqueeze", [f"{inside}number", axis], f"{inside}text"),
            _node("Gather", [STARTS, f"{inside}text"], f"{inside}start"),
            _node("Gather", [ENDS, f"{inside}text"], f"{inside}end"),
        ]
        for read in (*parts, KEYS):
            body.append(_node("Slice", [read, f"{inside}start", f"{inside}end", axis], f"{inside}{read}_tokens"))
            body.append(_node("Unsqueeze", [f"{inside}{read}_tokens", axis], f"{inside}{read}"))
        query, key, value, mask = (f"{inside}{read}" for read in (*parts, KEYS))
        body += [
            _node("MultiHeadAttention", [query, key, value, "", mask], f"{inside}attended", domain="com.microsoft", **attributes),
            _node("SequenceInsert", [f"{inside}before", f"{inside}attended"], f"{inside}after"),
            _node("Identity", [f"{inside}go"], f"{inside}on"),
        ]
        sequences = [helper.make_tensor_sequence_value_info(f"{inside}{when}", FLOAT, None) for when in ("before", "after")]
        given = [(f"{inside}number", INT64), (f"{inside}go", BOOL), (f"{inside}on", BOOL)]
        number, go, on = (helper.make_tensor_value_info(value, kind, []) for value, kind in given)
        graph = helper.make_graph(body, f"{name}_text", [number, go, sequences[0]], [on, sequences[1]])
        nothing = self._add("SequenceEmpty", [], f"{name}_nothing", dtype=FLOAT)
        texts = self._add("Loop", [TEXTS, "", nothing], f"{name}_texts_attended", body=graph)
        return self._add("Squeeze", [self._add("ConcatFromSequence", [texts], f"{name}_row", axis=1), axis], f"{name}_packed")

    # From whole texts to the tokens that count, and back

    def _index(self) -> None:
        """Compute where the tokens that count are.

        Each text's first token counts, masked or not, for a classifier reads it; and all of a text whose tokens are all masked, for then
        attention reads all of them. Padding has the place of the token before it.
        """
        import numpy as np

        zero, one, tokens_axis = self._constant(np.array(0)), self._constant(np.array(1)), self._constant(np.array([TOKENS]))
        everything = self._constant(np.array([-1]))
        mask = self._add("Cast", [self.mask], COUNTS, to=BOOL)
        shape = self._add("Shape", [mask], "padding_shape")
        tokens = self._add("Gather", [shape, one], "padding_tokens")
        first = self._add("Equal", [self._add("Range", [zero, tokens, one], "padding_positions"), zero], "padding_first")
        total = self._add("ReduceSum", [self._add("Cast", [mask], "padding_numbers", to=INT64), tokens_axis], "padding_total", keepdims=1)
        anyway = self._add("Or", [first, self._add("Equal", [total, zero], "padding_empty")], "padding_anyway")
        read = self._add("Cast", [self._add("Or", [mask, anyway], "padding_read")], "padding_ones", to=INT64)

        lengths = self._add("ReduceSum", [read, tokens_axis], "padding_lengths", keepdims=0)
        ends = self._add("CumSum", [lengths, zero], ENDS)
        self._add("Sub", [ends, lengths], STARTS)
        self._add("Gather", [shape, zero], TEXTS)

        flat = self._add("Reshape", [read, everything], "padding_flat")
        self._add("Squeeze", [self._add("NonZero", [flat], "padding_found"), self._constant(np.array([0]))], KEPT)
        before = self._add("Sub", [self._add("CumSum", [flat, zero], "padding_ordinal"), one], "padding_before")
        self._add("Reshape", [before, shape], PLACE)
        keys = self._add("Cast", [self._add("Reshape", [mask, everything], "padding_mask_flat")], "padding_all_keys", to=INT32)
        self._add("Gather", [keys, KEPT], KEYS)

    def _spread(self, name: str) -> str:
        """The tokens of `name` in whole texts, with another token's values at padding: for attention, which is told what counts."""
        if (texts := f"{name}_texts") not in self.whole:
            self.whole.add(self._add("Gather", [self.packed[name], PLACE], texts))
        return texts

    def _unpack(self, name: str) -> None:
        """The value under its own name, in whole texts, 0 at padding: for nodes that are not known, and where it leaves the graph."""
        import numpy as np

        if name not in self.whole:
            counts = self._add("Cast", [COUNTS], f"{name}_counts", to=FLOAT)
            columns = self._add("Unsqueeze", [counts, self._constant(np.array([2]))], f"{name}_columns")
            self.whole.add(self._add("Mul", [self._spread(name), columns], name))

    def _add(self, op_type: str, inputs: Sequence[str], name: str, domain: str = "", **attributes: object) -> str:
        self.nodes.append(_node(op_type, inputs, name, domain, **attributes))
        return name

    def _constant(self, value: np.ndarray) -> str:
        from onnx import numpy_helper

        name = f"padding_constant_{len(self.model.graph.initializer)}"
        self.model.graph.initializer.append(numpy_helper.from_array(value, name))
        return name
