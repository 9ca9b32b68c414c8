"""Profile of a torch module: what a user of the library gets, with the attention the library chooses. On the CPU, or a CUDA device."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ioptim import timing, torch_model
from ioptim.core.artifact import ModelArtifact
from ioptim.steps._flops import flop_counter
from ioptim.steps.profile.counts import PER_ELEMENT
from ioptim.steps.profile.findings import Findings, Layer, Operator, Weights, affordable
from ioptim.steps.profile.kinds import PRODUCTS, VIEWS, kind_of, plain

if TYPE_CHECKING:
    import numpy as np
    import torch

    Feeds = Mapping[str, np.ndarray]


PASSES = 5
"""Over the rows: warm-up, plain time, time by layer (hooks), time by operator (profiler), work counted."""


def profile(
    model: ModelArtifact,
    feeds: Sequence[Feeds],
    *,
    device: str,
    threads: int,
    duration_s: float,
    files: Path,
    progress: Callable[[float, str], None],
) -> Findings:
    """Profile the module on as many rows as `duration_s` allows."""
    import torch

    torch.set_num_threads(threads)
    progress(0.05, "loading")
    module = torch_model.load_module(model, attention=None).to(device)

    def forward(feed: Feeds) -> None:
        torch_model.call(module, feed)
        synchronize(device)

    feeds = affordable(feeds, min(timing.timed_block(forward, feeds, 3)), PASSES, duration_s)
    timing.timed_block(forward, feeds, len(feeds))
    progress(0.2, "timing")
    row_seconds = timing.timed_block(forward, feeds, len(feeds))
    progress(0.3, "timing layers")
    scopes = Scopes(module, device)
    with scopes.timed():
        timing.timed_block(forward, feeds, len(feeds))
    progress(0.4, "profiling operators")
    operators, profiled_s = _operators(forward, feeds, files, module, device)
    progress(0.5, "counting operations")
    counted = count_work(scopes, forward, feeds)
    return Findings(
        row_seconds=row_seconds,
        operators=operators,
        layers=_layers(scopes, counted, module),
        weights=_weights(module, scopes),
        profiled_s=profiled_s,
        facts={
            "library": f"torch {torch.__version__}",
            "device": device,
            "threads": torch.get_num_threads(),
            "trace": "trace.json.gz",
        },
    )


def synchronize(device: str) -> None:
    """Wait for the GPU: its kernels run after the call that asked for them has returned."""
    import torch

    if device != "cpu":
        torch.cuda.synchronize(device)


# Time by operator


def _operators(
    forward: Callable[[Feeds], None], feeds: Sequence[Feeds], files: Path, module: torch.nn.Module, device: str
) -> tuple[list[Operator], float]:
    """Self time by operator: on the CPU, or of the kernels (CUPTI) on a GPU, where an NVTX range marks every module."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    on_gpu = device != "cpu"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profiler(activities=activities) as taken, nvtx_ranges(module) if on_gpu else nullcontext():
        start = time.perf_counter()
        for feed in feeds:
            forward(feed)
        wall = time.perf_counter() - start
    taken.export_chrome_trace(str(files / "trace.json.gz"))
    averages = taken.key_averages()
    if on_gpu:
        found = [Operator(event.key, event.count, event.self_device_time_total / 1e6) for event in averages]
        return [operator for operator in found if operator.seconds], wall
    return [Operator(event.key, event.count, event.self_cpu_time_total / 1e6) for event in averages], wall


@contextmanager
def nvtx_ranges(module: torch.nn.Module) -> Iterator[None]:
    """An NVTX range around every module while it runs, by its name; what nsys shows above the kernels."""
    import torch

    with hooked(module, lambda name: torch.cuda.nvtx.range_push(name), lambda name: torch.cuda.nvtx.range_pop()):
        yield


@contextmanager
def hooked(module: torch.nn.Module, enter: Callable[[str], Any], leave: Callable[[str], Any]) -> Iterator[None]:
    """Call `enter` and `leave` with the name of every module, before and after its forward; the root is named by its class."""
    hooks = []
    for name, child in module.named_modules():
        own = name or type(module).__name__

        def before(_: Any, __: Any, own: str = own) -> None:
            enter(own)

        def after(_: Any, __: Any, ___: Any, own: str = own) -> None:
            leave(own)

        hooks += [child.register_forward_pre_hook(before), child.register_forward_hook(after)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


# Time and work by module


class Scopes:
    """Which module is running, and how long each ran without the modules that it called: these times add up to the whole pass."""

    def __init__(self, module: torch.nn.Module, device: str = "cpu") -> None:
        self._module = module
        self._device = device
        self._stack: list[tuple[str, float]] = []
        self._mark = 0.0
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()

    @contextmanager
    def timed(self) -> Iterator[None]:
        with hooked(self._module, self._enter, self._leave):
            yield

    @contextmanager
    def named(self) -> Iterator[None]:
        """Without times: `current` alone is kept."""
        with hooked(self._module, lambda name: self._stack.append((name, 0.0)), lambda name: self._stack.pop()):
            yield

    @property
    def weights(self) -> set[int]:
        """Addresses of the parameters' memory."""
        return {parameter.untyped_storage().data_ptr() for parameter in self._module.parameters()}

    @property
    def current(self) -> str:
        return self._stack[-1][0] if self._stack else type(self._module).__name__

    def _enter(self, name: str) -> None:
        now = self._pass_time()
        self._stack.append((name, now))
        self.calls[name] += 1

    def _leave(self, name: str) -> None:
        self._pass_time()
        self._stack.pop()

    def _pass_time(self) -> float:
        """Give the time since the last event to the module that ran."""
        synchronize(self._device)
        now = time.perf_counter()
        if self._stack:
            self.seconds[self._stack[-1][0]] += now - self._mark
        self._mark = now
        return now


@dataclass
class Counts:
    """What the operators of one module add up to, by kind of operator; `unknown` are those whose operations are not known."""

    operations: Counter[str] = field(default_factory=Counter)
    weight_bytes: float = 0.0
    activation_bytes: float = 0.0
    output_bytes: float = 0.0
    unknown: set[str] = field(default_factory=set)


def count_work(scopes: Scopes, forward: Callable[[Feeds], None], feeds: Sequence[Feeds]) -> dict[str, Counts]:
    """Operations and bytes by module over all rows; rows of the same shapes do the same work and are counted once."""
    shapes: dict[tuple[Any, ...], list[Feeds]] = defaultdict(list)
    for feed in feeds:
        shapes[tuple((name, array.shape) for name, array in feed.items())].append(feed)
    total: dict[str, Counts] = defaultdict(Counts)
    for alike in shapes.values():
        with scopes.named(), _counting(scopes, scopes.weights) as found:
            forward(alike[0])
        for name, counts in found.items():
            _add(total[name], counts, len(alike))
    return total


def _add(total: Counts, counts: Counts, times: int) -> None:
    for kind, operations in counts.operations.items():
        total.operations[kind] += operations * times
    total.weight_bytes += counts.weight_bytes * times
    total.activation_bytes += counts.activation_bytes * times
    total.output_bytes += counts.output_bytes * times
    total.unknown |= counts.unknown


def _counting(scopes: Scopes, weights: Set[int]) -> Any:
    """A dispatch mode that counts every operator that reaches a kernel, for the module that runs."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    registry = flop_counter().flop_registry

    class Counting(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.found: dict[str, Counts] = defaultdict(Counts)

        def __enter__(self) -> dict[str, Counts]:  # type: ignore[override]
            super().__enter__()
            return self.found

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            formula = registry.get(func._overloadpacket)
            if formula is None and func is not torch.ops.prim.device.default:
                with self:
                    result = func.decompose(*args, **kwargs)
                if result is not NotImplemented:
                    return result
            result = func(*args, **kwargs)
            operations = float(formula(*args, **kwargs, out_val=result)) if formula else None
            _count(self.found[scopes.current], func, args, result, operations, weights)
            return result

    return Counting()


def _count(counts: Counts, func: Any, args: Any, result: Any, operations: float | None, weights: Set[int]) -> None:
    """`weights` are the addresses of the parameters: a linear layer multiplies by a view of its weight."""
    import torch

    name = plain(str(func._overloadpacket).replace("aten.", ""))
    if func.is_view or name in VIEWS:
        return
    outputs = [value for value in (result if isinstance(result, tuple | list) else (result,)) if isinstance(value, torch.Tensor)]
    inputs = [value for arg in args for value in (arg if isinstance(arg, tuple | list) else (arg,)) if isinstance(value, torch.Tensor)]
    written = sum(map(_size, outputs))
    kind = kind_of(name)
    if kind == "embeddings":  # of a table only the rows found are read
        counts.weight_bytes += written
        counts.activation_bytes += sum(map(_size, inputs[1:]))
    else:
        for tensor in inputs:
            if tensor.untyped_storage().data_ptr() in weights:
                counts.weight_bytes += _size(tensor)
            else:
                counts.activation_bytes += _size(tensor)
    counts.activation_bytes += written
    counts.output_bytes += written
    largest = max((tensor.numel() for tensor in (*outputs, *inputs)), default=0)
    if operations is None and kind not in PER_ELEMENT:
        counts.unknown.add(name)
    else:
        counts.operations[kind] += operations if operations is not None else PER_ELEMENT[kind] * largest  # type: ignore[assignment]


def _size(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _layers(scopes: Scopes, counted: Mapping[str, Counts], module: torch.nn.Module) -> list[Layer]:
    """Every module that ran, in the order of execution; its kind is what most of its operations are."""
    classes = {name or type(module).__name__: type(child).__name__ for name, child in module.named_modules()}
    precision = next((str(p.dtype).removeprefix("torch.") for p in module.parameters() if p.is_floating_point()), "float32")
    layers = []
    for name, calls in scopes.calls.items():
        counts = counted.get(name, Counts())
        products = sum(counts.operations[kind] for kind in PRODUCTS)
        most = counts.operations.most_common(1)
        kind = max(PRODUCTS, key=lambda kind: counts.operations[kind]) if products else most[0][0] if most else "copies and layout"
        layers.append(
            Layer(
                name=name,
                operator=classes[name],
                calls=calls,
                seconds=scopes.seconds[name],
                operations=None if counts.unknown else float(sum(counts.operations.values())),
                weight_bytes=counts.weight_bytes,
                activation_bytes=counts.activation_bytes,
                output_bytes=counts.output_bytes,
                precision=precision,
                kind=kind,
                product_operations=float(products) or None,
            )
        )
    return layers


def _weights(module: torch.nn.Module, scopes: Scopes) -> list[Weights]:
    """Layers by class, most parameters first, without modules that only hold others; a weight that two share counts at the first."""
    counts: Counter[str] = Counter()
    parameters: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    seconds: dict[str, float] = defaultdict(float)
    seen: set[int] = set()
    for name, layer in module.named_modules():
        kind = type(layer).__name__
        own = [p for p in layer.parameters(recurse=False) if id(p) not in seen]
        if not own and any(True for _ in layer.children()):
            continue
        counts[kind] += 1
        seen.update(map(id, own))
        parameters[kind] += sum(p.numel() for p in own)
        sizes[kind] += sum(p.numel() * p.element_size() for p in own)
        seconds[kind] += scopes.seconds.get(name or kind, 0.0)
    found = [Weights(kind, counts[kind], parameters[kind], sizes[kind], seconds[kind]) for kind in counts]
    return sorted(found, key=lambda group: (-group.parameters, -(group.seconds or 0)))
