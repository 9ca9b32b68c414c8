"""Where in a model numbers end: the layer in which NaN or infinity begins. Knows no step.

Asked only when an output is already known to be wrong: the model is run once more on the same feeds, on the CPU, without the optimizations
that would hide its layers, and every layer's result is looked at.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ioptim.core.artifact import Format, ModelArtifact
from ioptim.errors import IoptimError, StepError
from ioptim.onnx_graph import load_graph, save_graph
from ioptim.onnx_padding import without_switch
from ioptim.torch_model import call, load_module

if TYPE_CHECKING:
    import numpy as np
    import torch

    from ioptim.core.task import Outputs

    Feeds = Mapping[str, np.ndarray]


class State(IntEnum):
    """The worst of an array's values."""

    FINITE = 0
    INFINITE = 1
    NAN = 2


@dataclass(frozen=True)
class Layer:
    """What went into a layer and what came out. `weight` names one of its own that is not finite."""

    name: str
    operator: str
    inputs: State
    output: State
    weight: str = ""
    holds_others: bool = False
    """Whether other layers run inside it, so that what begins here begins in its own code between them."""

    def __str__(self) -> str:
        where = "the code between the layers of" if self.holds_others else "the layer"
        called = f"{where} {self.name!r} ({self.operator})" if self.name else f"{where} the model itself ({self.operator})"
        return f"{called}, whose weight {self.weight!r} is not finite" if self.weight else called


def holes(outputs: Outputs) -> str:
    """What is not a number in a model's outputs; empty where there is no NaN. Infinity passes: its score is a gap, which gates judge."""
    import numpy as np

    for name, array in outputs.items():
        if array.dtype.kind == "f" and (count := int(np.isnan(array).sum())):
            return f"the output {name!r} is not a number (NaN) in {count} of its {array.size} values"
    return ""


def begins(model: ModelArtifact, feeds: Feeds) -> str:
    """`origin`, as the end of a sentence."""
    return f"; {said}" if (said := origin(model, feeds)) else ""


def origin(model: ModelArtifact, feeds: Feeds) -> str:
    """Where NaN, or infinity if there is no NaN, begins on these feeds: half a sentence, empty for a format that has no layers to look at.

    `NaN begins in the layer 'encoder.layer.3.output.dense' (Linear)`; where a layer makes NaN of infinite values, also where those begin.
    """
    look = {Format.ONNX: _of_onnx, Format.TORCH: _of_torch, Format.OPENVINO: _of_openvino}.get(model.format)
    if look is None:
        return ""
    for name, array in feeds.items():
        if (state := state_of(array)) is not State.FINITE:
            return f"the input {name!r} holds {_word(state)} already"
    try:
        return found(look(model, feeds))
    except IoptimError as error:
        return f"in which layer it begins cannot be told: {error}"


def found(layers: Iterable[Layer]) -> str:
    """Of layers in the order in which they ran: the first NaN that no NaN went into, else the last infinity of finite values.

    The last, because an attention mask may be infinite on purpose and comes before what overflows by mistake.
    """
    infinite = None
    for layer in layers:
        if layer.output is State.NAN and layer.inputs is not State.NAN:
            because = f", of infinite values that begin in {infinite}" if layer.inputs is State.INFINITE and infinite else ""
            return f"NaN begins in {layer}{because}"
        if layer.output is State.INFINITE and layer.inputs is State.FINITE:
            infinite = layer
    if infinite:
        return f"infinity begins in {infinite}"
    return "run layer by layer it stays finite, so an optimization of the runtime makes it"


def state_of(array: Any) -> State:
    """Of a NumPy array of floats; everything else is finite."""
    import numpy as np

    if not isinstance(array, np.ndarray) or array.dtype.kind != "f" or np.isfinite(array).all():
        return State.FINITE
    return State.NAN if np.isnan(array).any() else State.INFINITE


def _word(state: State) -> str:
    return "NaN" if state is State.NAN else "infinity"


def _worst(states: Iterable[State]) -> State:
    return max(states, default=State.FINITE)


def nan_weights(path: Path) -> list[str]:
    """Names of an ONNX file's weights that hold NaN. An infinite one may be a mask."""
    from onnx import numpy_helper

    tensors = load_graph(path).graph.initializer
    return [tensor.name for tensor in tensors if state_of(numpy_helper.to_array(tensor)) is State.NAN]


# --- ONNX: every node's results become outputs


def _of_onnx(model: ModelArtifact, feeds: Feeds) -> Iterator[Layer]:
    from onnx import ValueInfoProto, numpy_helper

    without_switch(proto := load_graph(model.model_path))
    graph = proto.graph
    weights = {tensor.name: state_of(numpy_helper.to_array(tensor)) for tensor in graph.initializer}
    there = {value.name for value in graph.output}
    made = [name for node in graph.node for name in node.output if name]
    graph.output.extend(ValueInfoProto(name=name) for name in made if name not in there)
    with tempfile.TemporaryDirectory() as folder:
        save_graph(proto, path := Path(folder, "layers.onnx"))
        states = {**weights, **_run_onnx(path, made, feeds)}
    for node in graph.node:
        wrong = next((name for name in node.input if weights.get(name)), "")
        inputs = _worst(states.get(name, State.FINITE) for name in node.input if name not in weights)
        outputs = _worst(states[name] for name in node.output if name)
        yield Layer(node.name or node.output[0], node.op_type, inputs, outputs, wrong)


def _run_onnx(path: Path, names: list[str], feeds: Feeds) -> dict[str, State]:
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    kinds = (errors.Fail, errors.InvalidArgument, errors.InvalidGraph, errors.NotImplemented, errors.RuntimeException)
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        taken = {value.name for value in session.get_inputs()}
        results = session.run(names, {name: array for name, array in feeds.items() if name in taken})
    except kinds as error:
        raise StepError(f"ONNX Runtime does not run it layer by layer ({' '.join(str(error).split())[:200]})") from error
    return {name: state_of(array) for name, array in zip(names, results, strict=True)}


# --- torch: a hook on every module


def _of_torch(model: ModelArtifact, feeds: Feeds) -> list[Layer]:
    """Modules in the order in which they end, so that a layer comes before what holds it."""
    import torch

    module = load_module(model).float()
    layers: list[Layer] = []

    def watch(name: str, part: torch.nn.Module) -> None:
        wrong = next((key for key, weight in part.named_parameters(recurse=False) if not torch.isfinite(weight).all()), "")

        def ended(_: Any, args: Any, kwargs: Any, output: Any) -> None:
            inputs, outputs = _worst(_tensor_states((args, kwargs))), _worst(_tensor_states(output))
            layers.append(Layer(name, type(part).__name__, inputs, outputs, wrong, any(True for _ in part.children())))

        part.register_forward_hook(ended, with_kwargs=True)

    for name, part in module.named_modules():
        watch(name, part)
    call(module, feeds)
    return layers


def _tensor_states(value: Any) -> Iterator[State]:
    """Of every tensor in nested tuples, lists and mappings."""
    import torch

    if isinstance(value, torch.Tensor):
        yield state_of(value.float().numpy()) if value.is_floating_point() else State.FINITE
    elif isinstance(value, Mapping):
        yield from _tensor_states(tuple(value.values()))
    elif isinstance(value, tuple | list):
        for each in value:
            yield from _tensor_states(each)


# --- OpenVINO: every operation's results become outputs


def _of_openvino(model: ModelArtifact, feeds: Feeds) -> Iterator[Layer]:
    import openvino

    graph = openvino.Core().read_model(str(model.model_path))
    operations = [op for op in graph.get_ordered_ops() if op.get_type_name() not in ("Parameter", "Constant", "Result")]
    ports = [port for op in operations for port in op.outputs()]
    taken = {name for port in graph.inputs for name in port.names}
    graph.add_outputs([port for port in ports if not any(to.get_node().get_type_name() == "Result" for to in port.get_target_inputs())])
    try:
        compiled = openvino.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        results = compiled({name: array for name, array in feeds.items() if name in taken})
    except RuntimeError as error:
        raise StepError(f"OpenVINO does not run it layer by layer ({' '.join(str(error).split())[:200]})") from error
    shown = [_place(port.get_node().input(0).get_source_output()) for port in graph.outputs]
    states = {place: state_of(results[i]) for i, place in enumerate(shown)}
    for op in operations:
        given = [port.get_source_output() for port in op.inputs()]
        constants = {p.get_node().get_friendly_name(): p.get_node() for p in given if p.get_node().get_type_name() == "Constant"}
        wrong = next((name for name, node in constants.items() if state_of(node.data) is not State.FINITE), "")
        inputs = _worst(states.get(_place(port), State.FINITE) for port in given)
        outputs = _worst(states.get(_place(port), State.FINITE) for port in op.outputs())
        yield Layer(op.get_friendly_name(), op.get_type_name(), inputs, outputs, wrong)


def _place(port: Any) -> tuple[str, int]:
    return port.get_node().get_friendly_name(), port.get_index()
