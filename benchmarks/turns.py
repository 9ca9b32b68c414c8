"""Does a model that takes turns with another measure as it does alone? Prints the ratio for three ways of taking turns.

    python benchmarks/turns.py [threads]

Two ONNX Runtime sessions on graphs made here; A is timed alone, then in turns with B: both in one process, each in a process of its
own with the other awake, and each in its own with the other stopped, which is what the `benchmark` step does.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from ioptim import timing
from ioptim.isolate import Worker

ROUNDS, CALLS, LEAD_IN = 20, 60, 3


class Sessions:
    """One or two sessions in this process, timed by name."""

    def __init__(self, argument: dict[str, Any]) -> None:
        import numpy as np
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = argument["threads"]
        self.sessions = {name: ort.InferenceSession(path, options) for name, path in argument["models"].items()}
        self.feeds = [{"x": np.ones((25, 384), "float32")}]

    def block(self, name: str) -> list[float]:
        session = self.sessions[name]
        return timing.timed_block(lambda feed: session.run(None, feed), self.feeds, LEAD_IN + CALLS)[LEAD_IN:]


def write_model(path: Path, layers: int) -> str:
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    nodes, weights, last = [], [], "x"
    for i in range(layers):
        for name, shape in ((f"w{i}", (384, 1536)), (f"v{i}", (1536, 384))):
            weights.append(numpy_helper.from_array(rng.normal(0, 0.02, shape).astype("float32"), name))
        nodes += [
            helper.make_node("MatMul", [last, f"w{i}"], [f"h{i}"]),
            helper.make_node("Relu", [f"h{i}"], [f"r{i}"]),
            helper.make_node("MatMul", [f"r{i}", f"v{i}"], [f"x{i}"]),
        ]
        last = f"x{i}"
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [25, 384]) for name in ("x", last)]
    graph = helper.make_graph(nodes, "turns", values[:1], values[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return str(path)


def main(threads: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        models = {"a": write_model(Path(folder, "a.onnx"), 3), "b": write_model(Path(folder, "b.onnx"), 6)}

        def start(names: str) -> Worker:
            argument = {"threads": threads, "models": {name: models[name] for name in names}}
            return Worker("turns:Sessions", argument, log=Path(folder, f"{names}.log"))

        def turns(workers: dict[str, Worker], stop: bool) -> float:
            """Median milliseconds of A's calls."""
            taken: dict[str, list[float]] = {"a": [], "b": []}
            for i in range(ROUNDS):
                for name in timing.turn(list(workers), i):
                    taken[name] += workers[name].call("block", name)
                    if stop:
                        workers[name].pause()
            return statistics.median(taken["a"]) * 1e3

        with start("a") as a, start("b") as b, start("ab") as both:
            for worker in (a, b, both):
                worker.pause()
            before = timing.Machine.now()
            alone = turns({"a": a}, True)
            ways = {
                "each in a process of its own, the other stopped": turns({"a": a, "b": b}, True),
                "each in a process of its own, the other awake": turns({"a": a, "b": b}, False),
            }
            a.pause()
            b.pause()
            ways["both in one process"] = turns({"a": both, "b": both}, False)
            again = turns({"a": a}, True)
        print(f"A alone: {alone:.3f} ms, and again at the end: {again:.3f} ms ({threads} threads, load average {before.load_average:.2f})")
        for way, value in ways.items():
            print(f"{way:<50} {value:7.3f} ms  {value / statistics.mean((alone, again)):.2f} times A alone")


if __name__ == "__main__":
    # The workers find this file as the module `turns`: its folder leads Python's path.
    main(int(sys.argv[1]) if len(sys.argv) > 1 else len(timing.cpus_for(64)))
