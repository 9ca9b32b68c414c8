"""Does a model measured in turns with another take as long as it takes alone? The ground that every speedup stands on.

    python benchmarks/alternation.py A.onnx B.onnx --tokenizer TOKENIZER.json [--threads 2] [--rounds 8]
    python benchmarks/alternation.py --run HOME

The second form takes the models of the last run in a store (fp32 and int8, as in `ioptim run recipes/bert-sst2-int8.yaml`). Each round
times A alone, then A in turns with B, as the step `benchmark` does it (each in its process, only the one being timed awake), then A
alone again. In a second part B is left awake between its blocks. Ratios near 1 are what is hoped for; those of A alone against itself
say how far noise goes on this machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import measure
from measure import OthersShare, machine, spread, table
from plain_session import TIMED_ROWS

from ioptim import timing
from ioptim.isolate import Worker

LEAD_IN = 3
BLOCKS = 6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path, metavar="MODEL.onnx", help="A and B")
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--run", type=Path, metavar="HOME", help="store whose last run left the models")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--data", type=Path, default=measure.DATA, help="folder with test.tsv")
    args = parser.parse_args()
    a, b, tokenizer = _models_of(args.run) if args.run else (*args.models, args.tokenizer)
    measure.require(args.data)
    print(machine())
    given = {"tokenizer": str(tokenizer), "rows": str(args.data / "test.tsv"), "threads": args.threads}
    rows = []
    for first, second, name in ((a, b, "fp32 beside int8"), (b, a, "int8 beside fp32")):
        for paused in (True, False):
            rows.append(_row(name, paused, _ratios(first, second, given, paused, args.rounds)))
    columns = ["A beside B", "B between its blocks", "A in turns ÷ A alone", "A alone ÷ A alone, again", "CPU time of others"]
    print(table(columns, rows))
    return 0


def _models_of(home: Path) -> tuple[Path, Path, Path]:
    """fp32 and int8 of the newest run that has both, and their tokenizer."""
    for run in sorted((home / "runs").iterdir(), reverse=True):
        nodes = {node["id"]: node for node in json.loads((run / "run.json").read_text())["nodes"]}
        if all(nodes.get(name, {}).get("artifact") for name in ("runtime-fp32", "compile")):
            fp32, int8 = (Path(nodes[name]["artifact"]["path"]) for name in ("runtime-fp32", "compile"))
            return fp32 / "model.onnx", int8 / "model.onnx", fp32 / "tokenizer.json"
    raise SystemExit(f"no run in {home} has both runtime-fp32 and compile")


def _ratios(a: Path, b: Path, given: dict[str, object], paused: bool, rounds: int) -> tuple[list[float], list[float], float]:
    """A in turns ÷ A alone of every round, A alone after ÷ A alone before, and what others took of the CPUs, in per cent."""
    turns, again = [], []
    with tempfile.TemporaryDirectory() as logs, _worker(a, given, Path(logs)) as first:
        others = OthersShare([first._child.process.pid])
        _block(first)
        for _ in range(rounds):
            before = _alone(first)
            with _worker(b, given, Path(logs)) as second:
                _block(second)
                between = statistics.median(_in_turns(first, second, paused))
            after = _alone(first)
            turns.append(between / statistics.fmean((before, after)))
            again.append(after / before)
        return turns, again, others.percent()


def _worker(model: Path, given: dict[str, object], logs: Path) -> Worker:
    env = {"PYTHONPATH": str(Path(__file__).parent)}
    cpus = timing.cpus_for(int(str(given["threads"])))
    return Worker("plain_session:PlainSession", {"model": str(model), **given}, log=logs / f"{model.parent.name}.log", env=env, cpus=cpus)


def _alone(worker: Worker) -> float:
    """Median seconds of a call, nobody beside it. The pauses are those of the turns, so that only the other model differs."""
    medians = []
    for _ in range(BLOCKS):
        medians.append(_block(worker))
        worker.pause()
    return statistics.median(medians)


def _in_turns(first: Worker, second: Worker, paused: bool) -> list[float]:
    medians = []
    for i in range(BLOCKS):
        for worker in (first, second)[:: 1 if i % 2 == 0 else -1]:
            median = _block(worker)
            if paused:
                worker.pause()
            if worker is first:
                medians.append(median)
    return medians


def _block(worker: Worker) -> float:
    return statistics.median(worker.call("block", LEAD_IN + TIMED_ROWS)[LEAD_IN:])


def _row(name: str, paused: bool, ratios: tuple[list[float], list[float], float]) -> list[object]:
    turns, again, others = ratios
    return [name, "asleep" if paused else "awake", spread(turns, 3), spread(again, 3), f"{others:.0f} %"]


if __name__ == "__main__":
    raise SystemExit(main())
