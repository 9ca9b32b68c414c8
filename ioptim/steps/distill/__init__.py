"""Trains a smaller model to answer like the one that arrives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from ioptim.core.artifact import Format, ModelArtifact
from ioptim.core.base import Frozen
from ioptim.core.step import ChartFigure, Context, Level, Note, Outcome, Series, Step, Where, Written
from ioptim.errors import StepError
from ioptim.shrink import cut, sizes, spread
from ioptim.steps.distill import losses
from ioptim.steps.distill.rows import Rows, split
from ioptim.training import Progress, Settings, Training

if TYPE_CHECKING:
    import torch

    from ioptim.core.task import Table

DEV_BATCH = 64
BF16_FLAGS = ("avx512_bf16", "amx_bf16")
"""Instruction sets with which bfloat16 products are faster than float32 ones."""


class Student(Frozen):
    """The student, made from its teacher's own layers."""

    layers: int | tuple[int, ...] | None = Field(
        None, description="how many of the teacher's layers to start from (evenly chosen), or which, counted from 0; all when left out"
    )
    feed_forward: int | None = Field(None, ge=8, description="neurons of each feed-forward, the teacher's strongest; all when left out")

    @model_validator(mode="after")
    def _smaller(self) -> Self:
        if self.layers is None and self.feed_forward is None:
            raise ValueError("a student names `layers`, `feed_forward` or both; as it stands it is its teacher")
        count = self.layers if isinstance(self.layers, int) else len(self.layers) if self.layers is not None else 1
        if count < 1:
            raise ValueError("a student needs at least one layer")
        return self

    def chosen(self, total: int) -> tuple[int, ...]:
        """The teacher's layers to start from."""
        if self.layers is None:
            return tuple(range(total))
        if isinstance(self.layers, int):
            if self.layers > total:
                raise StepError(f"student.layers is {self.layers}; the teacher has {total}: a student cannot be larger")
            return spread(self.layers, total)
        return self.layers


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


BY_OUTPUT: Mapping[str, Losses] = {
    "logits": Losses(logits=1.0, hidden=1.0),
    "last_hidden_state": Losses(embedding=1.0, hidden=1.0),
}
"""The losses when the recipe names none, by what the task reads."""


class Distill(Step):
    """Train a student, cut out of the teacher that arrives, until it answers like it.

    The student starts from the teacher's own weights: some of its layers and, in each, the strongest neurons of the feed-forward. It
    is trained on `data.training` (AdamW, linear warm-up, cosine decay, clipping; batches of rows of like length); the best state on
    `data.dev` is kept. Rows of `data.validation` are never seen. With bfloat16 the products run in it, weights stay float32.

    The training leaves its state beside the store twice a minute: a run that was killed goes on from there.

    Raises:
        StepError: not a transformers encoder; a student larger than its teacher; labels missing for the loss on labels; a loss that is
            not a number before anything was worth keeping.
    """

    step: Literal["distill"] = "distill"
    accepts: ClassVar[frozenset[Format]] = frozenset({Format.TORCH})
    libraries: ClassVar[tuple[str, ...]] = ("torch", "transformers", "safetensors", "numpy")
    uses_data: ClassVar[tuple[str, ...]] = ("training", "dev")

    student: Student = Field(description="what the student has of its teacher")
    losses: Losses | None = Field(None, description="weights of the losses; the task's answer and the hidden states, 1 each, when left out")
    temperature: float = Field(2.0, gt=0, description="of the loss on answers: above 1 the wrong classes count more")
    epochs: int = Field(3, ge=1, description="passes over the training rows, at most")
    max_minutes: float | None = Field(None, gt=0, description="training time after which it ends, attempts before a kill counted")
    batch_size: int = Field(32, ge=1, description="rows per batch")
    accumulate: int = Field(1, ge=1, description="batches whose gradients are added before each update")
    learning_rate: float = Field(1e-4, gt=0, description="of AdamW, at its highest")
    warm_up: float = Field(0.06, ge=0, lt=1, description="share of the training over which the learning rate rises")
    weight_decay: float = Field(0.01, ge=0, description="of AdamW, on matrices only")
    clip_norm: float = Field(1.0, gt=0, description="largest norm of all gradients together")
    evaluations: int = Field(4, ge=1, description="looks at the dev rows per epoch")
    patience: int = Field(6, ge=1, description="looks without a better quality after which it ends")
    held_out: int | None = Field(None, ge=1, description="training rows to choose by, in place of data.dev; not trained on")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="of products in training; auto is bf16 where the CPU has it")
    sequence: int = Field(128, ge=8, description="tokens that training texts are cut at")

    def data_roles(self) -> tuple[str, ...]:
        return ("training",) if self.held_out else self.uses_data

    def resolve(self, where: Where) -> Self:
        flags = getattr(where.hardware, "cpu_flags", ())
        chosen = self.losses or BY_OUTPUT.get(where.task.output)
        precision = self.precision
        if precision == "auto":
            precision = "bf16" if any(flag in flags for flag in BF16_FLAGS) else "fp32"
        return self.model_copy(update={"losses": chosen, "precision": precision})

    def check(self, where: Where) -> list[str]:
        objections = []
        if not hasattr(where.task, "max_length"):
            objections.append(f"distill trains encoders of text; the task is {where.task.task}")
            return objections
        chosen = self.losses or BY_OUTPUT.get(where.task.output)
        if chosen is None:
            objections.append(f"distill knows no default losses for the task {where.task.task}; name them with `losses`")
        elif where.task.output == "logits" and chosen.embedding:
            text = "the loss on embedding is for sentence vectors"
            objections.append(f"{text}; for {where.task.task} use logits, hidden, attention or labels")
        elif where.task.output != "logits" and (chosen.logits or chosen.labels):
            objections.append(f"losses on logits and labels are for classifiers; for {where.task.task} use embedding, hidden or attention")
        return objections

    def run(self, model: ModelArtifact, ctx: Context) -> Outcome:
        import torch

        from ioptim import torch_model

        torch.set_num_threads(ctx.hardware.threads)
        torch.manual_seed(ctx.seed)
        weights = self.losses
        assert weights is not None, "resolved by the plan"
        ctx.progress(0.0, "loading the teacher")
        teacher: Any = torch_model.load_module(model, attention="eager" if weights.attention else None)
        if not hasattr(getattr(teacher, "config", None), "num_hidden_layers"):
            raise StepError(f"distill needs a transformers encoder; {type(teacher).__name__} has no config with num_hidden_layers")
        layers = self.student.chosen(teacher.config.num_hidden_layers)
        pupil = cut(teacher, layers, self.student.feed_forward)
        table, chosen_by = self._tables(ctx)
        training = Rows.of(table, model, ctx.task, self.batch_size, self.sequence, labels=bool(weights.labels))
        dev = Rows.of(chosen_by, model, ctx.task, DEV_BATCH, self.sequence, labels=False)
        objective = _Objective(teacher, pupil, weights, self.temperature, getattr(ctx.task, "pooling", "mean"))
        judge = dev.quality(ctx.task, model, pupil, teacher)
        before = judge()
        run = Training(
            pupil,
            training.batches,
            objective,
            judge,
            training.order(ctx.seed),
            self._settings(ctx),
            ctx.scratch,
            ctx.progress,
            extra=[objective.projections],
        )
        progress = run.run()
        return self._outcome(model, teacher, pupil, layers, progress, before, judge.metric, (training, dev), ctx)

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
        return split(table, self.held_out, ctx.seed)

    def _settings(self, ctx: Context) -> Settings:
        names = ("epochs", "learning_rate", "warm_up", "weight_decay", "clip_norm", "accumulate", "max_minutes", "patience", "evaluations")
        return Settings(**{name: getattr(self, name) for name in names}, seed=ctx.seed, bf16=self.precision == "bf16")

    def _outcome(
        self,
        model: ModelArtifact,
        teacher: Any,
        pupil: Any,
        layers: Sequence[int],
        progress: Progress,
        before: float,
        metric: str,
        rows: tuple[Rows, Rows],
        ctx: Context,
    ) -> Outcome:
        from ioptim import torch_model

        assert progress.best is not None, "a training ends with an evaluation"
        parameters, teachers = (sizes(module)["parameters"] for module in (pupil, teacher))
        notes = [
            Note(text=f"the student has the teacher's layers {', '.join(map(str, layers))}: {parameters:,} of {teachers:,} parameters"),
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
        torch_model.save_checkpoint(pupil, ctx.out / "model", model.entry)
        return Outcome(
            written=Written(
                format=Format.TORCH,
                entry=model.entry,
                inputs=model.inputs,
                outputs=model.outputs,
                assets=("config.json",),
                facts={**model.facts, "parameters": parameters},
            ),
            metrics={
                **{name: float(value) for name, value in sizes(pupil).items()},
                "parameters_ratio": parameters / teachers,
                f"dev_{metric}": progress.best,
                f"dev_{metric}_before": before,
                "training_s": round(progress.seconds, 1),
                "steps": float(progress.step),
            },
            charts=_curves(progress, metric),
            notes=tuple(notes),
            facts={"precision": self.precision, "teacher_layers": list(layers), "ended": progress.ended, "best_step": progress.best_step},
        )


class _Objective:
    """The weighted sum of the losses on one batch. The teacher answers in the same pass, without gradients."""

    def __init__(self, teacher: Any, pupil: Any, weights: Losses, temperature: float, pooling: str) -> None:
        import torch

        self.pooling = pooling
        if weights.attention:  # transformers returns the maps after their dropout
            for name, part in pupil.named_modules():
                if isinstance(part, torch.nn.Dropout) and "attention" in name:
                    part.p = 0.0
        self.teacher, self.pupil, self.weights, self.temperature = teacher.eval(), pupil, weights, temperature
        self.matched = losses.matched(pupil.config.num_hidden_layers, teacher.config.num_hidden_layers)
        widths = pupil.config.hidden_size, teacher.config.hidden_size
        alike = widths[0] == widths[1]
        self.projections = torch.nn.ModuleList(torch.nn.Identity() if alike else torch.nn.Linear(*widths) for _ in self.matched)

    def __call__(self, batch: tuple[Mapping[str, torch.Tensor], torch.Tensor | None]) -> torch.Tensor:
        import torch

        feeds, labels = batch
        weights, mask = self.weights, feeds.get("attention_mask")
        wanted = {"output_hidden_states": bool(weights.hidden), "output_attentions": bool(weights.attention)}
        with torch.no_grad():
            theirs = self.teacher(**feeds, **wanted)
        mine = self.pupil(**feeds, **wanted)
        if mask is None:
            mask = torch.ones(next(iter(feeds.values())).shape[:2])
        total = torch.zeros(())
        if weights.logits:
            total = total + weights.logits * losses.logits(mine.logits.float(), theirs.logits.float(), self.temperature)
        if weights.embedding:
            states = mine.last_hidden_state.float(), theirs.last_hidden_state.float()
            total = total + weights.embedding * losses.embedding(*states, mask, self.pooling)
        if weights.hidden:
            pairs = mine.hidden_states[1:], [theirs.hidden_states[i + 1] for i in self.matched]
            total = total + weights.hidden * losses.hidden(*pairs, mask, list(self.projections))
        if weights.attention:
            maps = mine.attentions, [theirs.attentions[i] for i in self.matched]
            total = total + weights.attention * losses.attention(*maps, mask)
        if weights.labels:
            assert labels is not None
            total = total + weights.labels * torch.nn.functional.cross_entropy(mine.logits.float(), labels)
        return total


def _curves(progress: Progress, metric: str) -> tuple[ChartFigure, ...]:
    x = tuple(point.epoch for point in progress.points)
    charts = []
    for label, values in (("loss", [p.loss for p in progress.points]), (metric, [p.quality for p in progress.points])):
        series = (Series(name="training rows" if label == "loss" else "dev rows", x=x, y=tuple(values), line=True),)
        charts.append(ChartFigure(title=f"Distillation: {label}", kind="points", x_label="epoch", y_label=label, series=series))
    return tuple(charts)
