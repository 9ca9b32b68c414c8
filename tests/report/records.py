"""Runs as the executor leaves them: a whole int8 run with real-looking numbers, and what becomes of it when things go wrong."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import Any

from ioptim.core.artifact import Format
from ioptim.core.gate import Gate, GateResult
from ioptim.core.metrics import Kind, Metric, Samples, write_samples
from ioptim.core.record import ArtifactRef, NodeRecord, RunRecord, Status, TrackingState
from ioptim.core.step import ChartFigure, Level, Note, Series, TableFigure
from ioptim.core.target import Hardware
from ioptim.errors import ExitCode
from ioptim.gates import judge

RECIPE = """# ioptim run recipes/bert-sst2-int8.yaml
model:
  source: hf:example/minilm-sst2
  task: text-classification
steps:
  - step: quantize
    scheme: int8-dynamic
"""

HARDWARE = Hardware(
    cpu_model="Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz",
    cpu_flags=("avx2", "avx512f", "avx512_vnni", "amx_int8"),
    cores=2,
    threads=4,
    memory_bytes=16_777_216_000,
    caches={"L1d": 49152, "L2": 2097152, "L3": 110100480},
    system="Linux 6.1, glibc 2.36",
    python="3.11.7",
)

ACCURACY = Metric(name="accuracy", higher_is_better=True, description="1 where the highest logit is the label's")
COSINE = Metric(name="output_cosine_mean", higher_is_better=True, description="cosine with the source's outputs")
LATENCY = Metric(name="latency_p50_ms", higher_is_better=False, description="median of single requests", unit="ms")
SIZE = Metric(name="size_bytes", higher_is_better=False, description="on disk", unit="bytes")
QUALITY_GATES = (Gate(metric="accuracy", max_drop=0.02), Gate(metric="output_cosine_mean", min_value=0.97))
SPEED_GATES = (
    Gate(metric="latency_p50_ms", min_speedup=2.2, baseline="runtime-fp32"),
    Gate(metric="size_bytes", max_ratio=0.35),
)


def rows(seed: int = 0, lost: int = 9, won: int = 6) -> tuple[Samples, ...]:
    """872 rows of a classifier: 773 right in fp32, some lost and some won by the candidate."""
    rng = random.Random(seed)
    source = tuple([1.0] * 773 + [0.0] * 99)
    candidate = tuple([0.0] * lost + [1.0] * (773 - lost + won) + [0.0] * (99 - won))
    names = tuple(f"test.tsv:{i + 2}" for i in range(872))
    cosine = tuple(1 - rng.betavariate(1, 400) for _ in range(872))
    return (
        Samples(
            metric=ACCURACY, kind=Kind.PAIRED_ROWS, rows=names, values={"source": source, "runtime-fp32": source, "compile": candidate}
        ),
        Samples(metric=COSINE, kind=Kind.PAIRED_ROWS, rows=names, values={"source": (1.0,) * 872, "compile": cosine}),
    )


@cache
def quality_verdicts(lost: int = 9, won: int = 6) -> tuple[GateResult, ...]:
    return tuple(result for gate in QUALITY_GATES for result in judge(gate, rows(lost=lost, won=won), ["compile"]))


def timings(compile_ms: float = 1.04, seed: int = 0) -> tuple[Samples, ...]:
    """20 blocks of each model, and the sizes."""
    rng = random.Random(seed)
    centres = {"source": 7.9, "runtime-fp32": 2.9, "compile": compile_ms}
    blocks = {name: tuple(centre * rng.lognormvariate(0, 0.03) for _ in range(20)) for name, centre in centres.items()}
    sizes = {"source": (90_868_376.0,), "runtime-fp32": (90_405_214.0,), "compile": (22_972_869.0,)}
    return (
        Samples(metric=LATENCY, kind=Kind.BLOCKS, values=blocks),
        Samples(metric=SIZE, kind=Kind.EXACT, values=sizes),
    )


def node(node_id: str, **fields: Any) -> NodeRecord:
    given: dict[str, Any] = {"step": node_id, "target": None, "parents": (), "status": Status.PASSED, "seconds": 1.5}
    return NodeRecord(id=node_id, **{**given, **fields})


def artifact(digest: str, kind: Format, size: int) -> ArtifactRef:
    return ArtifactRef(digest=digest * 64, path=f"store/models/{digest * 12}", format=kind, size_bytes=size)


def passed(folder: Path, **changes: Any) -> RunRecord:
    """An int8 run of a classifier on one target, its samples kept under `folder`."""
    quality, speed = folder / "validate", folder / "benchmark"
    for where, samples in ((quality, rows()), (speed, timings())):
        where.mkdir(parents=True, exist_ok=True)
        write_samples(where, samples)
    int8 = artifact("c", Format.ONNX, 22_972_869)
    nodes = (
        node("source", artifact=artifact("a", Format.TORCH, 90_868_376), cached=True, computed="2026-11-20T22:01:07Z", seconds=0.8),
        node("export", parents=("source",), artifact=artifact("b", Format.ONNX, 90_405_214), inserted=True, seconds=11.3),
        node(
            "quantize",
            parents=("export",),
            artifact=int8,
            seconds=3.2,
            config={"step": "quantize", "scheme": "int8-dynamic", "per_channel": True},
            notes=(
                Note(text="36 of 37 MatMul quantized, 3 of 3 embedding tables"),
                Note(text="1 MatMul left in float: /classifier/MatMul is excluded by default", level=Level.WARNING),
            ),
            tables=(
                TableFigure(
                    title="What was quantized",
                    columns=("operator", "there", "quantized", "bytes before", "why not the rest"),
                    rows=(("MatMul", 37, 36, 42_467_328, "excluded: classifier"), ("Gather", 3, 3, 47_663_616, None)),
                ),
            ),
        ),
        node(
            "compile",
            target="cpu",
            parents=("quantize",),
            artifact=int8,
            seconds=1.9,
            facts={"fused": {"Attention": 6, "SkipLayerNorm": 12}},
        ),
        node(
            "runtime-fp32",
            step="compile",
            target="cpu",
            parents=("export",),
            inserted=True,
            artifact=artifact("d", Format.ONNX, 90_405_214),
        ),
        node(
            "validate",
            target="cpu",
            parents=("compile", "source", "runtime-fp32"),
            artifact=int8,
            seconds=13.4,
            config={"gates": [gate.model_dump(mode="json") for gate in QUALITY_GATES]},
            metrics={"accuracy": 0.883, "accuracy_drop_vs_source": 0.0034},
            subjects={
                "source": {"accuracy": 0.8865, "output_cosine_mean": 1.0},
                "runtime-fp32": {"accuracy": 0.8865, "output_cosine_mean": 0.999999},
                "compile": {"accuracy": 0.8830, "output_cosine_mean": 0.9975},
            },
            notes=(Note(text="accuracy of compile differs from source's in 15 of 872 rows: 9 worse, 6 better"),),
            gates=quality_verdicts(),
            files=str(quality),
        ),
        node(
            "benchmark",
            target="cpu",
            parents=("compile", "source", "runtime-fp32"),
            artifact=int8,
            seconds=21.8,
            config={"gates": [gate.model_dump(mode="json") for gate in SPEED_GATES]},
            subjects={
                "source": {
                    "latency_p50_ms": 7.9,
                    "latency_p99_ms": 12.1,
                    "throughput_per_s": 272.0,
                    "size_bytes": 90_868_376.0,
                    "load_s": 0.41,
                },
                "runtime-fp32": {
                    "latency_p50_ms": 2.9,
                    "latency_p99_ms": 4.4,
                    "throughput_per_s": 579.0,
                    "size_bytes": 90_405_214.0,
                    "load_s": 0.22,
                },
                "compile": {
                    "latency_p50_ms": 1.04,
                    "latency_p99_ms": 1.62,
                    "throughput_per_s": 1090.0,
                    "size_bytes": 22_972_869.0,
                    "load_s": 0.09,
                },
            },
            gates=tuple(result for gate in SPEED_GATES for result in judge(gate, timings(), ["compile"])),
            files=str(speed),
        ),
    )
    given: dict[str, Any] = {
        "run_id": "20261121-081832-bert-sst2-int8-3f2a91",
        "recipe": "bert-sst2-int8",
        "recipe_path": "recipes/bert-sst2-int8.yaml",
        "recipe_text": RECIPE,
        "recipe_config": {
            "description": "A sentiment classifier in int8.",
            "model": {"source": "hf:example/minilm-sst2", "allow_pickle": False},
        },
        "overrides": ("steps.quantize.scheme=int8-dynamic",),
        "recipe_digest": "5e" * 32,
        "command": ("ioptim", "run", "recipes/bert-sst2-int8.yaml", "--set", "steps.quantize.scheme=int8-dynamic"),
        "engine": "prefect",
        "status": Status.PASSED,
        "exit_code": ExitCode.PASS,
        "started": "2026-11-21T08:18:32Z",
        "finished": "2026-11-21T08:19:26Z",
        "seconds": 54.3,
        "hardware": HARDWARE,
        "environment": {"numpy": "2.4.6", "onnxruntime": "1.31.1", "torch": "2.13.0"},
        "git_sha": "57b7fa9d21c4",
        "nodes": nodes,
        "tracking": TrackingState(
            state="logged", uri="http://user:secret@127.0.0.1:5000", url="http://user:secret@127.0.0.1:5000/#/runs/1"
        ),
        "report": "runs/20261121/report.html",
    }
    return RunRecord(**{**given, **changes})


def gate_failed(folder: Path) -> RunRecord:
    """The same run with a candidate that is worse, and not certainly faster."""
    run = passed(folder)
    slower = timings(compile_ms=1.31, seed=3)
    strict = Gate(metric="latency_p50_ms", min_speedup=2.2, baseline="runtime-fp32", undecided="warn")
    quality = quality_verdicts(lost=45, won=5)
    speed = [result for gate in (strict, SPEED_GATES[1]) for result in judge(gate, slower, ["compile"])]
    accuracy = {**run.node("validate").subjects, "compile": {"accuracy": 0.8406, "output_cosine_mean": 0.9975}}
    latency = {**run.node("benchmark").subjects, "compile": {**run.node("benchmark").subjects["compile"], "latency_p50_ms": 1.31}}
    changed = {
        "validate": {"gates": quality, "status": Status.GATE_FAILED, "subjects": accuracy},
        "benchmark": {"gates": tuple(speed), "subjects": latency},
    }
    nodes = tuple(each.model_copy(update=changed.get(each.id, {})) for each in run.nodes)
    return run.model_copy(update={"nodes": nodes, "status": Status.GATE_FAILED, "exit_code": ExitCode.GATE})


def errored(folder: Path) -> RunRecord:
    """Quantize was killed; what follows it never ran."""
    run = passed(folder)
    log = folder / "quantize.log"
    log.write_text("".join(f"line {i}\n" for i in range(50)) + "terminate called after throwing an instance of 'std::bad_alloc'\n")
    broken = {
        "status": Status.ERROR,
        "error": "quantize was ended: it used more than 4 GB of memory\n  terminate called after throwing 'std::bad_alloc'",
        "log": str(log),
        "notes": (),
        "artifact": None,
        "tables": (),
    }
    left = {
        "status": Status.SKIPPED,
        "metrics": {},
        "subjects": {},
        "gates": (),
        "artifact": None,
        "files": None,
        "notes": (),
        "seconds": 0.0,
    }
    nodes = (*run.nodes[:2], run.nodes[2].model_copy(update=broken), *(each.model_copy(update=left) for each in run.nodes[3:]))
    return run.model_copy(update={"nodes": nodes, "status": Status.ERROR, "exit_code": ExitCode.STEP})


def charted(folder: Path) -> RunRecord:
    """The first run with every chart that a step may hand over: long names, gaps, intervals, many points, thousands of samples."""
    run = passed(folder)
    extra = {
        "benchmark": {"charts": (latency_chart(), load_chart())},
        "quantize": {"charts": (left_in_float(),)},
        "compile": {"charts": (by_name_chart(),)},
    }
    profile = node("profile", target="cpu", parents=("compile",), seconds=6.4, charts=(roofline(), by_operator(), sensitivity()))
    nodes = tuple(each.model_copy(update=extra.get(each.id, {})) for each in (*run.nodes, profile))
    return run.model_copy(update={"nodes": nodes})


def latency_chart(calls: int = 4000) -> ChartFigure:
    """Log-normal bodies, a second mode in one of them and a long tail."""
    rng = random.Random(1)
    series = []
    for name, centre in (("compile", 1.04), ("source", 7.9), ("runtime-fp32", 2.9)):
        body = [centre * rng.lognormvariate(0, 0.05) * (1.5 if name == "source" and i % 9 == 0 else 1) for i in range(calls)]
        series.append(Series(name=name, x=(), y=tuple(value * (4 if i % 200 == 0 else 1) for i, value in enumerate(body))))
    return ChartFigure(
        title="Latency of single requests",
        kind="distribution",
        x_label="",
        y_label="latency (ms)",
        series=tuple(series),
        note="On 2 threads.",
    )


def load_chart() -> ChartFigure:
    """Requests per second against the 99th percentile, and the bound."""
    rates = (50.0, 100.0, 200.0, 400.0, 600.0, 800.0, 1000.0)
    series = []
    for name, most in (("compile", 1090.0), ("source", 272.0), ("runtime-fp32", 579.0)):
        p99 = tuple(3.0 + 2.0 / (1 - rate / most) if rate < most else None for rate in rates)
        low, high = (tuple(None if y is None else y * share for y in p99) for share in (0.93, 1.09))
        series.append(Series(name=name, x=rates, y=p99, low=low, high=high, line=True))
    bound = Series(name="p99 bound", x=(rates[0], rates[-1]), y=(20.0, 20.0), line=True)
    return ChartFigure(
        title="Requests per second against p99",
        kind="points",
        x_label="requests per second",
        y_label="latency p99 (ms)",
        series=(*series, bound),
        log_y=True,
        note="compile serves 900 requests per second under 20 ms.",
    )


def roofline() -> ChartFigure:
    rng = random.Random(2)
    peak, bandwidth = 180.0, 21.0
    series = [Series(name="roof", x=(0.05, peak / bandwidth, 500.0), y=(0.05 * bandwidth, peak, peak), line=True)]
    for name, centre in (("MatMul", 40.0), ("LayerNormalization", 0.6), ("Softmax", 1.1), ("Gather", 0.09)):
        x = tuple(centre * rng.lognormvariate(0, 0.3) for _ in range(12))
        y = tuple(min(peak, value * bandwidth) * rng.uniform(0.2, 0.8) for value in x)
        labels = tuple(f"/bert/encoder/layer.{i}/{name} <b>" for i in range(12))
        series.append(Series(name=name, x=x, y=y, labels=labels))
    return ChartFigure(
        title="Roofline of compile",
        kind="points",
        x_label="operations per byte",
        y_label="operations per second (G)",
        series=tuple(series),
        log_x=True,
        log_y=True,
        note="31 of 48 layers are held by memory bandwidth.",
    )


def by_operator() -> ChartFigure:
    operators = (
        "MatMulInteger",
        "DynamicQuantizeLinear",
        "Attention",
        "SkipLayerNormalization",
        "BiasGelu",
        "EmbedLayerNormalization",
        "Cast",
    )
    shares = ((0.0, 0.0, 1.3, 0.3, 0.4, 0.1, 0.0), (0.5, 0.12, 0.2, 0.11, 0.05, 0.04, 0.02))
    names = ("runtime-fp32", "compile")
    return ChartFigure(
        title="Time by operator",
        kind="bars",
        x_label="operator",
        y_label="ms per request",
        series=tuple(Series(name=name, x=operators, y=y) for name, y in zip(names, shares, strict=True)),
        note="71 % of the time is in matrix products.",
    )


def sensitivity(layers: int = 42) -> ChartFigure:
    rng = random.Random(3)
    names = tuple(f"/bert/encoder/layer.{i // 6}/attention/output/dense_{i}/MatMul" for i in range(layers))
    lost = tuple(sorted((rng.expovariate(90) for _ in range(layers)), reverse=True))
    series = Series(name="accuracy lost", x=names, y=lost, low=tuple(y * 0.5 for y in lost), high=tuple(y * 1.6 for y in lost))
    return ChartFigure(title="Sensitivity by layer", kind="bars", x_label="layer", y_label="accuracy lost", series=(series,))


def left_in_float() -> ChartFigure:
    parts = {"quantized": (36.0, 3.0), "left in float": (1.0, 0.0)}
    series = tuple(Series(name=name, x=("MatMul", "Gather"), y=y) for name, y in parts.items())
    return ChartFigure(title="Layers quantized", kind="bars", x_label="operator", y_label="layers", series=series, stacked=True)


def by_name_chart() -> ChartFigure:
    """Names on an axis of points, one value missing, and a step that has no section of its own."""
    series = Series(name="compile", x=("<load>", "fuse & fold", "compile"), y=(0.2, None, 1.4))
    return ChartFigure(title="Compilation", kind="points", x_label="phase", y_label="seconds", series=(series,))


def hostile(folder: Path) -> RunRecord:
    """Every text that a user, a library or a data file can choose tries to become markup."""
    evil = "</style></pre><script>alert(1)</script><img src=x onerror=alert(1)>\" onload='alert(1)' &amp; | *x* [y](javascript:alert(1))"
    run = passed(folder)
    nodes = tuple(
        each.model_copy(
            update={
                "id": f"{each.id}{evil}",
                "target": evil if each.target else None,
                "notes": (Note(text=evil, level=Level.WARNING),),
                "tables": (TableFigure(title=evil, columns=(evil,), rows=((evil,),)),),
                "charts": tuple(evil_chart(evil, kind) for kind in ("points", "bars", "distribution")),
                "facts": {evil: {evil: [evil]}},
                "config": {evil: evil},
                "metrics": {evil: 1.0},
                "subjects": {f"{name}{evil}": {**values, evil: 1.0} for name, values in each.subjects.items()},
                "gates": tuple(gate.model_copy(update={"reason": evil, "candidate": evil, "metric": evil}) for gate in each.gates),
                "error": evil,
                "computed": evil,
            }
        )
        for each in run.nodes
    )
    return run.model_copy(
        update={
            "recipe": evil,
            "run_id": evil,
            "recipe_text": evil,
            "recipe_path": evil,
            "recipe_config": {"description": evil, "model": {"allow_pickle": True, "source": evil}},
            "overrides": (evil,),
            "command": ("ioptim", evil),
            "environment": {evil: evil},
            "git_sha": evil,
            "warnings": (evil,),
            "nodes": nodes,
            "hardware": HARDWARE.model_copy(update={"cpu_model": evil, "system": evil, "gpus": ({"name": evil},)}),
            "tracking": TrackingState(state="pending", url="javascript:alert(1)", problem=evil, uri=evil),
        }
    )


def evil_chart(evil: str, kind: str) -> ChartFigure:
    series = Series(name=evil, x=() if kind == "distribution" else (evil,), y=(1.0,), labels=(evil,))
    return ChartFigure(title=evil, kind=kind, x_label=evil, y_label=evil, series=(series,), note=evil)  # type: ignore[arg-type]


def several(folder: Path) -> RunRecord:
    """Three candidates of three runtimes in one comparison, a baseline in fp32 for each."""
    run = passed(folder)
    rng = random.Random(5)
    figures = {"compile-ort": (1.04, 0.883, 2.3e7), "compile-openvino": (1.5, 0.881, 2.4e7), "compile-torch": (7.1, 0.8865, 9.1e7)}
    fp32 = {f"runtime-fp32@{name}": (ms, 0.8865, 9.1e7) for name, ms in (("ort", 2.9), ("openvino", 2.7), ("torch", 7.9))}
    subjects = {"source": (7.9, 0.8865, 9.1e7), **fp32, **figures}
    quality = {name: {"accuracy": accuracy} for name, (_, accuracy, _) in subjects.items()}
    speed = {name: {"latency_p50_ms": ms, "size_bytes": size} for name, (ms, _, size) in subjects.items()}
    blocks = {name: tuple(ms * rng.lognormvariate(0, 0.04) for _ in range(12)) for name, (ms, _, _) in subjects.items()}
    timing = Samples(metric=LATENCY, kind=Kind.BLOCKS, values=blocks)
    write_samples(folder / "benchmark", (timing,))
    gates = judge(Gate(metric="latency_p50_ms", min_speedup=1.2), [timing], list(figures))
    changed = {"validate": {"subjects": quality, "gates": ()}, "benchmark": {"subjects": speed, "gates": gates}}
    nodes = tuple(each.model_copy(update=changed.get(each.id, {})) for each in run.nodes)
    return run.model_copy(update={"nodes": nodes, "status": Status.GATE_FAILED, "exit_code": ExitCode.GATE})
