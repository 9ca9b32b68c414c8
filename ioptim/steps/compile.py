"""Make the model what its runtime loads fastest on the target."""

from __future__ import annotations

from typing import Literal

from ioptim.core.artifact import Format, ModelArtifact
from ioptim.core.step import Context, Outcome, Step, Where


class Compile(Step):
    """Hand the model to the target's runtime, which writes what it will load: an optimized ONNX file, an IR, an engine.

    How it is optimized is the runtime's business and is set where the runtime is named, in the recipe's `targets`, so that a
    baseline compiled for the same target is treated exactly alike. What fused, and what did not, is in the outcome.
    """

    step: Literal["compile"] = "compile"
    per_target = True

    def produces(self, where: Where) -> Format:
        return where.targets[0].runtime.compiled

    def library_names(self, where: Where) -> tuple[str, ...]:
        return where.targets[0].runtime.libraries

    def run(self, model: ModelArtifact, ctx: Context) -> Outcome:
        ctx.progress(0.0, f"compiling for {ctx.target.runtime.runtime}")
        out = ctx.out / "model"
        out.mkdir()
        outcome = ctx.target.runtime.compile(model, ctx.target, out)
        written = outcome.written
        if written is None:
            raise AssertionError(f"the runtime {ctx.target.runtime.runtime} compiled nothing")
        sealed = written.model_copy(update={"facts": {**written.facts, "runtime": ctx.target.runtime.runtime}})
        return outcome.model_copy(update={"written": sealed})
