"""TensorRT where it cannot run: what it objects to, what it asks for, and that nothing pretends. On a GPU: that it computes."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from ioptim.core.artifact import Format, ModelArtifact, TensorSpec
from ioptim.core.runtime import Target
from ioptim.core.target import Hardware
from ioptim.errors import StepError, UnavailableError
from ioptim.runtimes.tensorrt import TensorRt

INPUTS = (TensorSpec(name="x", dtype="float32", shape=("batch", 3, "width")),)

without_tensorrt = pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="tensorrt is installed here")


def test_cpu_target(target_of: Callable[..., Target], no_gpu: Hardware, one_gpu: Hardware) -> None:
    assert TensorRt().check(target_of(TensorRt()), one_gpu) == [
        "tensorrt runs on NVIDIA GPUs alone; the target here says `device: cpu`. Write `device: gpu`"
    ]
    assert "no NVIDIA GPU is found here" in TensorRt().check(target_of(TensorRt(), "gpu"), no_gpu)[0]
    assert TensorRt().check(target_of(TensorRt(), "gpu"), one_gpu) == []


@without_tensorrt
def test_every_method_says_what_it_needs(tmp_path: Path, target_of: Callable[..., Target]) -> None:
    model = ModelArtifact(path=tmp_path, format=Format.ONNX, entry="model.onnx")
    runtime, target = TensorRt(), target_of(TensorRt(), "gpu")
    needs = r"TensorRT needs an NVIDIA GPU with its driver, and the packages: pip install 'ioptim\[gpu\]'"
    for method in (lambda: runtime.compile(model, target, tmp_path), lambda: runtime.open(model, target)):
        with pytest.raises(UnavailableError, match=needs):
            method()
    assert list(tmp_path.iterdir()) == []


def test_axes_must_ascend() -> None:
    with pytest.raises(ValidationError, match=r"batch: write smallest, most frequent and largest size, ascending from 1; got \[8, 1, 32\]"):
        TensorRt(axes={"batch": (8, 1, 32)})


def test_shapes_of_the_profile() -> None:
    runtime = TensorRt(axes={"batch": (1, 2, 4), "width": (8, 16, 32)})
    assert runtime.shapes("x", (-1, 3, -1), INPUTS) == ((1, 3, 8), (2, 3, 16), (4, 3, 32))
    assert runtime.shapes("x", (5, 3, 7), INPUTS) == ((5, 3, 7),) * 3


def test_an_axis_without_sizes() -> None:
    with pytest.raises(StepError) as caught:
        TensorRt().shapes("x", (-1, 3, -1), INPUTS)
    assert str(caught.value) == (
        "the input x varies in width, whose sizes TensorRT must know: write `axes: {width: [1, 8, 64]}`"
    )


@pytest.mark.device
def test_self_check(target_of: Callable[..., Target]) -> None:
    pytest.importorskip("tensorrt", reason="needs an NVIDIA GPU and tensorrt")
    try:
        values = TensorRt().self_check(target_of(TensorRt(), "gpu"))
    except UnavailableError as error:
        pytest.skip(str(error))
    assert values == [2.0, 4.0, 6.0]


class FakeCuda:
    """Device memory in host memory, so that a session's copies can be followed without a GPU."""

    class cudaMemcpyKind:
        cudaMemcpyHostToDevice = 1
        cudaMemcpyDeviceToHost = 2

    class Status:
        value = 0
        name = "cudaSuccess"

    def __init__(self) -> None:
        self.memory: dict[int, object] = {}

    def cudaStreamCreate(self) -> tuple[Status, int]:
        return self.Status(), 7

    def cudaStreamDestroy(self, stream: int) -> tuple[Status]:
        return (self.Status(),)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Status]:
        return (self.Status(),)

    def cudaMalloc(self, size: int) -> tuple[Status, int]:
        import ctypes

        block = (ctypes.c_char * size)()
        self.memory[ctypes.addressof(block)] = block
        return self.Status(), ctypes.addressof(block)

    def cudaFree(self, address: int) -> tuple[Status]:
        del self.memory[address]
        return (self.Status(),)

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: int, stream: int) -> tuple[Status]:
        import ctypes

        ctypes.memmove(to, source, size)
        return (self.Status(),)


class FakeEngine:
    """y = 2 x for x (batch up to 4, 3), with the names of TensorRT's engine and context in one."""

    num_io_tensors = 2

    def __init__(self) -> None:
        self.addresses: dict[str, int] = {}
        self.shape: tuple[int, ...] = ()

    def get_tensor_name(self, i: int) -> str:
        return "xy"[i]

    def get_tensor_mode(self, name: str) -> str:
        return "INPUT" if name == "x" else "OUTPUT"

    def get_tensor_dtype(self, name: str) -> str:
        return "FLOAT"

    def create_execution_context(self) -> FakeEngine:
        return self

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return shape[0] <= 4

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shape

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        import ctypes

        import numpy as np

        size = self.shape[0] * self.shape[1]
        x, y = (np.ctypeslib.as_array((ctypes.c_float * size).from_address(self.addresses[name])) for name in "xy")
        y[:] = 2 * x
        return True


def test_a_session_copies_in_runs_and_copies_out(tmp_path: Path) -> None:
    """The session's own work on a double of the library; the library itself is only met on a GPU."""
    from types import SimpleNamespace

    import numpy as np

    from ioptim.runtimes._cuda import DeviceBuffers
    from ioptim.runtimes.tensorrt import _TensorRtSession

    trt, cuda = SimpleNamespace(TensorIOMode=SimpleNamespace(INPUT="INPUT"), nptype=lambda dtype: np.float32), FakeCuda()
    model = ModelArtifact(path=tmp_path, format=Format.TENSORRT, entry="model.engine")
    session = _TensorRtSession(trt, FakeEngine(), DeviceBuffers(cuda), model, {})
    for batch in (1, 4, 2):
        x = np.random.default_rng(batch).standard_normal((3, batch)).astype(np.float32).T  # not contiguous
        np.testing.assert_array_equal(session.run({"x": x})["y"], 2 * x)
    with pytest.raises(StepError, match=r"the engine was not built for x of shape \[5, 3\]; widen `axes` and compile again"):
        session.run({"x": np.ones((5, 3), np.float32)})
    with pytest.raises(StepError, match="the input x takes float32; it was fed int64"):
        session.run({"x": np.ones((1, 3), np.int64)})
    with pytest.raises(StepError, match="the engine takes x; it was fed z"):
        session.run({"z": np.ones((1, 3), np.float32)})
    session.close()
    assert cuda.memory == {}
