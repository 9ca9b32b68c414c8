"""The SST-2 job on Microsoft Olive 0.13.0 and on ioptim, in turns on this machine: export, fuse, static int8, accuracy, latency.

    python benchmarks/olive.py --workdir DIR [--rounds N] [--model DIR] [--data DIR]

Olive gets an environment of its own in DIR (made on the first call, some 1.6 GB). Both compute everything in every round: no cache. What
is timed is the whole process, from its start to its end; what each does is printed with the figures. The first round on a new DIR also
makes Prefect's and MLflow's databases (5 s). Exits with 1 when the median of ioptim's wall time ÷ Olive's exceeds 1.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import measure
from measure import Timed, ioptim, machine, pins, spread, table, timed

REQUIREMENTS = (
    ("torch==2.13.0",),  # first and by itself: left to Olive's own requirements it brings gigabytes of CUDA
    # Olive's resource types refuse a missing value in a way that pydantic 2.14 no longer takes for "not this type".
    ("olive-ai==0.13.0", "torch==2.13.0", "transformers<5", "datasets", "pydantic<2.13", *pins("onnxruntime", "onnx", "onnxscript")),
)
PADDED_TO = 128
CALIBRATION_ROWS = 256
WORK = f"""
Both: one checkpoint (MiniLM-L6, fine-tuned on SST-2), {CALIBRATION_ROWS} rows to calibrate on, 872 validation rows, CPU.
Olive: accuracy and latency of 2 models (the torch checkpoint, the int8 ONNX model), batch 1, every row padded to {PADDED_TO} tokens;
  latency is 20 calls on one row after 10 to warm up; export by the TorchScript engine without comparing outputs.
ioptim: accuracy, agreement and output distance of 3 models (torch, fp32 on ONNX Runtime, int8), every row at its own length, up to 16
  rows of equal length in a call; latency of all 3 in 20 blocks each, every model alone in a process, in turns; export by torch.export,
  outputs compared; verdicts with intervals, a report, Prefect and MLflow.
"""
AS_OLIVE_DOES = ("steps.benchmark.scenarios=[single-stream]", "steps.benchmark.duration_s=5", f"data.calibration.limit={CALIBRATION_ROWS}")
"""Olive measures no throughput, and takes 20 calls of each model for its latency; 5 s are some 300 calls of each of ours."""
FASTER = ("steps.validate.batch_size=16",)
"""No answer depends on it here: only rows of equal length share a call, so nothing is padded, and static int8 has fixed scales."""


@dataclass
class Taken:
    """What one of the two did over all rounds."""

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    figures: list[Mapping[str, float]] = field(default_factory=list)

    def add(self, run: Timed, figures: Mapping[str, float]) -> None:
        self.seconds.append(run.seconds)
        self.cpu_seconds.append(run.cpu_seconds)
        self.figures.append(figures)

    def median(self, name: str) -> float:
        return statistics.median(figures[name] for figures in self.figures)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="folder for Olive's environment, cache and output")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", type=Path, default=measure.MODEL, help="checkpoint folder")
    parser.add_argument("--data", type=Path, default=measure.DATA, help="folder with dev.tsv and test.tsv")
    args = parser.parse_args()
    measure.require(args.model, args.data)
    workdir = args.workdir.absolute()
    python = environment(workdir / "venv")
    print(machine(), WORK, sep="\n")
    taken = {"olive": Taken(), "ioptim": Taken()}
    for i in range(args.rounds):
        for name in ["olive", "ioptim"][:: 1 if i % 2 == 0 else -1]:
            if name == "olive":
                run, figures = run_olive(python, workdir, args.model, args.data)
            else:
                run, figures = run_ioptim(workdir, args.model, args.data)
            taken[name].add(run, figures)
            print(f"round {i + 1}: {name} {run.seconds:.1f} s ({run.cpu_seconds:.1f} s of CPU time)", file=sys.stderr)
    return report(taken)


def report(taken: Mapping[str, Taken]) -> int:
    olive, ours = taken["olive"], taken["ioptim"]
    names = [name for name in ours.figures[0] if name in olive.figures[0]]
    rows: list[Sequence[object]] = [
        ["whole command, s", spread(olive.seconds, 1), spread(ours.seconds, 1)],
        ["of it CPU time, s", spread(olive.cpu_seconds, 1), spread(ours.cpu_seconds, 1)],
        *([name, f"{olive.median(name):.4g}", f"{ours.median(name):.4g}"] for name in names),
    ]
    print(table([f"median (least-most) of {len(ours.seconds)}", "Olive 0.13.0", "ioptim"], rows))
    ratios = [mine / theirs for mine, theirs in zip(ours.seconds, olive.seconds, strict=True)]
    ratio = statistics.median(ratios)
    print(f"\nioptim ÷ Olive, wall time of the same round: {spread(ratios)}; the limit is 1: {'met' if ratio <= 1 else 'MISSED'}")
    return 0 if ratio <= 1 else 1


def environment(venv: Path, requirements_in_order: Sequence[Sequence[str]] = REQUIREMENTS) -> Path:
    """The interpreter of an environment that has a peer in it, Olive when left out; made when it is not there."""
    python, complete = venv / "bin/python", venv / ".complete"
    wanted = json.dumps(requirements_in_order)
    if complete.is_file() and complete.read_text() == wanted:
        return python
    print(f"installing into {venv} ...", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    for requirements in requirements_in_order:
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *requirements], check=True)
    complete.write_text(wanted)
    return python


def run_olive(python: Path, workdir: Path, model: Path, data: Path) -> tuple[Timed, dict[str, float]]:
    """One cold run of `olive run`."""
    for name in ("cache", "out"):
        shutil.rmtree(workdir / name, ignore_errors=True)
    config = workdir / "config.json"
    config.write_text(json.dumps(olive_config(model, data), indent=1))
    run = timed([str(python.with_name("olive")), "run", "--config", str(config)], cwd=workdir).require(0)
    before = json.loads((workdir / "out/input_model_metrics.json").read_text())
    after = json.loads((workdir / "out/metrics.json").read_text())
    return run, {
        "accuracy, torch": before["accuracy-accuracy_score"]["value"],
        "accuracy, int8": after["accuracy-accuracy_score"]["value"],
        "latency p50 ms, torch": before["latency-p50"]["value"],
        "latency p50 ms, int8": after["latency-p50"]["value"],
    }


def olive_config(model: Path, data: Path) -> dict[str, object]:
    """The job as Olive's documentation writes it for a BERT classifier: https://microsoft.github.io/Olive/"""
    two_classes = {"task": "multiclass", "num_classes": 2}
    accuracy = {"name": "accuracy_score", "priority": 1, "higher_is_better": True, "metric_config": two_classes}
    latency = [{"name": "avg", "priority": 2}, {"name": "p50"}, {"name": "p90"}]
    return {
        "input_model": {"type": "HfModel", "model_path": str(model), "task": "text-classification"},
        "systems": {
            "local": {"type": "LocalSystem", "accelerators": [{"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}]}
        },
        "data_configs": [
            _rows("validation", model, data / "test.tsv", None),
            _rows("calibration", model, data / "dev.tsv", CALIBRATION_ROWS),
        ],
        "evaluators": {
            "both": {
                "metrics": [
                    {"name": "accuracy", "type": "accuracy", "data_config": "validation", "sub_types": [accuracy]},
                    {"name": "latency", "type": "latency", "data_config": "validation", "sub_types": latency},
                ]
            }
        },
        "passes": {
            "conversion": {"type": "OnnxConversion", "target_opset": 17},
            "fusion": {"type": "OrtTransformersOptimization", "model_type": "bert", "num_heads": 12, "hidden_size": 384},
            "quantization": {"type": "OnnxStaticQuantization", "data_config": "calibration"},
        },
        "evaluator": "both",
        "evaluate_input_model": True,
        "host": "local",
        "target": "local",
        "cache_dir": "cache",
        "output_dir": "out",
    }


def _rows(name: str, model: Path, file: Path, limit: int | None) -> dict[str, object]:
    tokenized = {"model_name": str(model), "input_cols": ["sentence"], "label_col": "label"}
    return {
        "name": name,
        "type": "HuggingfaceContainer",
        "load_dataset_config": {"data_name": "csv", "data_files": str(file), "split": "train", "sep": "\t", "quoting": 3},
        "pre_process_data_config": {
            **tokenized,
            "padding": "max_length",
            "truncation": True,
            "max_length": PADDED_TO,
            **({"max_samples": limit} if limit else {}),
        },
        "post_process_data_config": {"type": "text_classification_post_process"},
        "dataloader_config": {"batch_size": 1},
    }


def run_ioptim(workdir: Path, model: Path, data: Path) -> tuple[Timed, dict[str, float]]:
    """One run of `ioptim run recipes/bert-sst2-int8.yaml` that takes nothing from the store, with Prefect and MLflow as by default."""
    arguments = [*measure.sst2(model, data, *AS_OLIVE_DOES, *FASTER), "--no-cache", "--json"]
    run = ioptim("run", *arguments, home=workdir / "ioptim").require(0, 1)
    steps = {step["id"]: step for step in run.json()["steps"]}
    quality, speed = steps["validate"]["subjects"], steps["benchmark"]["subjects"]
    return run, {
        "accuracy, torch": quality["source"]["accuracy"],
        "accuracy, fp32 ONNX Runtime": quality["runtime-fp32"]["accuracy"],
        "accuracy, int8": quality["compile"]["accuracy"],
        "latency p50 ms, torch": speed["source"]["latency_p50_ms"],
        "latency p50 ms, int8": speed["compile"]["latency_p50_ms"],
    }


if __name__ == "__main__":
    raise SystemExit(main())
