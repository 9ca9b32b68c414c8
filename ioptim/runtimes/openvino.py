"""OpenVINO on the CPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ioptim.core.artifact import Format, ModelArtifact, TensorSpec
from ioptim.core.runtime import Runtime, Session, Target
from ioptim.core.step import Level, Note, Outcome, TableFigure, Written
from ioptim.core.target import Hardware
from ioptim.errors import StepError, UnavailableError
from ioptim.runtimes._device import is_gpu, precision_objections, threads_of
from ioptim.runtimes._openvino_profile import ProfiledOpenVinoSession

if TYPE_CHECKING:
    import numpy as np

ENTRY = "model.xml"

PRECISIONS = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}

PRODUCTS = ("FullyConnected", "Convolution", "Deconvolution", "RNNSeq", "RNNCell")
"""Layers of the CPU plugin that multiply by weights (LSTM and GRU are RNNSeq and RNNCell too); its MatMul multiplies two activations."""

INT8 = ("i8", "u8")

NO_WORK = ("Input", "Output", "Const")


class OpenVino(Runtime):
    """Convert to OpenVINO's IR, and run it with the precision that was asked for and is read back.

    Left to itself, OpenVINO computes a float32 model in bfloat16 wherever the CPU has instructions for it, and takes bfloat16 for
    float16 where it has none. Here the default is float32; another precision is a choice, and one that OpenVINO does not keep is
    an error. Layers between the FakeQuantize of a quantized model run in int8 whatever this says.
    """

    runtime: Literal["openvino"] = "openvino"
    libraries = ("openvino", "numpy")
    extra = "cpu"
    accepts = frozenset({Format.ONNX, Format.OPENVINO})
    compiled = Format.OPENVINO

    inference_precision: Literal["f32", "bf16", "f16", "auto"] = Field(
        "f32", description="precision of floating layers; auto lets OpenVINO choose (bf16 where the CPU has it)"
    )
    performance_hint: Literal["latency", "throughput"] = Field(
        "latency", description="all threads for one request, or several streams of fewer threads each"
    )
    num_streams: int | None = Field(None, ge=1, description="streams; as the performance hint chooses when left out")
    compress_to_fp16: bool = Field(False, description="store weights as float16 in the file; computed as inference_precision says")

    def check(self, target: Target, hardware: Hardware) -> list[str]:
        if is_gpu(target):
            return [
                f"openvino runs on the CPU; the target {target.name} asks for {target.device}. Write `device: cpu`, or for an"
                " NVIDIA GPU the runtime onnxruntime, tensorrt or torch"
            ]
        return precision_objections(self.inference_precision, target, hardware)

    def compile(self, model: ModelArtifact, target: Target, out: Path) -> Outcome:
        openvino = _library()
        network = _read(model.model_path)
        quantized = _is_quantized(network)
        openvino.save_model(network, out / ENTRY, compress_to_fp16=self.compress_to_fp16)
        compiled = self._compiled(_read(out / ENTRY), target)
        layers = _layers(compiled)
        facts = {"runtime": self.runtime, **self._facts(compiled, target)}
        return Outcome(
            written=Written(format=Format.OPENVINO, entry=ENTRY, facts={"runtime": self.runtime}),
            metrics=_metrics(layers),
            tables=(_table(layers),),
            notes=_notes(layers, quantized),
            facts=facts,
        )

    def open(self, model: ModelArtifact, target: Target) -> Session:
        compiled = self._compiled(_read(model.model_path), target)
        return _OpenVinoSession(compiled, model, self._facts(compiled, target))

    def open_profiled(self, model: ModelArtifact, target: Target, trace: Path) -> ProfiledOpenVinoSession:
        """The same with OpenVINO's counters on: the time of every layer that executed, and its precision."""
        compiled = self._compiled(_read(model.model_path), target, {"PERF_COUNT": True})
        session = _OpenVinoSession(compiled, model, self._facts(compiled, target))
        return ProfiledOpenVinoSession(session, compiled, trace)

    def self_check(self, target: Target) -> list[float]:
        import tempfile

        import numpy as np

        openvino = _library()
        from openvino import opset13 as ops

        x = ops.parameter([-1], np.float32, name="x")
        doubled = ops.multiply(x, ops.constant(np.array([2.0], np.float32)))
        x.output(0).set_names({"x"})
        doubled.output(0).set_names({"y"})
        with tempfile.TemporaryDirectory() as folder:
            openvino.save_model(openvino.Model([doubled], [x], "double"), f"{folder}/{ENTRY}", compress_to_fp16=False)
            (out := Path(folder) / "compiled").mkdir()
            model = ModelArtifact(path=Path(folder), format=Format.OPENVINO, entry=ENTRY)
            self.compile(model, target, out)
            session = self.open(model.model_copy(update={"path": out}), target)
            values = session.run({"x": np.array([1, 2, 3], np.float32)})["y"]
            session.close()
        return [float(value) for value in values]

    def _compiled(self, network: Any, target: Target, more: Mapping[str, Any] | None = None) -> Any:
        """The network on the CPU, with its precision as asked.

        Raises:
            StepError: OpenVINO refused it, or chose another precision than was asked for.
        """
        if is_gpu(target):
            raise UnavailableError(f"openvino runs on the CPU; the target {target.name} asks for {target.device}")
        wanted: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads_of(target), "PERFORMANCE_HINT": self.performance_hint.upper()}
        if self.inference_precision != "auto":
            wanted["INFERENCE_PRECISION_HINT"] = self.inference_precision
        if self.num_streams is not None:
            wanted["NUM_STREAMS"] = self.num_streams
        wanted |= more or {}
        core = _library().Core()
        try:
            compiled = core.compile_model(network, "CPU", wanted)
        except RuntimeError as error:
            raise StepError(f"OpenVINO cannot compile the model for the CPU: {_reason(error)}") from error
        given = _precision(compiled)
        if self.inference_precision != "auto" and given != PRECISIONS[self.inference_precision]:
            raise StepError(
                f"inference_precision {self.inference_precision} was asked for; on this CPU OpenVINO would compute in {given}."
                " Choose f32, or auto to accept that"
            )
        return compiled

    def _facts(self, compiled: Any, target: Target) -> dict[str, Any]:
        """Read back from the compiled model."""
        return {
            "runtime": self.runtime,
            "version": _library().__version__,
            "device": ",".join(compiled.get_property("EXECUTION_DEVICES")),
            "inference_precision": _precision(compiled),
            "performance_hint": str(compiled.get_property("PERFORMANCE_HINT")).lower(),
            "num_streams": int(compiled.get_property("NUM_STREAMS")),
            "threads": int(compiled.get_property("INFERENCE_NUM_THREADS")),
            "dynamic_quantization_group_size": int(compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE")),
        }


class _OpenVinoSession:
    """One infer request. Feeds are read where they lie; results are copies."""

    def __init__(self, compiled: Any, model: ModelArtifact, facts: Mapping[str, Any]) -> None:
        self._request = compiled.create_infer_request()
        self.inputs = model.inputs or tuple(_spec(port) for port in compiled.inputs)
        self.outputs = model.outputs or tuple(_spec(port) for port in compiled.outputs)
        self._dtypes = {name: port.get_element_type().to_dtype() for port in compiled.inputs for name in port.get_names()}
        # A tensor can have several names; the artifact's is the one that others know.
        known = {spec.name for spec in self.outputs}
        self._names = [next(iter(port.get_names() & known), port.get_any_name()) for port in compiled.outputs]
        self.facts = facts

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        # OpenVINO would cast without a word.
        for name, array in feeds.items():
            if array.dtype != self._dtypes.get(name, array.dtype):
                raise StepError(f"the input {name} takes {self._dtypes[name]}; it was fed {array.dtype}")
        try:
            results = self._request.infer(dict(feeds), share_inputs=True, share_outputs=False)
        except RuntimeError as error:
            fed = ", ".join(f"{name} {list(array.shape)} {array.dtype}" for name, array in feeds.items())
            raise StepError(f"OpenVINO failed on {fed}: {_reason(error)}") from error
        return {name: results[i] for i, name in enumerate(self._names)}

    @property
    def request(self) -> Any:
        """The infer request, whose counters a profile reads."""
        return self._request

    def close(self) -> None:
        self._request = None


def _library() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise UnavailableError(f"openvino cannot be imported ({error}); install it with: pip install 'ioptim[cpu]'") from error
    return openvino


def _read(path: Path) -> Any:
    if not path.is_file():
        raise StepError(f"there is no file {path}")
    openvino = _library()
    try:
        return openvino.Core().read_model(str(path))
    except RuntimeError as error:
        text = f"OpenVINO {openvino.__version__} cannot read {path}: {_reason(error)}"
        if "com.microsoft" in str(error):
            text += ". These operators are ONNX Runtime's own: quantize with a scheme that writes standard ONNX (int8-static)"
        raise StepError(text) from error


def _reason(error: BaseException) -> str:
    """The message without the places in OpenVINO's source where it passed by."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith(("Exception from", "Check '", "FrontEnd API failed"))]
    return " ".join(said)[:600] or " ".join(lines)[:600]


def _spec(port: Any) -> TensorSpec:
    shape = tuple(axis.get_length() if axis.is_static else f"axis_{i}" for i, axis in enumerate(port.get_partial_shape()))
    return TensorSpec(name=port.get_any_name(), dtype=str(port.get_element_type().to_dtype()), shape=shape)


def _precision(compiled: Any) -> str:
    """NumPy's name of the precision that floating layers run in."""
    names = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}
    name: str = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    return names.get(name, name)


# What the CPU plugin made of the model


def _is_quantized(network: Any) -> bool:
    """Whether the model has quantizers, or weights stored in 8 bits or fewer."""
    small = ("i8", "u8", "i4", "u4", "nf4")
    for op in network.get_ops():
        kind = op.get_type_name()
        if kind == "FakeQuantize" or (kind == "Constant" and op.get_element_type().get_type_name() in small):
            return True
    return False


def _layers(compiled: Any) -> Counter[tuple[str, str]]:
    """Layers that execute, by kind and by the precision they really run in."""
    found: Counter[tuple[str, str]] = Counter()
    for op in compiled.get_runtime_model().get_ordered_ops():
        info = op.get_rt_info()
        found[info["layerType"].astype(str), info["runtimePrecision"].astype(str)] += 1
    return Counter({key: n for key, n in found.items() if key[0] not in NO_WORK})


def _products(layers: Counter[tuple[str, str]]) -> tuple[int, int]:
    """How many products with weights run in int8, and how many in float."""
    int8 = sum(n for (kind, precision), n in layers.items() if kind in PRODUCTS and precision in INT8)
    return int8, sum(n for (kind, _), n in layers.items() if kind in PRODUCTS) - int8


def _metrics(layers: Counter[tuple[str, str]]) -> dict[str, float]:
    int8, floats = _products(layers)
    return {"layers": float(layers.total()), "int8_products": float(int8), "float_products": float(floats)}


def _table(layers: Counter[tuple[str, str]]) -> TableFigure:
    rows = tuple((kind, precision, count) for (kind, precision), count in sorted(layers.items()))
    return TableFigure(title="Layers as OpenVINO executes them", columns=("layer", "precision", "count"), rows=rows)


def _notes(layers: Counter[tuple[str, str]], quantized: bool) -> tuple[Note, ...]:
    int8, floats = _products(layers)
    if not quantized:
        return ()
    if not floats:
        return (Note(text=f"all {int8} products with weights run in int8"),)
    text = f"{int8} products with weights run in int8, {floats} in float"
    return (Note(text=text, level=Level.INFO if int8 else Level.WARNING),)
