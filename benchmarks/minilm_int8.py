"""MiniLM on SST-2 in dynamic int8 against fp32 on ONNX Runtime: batch 1, natural lengths. ioptim's figures, and the library's own.

    python benchmarks/minilm_int8.py [--threads 2] [--rounds 20] [--model DIR] [--data DIR]

First `ioptim run` with `scheme: int8-dynamic`. Then the very files that it left are opened by the onnxruntime library in one process
each, which take turns (A B, B A, ...) over the same 64 rows; no line of ioptim runs in those processes. Exits with 1 when int8 is less
than 2.2 times as fast as fp32, or its accuracy is outside the gate.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import measure
from measure import OthersShare, PlainProcess, ioptim, machine, table
from plain_session import TIMED_ROWS

WANTED = 2.2
LEAD_IN = 4
"""Calls at the head of a block that do not count: the other process has used the caches meanwhile."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20, help="blocks of each model in the check with the library")
    parser.add_argument("--model", type=Path, default=measure.MODEL, help="checkpoint folder")
    parser.add_argument("--data", type=Path, default=measure.DATA, help="folder with dev.tsv and test.tsv")
    args = parser.parse_args()
    measure.require(args.model, args.data)
    print(machine())
    with tempfile.TemporaryDirectory() as home:
        document = run_ioptim(args, Path(home))
        steps = {step["id"]: step for step in document["steps"]}
        files = {name: Path(steps[node]["artifact"]["path"]) for name, node in FILES.items()}
        plain = run_plain(files, args.data / "test.tsv", args.threads, args.rounds)
    return report(document, steps, plain)


FILES = {"fp32, as exported": "export", "fp32, compiled": "runtime-fp32", "int8, compiled": "compile"}


def run_ioptim(args: argparse.Namespace, home: Path) -> Any:
    int8 = ("steps.quantize.scheme=int8-dynamic", f"targets.0.threads={args.threads}")
    arguments = measure.sst2(args.model, args.data, *int8, f"steps.benchmark.gates.0.min_speedup={WANTED}")
    return ioptim("run", *arguments, "--engine", "local", "--tracking", "none", "--json", home=home).require(0, 1).json()


def run_plain(files: Mapping[str, Path], rows: Path, threads: int, rounds: int) -> dict[str, dict[str, Any]]:
    """Blocks of every model in turns, and its accuracy, by the library alone."""
    subjects = {name: PlainProcess.of_artifact(folder, rows, threads) for name, folder in files.items()}
    blocks: dict[str, list[list[float]]] = {name: [] for name in files}
    try:
        for subject in subjects.values():
            subject.ask("block", 3 * TIMED_ROWS)  # warm
        others = OthersShare([subject.process.pid for subject in subjects.values()])
        for i in range(rounds):
            for name in list(subjects)[:: 1 if i % 2 == 0 else -1]:
                blocks[name].append(subjects[name].ask("block", LEAD_IN + TIMED_ROWS)[LEAD_IN:])
        print(f"\nCPU time that other processes took during the check with the library: {others.percent():.0f} %")
        accuracy = {name: statistics.fmean(subject.ask("scores", True)) for name, subject in subjects.items()}
        return {name: {"blocks": blocks[name], "accuracy": accuracy[name]} for name in subjects}
    finally:
        for subject in subjects.values():
            subject.close()


def report(document: Any, steps: Mapping[str, Any], plain: Mapping[str, Mapping[str, Any]]) -> int:
    speed, quality = steps["benchmark"]["subjects"], steps["validate"]["subjects"]
    rows = []
    for name, node in FILES.items():
        p50 = statistics.median(second for block in plain[name]["blocks"] for second in block) * 1e3
        known = node in speed
        rows.append(
            [
                name,
                f"{speed[node]['latency_p50_ms']:.3f}" if known else "-",
                f"{p50:.3f}",
                f"{quality[node]['accuracy']:.4f}" if known else "-",
                f"{plain[name]['accuracy']:.4f}",
            ]
        )
    torch = [f"{speed['source']['latency_p50_ms']:.3f}", "-", f"{quality['source']['accuracy']:.4f}", "-"]
    rows.append(["torch, as given", *torch])
    print(table(["model", "p50 ms, ioptim", "p50 ms, library", "accuracy, ioptim", "accuracy, library"], rows))
    return verdicts(document, plain)


def verdicts(document: Any, plain: Mapping[str, Mapping[str, Any]]) -> int:
    for gate in document["gates"]:
        print(f"ioptim: {gate['verdict']}: {gate['reason']}")
    for note in (note for step in document["steps"] for note in step["notes"]):
        if note["level"] == "warning":
            print(f"ioptim: warning: {note['text']}")
    speed_gate = next(gate for gate in document["gates"] if gate["metric"] == "latency_p50_ms")
    quality_gate = next(gate for gate in document["gates"] if gate["metric"] == "accuracy")
    theirs = {name: _speedups(plain, name) for name in FILES if name.startswith("fp32")}
    for name, ratios in theirs.items():
        low, *_, high = statistics.quantiles(ratios, n=20)
        text = f"library: int8 is {statistics.median(ratios):.2f} times as fast as {name}"
        print(f"{text} (median of {len(ratios)} rounds; 5 % to 95 % of them: {low:.2f} to {high:.2f})")
    agreement = speed_gate["estimate"] / statistics.median(theirs["fp32, compiled"])
    print(f"ioptim's speedup ÷ the library's: {agreement:.3f}")
    met = speed_gate["verdict"] == "pass" and quality_gate["verdict"] == "pass"
    print(f"at least {WANTED} times as fast and as accurate within the gate: {'met' if met else 'MISSED'}")
    return 0 if met else 1


def _speedups(plain: Mapping[str, Mapping[str, Any]], baseline: str) -> list[float]:
    """Speedup of every round: the two blocks beside each other."""
    pairs = zip(plain[baseline]["blocks"], plain["int8, compiled"]["blocks"], strict=True)
    return [statistics.median(theirs) / statistics.median(ours) for theirs, ours in pairs]


if __name__ == "__main__":
    raise SystemExit(main())
