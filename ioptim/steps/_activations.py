"""The values inside an ONNX graph, while it runs on data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ioptim.onnx_graph import load_graph, save_graph

if TYPE_CHECKING:
    import numpy as np

    from ioptim.core.step import Context
    from ioptim.core.task import Feeds


def watch(
    path: Path, names: Sequence[str], reading: Sequence[Feeds], ctx: Context, scratch: Path, share: tuple[float, float], what: str
) -> Iterator[dict[str, np.ndarray]]:
    """Run a graph on each feed and yield the named values of it. Progress goes from one end of `share` to the other."""
    import onnx

    model = load_graph(path)
    there = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names) if name not in there)
    watched = scratch / "watched.onnx"
    save_graph(model, watched)
    session = _session(watched, ctx.hardware.threads)
    inputs = {value.name for value in session.get_inputs()}
    wanted = list(dict.fromkeys(names))
    for index, feed in enumerate(reading):
        if index % 16 == 0:
            ctx.progress(share[0] + (share[1] - share[0]) * index / len(reading), f"{what}, {index} of {len(reading)} done")
        values = session.run(wanted, {name: array for name, array in feed.items() if name in inputs})
        yield dict(zip(wanted, values, strict=True))


def channels(value: np.ndarray, axis: int) -> np.ndarray:
    """(positions, channels) of a value whose channels lie along `axis`."""
    import numpy as np

    return np.moveaxis(value, axis, -1).reshape(-1, value.shape[axis])


def _session(path: Path, threads: int):  # type: ignore[no-untyped-def]  # the library has no types
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
