"""Profile of a torch module on the CPU: what a user of the library gets, with the attention the library chooses."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ioptim import timing, torch_model
from ioptim.core.artifact import ModelArtifact
from ioptim.steps._findings import Findings, Layer, Operator, affordable

if TYPE_CHECKING:
    import numpy as np
    import torch

    Feeds = Mapping[str, np.ndarray]


PASSES = 5
"""Over the rows: warm-up, plain time, time by layer (hooks), time by operator (profiler), operations counted."""


def profile(
    model: ModelArtifact,
    feeds: Sequence[Feeds],
    *,
    threads: int,
    duration_s: float,
    files: Path,
    progress: Callable[[float, str], None],
) -> Findings:
    """Profile the module on as many rows as `duration_s` allows."""
    import torch

    torch.set_num_threads(threads)
    progress(0.1, "loading")
    module = torch_model.load_module(model, attention=None)

    def forward(feed: Feeds) -> None:
        torch_model.call(module, feed)

    feeds = affordable(feeds, min(timing.timed_block(forward, feeds, 3)), PASSES, duration_s)
    timing.timed_block(forward, feeds, len(feeds))
    progress(0.3, "timing")
    row_seconds = timing.timed_block(forward, feeds, len(feeds))
    progress(0.5, "timing layers")
    with _layer_seconds(module) as seconds:
        timing.timed_block(forward, feeds, len(feeds))
    progress(0.6, "profiling operators")
    operators, profiled_s = _operators(forward, feeds, files)
    progress(0.8, "counting operations")
    return Findings(
        row_seconds=row_seconds,
        operators=operators,
        layers=_layers(module, seconds),
        flops=_flops(forward, feeds),
        profiled_s=profiled_s,
        facts={"library": f"torch {torch.__version__}", "threads": torch.get_num_threads(), "trace": "trace.json.gz"},
    )


def _operators(forward: Callable[[Feeds], None], feeds: Sequence[Feeds], files: Path) -> tuple[list[Operator], float]:
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    with profiler(activities=[ProfilerActivity.CPU]) as taken:
        start = time.perf_counter()
        for feed in feeds:
            forward(feed)
        wall = time.perf_counter() - start
    taken.export_chrome_trace(str(files / "trace.json.gz"))
    return [Operator(event.key, event.count, event.self_cpu_time_total / 1e6) for event in taken.key_averages()], wall


@contextmanager
def _layer_seconds(module: torch.nn.Module) -> Iterator[dict[str, float]]:
    """Seconds in modules without children, by class; what a parent computes between its children is in none of them."""
    seconds: dict[str, float] = defaultdict(float)
    started: dict[int, float] = {}

    def before(layer: Any, _: Any) -> None:
        started[id(layer)] = time.perf_counter()

    def after(layer: Any, _: Any, __: Any) -> None:
        seconds[type(layer).__name__] += time.perf_counter() - started[id(layer)]

    leaves = [layer for layer in module.modules() if not any(True for _ in layer.children())]
    hooks = [layer.register_forward_pre_hook(before) for layer in leaves] + [layer.register_forward_hook(after) for layer in leaves]
    try:
        yield seconds
    finally:
        for hook in hooks:
            hook.remove()


def _layers(module: torch.nn.Module, seconds: Mapping[str, float]) -> list[Layer]:
    """Layers by class, most parameters first; a weight that two layers share counts once, at the first."""
    counts: Counter[str] = Counter()
    parameters: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    seen: set[int] = set()
    for layer in module.modules():
        kind = type(layer).__name__
        own = [p for p in layer.parameters(recurse=False) if id(p) not in seen]
        if not own and kind not in seconds:
            continue
        counts[kind] += 1
        seen.update(map(id, own))
        parameters[kind] += sum(p.numel() for p in own)
        sizes[kind] += sum(p.numel() * p.element_size() for p in own)
    found = [Layer(kind, counts[kind], parameters[kind], sizes[kind], seconds.get(kind)) for kind in counts]
    return sorted(found, key=lambda layer: (-layer.parameters, -(layer.seconds or 0)))


def _flops(forward: Callable[[Feeds], None], feeds: Sequence[Feeds]) -> float:
    """Operations of the matrix products, convolutions and attention of all rows."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    def attention(query: Any, key: Any, value: Any, *_: Any, out_val: Any = None, **__: Any) -> int:
        return int(sdpa_flop_count(query.shape, key.shape, value.shape))

    attention._get_raw = True  # type: ignore[attr-defined]  # the counter then passes tensors
    # Torch 2.13 knows the attention kernels of GPUs and not the one of the CPU.
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with FlopCounterMode(display=False, custom_mapping={kernel: attention}) as counter:
        for feed in feeds:
            forward(feed)
    return float(counter.get_total_flops())
