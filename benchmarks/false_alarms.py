"""How often is a model that equals its baseline called worse? Runs one recipe again and again; the limit is one false alarm in a hundred.

    python benchmarks/false_alarms.py [--repetitions 100]

The candidate and `runtime-fp32` are the same bytes, a classifier of three layers made here, each in a process of its own. Everything is
measured anew in every repetition. The gates allow 5 % of time and a hundredth of quality, as a recipe's would. The same samples are then
judged by gates that allow nothing at all. There 2.5 % would be called slower if all that differed were the blocks. Two processes of one
model differ too, by where their memory lies, and no number of blocks in them tells: how far the intervals miss 1 shows by how much.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path

from measure import machine, table, timed

from ioptim import gates
from ioptim.core.gate import Gate, Verdict
from ioptim.core.metrics import read_samples

LIMIT = 0.01
RECIPE = """
model: {source: model.onnx, task: text-classification}
data: {validation: {source: rows.jsonl}}
targets: [{name: cpu, threads: 1, runtime: onnxruntime}]
steps:
  - compile
  - step: validate
    gates:
      - {metric: accuracy, max_drop: 0.01, baseline: runtime-fp32}
      - {metric: output_kl, max_value: 0.01}
  - step: benchmark
    duration_s: 1
    rows: 16
    gates:
      - {metric: latency_p50_ms, max_ratio: 1.05, baseline: runtime-fp32}
      - {metric: throughput_per_s, min_ratio: 0.95, baseline: runtime-fp32}
      - {metric: peak_memory_bytes, max_ratio: 1.05, baseline: runtime-fp32}
      - {metric: size_bytes, max_ratio: 1.0, baseline: runtime-fp32}
"""
STRICT = [
    Gate(metric="latency_p50_ms", max_ratio=1.0, baseline="runtime-fp32"),
    Gate(metric="throughput_per_s", min_ratio=1.0, baseline="runtime-fp32"),
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=100)
    repetitions = parser.parse_args().repetitions
    print(machine())
    found: dict[str, Counter[Verdict]] = {}
    missed: dict[str, list[float]] = {strict.metric: [] for strict in STRICT}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder)
        again = [argument for step in ("validate", "benchmark") for argument in ("--force", step)]
        run = [sys.executable, "-m", "ioptim.cli", "run", str(folder / "recipe.yaml"), "--engine", "local", "--tracking", "none", "--json"]
        for _ in range(repetitions):
            document = timed([*run, *again], {"IOPTIM_HOME": str(folder / "home")}, cwd=folder).require(0, 1).json()
            record = json.loads((Path(document["report"]).parent / "run.json").read_text())
            for node in record["nodes"]:
                for gate in node["gates"]:
                    found.setdefault(label(Gate.model_validate(gate["gate"])), Counter())[Verdict(gate["verdict"])] += 1
                if node["step"] == "benchmark":
                    for strict in STRICT:
                        (result,) = gates.judge(strict, read_samples(Path(node["files"])), ["compile"])
                        found.setdefault(f"{label(strict)} (allows nothing)", Counter())[result.verdict] += 1
                        if result.interval and not result.interval[0] <= 1 <= result.interval[1]:
                            missed[strict.metric].append(min(abs(end - 1) for end in result.interval))
    print(table(("gate", "pass", "undecided", "fail"), [(name, *(counts[each] for each in ORDER)) for name, counts in found.items()]))
    for metric, by in missed.items():
        print(f"intervals of {metric} that miss 1: {len(by)} of {repetitions}" + (f", by {100 * max(by):.2g} % at most" if by else ""))
    worst = max(counts[Verdict.FAIL] for name, counts in found.items() if "allows nothing" not in name)
    return int(worst > LIMIT * repetitions)


ORDER = (Verdict.PASS, Verdict.UNDECIDED, Verdict.FAIL)


def label(gate: Gate) -> str:
    kind, bound = gate.bound
    return f"`{gate.metric}` {kind} {bound:g}"


def make(folder: Path, words: int = 100, width: int = 64, rows: int = 400) -> None:
    """The recipe, a classifier that takes the mean of its words' vectors through two layers, its tokenizer, and texts it gets right."""
    import numpy as np
    import onnx
    import tokenizers
    from onnx import TensorProto, helper, numpy_helper

    draw = np.random.default_rng(0)
    shapes = {"table": (words, width), "first": (width, width), "last": (width, 2)}
    weights = {name: draw.normal(size=shape).astype("float32") for name, shape in shapes.items()}
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["words"]),
        helper.make_node("MatMul", ["words", "first"], ["turned"]),
        helper.make_node("Tanh", ["turned"], ["bent"]),
        helper.make_node("ReduceMean", ["bent", "axis"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "last"], ["logits"]),
    ]
    ends = (("input_ids", TensorProto.INT64, "sequence"), ("logits", TensorProto.FLOAT, 2))
    values = [helper.make_tensor_value_info(name, kind, ["batch", axis]) for name, kind, axis in ends]
    tensors = [numpy_helper.from_array(value, name) for name, value in {**weights, "axis": np.array([1])}.items()]
    model = helper.make_model(helper.make_graph(nodes, "cheap", values[:1], values[1:], tensors), ir_version=10)
    model.opset_import[0].version = 18
    onnx.save(model, folder / "model.onnx")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"w{i}": i for i in range(words)}, unk_token="w0"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"vocab_size": words}))
    lines = []
    for _ in range(rows):
        ids = draw.integers(0, words, draw.integers(4, 40))
        right = int((np.tanh(weights["table"][ids] @ weights["first"]).mean(0) @ weights["last"]).argmax())
        lines.append(json.dumps({"sentence": " ".join(f"w{i}" for i in ids), "label": right if draw.random() < 0.9 else 1 - right}))
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "recipe.yaml").write_text(RECIPE)


if __name__ == "__main__":
    sys.exit(main())
