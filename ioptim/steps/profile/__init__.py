"""Looks at a model: where its time goes and where its weights are, what bounds each layer, and what would help."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from ioptim import roofline, timing
from ioptim.core.artifact import Format, ModelArtifact
from ioptim.core.step import Context, Level, MeasuringStep, Note, Outcome, Where
from ioptim.errors import StepError
from ioptim.roofline import BFLOAT16, FLOAT32, INT8, Roofs
from ioptim.steps.profile import executed, figures, gpu, torch_module
from ioptim.steps.profile.advice import Advice, Situation, advise
from ioptim.steps.profile.findings import Findings
from ioptim.steps.profile.sensitivity import Ranked, SensitivityOptions, measure

if TYPE_CHECKING:
    import numpy as np

    Feeds = Mapping[str, np.ndarray]


class Profile(MeasuringStep):
    """Time by operator and by layer, operations, bytes and memory by layer, the roofline, and advice; on validation rows.

    A torch model runs as its library runs it (eager; on the target's GPU where there is one), any other on the runtime that would
    open it, with that runtime's own profiler. Rows run one at a time at their natural lengths. Nothing is changed and nothing can be
    gated: the figures with the profiler on are for comparing parts of one model. `benchmark` compares models. A Chrome trace is kept
    in `files`.

    Raises:
        StepError: the model cannot be loaded, or fails on a row.
    """

    step: Literal["profile"] = "profile"
    uses_data: ClassVar[tuple[str, ...]] = ("validation",)

    rows: int = Field(32, ge=1, description="validation rows to run, one at a time, from the first")

    duration_s: float = Field(20.0, gt=0, description="seconds to run rows for, about; fewer rows are run where they would take longer")

    roofline: bool = Field(True, description="measure what this machine can compute and move (two seconds), and place every layer under it")

    sensitivity: bool | SensitivityOptions = Field(
        False, description="quantize every block alone and rank them by the quality lost and the time saved; needs data.calibration"
    )

    def check(self, where: Where) -> list[str]:
        if self._sensitivity is None or where.format is Format.ONNX:
            return []
        where_to = "put `- step: export` above this step" if where.format is Format.TORCH else "move this step in front of `compile`"
        return [f"sensitivity quantizes layers of an ONNX graph, and here the model is {where.format.value}; {where_to}"]

    def data_roles(self) -> tuple[str, ...]:
        return ("validation", "calibration") if self._sensitivity else self.uses_data

    def library_names(self, where: Where) -> tuple[str, ...]:
        """An int8 roof beside a torch model is ONNX Runtime's, where that is installed; then its version is part of the key too."""
        if where.format is Format.TORCH:
            extra = (_onnxruntime(), "onnx") if self.roofline and _installed(_onnxruntime(), "onnx") else ()
            return ("torch", "numpy", *extra)
        if where.format is Format.ONNX:
            runtime = where.targets[0].runtime if where.targets else None
            own = runtime.libraries if runtime is not None and Format.ONNX in runtime.accepts else ()
            return tuple(dict.fromkeys((_onnxruntime(), "onnx", "numpy", *own)))
        return ("openvino", "numpy") if where.format is Format.OPENVINO else ()

    def run(self, model: ModelArtifact, ctx: Context) -> Outcome:
        files = ctx.out / "files"
        files.mkdir(parents=True, exist_ok=True)
        ctx.progress(0.0, "reading rows")
        feeds = list(itertools.islice(ctx.task.examples(ctx.table("validation"), model), self.rows))
        if not feeds:
            raise StepError("profile has no rows to run: the validation data gave no example")
        before, own_before = timing.Machine.now(), time.process_time()
        found = self._profile(model, feeds, files, ctx)
        machine = timing.conditions(before, timing.Machine.now(), time.process_time() - own_before)
        advice = advise(found, Situation(model.format, model.facts.get("runtime"), found.device))
        ranked = self._ranked(model, ctx)
        ctx.progress(1.0, "profiled")
        disturbed = [Note(text=text, level=Level.WARNING) for text in timing.disturbances(machine)]
        return Outcome(
            metrics=figures.metrics(found, model) | (ranked.metrics if ranked else {}),
            tables=(*figures.tables(found, advice), *((ranked.table,) if ranked else ())),
            charts=(*figures.charts(found), *((ranked.chart,) if ranked else ())),
            notes=(
                *(Note(text=text) for text in self._notes(found, advice, len(feeds), ctx)),
                *(ranked.notes if ranked else ()),
                *disturbed,
            ),
            facts={"rows": len(found.row_seconds), **found.facts, **machine},
        )

    @property
    def _sensitivity(self) -> SensitivityOptions | None:
        """`true` means the defaults."""
        if isinstance(self.sensitivity, SensitivityOptions):
            return self.sensitivity
        return SensitivityOptions() if self.sensitivity else None

    def _ranked(self, model: ModelArtifact, ctx: Context) -> Ranked | None:
        options = self._sensitivity
        if options is None:
            return None
        return measure(options, model, ctx, lambda done, said: ctx.progress(0.8 + 0.2 * done, said))

    def _profile(self, model: ModelArtifact, feeds: Sequence[Feeds], files: Path, ctx: Context) -> Findings:
        if model.format is not Format.TORCH:
            found = executed.profile(model, feeds, ctx, files, self.duration_s)
        else:
            device = gpu.device_for(ctx.target.device)
            threads = ctx.target.threads or ctx.hardware.cores
            found = torch_module.profile(
                model, feeds, device=device, threads=threads, duration_s=self.duration_s, files=files, progress=ctx.progress
            )
            if device != "cpu":
                found = found.with_notes(gpu.record_with_nsys(model, feeds[: len(found.row_seconds)], device, files))
        if not self.roofline or not found.layers:
            return found
        if found.device != "cpu" and model.format is not Format.TORCH:
            return found.with_notes("the times are of launches on the GPU, so no roof is drawn above them; profile the torch model")
        ctx.progress(0.7, "measuring the roofs")
        return found.under(_roofs(model.format, found.device, ctx))

    def _notes(self, found: Findings, advice: Sequence[Advice], there: int, ctx: Context) -> list[str]:
        notes = list(found.notes)
        if shares := found.shares():
            largest = " and ".join(f"{share:.0%} {kind}" for kind, share in list(shares.items())[:2])
            notes.insert(0, f"Of the time in operators, {largest}.")
        notes += [str(one) for one in advice]
        if found.uncounted:
            total = sum(found.uncounted.values())
            notes.append(f"operations are not counted for {figures.share_list(found.uncounted)}, {total:.1%} of the layers' time together")
        if found.operators and ctx.target.device != "cpu" and found.device == "cpu":
            notes.append(f"profiled on the CPU; the target {ctx.target.name} is a {ctx.target.device}, where the shares are others")
        run = len(found.row_seconds)
        if run < self.rows:
            why = "more would take longer than duration_s" if run < there else "the validation data has no more"
            notes.append(f"{run} rows were run, not {self.rows}: {why}")
        return notes


def _roofs(form: Format, device: str, ctx: Context) -> Roofs:
    """With the library that ran the model; a precision it lacks with another that is installed and named in `library_names`."""
    if device != "cpu":
        return roofline.cuda_roofs(device)
    wanted = [FLOAT32, INT8]
    if {"avx512_bf16", "amx_bf16", "bf16"} & set(ctx.hardware.cpu_flags):
        wanted.append(BFLOAT16)
    gemms: dict[str, roofline.Gemm] = {}
    if form is Format.TORCH:
        gemms["torch"] = roofline.torch_gemm
    if form is Format.OPENVINO:
        gemms["OpenVINO"] = roofline.openvino_gemm
    elif _installed(_onnxruntime(), "onnx"):
        gemms["ONNX Runtime"] = roofline.onnxruntime_gemm
    return roofline.measure(gemms, wanted, ctx.target.threads or ctx.hardware.cores, ctx.hardware.caches)


def _onnxruntime() -> str:
    """The GPU build is another distribution that installs the same module."""
    return "onnxruntime-gpu" if _installed("onnxruntime-gpu") else "onnxruntime"


def _installed(*names: str) -> bool:
    return all(any(True for _ in metadata.distributions(name=name)) for name in names)
