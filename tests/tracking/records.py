"""Run records built in code, shared by the tracking tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ioptim.core.artifact import Format, ModelArtifact, TensorSpec, seal
from ioptim.core.gate import Gate, GateResult, Verdict
from ioptim.core.metrics import Kind, Metric, Samples, write_samples
from ioptim.core.record import ArtifactRef, NodeRecord, RunRecord, Status
from ioptim.core.step import Level, Note, TableFigure
from ioptim.core.target import Hardware
from ioptim.errors import ExitCode

HARDWARE = Hardware(cpu_model="Test CPU", cpu_flags=("avx2",), cores=2, threads=2, memory_bytes=8 << 30)
DATA = {"validation": {"source": "builtin:retrieval", "split": "test"}, "calibration": None}
CONFIG = {"name": "tiny", "model": {"source": "null"}, "data": DATA, "steps": [{"step": "quantize", "scheme": "int8-dynamic"}]}
SPECS = (TensorSpec(name="input_ids", dtype="int64", shape=("batch", "sequence")),)
OUTPUTS = (TensorSpec(name="logits", dtype="float32", shape=("batch", 2)),)


def run_record(run_id: str = "20261121-081832-tiny-aaaaaa", **changes: Any) -> RunRecord:
    values: dict[str, Any] = {
        "run_id": run_id,
        "recipe": "tiny",
        "recipe_text": "name: tiny\n",
        "recipe_config": {
            "name": "tiny",
            "model": {"source": "null"},
            "data": DATA,
            "steps": [{"step": "quantize", "scheme": "int8-dynamic"}],
        },
        "recipe_digest": "d" * 64,
        "status": Status.RUNNING,
        "started": "2026-11-21T08:18:32+00:00",
        "hardware": HARDWARE,
        "environment": {"numpy": "2.4.6"},
        "git_sha": "e18585a",
    }
    return RunRecord(**{**values, **changes})


def sealed(folder: Path, content: bytes = b"weights") -> ArtifactRef:
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(content)
    model = seal(ModelArtifact(path=folder, format=Format.ONNX, entry="model.onnx", inputs=SPECS, outputs=OUTPUTS))
    return ArtifactRef(
        digest=model.digest,
        path=str(folder),
        format=model.format,
        size_bytes=model.size_bytes,
        inputs=model.inputs,
        outputs=model.outputs,
    )


def gate_result(verdict: Verdict = Verdict.PASS) -> GateResult:
    gate = Gate(metric="accuracy", max_drop=0.01)
    return GateResult(
        gate=gate,
        metric="accuracy",
        candidate="compile@cpu",
        baseline="source",
        candidate_value=0.89,
        baseline_value=0.9,
        estimate=0.01,
        interval=(0.0, 0.02),
        verdict=verdict,
        reason="drop 0.010 (0.000 to 0.020), at most 0.01",
        n=872,
    )


RUN_ID = "20261121-081832-tiny-aaaaaa"


def finished_run(store: Path, run_id: str = RUN_ID, verdict: Verdict = Verdict.PASS, **changes: Any) -> RunRecord:
    """A chain quantize -> compile -> validate and benchmark, as it is at the end."""
    quantized, compiled = sealed(store / run_id / "quantize"), sealed(store / run_id / "compile", b"compiled weights")
    measured = store / run_id / "validate"
    measured.mkdir()
    metrics = (
        Metric(name="accuracy", higher_is_better=True, description="share of rows classified right"),
        Metric(name="loss", higher_is_better=False, description="cross-entropy"),
    )
    rows = {"source": (1.0, 1.0), "compile@cpu": (1.0, 0.0)}
    write_samples(measured, tuple(Samples(metric=m, kind=Kind.PAIRED_ROWS, values=rows) for m in metrics))
    log = store / run_id / "quantize.log"
    log.write_text("4 layers\n")
    table = TableFigure(title="Layers by kind", columns=("kind", "count"), rows=(("MatMul", 4), ("a|b", None)))
    gate = gate_result(verdict)
    bad = gate.blocks
    nodes = (
        NodeRecord(
            id="quantize",
            step="quantize",
            target=None,
            parents=(),
            config={"step": "quantize", "scheme": "int8-dynamic"},
            status=Status.PASSED,
            cached=True,
            key="k1",
            started="2026-11-21T08:18:33+00:00",
            seconds=2.5,
            metrics={"layers_quantized": 4},
            notes=(Note(text="1 layer left in float32", level=Level.WARNING),),
            tables=(table,),
            artifact=quantized,
            log=str(log),
        ),
        NodeRecord(
            id="compile@cpu",
            step="compile",
            target="cpu",
            parents=("quantize",),
            status=Status.PASSED,
            artifact=compiled,
            seconds=1,
        ),
        NodeRecord(
            id="validate@cpu",
            step="validate",
            target="cpu",
            parents=("compile@cpu",),
            status=Status.GATE_FAILED if bad else Status.PASSED,
            subjects={"source": {"accuracy": 0.9, "loss": 0.2}, "compile@cpu": {"accuracy": 0.89, "loss": 0.25}},
            gates=(gate,),
            artifact=compiled,
            files=str(measured),
        ),
        NodeRecord(
            id="benchmark@cpu",
            step="benchmark",
            target="cpu",
            parents=("validate@cpu",),
            status=Status.PASSED,
            subjects={
                "source": {"latency_p50_ms": 8.0, "size_bytes": 400.0},
                "runtime-fp32": {"latency_p50_ms": 3.0, "size_bytes": 400.0},
                "compile@cpu": {"latency_p50_ms": 1.0, "size_bytes": 100.0, "throughput_per_s": 950.0},
            },
            artifact=compiled,
        ),
    )
    values = {
        "status": Status.GATE_FAILED if bad else Status.PASSED,
        "exit_code": ExitCode.GATE if bad else ExitCode.PASS,
        "finished": "2026-11-21T08:18:42+00:00",
        "seconds": 10.0,
        "nodes": nodes,
    }
    return run_record(run_id, **{**values, **changes})
