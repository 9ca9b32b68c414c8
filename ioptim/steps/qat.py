"""Fine-tunes a model while it computes as if quantized, so that quantizing it afterwards costs less."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field

from ioptim.core.artifact import Format, ModelArtifact
from ioptim.core.outline import Outline
from ioptim.core.step import Context, Level, Note, Outcome, Step, Where, Written
from ioptim.errors import StepError
from ioptim.steps import _simulate
from ioptim.steps._curves import charts, curves
from ioptim.steps._near_float import Batches, Near
from ioptim.training import BF16_FLAGS, Progress, Settings, Training

if TYPE_CHECKING:
    import torch

    from ioptim.core.task import Table

DEV_BATCH = 64
SETTLED_ON = 8


class QAT(Step):
    """Quantization-aware training: fine-tune under simulated rounding, and write an ordinary float checkpoint.

    The model is asked to answer as it did in float (its answers and the tokens' vectors after every layer), so no labels are needed.
    What comes out is as large and as slow as what came in; a `quantize` step with the scheme that was simulated follows. Worth its
    minutes where that step alone loses too much.

    The training leaves its state beside the store twice a minute: a run that was killed goes on from there.

    Raises:
        StepError: not a transformers encoder; no layer can be simulated; a loss that is not a number before anything was worth keeping.
    """

    step: Literal["qat"] = "qat"
    accepts: ClassVar[frozenset[Format]] = frozenset({Format.TORCH})
    libraries: ClassVar[tuple[str, ...]] = ("torch", "transformers", "accelerate", "safetensors", "numpy")
    uses_data: ClassVar[tuple[str, ...]] = ("training", "dev")

    simulate: _simulate.What = Field("int8", description="scheme that follows: int8 for int8-static and int8-dynamic, or int4-weights")
    block_size: Literal[16, 32, 64, 128, 256] = Field(32, description="for int4-weights: `blocks.size` of the quantize step that follows")
    epochs: int = Field(1, ge=1, description="passes over the training rows, at most")
    max_minutes: float | None = Field(None, gt=0, description="training time after which it ends, attempts before a kill counted")
    batch_size: int = Field(32, ge=1, description="rows per batch")
    accumulate: int = Field(1, ge=1, description="batches whose gradients are added before each update")
    learning_rate: float = Field(2e-5, gt=0, description="of AdamW, at its highest")
    warm_up: float = Field(0.06, ge=0, lt=1, description="share of the training over which the learning rate rises")
    weight_decay: float = Field(0.0, ge=0, description="of AdamW, on matrices only")
    clip_norm: float = Field(1.0, gt=0, description="largest norm of all gradients together")
    evaluations: int = Field(4, ge=1, description="looks at the dev rows per epoch")
    patience: int = Field(4, ge=1, description="looks without a better quality after which it ends")
    held_out: int | None = Field(None, ge=1, description="training rows to choose by, in place of data.dev; not trained on")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="of products in training; auto is bf16 where the CPU has it")
    sequence: int = Field(128, ge=8, description="tokens that training texts are cut at")

    def outline(self, arriving: Outline | None, others: Mapping[str, Outline | None]) -> Outline | None:
        return arriving

    def data_roles(self) -> tuple[str, ...]:
        return ("training",) if self.held_out else self.uses_data

    def resolve(self, where: Where) -> Self:
        if self.precision != "auto":
            return self
        flags = getattr(where.hardware, "cpu_flags", ())
        return self.model_copy(update={"precision": "bf16" if any(flag in flags for flag in BF16_FLAGS) else "fp32"})

    def check(self, where: Where) -> list[str]:
        if not hasattr(where.task, "max_length"):
            return [f"qat trains encoders of text; the task is {where.task.task}"]
        if self.simulate != "int4-weights" and self.block_size != type(self).model_fields["block_size"].default:
            return [f"block_size works with `simulate: int4-weights`, not with {self.simulate}; remove it"]
        return []

    def run(self, model: ModelArtifact, ctx: Context) -> Outcome:
        import torch

        from ioptim import torch_model

        torch.set_num_threads(ctx.hardware.threads)
        torch.manual_seed(ctx.seed)
        ctx.progress(0.0, "loading the model")
        pupil: Any = torch_model.load_module(model, attention=None)
        if not hasattr(getattr(pupil, "config", None), "num_hidden_layers"):
            raise StepError(f"qat needs a transformers encoder; {type(pupil).__name__} has no config with num_hidden_layers")
        teacher = copy.deepcopy(pupil).eval()
        for part in pupil.modules():
            if isinstance(part, torch.nn.Dropout):  # it would be most of what the two models differ by
                part.p = 0.0
        simulated = _simulate.simulate(pupil, self.simulate, self.block_size)
        if not simulated.layers:
            raise StepError(f"qat: no layer of {type(pupil).__name__} can be simulated in {self.simulate} (block_size {self.block_size})")
        table, chosen_by = self._tables(ctx)
        batches = Batches(table, model, ctx.task, self.batch_size, self.sequence)
        near = Near(pupil, teacher, ctx.task, Batches(chosen_by, model, ctx.task, DEV_BATCH, self.sequence))
        _settle(pupil, batches)
        before = near.distance()
        settings = self._settings(ctx)
        run = Training(
            pupil, batches, near.loss, lambda: -near.distance(), batches.order(ctx.seed), settings, ctx.scratch, ctx.progress
        )
        progress = run.run()
        simulated.end()
        (ctx.out / "model").mkdir()
        loader, assets = torch_model.save_module(pupil, model, ctx.out / "model")
        written = Written(
            format=Format.TORCH,
            entry=model.entry,
            inputs=model.inputs,
            outputs=model.outputs,
            assets=assets,
            facts={**model.facts, "loader": loader},
        )
        return self._outcome(written, progress, before, near.metric, batches.rows, simulated, run.per_epoch)

    def _tables(self, ctx: Context) -> tuple[Table, Table]:
        """Rows to train on and rows to choose by."""
        table = ctx.table("training")
        if self.held_out is None:
            return table, ctx.table("dev")
        if self.held_out >= len(table):
            raise StepError(f"held_out is {self.held_out}, and data.training has {len(table)} rows")
        return table.split(self.held_out, ctx.seed, ctx.task.fed(table))

    def _settings(self, ctx: Context) -> Settings:
        names = ("epochs", "learning_rate", "warm_up", "weight_decay", "clip_norm", "accumulate", "max_minutes", "patience", "evaluations")
        return Settings(**{name: getattr(self, name) for name in names}, seed=ctx.seed, bf16=self.precision == "bf16")

    def _outcome(
        self,
        written: Written,
        progress: Progress,
        before: float,
        metric: str,
        rows: int,
        simulated: _simulate.Simulated,
        per_epoch: int,
    ) -> Outcome:
        assert progress.best is not None, "a training ends with an evaluation"
        after = -progress.best
        text = (
            f"{len(simulated.layers)} layers simulated in {self.simulate}, trained on {rows:,} rows {progress.ended}"
            f" ({progress.seconds / 60:.1f} minutes); as if quantized, {metric} to the float model on the dev rows {before:.4g} before,"
            f" {after:.4g} after"
        )
        notes = [Note(text=text)]
        if after >= before:
            notes.append(Note(text="the training brought nothing on the dev rows; leave this step out", level=Level.WARNING))
        if simulated.left:
            left = f"{len(simulated.left)} linear layers trained in float, their inputs no multiple of {self.block_size}"
            notes.append(Note(text=f"{left}: {simulated.left[0]}", level=Level.WARNING))
        if "not a number" in progress.ended:
            notes.append(Note(text=progress.ended, level=Level.WARNING))
        return Outcome(
            written=written,
            metrics={
                f"dev_{metric}": after,
                f"dev_{metric}_before": before,
                "layers_simulated": float(len(simulated.layers)),
                "training_s": round(progress.seconds, 1),
                "steps": float(progress.step),
            },
            charts=charts("Quantization-aware training", progress, metric, per_epoch, lower_is_better=True),
            curves=curves(progress, metric, lower_is_better=True),
            notes=tuple(notes),
            facts={"precision": self.precision, "simulated": self.simulate, "ended": progress.ended, "best_step": progress.best_step},
        )


def _settle(pupil: torch.nn.Module, batches: Batches) -> None:
    """Ranges from some batches of all lengths, without training on them."""
    import torch

    pupil.train()
    with torch.no_grad():
        for index in range(0, len(batches), max(1, len(batches) // SETTLED_ON)):
            pupil(**batches[index])
    pupil.eval()
