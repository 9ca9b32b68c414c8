"""A BERT classifier made fast by everybody: the peers' tools by their own defaults, and ioptim's recipes, all measured in one run.

    python benchmarks/peers.py --workdir DIR [--rounds 20] [--only NAME ...] [--model DIR] [--data DIR]

Batch 1 and batch 32 at natural lengths, 2 threads, accuracy on test.tsv. Optimum and Olive get environments of their own in DIR; ONNX
Runtime, OpenVINO, NNCF and torch are those of this environment. ioptim's models are what its recipes leave in DIR's store (a training of
20 to 30 minutes each for those that distil; a second call takes them from the store). Every model is then opened by its library alone, in
a process of its own with the library's default options (`plain_session.py`): no line of ioptim runs while anything is timed. The processes
take turns, one awake at a time, in rounds of alternating order; a ratio is taken within a round.

Leaves DIR/peers.json and, with plotly installed, DIR/peers.html. Exits with 1 when one of ioptim's models misses what it is there for.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import measure
import olive
from measure import OthersShare, PlainProcess, machine, table
from plain_session import BATCH, TIMED_ROWS

LEAD_IN, BATCHES = 4, 4
OPTIMUM = (
    ("torch==2.13.0",),
    ("torch==2.13.0", "optimum-onnx[onnxruntime]==0.1.0", "transformers<4.58", *measure.pins("onnxruntime", "onnx", "onnxscript")),
)


@dataclass(frozen=True)
class Bar:
    """What one of ioptim's models is there for: times the best peer's speed (at batch 1 and in throughput), points of accuracy lost."""

    faster: float
    max_drop: float
    max_mb: float | None = None


OURS: Mapping[str, tuple[str, tuple[str, ...], Bar]] = {
    "ioptim, int8": ("bert-sst2-int8.yaml", ("steps.quantize.scheme=int8-dynamic",), Bar(1.15, 0.01)),
    "ioptim, fast": ("bert-sst2-fast.yaml", (), Bar(2.0, 0.01, 12)),
    "ioptim, fastest": ("bert-sst2-fast.yaml", ("steps.distill.student={layers: 3, feed_forward: 768}",), Bar(3.5, 0.025)),
}
"""Recipe, what is set in it, and the bar. The first is made without any training."""


@dataclass
class Contender:
    """A model and what was measured of it; seconds by round."""

    name: str
    file: Path
    engine: str
    python: str = sys.executable
    accuracy: float = 0.0
    single: list[list[float]] = field(default_factory=list)
    batched: list[list[float]] = field(default_factory=list)

    @property
    def ours(self) -> bool:
        return self.name in OURS

    @property
    def size_mb(self) -> float:
        weights = self.file.with_suffix(".bin") if self.file.suffix == ".xml" else self.file
        return (weights / "model.safetensors" if weights.is_dir() else weights).stat().st_size / 1e6

    def medians(self, way: str) -> list[float]:
        return [statistics.median(block) for block in getattr(self, way)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="folder for environments, models, ioptim's store and the results")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", help="names of contenders to measure; all when left out")
    parser.add_argument("--model", type=Path, default=measure.MODEL, help="checkpoint folder")
    parser.add_argument("--data", type=Path, default=measure.DATA, help="folder with train.tsv, dev.tsv and test.tsv")
    args = parser.parse_args()
    measure.require(args.model, args.data)
    workdir = args.workdir.absolute()
    contenders = [one for one in (*peers(args, workdir), *ours(args, workdir)) if not args.only or one.name in args.only]
    print(machine())
    run(contenders, args)
    (workdir / "peers.json").write_text(json.dumps([asdict(one) for one in contenders], default=str, indent=1))
    return report(contenders, workdir)


def peers(args: argparse.Namespace, workdir: Path) -> list[Contender]:
    """Every peer's model; made when its file is not there."""
    optimum = str(olive.environment(workdir / "optimum/venv", OPTIMUM))
    here = sys.executable
    made = {
        "ONNX Runtime fp32": ("onnxruntime", here),
        "ONNX Runtime dynamic int8": ("onnxruntime_dynamic", here),
        "ONNX Runtime fused, dynamic int8": ("onnxruntime_fused_dynamic", here),
        "ONNX Runtime static int8": ("onnxruntime_static", here),
        "Optimum dynamic int8": ("optimum", optimum),
        "OpenVINO": ("openvino", here),
        "OpenVINO + NNCF int8": ("openvino_nncf", here),
    }
    found = [Contender(f"torch{how}", args.model, f"torch{how}") for how in ("", ".compile")]
    for name, (what, python) in made.items():
        file = _made(what, python, args, workdir / "models")
        found.append(Contender(name, file, "openvino" if what.startswith("openvino") else "onnxruntime", python))
    return [*found, Contender("Olive 0.13.0 static int8", _olive(args, workdir), "onnxruntime")]


def _made(what: str, python: str, args: argparse.Namespace, out: Path) -> Path:
    noted = out / f"{what}.path"
    if not noted.is_file():
        script = str(Path(__file__).with_name("peers_make.py"))
        command = [python, script, what, str(args.model.absolute()), str(args.data.absolute() / "dev.tsv"), str(out)]
        made = measure.timed(command).require(0)
        noted.write_text(made.out.strip().rpartition("\n")[2].removeprefix("made "))
    return Path(noted.read_text())


def _olive(args: argparse.Namespace, workdir: Path) -> Path:
    file = workdir / "olive/out/model.onnx"
    if not file.is_file():
        (workdir / "olive").mkdir(parents=True, exist_ok=True)
        olive.run_olive(olive.environment(workdir / "olive/venv"), workdir / "olive", args.model, args.data)
    return file


def ours(args: argparse.Namespace, workdir: Path) -> list[Contender]:
    """What ioptim's recipes make of the checkpoint. Their own gates may fail: they ask for other things than the bar here."""
    found = []
    for name, (recipe, sets, _) in OURS.items():
        if args.only and name not in args.only:
            continue
        other = "training" if "fast" in recipe else "calibration"
        arguments = measure.sst2(args.model, args.data, *sets, recipe=f"recipes/{recipe}", other=other)
        print(f"{name}: ioptim run {recipe} {' '.join(sets)}", file=sys.stderr)
        done = measure.ioptim("run", *arguments, "--engine", "local", "--tracking", "none", "--json", home=workdir / "ioptim")
        steps = {step["id"]: step for step in done.require(0, 1).json()["steps"]}
        folder = Path(steps["compile"]["artifact"]["path"])
        found.append(Contender(name, folder / json.loads((folder / "artifact.json").read_text())["entry"], "onnxruntime"))
    return found


def run(contenders: Sequence[Contender], args: argparse.Namespace) -> None:
    rows = str(args.data.absolute() / "test.tsv")
    processes = {}
    for one in contenders:
        beside = one.file.parent / "tokenizer.json"  # a trimmed vocabulary has a tokenizer of its own
        tokenizer = beside if beside.is_file() and one.ours else args.model.absolute() / "tokenizer.json"
        argument = {"engine": one.engine, "model": str(one.file), "tokenizer": str(tokenizer), "rows": rows, "threads": args.threads}
        processes[one.name] = process = PlainProcess(argument, one.python)
        one.accuracy = process.ask("accuracy", True)  # warms up as well
        process.ask("batches", BATCHES)
    others = OthersShare([process.process.pid for process in processes.values()])
    try:
        for i in range(args.rounds):
            for one in contenders[:: 1 if i % 2 == 0 else -1]:
                process = processes[one.name]
                one.single.append(process.ask("block", LEAD_IN + TIMED_ROWS)[LEAD_IN:])
                one.batched.append(process.ask("batches", 1 + BATCHES)[1:])
            print(f"round {i + 1} of {args.rounds}", file=sys.stderr)
    finally:
        print(f"CPU time that other processes took meanwhile: {others.percent():.0f} %")
        for process in processes.values():
            process.close()


def report(contenders: Sequence[Contender], workdir: Path) -> int:
    theirs = [one for one in contenders if not one.ours] or list(contenders)
    best = {way: min(theirs, key=lambda one: statistics.median(one.medians(way))) for way in ("single", "batched")}
    torch = next((one.accuracy for one in contenders if one.name == "torch"), None)
    rows, missed = [], []
    for one in contenders:
        times = {way: _times(best[way], one, way) for way in best}
        rows.append(_row(one, times))
        if one.ours:
            missed += _missed(one, {way: statistics.median(values) for way, values in times.items()}, torch)
    columns = ["model", "batch 1, p50 ms", "× best peer", f"batch {BATCH}, rows/s", "× best peer", "accuracy", "MB"]
    print(table(columns, rows))
    names = {way: one.name for way, one in best.items()}
    print(f"\nBest peer at batch 1: {names['single']}; at batch {BATCH}: {names['batched']}. Ratios: median of the rounds (5 % to 95 %).")
    print("Every bar is met." if not missed else "Missed: " + "; ".join(missed) + ".")
    _chart(contenders, workdir / "peers.html")
    return 1 if missed else 0


def _times(peer: Contender, one: Contender, way: str) -> list[float]:
    return [a / b for a, b in zip(peer.medians(way), one.medians(way), strict=True)]


def _row(one: Contender, times: Mapping[str, Sequence[float]]) -> list[str]:
    def ratio(values: Sequence[float]) -> str:
        low, *_, high = statistics.quantiles(values, n=20)
        return f"{statistics.median(values):.2f} ({low:.2f}-{high:.2f})"

    single, batched = statistics.median(one.medians("single")) * 1e3, BATCH / statistics.median(one.medians("batched"))
    figures = [f"{single:.3f}", ratio(times["single"]), f"{batched:.0f}", ratio(times["batched"])]
    return [one.name, *figures, f"{one.accuracy:.4f}", f"{one.size_mb:.1f}"]


def _missed(one: Contender, times: Mapping[str, float], torch: float | None) -> list[str]:
    """What of its bar a model misses, in words. The one made without training needs only the better of the two speeds."""
    bar, found = OURS[one.name][2], []
    reached = max(times.values()) if bar.faster < 2 else min(times.values())
    if reached < bar.faster:
        found.append(f"{one.name} is {reached:.2f} times the best peer, to be {bar.faster}")
    if torch is not None and torch - one.accuracy > bar.max_drop:
        found.append(f"{one.name} loses {100 * (torch - one.accuracy):.1f} points, at most {100 * bar.max_drop:g}")
    if bar.max_mb is not None and one.size_mb > bar.max_mb:
        found.append(f"{one.name} has {one.size_mb:.1f} MB, at most {bar.max_mb:g}")
    return found


def _chart(contenders: Sequence[Contender], path: Path) -> None:
    """Accuracy against speed at batch 1."""
    try:
        import plotly.graph_objects as go
    except ModuleNotFoundError:
        print(f"plotly is not installed, so {path.name} was not written")
        return
    figure = go.Figure()
    for ours_, name, symbol in ((False, "other tools", "circle"), (True, "ioptim", "star")):
        shown = [one for one in contenders if one.ours == ours_]
        figure.add_scatter(
            x=[1 / statistics.median(one.medians("single")) for one in shown],
            y=[one.accuracy for one in shown],
            text=[one.name.removeprefix("ioptim, ") for one in shown],
            mode="markers+text",
            textposition="top center",
            marker={"size": 12, "symbol": symbol},
            name=name,
        )
    figure.update_layout(
        template="plotly_white", width=1000, height=600, xaxis={"title": "rows per second at batch 1", "type": "log"},
        yaxis={"title": "accuracy on SST-2 (872 rows)", "tickformat": ".3f"}, legend={"x": 0.01, "y": 0.05},
    )  # fmt: skip
    figure.write_html(path)


if __name__ == "__main__":
    raise SystemExit(main())
