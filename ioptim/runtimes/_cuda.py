"""Memory and streams of an NVIDIA GPU, for a runtime that brings none of its own.

Uses NVIDIA's cuda-bindings: every function returns its status first, which `checked` turns into an exception.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ioptim.errors import StepError, UnavailableError

if TYPE_CHECKING:
    import numpy as np


def cudart(device: int) -> Any:
    """CUDA's runtime, with the device chosen for this thread.

    Raises:
        UnavailableError: no bindings, no driver, or not so many devices.
    """
    try:
        from cuda.bindings import runtime  # type: ignore[import-not-found]
    except ImportError as error:
        raise UnavailableError(f"NVIDIA's cuda-bindings cannot be imported ({error}); install: pip install 'ioptim[gpu]'") from error
    status, count = runtime.cudaGetDeviceCount()
    if status != runtime.cudaError_t.cudaSuccess:
        raise UnavailableError(f"no NVIDIA GPU can be used here ({status.name}): it needs the GPU and its driver; `nvidia-smi` shows both")
    if device >= count:
        raise UnavailableError(f"gpu:{device} was asked for; there are {count} NVIDIA GPUs, counted from gpu:0")
    checked(runtime.cudaSetDevice(device))
    return runtime


def checked(answer: tuple[Any, ...]) -> Any:
    """The value of an answer (status, value), None where there is only a status.

    Raises:
        StepError: the status is an error, by CUDA's name for it.
    """
    status, *values = answer
    if status.value != 0:
        raise StepError(f"CUDA failed: {status.name}")
    return values[0] if values else None


class DeviceBuffers:
    """One growing piece of device memory per tensor, and a stream."""

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime
        self._memory: dict[str, tuple[int, int]] = {}
        self.stream = checked(runtime.cudaStreamCreate())

    def reserve(self, name: str, size: int) -> int:
        """Address of at least `size` bytes for this tensor."""
        address, capacity = self._memory.get(name, (0, 0))
        if capacity < max(size, 1):
            if address:
                checked(self._runtime.cudaFree(address))
            address = int(checked(self._runtime.cudaMalloc(max(size, 1))))
            self._memory[name] = (address, size)
        return address

    def upload(self, name: str, array: np.ndarray) -> int:
        """Start copying a contiguous host array; returns the device address."""
        address = self.reserve(name, array.nbytes)
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        checked(self._runtime.cudaMemcpyAsync(address, array.ctypes.data, array.nbytes, kind, self.stream))
        return address

    def download(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Copy tensors into host arrays and wait until everything on the stream has finished."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        for name, array in arrays.items():
            checked(self._runtime.cudaMemcpyAsync(array.ctypes.data, self._memory[name][0], array.nbytes, kind, self.stream))
        checked(self._runtime.cudaStreamSynchronize(self.stream))

    def free(self) -> None:
        for address, _ in self._memory.values():
            checked(self._runtime.cudaFree(address))
        self._memory.clear()
        checked(self._runtime.cudaStreamDestroy(self.stream))
