"""Trains a smaller model to answer like a larger one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from ioptim.core.artifact import Format, ModelArtifact
from ioptim.core.base import Frozen
from ioptim.core.outline import Outline
from ioptim.core.source import ModelSpec
from ioptim.core.step import Context, Level, Note, Outcome, Step, Where
from ioptim.errors import StepError
from ioptim.shrink import sizes
from ioptim.steps._curves import charts, curves
from ioptim.steps.distill.objective import Objective
from ioptim.steps.distill.processes import is_first, several
from ioptim.steps.distill.rows import Rows
from ioptim.steps.distill.student import Pair, Student
from ioptim.training import BF16_FLAGS, Progress, Settings, Training

if TYPE_CHECKING:
    from ioptim.core.task import Table, Task

DEV_BATCH = 64


class Losses(Frozen):
    """Weights of what the student is asked for; 0 leaves it out."""

    logits: float = Field(0.0, ge=0, description="answers: KL divergence to the teacher's, softened by `temperature`")
    embedding: float = Field(0.0, ge=0, description="sentence vectors: 1 - cosine to the teacher's")
    hidden: float = Field(0.0, ge=0, description="tokens' vectors after matched layers: mean squared distance")
    attention: float = Field(0.0, ge=0, description="attention maps of matched layers: KL divergence")
    labels: float = Field(0.0, ge=0, description="the rows' own labels: cross entropy; needs a column `label`")

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not any(self.model_dump().values()):
            raise ValueError(f"every loss has the weight 0; give one of {', '.join(type(self).model_fields)} a weight")
        return self


def default_losses(task: Any) -> Losses | None:
    """When the recipe names none: by what the task reads, and whether it reads text, whose encoders have layers to compare."""
    layers = 1.0 if hasattr(task, "max_length") else 0.0
    if task.output == "logits":
        return Losses(logits=1.0, hidden=layers)
    return Losses(embedding=1.0, hidden=layers) if task.output == "last_hidden_state" else None


class Distill(Step):
    """Train a student until it answers like its teacher.

    Without `teacher` the model that arrives is the teacher, and `student` says what is cut out of it, or which checkpoint or factory of the
    user's learns from it. With `teacher`, the id of an earlier step, that step's model teaches the one that arrives: it recovers what
    pruning has cost.

    It is trained on `data.training` (AdamW, linear warm-up, cosine decay, clipping; batches of rows of like length); the best state on
    `data.dev` is kept. Rows of `data.validation` are never seen. With bfloat16 the products run in it, weights stay float32.

    The training leaves its state beside the store twice a minute: a run that was killed goes on from there. With several `processes` each
    has a device of its own and part of every update's rows.

    Raises:
        StepError: a student that is larger than its teacher, has other classes or reads other tokens; layers that cannot be cut or
            compared; labels missing for the loss on labels; a loss that is not a number before anything was worth keeping.
    """

    step: Literal["distill"] = "distill"
    accepts: ClassVar[frozenset[Format]] = frozenset({Format.TORCH})
    libraries: ClassVar[tuple[str, ...]] = ("torch", "accelerate", "safetensors", "numpy")
    uses_data: ClassVar[tuple[str, ...]] = ("training", "dev")
    not_in_key: ClassVar[frozenset[str]] = Step.not_in_key | {"teacher"}

    teacher: str | None = Field(
        None, description="id of an earlier step (`source` is the model as given) whose model teaches the one that arrives"
    )
    student: Student | None = Field(None, description="what the student has of the arriving model, or which other it is")
    losses: Losses | None = Field(None, description="weights of the losses; the task's answer and the hidden states, 1 each, when left out")
    compared_layers: tuple[int, ...] | None = Field(
        None, description="the teacher's layer that each of the student's is compared with (hidden, attention); evenly when left out"
    )
    temperature: float = Field(2.0, gt=0, description="of the loss on answers: above 1 the wrong classes count more")
    epochs: int = Field(3, ge=1, description="passes over the training rows, at most")
    max_minutes: float | None = Field(None, gt=0, description="training time after which it ends, attempts before a kill counted")
    batch_size: int = Field(32, ge=1, description="rows per batch, of each process")
    accumulate: int = Field(1, ge=1, description="batches whose gradients are added before each update")
    learning_rate: float = Field(1e-4, gt=0, description="of AdamW, at its highest")
    warm_up: float = Field(0.06, ge=0, lt=1, description="share of the training over which the learning rate rises")
    weight_decay: float = Field(0.01, ge=0, description="of AdamW, on matrices only")
    clip_norm: float = Field(1.0, gt=0, description="largest norm of all gradients together")
    evaluations: int = Field(4, ge=1, description="looks at the dev rows per epoch")
    patience: int = Field(6, ge=1, description="looks without a better quality after which it ends")
    dropout: float | None = Field(None, ge=0, lt=1, description="of the student while it learns; what its configuration says when left out")
    held_out: int | None = Field(None, ge=1, description="training rows to choose by, in place of data.dev; not trained on")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="of products in training; auto is bf16 where the device has it")
    sequence: int = Field(128, ge=8, description="tokens that training texts are cut at")
    device: Literal["auto", "cpu", "gpu"] = Field("auto", description="where it is trained; auto is the GPU where there is one")
    processes: int | None = Field(None, ge=1, description="one for each GPU when left out, on the CPU one")

    @model_validator(mode="after")
    def _somebody_learns(self) -> Self:
        if self.student is None and self.teacher is None:
            text = "name a `student` (what is cut out of the arriving model, or a checkpoint)"
            raise ValueError(f"{text}, or the `teacher` of the arriving model")
        if self.student is not None and self.student.checkpoint is not None and self.teacher is not None:
            text = "the arriving model would be neither student nor teacher; leave `teacher` out"
            raise ValueError(f"{text} and let this step follow {self.teacher} (`after: [{self.teacher}]`)")
        return self

    def reads(self) -> Mapping[str, str]:
        return {"teacher": self.teacher} if self.teacher is not None else {}

    def brings(self) -> Mapping[str, ModelSpec]:
        source = self.student.source if self.student is not None else None
        return {"student": source} if source is not None else {}

    def outline(self, arriving: Outline | None, others: Mapping[str, Outline | None]) -> Outline | None:
        if self.student is None:
            student = arriving
        elif self.student.checkpoint is not None:
            student = others.get("student")
        elif arriving is not None and arriving.layers:
            student = arriving.cut(self.student.chosen(arriving.layers), self.student.feed_forward)
        else:
            student = None
        teacher = others.get("teacher", arriving)
        if student is not None and teacher is not None and not student.at_most and student.parameters > teacher.parameters:
            text = f"the student has {student.parameters:,} parameters and its teacher {teacher.parameters:,}"
            raise StepError(f"{text}: a student cannot be larger")
        return student

    def data_roles(self) -> tuple[str, ...]:
        return ("training",) if self.held_out else self.uses_data

    def resolve(self, where: Where) -> Self:
        gpus = getattr(where.hardware, "gpus", ())
        device = ("gpu" if gpus else "cpu") if self.device == "auto" else self.device
        processes = self.processes or (max(1, len(gpus)) if device == "gpu" else 1)
        precision = self.precision
        if precision == "auto":
            flags = getattr(where.hardware, "cpu_flags", ())
            able = all(_has_bf16(gpu) for gpu in gpus) if device == "gpu" else any(flag in flags for flag in BF16_FLAGS)
            precision = "bf16" if able else "fp32"
        chosen = self.losses or default_losses(where.task)
        return self.model_copy(update={"losses": chosen, "precision": precision, "device": device, "processes": processes})

    def check(self, where: Where) -> list[str]:
        objections = []
        chosen, task = self.losses or default_losses(where.task), where.task
        gpus = len(getattr(where.hardware, "gpus", ()))
        if self.device == "gpu" and (self.processes or 1) > gpus:
            text = f"device: gpu needs {self.processes or 1} of them, and this machine has {gpus or 'none'}"
            objections.append(f"{text}; use `device: cpu` or `auto`")
        if chosen is None:
            return [*objections, f"distill knows no default losses for the task {task.task}; name them with `losses`"]
        if self.compared_layers is not None and not (chosen.hidden or chosen.attention):
            objections.append("compared_layers is for the losses hidden and attention, which have no weight here; leave it out")
        if not hasattr(task, "max_length") and (chosen.hidden or chosen.attention):
            text = "the losses on hidden states and attention compare the layers of encoders of text"
            objections.append(f"{text}; for {task.task} use logits or labels")
        elif task.output == "logits" and chosen.embedding:
            text = "the loss on embedding is for sentence vectors"
            objections.append(f"{text}; for {task.task} use logits, hidden, attention or labels")
        elif task.output != "logits" and (chosen.logits or chosen.labels):
            objections.append(f"losses on logits and labels are for classifiers; for {task.task} use embedding, hidden or attention")
        return objections

    def check_training(self, table: Table, task: Task) -> list[str]:
        """The loss on labels needs some; as many rows held out as there are leave nothing to train on."""
        objections = []
        if self.losses is not None and self.losses.labels and "label" not in table.columns:
            text = f"losses.labels needs a column 'label'; {table.origin} has {', '.join(table.columns)}"
            objections.append(f"{text}. Map one with `columns: {{label: <its name>}}`, or leave the loss out")
        if self.held_out is not None and self.held_out >= len(table):
            objections.append(f"held_out is {self.held_out}, and data.training has {len(table)} rows")
        return objections

    def run(self, model: ModelArtifact, ctx: Context) -> Outcome:
        with several(self.processes or 1, self.device != "gpu", ctx):
            return self._train(model, ctx)

    def _train(self, model: ModelArtifact, ctx: Context) -> Outcome:
        import torch

        torch.set_num_threads(max(1, ctx.hardware.threads // (self.processes or 1)))
        torch.manual_seed(ctx.seed)
        weights = self.losses
        assert weights is not None, "resolved by the plan"
        ctx.progress(0.0, "loading teacher and student")
        # In bfloat16 on a CPU torch's fused attention is slow on the way back: 1.3 to 1.6 times the step (benchmarks/attention.py).
        spelt_out = weights.attention or (self.device != "gpu" and self.precision == "bf16")
        pair = Pair.of(self.student, self.teacher, model, ctx, "eager" if spelt_out else None)
        table, chosen_by = self._tables(ctx)
        pair.check_tokens(table, ctx.task)
        training = Rows.of(table, pair, ctx.task, self.batch_size, self.sequence, ctx.seed, labels=bool(weights.labels))
        dev = Rows.of(chosen_by, pair, ctx.task, DEV_BATCH, self.sequence, ctx.seed, labels=False)
        first = is_first()
        objective = Objective(
            pair,
            weights,
            self.temperature,
            ctx.task,
            training,
            ctx.scratch / "teacher",
            dropout=self.dropout,
            compared=self.compared_layers,
            writes=first,
        )
        judge = dev.quality(ctx.task, pair)
        run = Training(
            pair.student.module,
            training.batches,
            objective,
            judge,
            training.order(ctx.seed),
            self._settings(ctx),
            ctx.scratch,
            ctx.progress,
            extra=[objective.projections],
            still=[pair.teacher.module],
        )
        before = judge()
        progress = run.run()
        return self._outcome(pair, progress, before, judge.metric, (training, dev), run, ctx) if first else Outcome()

    def _tables(self, ctx: Context) -> tuple[Table, Table]:
        """Rows to train on and rows to choose by.

        Raises:
            StepError: as many are held out as there are.
        """
        table = ctx.table("training")
        if self.held_out is None:
            return table, ctx.table("dev")
        if self.held_out >= len(table):
            raise StepError(f"held_out is {self.held_out}, and data.training has {len(table)} rows")
        return table.split(self.held_out, ctx.seed, ctx.task.fed(table))

    def _settings(self, ctx: Context) -> Settings:
        names = ("epochs", "learning_rate", "warm_up", "weight_decay", "clip_norm", "accumulate", "max_minutes", "patience", "evaluations")
        given = {name: getattr(self, name) for name in names}
        return Settings(**given, seed=ctx.seed, bf16=self.precision == "bf16", cpu=self.device != "gpu")

    def _outcome(
        self, pair: Pair, progress: Progress, before: float, metric: str, rows: tuple[Rows, Rows], run: Training, ctx: Context
    ) -> Outcome:
        assert progress.best is not None, "a training ends with an evaluation"
        notes = [
            *pair.notes(),
            Note(
                text=f"trained on {rows[0].count:,} rows {progress.ended} ({progress.seconds / 60:.1f} minutes); {metric} on the dev rows"
                f" {before:.4f} before, {progress.best:.4f} at best"
            ),
        ]
        if progress.attempts > 1:
            notes.append(Note(text=f"ended and gone on {progress.attempts - 1} times; the time counts all attempts"))
        if "not a number" in progress.ended:
            notes.append(Note(text=progress.ended, level=Level.WARNING))
        (ctx.out / "model").mkdir()
        student = pair.student
        measured = sizes(student.module) if student.is_encoder else {"parameters": student.parameters}
        return Outcome(
            written=pair.write(ctx.out / "model"),
            metrics={
                **{name: float(value) for name, value in measured.items()},
                "parameters_ratio": student.parameters / pair.teacher.parameters,
                f"dev_{metric}": progress.best,
                f"dev_{metric}_before": before,
                "training_s": round(progress.seconds, 1),
                "steps": float(progress.step),
            },
            charts=charts("Distillation", progress, metric, run.per_epoch),
            curves=curves(progress, metric),
            notes=tuple(notes),
            facts={
                "precision": self.precision,
                "device": str(run.place.device),
                "processes": run.place.num_processes,
                "ended": progress.ended,
                "best_step": progress.best_step,
            }
            | ({"teacher_layers": list(pair.layers)} if pair.layers is not None else {}),
        )


def _has_bf16(gpu: Mapping[str, Any]) -> bool:
    """Products in bfloat16 came with compute capability 8.0."""
    return int(str(gpu.get("compute_capability") or 0).partition(".")[0]) >= 8
