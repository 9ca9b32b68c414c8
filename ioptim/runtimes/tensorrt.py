"""TensorRT on an NVIDIA GPU.

Written against the Python API that TensorRT 10 and 11 share: strongly typed networks and named tensors
(https://docs.nvidia.com/deeplearning/tensorrt/latest/api/migration/tensorrt-10x-to-11x.html).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from ioptim.core.artifact import Format, ModelArtifact, TensorSpec
from ioptim.core.runtime import Runtime, Session, Target
from ioptim.core.step import Note, Outcome, Written
from ioptim.core.target import Hardware
from ioptim.errors import StepError, UnavailableError
from ioptim.runtimes._cuda import DeviceBuffers, cudart
from ioptim.runtimes._device import gpu_index, gpu_objections, is_gpu
from ioptim.runtimes._double import write_double

if TYPE_CHECKING:
    import numpy as np

ENTRY = "model.engine"

NEEDS = "TensorRT needs an NVIDIA GPU with its driver, and the packages: pip install 'ioptim[gpu]'"

Range = tuple[int, int, int]


class TensorRt(Runtime):
    """Build an engine for one GPU, and run it.

    The engine computes in the types of the graph (a strongly typed network): float16 or bfloat16 where the model was converted to
    it, int8 where it has QuantizeLinear and DequantizeLinear. TensorRT 11 has no other way, and in 10 this one leaves nothing to
    the builder's choice. An engine runs only with the TensorRT version and on the GPU model that built it.
    """

    runtime: Literal["tensorrt"] = "tensorrt"
    libraries = ("tensorrt", "cuda-bindings", "onnx", "numpy")
    extra = "gpu"
    accepts = frozenset({Format.ONNX})
    compiled = Format.TENSORRT

    axes: Mapping[str, Range] = Field(
        default={"batch": (1, 1, 32), "sequence": (1, 64, 512)},
        description="smallest, most frequent and largest size of each varying axis, by its name; feeds outside are refused",
    )
    tf32: bool = Field(False, description="let float32 products round their inputs to 10 bits of mantissa (TensorRT's own default)")
    sparse_weights: bool = Field(False, description="let the builder use kernels for weights pruned in the pattern 2:4")
    optimization_level: int = Field(3, ge=0, le=5, description="how long the builder searches for faster kernels")
    workspace_gb: float | None = Field(None, gt=0, description="memory that kernels may use beside the tensors; all when left out")
    timing_cache: str | None = Field(None, description="file that keeps measured kernel times between builds, to build faster")

    @field_validator("axes")
    @classmethod
    def _ascending(cls, axes: Mapping[str, Range]) -> Mapping[str, Range]:
        for name, (low, usual, high) in axes.items():
            if not 1 <= low <= usual <= high:
                raise ValueError(f"{name}: write smallest, most frequent and largest size, ascending from 1; got {[low, usual, high]}")
        return axes

    def check(self, target: Target, hardware: Hardware) -> list[str]:
        if not is_gpu(target):
            return [f"tensorrt runs on NVIDIA GPUs alone; the target {target.name} says `device: {target.device}`. Write `device: gpu`"]
        return gpu_objections(target, hardware, "choose another runtime")

    def compile(self, model: ModelArtifact, target: Target, out: Path) -> Outcome:
        trt = _library()
        cuda = cudart(_index(target))
        log = _log(trt)
        builder = trt.Builder(log)
        # On by default in TensorRT 11, which accepts the flag and ignores it.
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, log)
        if not parser.parse_from_file(str(model.model_path)):
            errors = [str(parser.get_error(i).desc()) for i in range(parser.num_errors)]
            raise StepError(f"TensorRT {trt.__version__} cannot read {model.model_path}: {'; '.join(errors[:3])}")
        config = self._config(trt, builder, network, model)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise StepError(f"TensorRT {trt.__version__} could not build an engine: {log.said()}")
        (out / ENTRY).write_bytes(plan)
        self._keep_timing_cache(config)
        facts = {"runtime": self.runtime, "tensorrt": trt.__version__, "gpu": _gpu_name(cuda, target)}
        engine = trt.Runtime(log).deserialize_cuda_engine((out / ENTRY).read_bytes())
        metrics = {"nodes_before": float(network.num_layers), "layers": float(engine.num_layers)}
        tf32 = "float32 products round to TF32" if self.tf32 else "float32 products stay float32"
        return Outcome(
            written=Written(format=Format.TENSORRT, entry=ENTRY, facts=facts),
            metrics=metrics,
            notes=(Note(text=f"the engine computes in the types of the graph; {tf32}"), *(Note(text=text) for text in log.warnings[:5])),
            facts={**facts, "tf32": self.tf32, "axes": {name: list(sizes) for name, sizes in self.axes.items()}},
        )

    def open(self, model: ModelArtifact, target: Target) -> Session:
        trt = _library()
        cuda = cudart(_index(target))
        if model.format is not Format.TENSORRT:
            raise StepError(f"{model.path} is {model.format}; TensorRT runs an engine, which a `compile` step builds")
        log = _log(trt)
        engine = trt.Runtime(log).deserialize_cuda_engine(model.model_path.read_bytes())
        if engine is None:
            built = f"TensorRT {model.facts.get('tensorrt')} on {model.facts.get('gpu')}"
            here = f"TensorRT {trt.__version__} on {_gpu_name(cuda, target)}"
            raise StepError(f"{model.model_path} was built by {built} and cannot run on {here}; run `compile` here. {log.said()}")
        facts = {"runtime": self.runtime, "version": trt.__version__, "device": target.device, "gpu": _gpu_name(cuda, target)}
        return _TensorRtSession(trt, engine, DeviceBuffers(cuda), model, facts)

    def self_check(self, target: Target) -> list[float]:
        import tempfile

        import numpy as np

        with tempfile.TemporaryDirectory() as folder:
            model = write_double(Path(folder))
            (out := Path(folder) / "compiled").mkdir()
            self.model_copy(update={"axes": {"batch": (1, 1, 1)}}).compile(model, target, out)
            session = self.open(model.model_copy(update={"path": out, "format": Format.TENSORRT, "entry": ENTRY}), target)
            values = session.run({"x": np.array([[1, 2, 3]], np.float32)})["y"]
            session.close()
        return [float(value) for value in values[0]]

    def _config(self, trt: Any, builder: Any, network: Any, model: ModelArtifact) -> Any:
        config = builder.create_builder_config()
        config.builder_optimization_level = self.optimization_level
        if not self.tf32:
            config.clear_flag(trt.BuilderFlag.TF32)
        if self.sparse_weights:
            config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
        if self.workspace_gb is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(self.workspace_gb * 1e9))
        if self.timing_cache is not None:
            file = Path(self.timing_cache).expanduser()
            cache = config.create_timing_cache(file.read_bytes() if file.is_file() else b"")
            if not config.set_timing_cache(cache, ignore_mismatch=False):
                raise StepError(f"{file} was kept by another GPU or version of TensorRT; delete it, or name another file")
        profile = builder.create_optimization_profile()
        for i in range(network.num_inputs):
            tensor = network.get_input(i)
            profile.set_shape(tensor.name, *self.shapes(tensor.name, tuple(tensor.shape), model.inputs))
        config.add_optimization_profile(profile)
        return config

    def shapes(self, name: str, shape: tuple[int, ...], inputs: tuple[TensorSpec, ...]) -> tuple[tuple[int, ...], ...]:
        """Smallest, most frequent and largest shape of an input, from its shape in the network (-1 where it varies).

        Raises:
            StepError: a varying axis that `axes` does not name.
        """
        spec = next((spec for spec in inputs if spec.name == name), None)
        names = spec.shape if spec is not None and len(spec.shape) == len(shape) else tuple(f"axis_{i}" for i in range(len(shape)))
        unknown = [str(axis) for size, axis in zip(shape, names, strict=True) if size < 0 and axis not in self.axes]
        if unknown:
            example = f"axes: {{{unknown[0]}: [1, 8, 64]}}"
            raise StepError(f"the input {name} varies in {', '.join(unknown)}, whose sizes TensorRT must know: write `{example}`")
        return tuple(
            tuple(size if size >= 0 else self.axes[str(axis)][which] for size, axis in zip(shape, names, strict=True))
            for which in range(3)
        )

    def _keep_timing_cache(self, config: Any) -> None:
        if self.timing_cache is not None:
            file = Path(self.timing_cache).expanduser()
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(config.get_timing_cache().serialize())


class _TensorRtSession:
    """An execution context on a stream of its own. Copies to and from the GPU are part of `run`, and so is waiting for it."""

    def __init__(self, trt: Any, engine: Any, buffers: DeviceBuffers, model: ModelArtifact, facts: Mapping[str, Any]) -> None:
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        self._trt, self._engine, self._buffers = trt, engine, buffers
        self._context = engine.create_execution_context()
        self._in = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self._out = [name for name in names if name not in self._in]
        self._dtypes = {name: _dtype(trt, engine.get_tensor_dtype(name), name) for name in names}
        self.inputs = model.inputs
        self.outputs = model.outputs
        self.facts = facts

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        import numpy as np

        held = {name: np.ascontiguousarray(self._feed(feeds, name)) for name in self._in}  # alive until the stream has finished
        for name, array in held.items():
            if not self._context.set_input_shape(name, array.shape):
                raise StepError(f"the engine was not built for {name} of shape {list(array.shape)}; widen `axes` and compile again")
            self._context.set_tensor_address(name, self._buffers.upload(name, array))
        results = {}
        for name in self._out:
            shape = tuple(self._context.get_tensor_shape(name))
            if min(shape, default=0) < 0:
                raise StepError(f"the shape of the output {name} depends on the values of the inputs; that is not supported")
            results[name] = np.empty(shape, self._dtypes[name])
            self._context.set_tensor_address(name, self._buffers.reserve(name, results[name].nbytes))
        if not self._context.execute_async_v3(int(self._buffers.stream)):
            fed = ", ".join(f"{name} {list(array.shape)}" for name, array in held.items())
            raise StepError(f"TensorRT failed on {fed}")
        self._buffers.download(results)
        return results

    def _feed(self, feeds: Mapping[str, np.ndarray], name: str) -> np.ndarray:
        if name not in feeds:
            raise StepError(f"the engine takes {', '.join(self._in)}; it was fed {', '.join(feeds) or 'nothing'}")
        if feeds[name].dtype != self._dtypes[name]:
            raise StepError(f"the input {name} takes {self._dtypes[name]}; it was fed {feeds[name].dtype}")
        return feeds[name]

    def close(self) -> None:
        self._context = self._engine = None
        self._buffers.free()


def _library() -> Any:
    try:
        import tensorrt
    except (ImportError, OSError) as error:  # OSError: its shared libraries cannot be loaded
        raise UnavailableError(f"{NEEDS} ({error})") from error
    return tensorrt


def _log(trt: Any) -> Any:
    """TensorRT tells what went wrong only to a logger; this one keeps it."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.warnings: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)
            elif severity == trt.ILogger.Severity.WARNING:
                self.warnings.append(message)

        def said(self) -> str:
            return "; ".join(self.errors[-3:]) or "it gave no reason"

    return Log()


def _index(target: Target) -> int:
    if not is_gpu(target):
        raise UnavailableError(f"{NEEDS}; the target {target.name} says `device: cpu`")
    return gpu_index(target)


def _gpu_name(cuda: Any, target: Target) -> str:
    from ioptim.runtimes._cuda import checked

    name = checked(cuda.cudaGetDeviceProperties(gpu_index(target))).name
    return name.decode().rstrip("\0") if isinstance(name, bytes) else str(name)


def _dtype(trt: Any, dtype: Any, name: str) -> np.dtype[Any]:
    import numpy as np

    try:
        return np.dtype(trt.nptype(dtype))
    except TypeError as error:
        raise StepError(f"the tensor {name} is {dtype}, which NumPy does not have; keep the model's inputs and outputs float32") from error
