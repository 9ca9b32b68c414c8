"""The roofline of this machine: how fast it can compute and how fast it can move bytes, measured, and where a layer stands under it.

Source: Williams, Waterman, Patterson, Roofline: an insightful visual performance model for multicore architectures, CACM 52 (2009).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np

FLOAT32, BFLOAT16, FLOAT16, INT8 = "float32", "bfloat16", "float16", "int8"

GEMM = 1024
"""Side of the square matrices multiplied: 2.1 GFLOP, 12 MB in float32; long enough that starting threads does not show."""
GEMM_SECONDS = 0.2
BANDWIDTH_SECONDS = 0.2
"""Seconds of trying, per roof. The best try counts: what disturbs a machine only ever slows it."""
LARGEST_ARRAY = 1 << 28
"""Bytes of one array at most, where four times the last-level cache would be more."""
FAR_FROM_ROOF = 0.1
"""Share of the roof below which neither arithmetic nor memory can be what holds a layer."""

Bound = Literal["compute", "memory", "overhead"]


@dataclass(frozen=True)
class Work:
    """What a layer did: operations of one precision, and bytes moved if nothing of it stays in a cache between layers."""

    seconds: float
    operations: float
    weight_bytes: float
    activation_bytes: float
    precision: str = FLOAT32

    @property
    def bytes(self) -> float:
        return self.weight_bytes + self.activation_bytes

    @property
    def intensity(self) -> float | None:
        """Operations per byte; None where no byte moves."""
        return self.operations / self.bytes if self.bytes else None


@dataclass(frozen=True)
class Placement:
    """A layer under the roof. `roof_s` is the least time the roofs allow for its work; `share` is `roof_s` over the time it took."""

    bound: Bound
    roof_s: float
    share: float


@dataclass(frozen=True)
class Roofs:
    """Peak operations per second by precision, and bytes per second from memory and from the last-level cache.

    `cache_bytes` is the size of that cache (0: unknown, then every byte comes from memory), `how` says what each peak was measured with.
    """

    peaks: Mapping[str, float]
    memory_bandwidth: float
    cache_bandwidth: float | None = None
    cache_bytes: int = 0
    how: Mapping[str, str] = field(default_factory=dict)

    def least_seconds(self, work: Work, model_weight_bytes: float) -> tuple[float, float]:
        """Seconds that the arithmetic and the memory need at least; the layer needs the longer of the two.

        Weights come from the cache when those of the whole model fit in it, for a layer's turn comes again only after all others';
        activations come from the cache when they fit in it, for the layer before has just written them.
        """
        peak = self.peaks.get(work.precision) or self.peaks[FLOAT32]
        moving = work.weight_bytes / self._bandwidth(model_weight_bytes) + work.activation_bytes / self._bandwidth(work.activation_bytes)
        return work.operations / peak, moving

    def place(self, work: Work, model_weight_bytes: float) -> Placement:
        """The bound that holds a layer: the roof above it, or overhead where it is far below both."""
        computing, moving = self.least_seconds(work, model_weight_bytes)
        roof_s = max(computing, moving)
        share = roof_s / work.seconds if work.seconds else 0.0
        bound: Bound = "compute" if computing >= moving else "memory"
        return Placement("overhead" if share < FAR_FROM_ROOF else bound, roof_s, share)

    def raised(self, precision: str, attained: float, by: str) -> Roofs:
        """With a peak that something was seen to exceed: a roof is the most that was ever attained, and a busy machine hides it."""
        if attained <= self.peaks.get(precision, 0.0):
            return self
        return replace(self, peaks={**self.peaks, precision: attained}, how={**self.how, precision: by})

    def ridge(self, precision: str) -> float:
        """Operations per byte above which arithmetic, and not memory, is the bound."""
        return self.peaks[precision] / self.memory_bandwidth

    def _bandwidth(self, working_set: float) -> float:
        return self.cache_bandwidth if self.cache_bandwidth and working_set <= self.cache_bytes else self.memory_bandwidth


Gemm = Callable[[str, int], Callable[[], Any] | None]
"""(precision, threads) → a call that multiplies two GEMM x GEMM matrices once; None where the library has no kernel for it."""


def measure(gemms: Mapping[str, Gemm], precisions: Sequence[str], threads: int, caches: Mapping[str, int]) -> Roofs:
    """Measure the roofs of `threads` threads in a few tenths of a second each.

    Args:
        gemms: libraries by name, the preferred first; a precision is measured with the first that has it.
        precisions: those wanted; one that no library has is left out.
        caches: bytes by level (`L2`, `L3`), as the hardware probe found them; the largest is the last-level cache.
    """
    peaks: dict[str, float] = {}
    how: dict[str, str] = {}
    for precision in precisions:
        for name, gemm in gemms.items():
            if call := gemm(precision, threads):
                peaks[precision] = 2 * GEMM**3 / _best(call, GEMM_SECONDS)
                how[precision] = f"{GEMM}x{GEMM} matrix product, {name}"
                break
    cache = max(caches.values(), default=0)
    array = min(max(4 * cache, 1 << 26), LARGEST_ARRAY)
    how["memory"] = f"copy and add, {array >> 20} MiB an array"
    near = bandwidth(cache // 8, threads) if cache >= 1 << 22 else None
    return Roofs(peaks, bandwidth(array, threads), near, cache if near else 0, how)


def bandwidth(array_bytes: int, threads: int) -> float:
    """Bytes per second of STREAM's copy (two arrays) or add (three), whichever is faster, each thread on its own part.

    Source: McCalpin, https://www.cs.virginia.edu/stream/ref.html; as there, arrays of four times the last-level cache measure memory.
    What a write reads beforehand is not counted, as in STREAM.
    """
    import numpy as np

    part = max(1024, array_bytes // threads // 8)
    arrays = [tuple(np.ones(part) for _ in range(3)) for _ in range(threads)]
    repeats = max(1, (1 << 22) // (part * 8))  # a small array many times in one call, so that handing out the work does not show

    def copy(three: tuple[np.ndarray, ...]) -> None:
        for _ in range(repeats):
            np.copyto(three[2], three[0])

    def add(three: tuple[np.ndarray, ...]) -> None:
        for _ in range(repeats):
            np.add(three[0], three[1], out=three[2])

    with ThreadPoolExecutor(threads) as pool:
        found = []
        for kernel, moved in ((copy, 2), (add, 3)):
            seconds = _best(lambda kernel=kernel: list(pool.map(kernel, arrays)), BANDWIDTH_SECONDS / 2)  # type: ignore[misc]
            found.append(moved * part * 8 * threads * repeats / seconds)
    return max(found)


def _best(call: Callable[[], Any], seconds: float) -> float:
    """Seconds of the fastest of the calls that fit in `seconds`, at least three; the first, which warms up, counts too."""
    best, tries, end = float("inf"), 0, time.perf_counter() + seconds
    while tries < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
        tries += 1
    return best


# ---------------------------------------------------------------- matrix products of the libraries


def torch_gemm(precision: str, threads: int) -> Callable[[], Any] | None:
    """torch's own product; bfloat16 only where asked, int8 not at all (its operator for the CPU is private)."""
    import torch

    kinds = {FLOAT32: torch.float32, BFLOAT16: torch.bfloat16}
    if precision not in kinds:
        return None
    torch.set_num_threads(threads)
    a, b, c = (torch.ones(GEMM, GEMM, dtype=kinds[precision]) for _ in range(3))
    return lambda: torch.mm(a, b, out=c)


def cuda_gemm(precision: str, device: str) -> Callable[[], Any] | None:
    """torch's product on a GPU, waiting for its end; larger than on a CPU, or launching would be what is measured."""
    import torch

    kinds = {FLOAT32: torch.float32, BFLOAT16: torch.bfloat16, FLOAT16: torch.float16}
    if precision not in kinds:
        return None
    a, b = (torch.ones(GEMM * 8, GEMM * 8, dtype=kinds[precision], device=device) for _ in range(2))

    def call() -> None:
        torch.mm(a, b)
        torch.cuda.synchronize(device)

    return call


def cuda_roofs(device: str) -> Roofs:
    """The same two kinds of roofs of a GPU, by torch: products in three precisions, and a copy of 1 GiB."""
    import torch

    operations = 2 * (GEMM * 8) ** 3
    calls = {name: cuda_gemm(name, device) for name in (FLOAT32, FLOAT16, BFLOAT16)}
    peaks = {name: operations / _best(call, GEMM_SECONDS) for name, call in calls.items() if call}
    source, copied = (torch.ones(1 << 28, device=device) for _ in range(2))

    def copy() -> None:
        copied.copy_(source)
        torch.cuda.synchronize(device)

    moved = 2 * source.numel() * source.element_size()
    how = dict.fromkeys(peaks, f"{GEMM * 8}x{GEMM * 8} matrix product, torch") | {"memory": "copy of 1 GiB, torch"}
    return Roofs(peaks, moved / _best(copy, BANDWIDTH_SECONDS), how=how)


def onnxruntime_gemm(precision: str, threads: int) -> Callable[[], Any] | None:
    """ONNX Runtime's MatMul, and its MatMulInteger of uint8 activations and int8 weights. Both read a constant, packed weight."""
    import numpy as np
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    kinds = {FLOAT32: ("MatMul", np.float32, np.float32), INT8: ("MatMulInteger", np.uint8, np.int8)}
    if precision not in kinds:
        return None
    operator, fed, constant = kinds[precision]
    out = TensorProto.FLOAT if precision == FLOAT32 else TensorProto.INT32
    graph = helper.make_graph(
        [helper.make_node(operator, ["a", "b"], ["c"])],
        "gemm",
        [helper.make_tensor_value_info("a", helper.np_dtype_to_tensor_dtype(np.dtype(fed)), [GEMM, GEMM])],
        [helper.make_tensor_value_info("c", out, [GEMM, GEMM])],
        [numpy_helper.from_array(np.ones((GEMM, GEMM), constant), "b")],
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feeds: dict[str, Any] = {"a": np.ones((GEMM, GEMM), fed)}
    return lambda: session.run(None, feeds)


def openvino_gemm(precision: str, threads: int) -> Callable[[], Any] | None:
    """OpenVINO's MatMul, with its inference precision, or between FakeQuantize for int8."""
    import numpy as np
    import openvino
    from openvino import opset13 as ops

    hints = {FLOAT32: "f32", BFLOAT16: "bf16", INT8: "f32"}
    if precision not in hints:
        return None
    a = ops.parameter([GEMM, GEMM], np.float32)
    b = ops.constant(np.linspace(-1, 1, GEMM * GEMM, dtype=np.float32).reshape(GEMM, GEMM))
    left, right = a, b
    if precision == INT8:
        left = ops.fake_quantize(a, *(np.float32(end) for end in (0, 2.55, 0, 2.55)), 256)
        right = ops.fake_quantize(b, *(np.float32(end) for end in (-1.27, 1.27, -1.27, 1.27)), 255)
    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": hints[precision], "PERFORMANCE_HINT": "LATENCY"}
    model = openvino.Model([ops.matmul(left, right, False, True)], [a], "gemm")
    request = openvino.Core().compile_model(model, "CPU", options).create_infer_request()
    feeds: dict[int, Any] = {0: np.ones((GEMM, GEMM), np.float32)}
    return lambda: request.infer(feeds, share_inputs=True, share_outputs=True)
