"""Does the benchmark step say what other tools say of the same model? Prints ratios of medians; the limit is 5 %.

    python benchmarks/agreement.py [--threads 1] [--rounds 8] [--calls 300]

A convolutional graph of fixed shape, made here, in fp32. On ONNX Runtime the other tool is a plain loop around `session.run`, which is what
`onnxruntime_perf_test -I` does; on OpenVINO it is its own `benchmark_app` (one synchronous request). ioptim's figure comes from a LoadGen
single-stream test in the same kind of process that the step uses. Each has its process on the same CPUs, and rounds are taken in turns:
tool, ioptim, ioptim, tool, ... A ratio is that of the medians of one round's neighbours.

`benchmark_app` sets its inputs once and clocks OpenVINO's own call; ioptim's clock also holds handing the arrays over in Python, some
0.1 ms when the caches are full of the model. The graph is large enough for that to be little.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measure import machine, spread, table

from ioptim import hardware, timing
from ioptim.core.artifact import Format, ModelArtifact, TensorSpec, seal
from ioptim.isolate import Worker

LIMIT = 0.05
LEAD_IN, WARM_UP = 3, 50
SHAPE = (1, 1, 8, 8)
WIDTH, LAYERS = 256, 12


class PlainLoop:
    """A session and nothing else: what `onnxruntime_perf_test -I` times."""

    def __init__(self, argument: dict[str, Any]) -> None:
        import numpy as np
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = argument["threads"]
        self.session = ort.InferenceSession(argument["model"], options, providers=["CPUExecutionProvider"])
        self.feeds = [{"image": np.random.default_rng(0).random(SHAPE, np.float32)}]

    def block(self, n: int) -> list[float]:
        run = self.session.run
        return timing.timed_block(lambda feed: run(None, feed), self.feeds, LEAD_IN + n)[LEAD_IN:]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--calls", type=int, default=300)
    args = parser.parse_args()
    print(machine())
    rows, wrong = [], False
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(Path(folder) / "model")
        cpus = timing.cpus_for(args.threads)
        plain = Worker(
            "agreement:PlainLoop", {"threads": args.threads, "model": str(model.model_path)}, log=Path(folder, "plain.log"), cpus=cpus
        )
        with (
            plain,
            subject(model, "onnxruntime", args.threads, Path(folder)) as ort,
            subject(model, "openvino", args.threads, Path(folder)) as ov,
        ):
            for worker in (plain, ort, ov):
                worker.pause()
            others: dict[str, tuple[Callable[[], float], Callable[[], float]]] = {
                "plain loop on ONNX Runtime": (lambda: in_turn(plain, "block", args.calls), lambda: loadgen(ort, args.calls)),
                "benchmark_app of OpenVINO": (lambda: benchmark_app(model, args.threads, args.calls), lambda: loadgen(ov, args.calls)),
            }
            for name, (tool, ours) in others.items():
                before = timing.Machine.now()
                pairs = [measured(tool, ours, number) for number in range(args.rounds)]
                ratios = [mine / theirs for theirs, mine in pairs]
                wrong |= abs(statistics.median(ratios) - 1) > LIMIT
                busy = timing.conditions(before, timing.Machine.now(), 0.0).get("stolen_share", 0.0)
                theirs, mine = ([pair[i] * 1e3 for pair in pairs] for i in (0, 1))
                rows.append([name, f"{spread(theirs, 3)} ms", f"{spread(mine, 3)} ms", spread(ratios, 3), f"{busy:.1%}"])
    print(table(["other tool", "its median", "ioptim's median", "ioptim ÷ other", "stolen CPU time"], rows))
    return int(wrong)


def measured(tool: Callable[[], float], ours: Callable[[], float], number: int) -> tuple[float, float]:
    """Seconds of the tool and of ioptim, which one first by turns."""
    if number % 2 == 0:
        theirs = tool()
        return theirs, ours()
    mine = ours()
    return tool(), mine


def in_turn(worker: Worker, method: str, argument: Any) -> float:
    """The median of a block of a process that sleeps otherwise."""
    worker.call(method, WARM_UP)
    seconds = worker.call(method, argument)
    worker.pause()
    return statistics.median(seconds)


def loadgen(worker: Worker, calls: int) -> float:
    """The same of a LoadGen test."""
    for queries in (WARM_UP, calls):
        load = {"scenario": "single-stream", "queries": queries, "rows_per_query": 1}
        worker.call("begin", {"load": load, "batch_size": 1, "lead_in": LEAD_IN})
        seconds = worker.call("finish")["seconds"]
    worker.pause()
    return statistics.median(seconds)


def benchmark_app(model: ModelArtifact, threads: int, calls: int) -> float:
    """The median that it prints. Its own warm-up is one request, so that the first calls are in it; they do not move a median."""
    app = Path(sys.executable).with_name("benchmark_app")
    options = ["-d", "CPU", "-hint", "none", "-nstreams", "1", "-nireq", "1", "-api", "sync", "-infer_precision", "f32"]
    command = [str(app), "-m", str(model.model_path), *options, "-nthreads", str(threads), "-niter", str(WARM_UP + calls)]
    cpus = timing.cpus_for(threads)
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=120, preexec_fn=lambda: os.sched_setaffinity(0, cpus)
    )
    found = re.search(r"Median:\s+([\d.]+) ms", done.stdout)
    if found is None:
        raise SystemExit(f"benchmark_app printed no median:\n{done.stdout[-2000:]}")
    return float(found[1]) / 1e3


def subject(model: ModelArtifact, runtime: str, threads: int, folder: Path) -> Worker:
    """The process that the benchmark step would start."""
    request = {
        "out": str(folder),
        "scratch": str(folder),
        "task": {"task": "image-classification"},
        "hardware": hardware.probe().model_dump(mode="json"),
        "targets": [{"name": "cpu", "threads": threads, "runtime": options_of(runtime)}],
        "target": "cpu",
        "seed": 0,
        "candidates": {},
        "baselines": {},
        "base": str(folder),
        "root": None,
        "data": {"validation": {"source": "sklearn:digits", "split": "test"}},
    }
    argument = {"request": request, "model": str(model.path), "logs": str(folder / "loadgen")}
    worker = Worker("ioptim.subject:Subject", argument, log=folder / f"{runtime}.log", cpus=timing.cpus_for(threads))
    worker.call("prepare", {"batch_size": 1, "padding": "natural", "limit": 16})
    return worker


def options_of(runtime: str) -> dict[str, Any]:
    return {"runtime": runtime, "inference_precision": "f32"} if runtime == "openvino" else {"runtime": runtime}


def write_model(folder: Path) -> ModelArtifact:
    """Convolutions of 3x3 on 8x8 pixels and a linear layer: 400 million multiplications."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    draw = np.random.default_rng(0)
    weights, nodes, last, channels = [], [], "image", 1
    for i, width in enumerate([WIDTH] * LAYERS):
        weight = draw.normal(0, 1 / (3 * channels**0.5), (width, channels, 3, 3)).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"w{i}"))
        nodes += [helper.make_node("Conv", [last, f"w{i}"], [f"c{i}"], pads=[1, 1, 1, 1]), helper.make_node("Relu", [f"c{i}"], [f"r{i}"])]
        last, channels = f"r{i}", width
    weights.append(numpy_helper.from_array(draw.normal(0, 0.05, (WIDTH * 64, 10)).astype(np.float32), "w"))
    nodes += [helper.make_node("Flatten", [last], ["f"]), helper.make_node("MatMul", ["f", "w"], ["logits"])]
    image, logits = TensorSpec(name="image", dtype="float32", shape=SHAPE), TensorSpec(name="logits", dtype="float32", shape=(1, 10))
    values = [helper.make_tensor_value_info(spec.name, TensorProto.FLOAT, list(spec.shape)) for spec in (image, logits)]
    graph = helper.make_graph(nodes, "agreement", values[:1], values[1:], weights)
    folder.mkdir()
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), folder / "model.onnx")
    (folder / "config.json").write_text(json.dumps({"num_labels": 10}))
    return seal(
        ModelArtifact(path=folder, format=Format.ONNX, entry="model.onnx", inputs=(image,), outputs=(logits,), assets=("config.json",))
    )


if __name__ == "__main__":
    # The workers find this file as the module `agreement`: its folder leads Python's path.
    raise SystemExit(main())
