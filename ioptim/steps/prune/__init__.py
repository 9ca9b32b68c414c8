"""Takes parts out of a model, so that what is left is smaller in shape and faster on every runtime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from ioptim.core.artifact import Format, ModelArtifact
from ioptim.core.base import Frozen
from ioptim.core.outline import Outline
from ioptim.core.step import Context, Level, Note, Outcome, Step, TableFigure, Where, Written
from ioptim.errors import StepError
from ioptim.shrink import cut, feed_forwards, layer_influence, sizes, width_name
from ioptim.steps.prune import channels, heads, sparsity
from ioptim.steps.prune.channels import Channels
from ioptim.steps.prune.importance import Importance, Rows, measure, reduced, share
from ioptim.steps.prune.sparsity import Sparsity
from ioptim.steps.prune.vocabulary import trim
from ioptim.steps.prune.work import Work, layers_table, parameters, work

MEASURED_ROWS = 256
"""Training rows that importance is measured on."""
ENCODERS = ("vocabulary", "feed_forward", "layers", "heads")
"""Fields that need a transformers encoder."""
PARTS = (*ENCODERS, "channels", "sparsity")


class Heads(Frozen):
    """How many attention heads stay."""

    keep: int = Field(ge=1, description="heads to keep in each layer")
    scope: Literal["layer", "global"] = Field(
        "layer", description="as many in each layer, or that many on average: more where they matter more, one at least"
    )


class Prune(Step):
    """Remove channels of convolutions, or attention heads, feed-forward neurons, layers or words of a transformers encoder.

    What goes is gone from the shapes, so that every runtime gains; `sparsity`, which sets weights to zero, is the exception and makes
    nothing faster. What stays is what matters most by `importance` on `data.training`. After each cut of channels or heads the model
    is run beside the whole one with these parts silenced, and must answer the same.

    `vocabulary` drops the word pieces that never occur in `data.training` and builds the tokenizer anew. Texts made of what is left get
    the very same answers, which is checked; a piece that is gone falls apart into smaller ones. It shrinks the file, not the time.

    Everything but `vocabulary` changes the answers, and nothing is trained here: `distill` does that.

    Layers, neurons and words leave a checkpoint that transformers alone opens. Channels and heads leave widths that no configuration
    can say: they are in the artifact's `shapes.json`, and `ioptim.torch_model.load_module` opens it.

    Raises:
        StepError: not a module that the field is for; more parts to keep than there are; a layer left empty; a module that cannot be
            traced; nothing that would go; another tokenizer than WordPiece; outputs that changed although only words went.
    """

    step: Literal["prune"] = "prune"
    accepts: ClassVar[frozenset[Format]] = frozenset({Format.TORCH})
    libraries: ClassVar[tuple[str, ...]] = ("torch", "safetensors", "numpy")
    uses_data: ClassVar[tuple[str, ...]] = ("training",)

    channels: Channels | None = Field(None, description="channels of convolutions and features of linear layers to remove, in any module")
    heads: int | Heads | None = Field(None, description="attention heads to keep in each layer; all when left out")
    feed_forward: int | None = Field(None, ge=8, description="neurons to keep in each feed-forward; all when left out")
    layers: int | None = Field(None, ge=1, description="layers to keep, those that change their input most; all when left out")
    vocabulary: bool = Field(False, description="drop the word pieces that occur less than `min_count` times in data.training")
    min_count: int = Field(1, ge=1, description="occurrences that a word piece needs to stay; single characters always stay")
    sparsity: Sparsity | None = Field(None, description="weights to set to zero one by one; the shapes stay, nothing gets faster")
    importance: Importance = Field(
        Importance.ACTIVATION, description="how channels, heads, neurons and weights are chosen, on the first rows of data.training"
    )

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self._asked(PARTS):
            raise ValueError(f"nothing is pruned: give one of {', '.join(f'`{name}`' for name in PARTS)}")
        if not self.vocabulary and self.min_count != 1:
            raise ValueError("`min_count` is of the vocabulary, which is not trimmed: give `vocabulary: true` or leave it out")
        if isinstance(self.heads, int) and self.heads < 1:
            raise ValueError("`heads` is how many stay in each layer; one at least must")
        if self.sparsity is not None and self.importance is Importance.TAYLOR:
            raise ValueError("`importance: taylor` is of channels, heads and neurons; for `sparsity` use activation or magnitude")
        if self.channels is not None and (wrong := self.channels.wrong()):
            raise ValueError(f"channels: {'; '.join(wrong)}")
        return self

    def _asked(self, names: tuple[str, ...]) -> list[str]:
        """Those of these fields that the recipe gave."""
        return [name for name in names if getattr(self, name) is not None and getattr(self, name) is not False]

    def resolve(self, where: Where) -> Self:
        """`round_to` of the channels: what the vectors of the narrowest target hold."""
        if self.channels is None or self.channels.round_to is not None:
            return self
        flags = getattr(where.hardware, "cpu_flags", ())
        widths = [channels.vector_width(flags, target.device != "cpu") for target in where.targets]
        return self.model_copy(update={"channels": self.channels.model_copy(update={"round_to": max(widths, default=8)})})

    def check(self, where: Where) -> list[str]:
        objections = []
        asked = self._asked(ENCODERS)
        if asked and not where.task.auto_class:
            objections.append(f"{', '.join(asked)} are of transformers encoders; the task {where.task.task} has none")
        if self.vocabulary and not hasattr(where.task, "max_length"):
            objections.append(f"vocabulary is of models that read text; the task is {where.task.task}")
        return objections

    def outline(self, arriving: Outline | None, others: Mapping[str, Outline | None]) -> Outline | None:
        """Which layers and neurons go is measured; how many is known. How many heads or channels stay only the rows tell.

        So they do for words, but a word that is looked up multiplies nothing: without it there are fewer parameters, of equal work.
        """
        if arriving is None or self.heads or self.channels or not (arriving.layers or self.sparsity):
            return None
        if self.layers is not None or self.feed_forward is not None:
            arriving = arriving.cut(range(min(self.layers or arriving.layers, arriving.layers)), self.feed_forward)
        return replace(arriving, at_most=True) if self.vocabulary else arriving

    def library_names(self, where: Where) -> tuple[str, ...]:
        more = (("transformers", "tokenizers") if self._asked(ENCODERS) else ()) + (("torch-pruning",) if self.channels is not None else ())
        return (*self.libraries, *more)

    def run(self, model: ModelArtifact, ctx: Context) -> Outcome:
        import torch

        from ioptim import torch_model, torch_shapes

        torch.manual_seed(ctx.seed)
        ctx.progress(0.0, "loading the model")
        module: Any = torch_model.load_module(model)
        self._require_encoder(module, model)
        rows = Rows.of(ctx, model, MEASURED_ROWS, self.importance)
        done = _Done(module, work(module, rows.feeds))
        self._cut_layers(done, rows)
        built = torch_shapes.numbers(done.module)
        for progress, part in ((0.2, self._cut_heads), (0.4, self._cut_channels), (0.6, self._zero)):
            ctx.progress(progress, "measuring what matters")
            part(done, rows)
        after = work(done.module, rows.feeds)
        folder = ctx.out / "model"
        folder.mkdir()
        if self.vocabulary:
            ctx.progress(0.8, "trimming the vocabulary")
            self._trim(done, model, ctx, folder)
            after = replace(after, parameters=parameters(done.module))  # a row's ids are others now, its work is the same
        changed = torch_shapes.difference(built, torch_shapes.numbers(done.module))
        loader, written = torch_model.save_module(done.module, model, folder, changed if self.heads or self.channels else None)
        return self._outcome(model, done, after, loader, (*written, *done.assets))

    def _require_encoder(self, module: Any, model: ModelArtifact) -> None:
        asked = self._asked(ENCODERS)
        if asked and not hasattr(getattr(module, "config", None), "num_hidden_layers"):
            text = f"{type(module).__name__} has no config with num_hidden_layers; for convolutions and plain modules use channels"
            raise StepError(f"{', '.join(asked)}: prune needs a transformers encoder; {text}")
        if "shapes" in model.facts["loader"] and (self.layers is not None or self.feed_forward is not None):
            text = "heads or channels were removed from this model, so its configuration no longer tells how it is built"
            raise StepError(f"{text}; remove layers and feed_forward before them, or in the same step")

    def _cut_layers(self, done: _Done, rows: Rows) -> None:
        """Whole layers, then neurons of what is left: importance is of the model that stays."""
        if self.layers is not None:
            total = done.module.config.num_hidden_layers
            if self.layers >= total:
                raise StepError(f"layers is {self.layers}; the model has {total}, so none would go")
            influence = layer_influence(done.module, rows.feeds)
            kept = sorted(sorted(range(total), key=lambda i: -influence[i])[: self.layers])
            gone = ", ".join(f"{i} ({influence[i]:.3f})" for i in range(total) if i not in kept)
            done.module = cut(done.module, kept, None)
            done.notes.append(Note(text=f"layers removed, with their influence (1 - cosine of output and input): {gone}"))
        if self.feed_forward is not None:
            values = self._neurons(done.module, rows)
            width = getattr(done.module.config, width_name(done.module.config))
            done.module = cut(done.module, range(done.module.config.num_hidden_layers), self.feed_forward, values)
            for layer in range(done.module.config.num_hidden_layers):
                value = values[layer] if values is not None else None
                stays = share(value, value.topk(self.feed_forward).indices) if value is not None else None
                done.removed.append((f"feed-forward of layer {layer}", "neurons", width, self.feed_forward, stays))

    def _neurons(self, module: Any, rows: Rows) -> dict[int, Any] | None:
        """Importance of each feed-forward's neurons; None leaves it to `cut`, which goes by magnitude."""
        if self.importance is Importance.MAGNITUDE:
            return None
        measured = measure(self.importance, module, feed_forwards(module), rows)
        return {layer: reduced(self.importance, value) for layer, value in measured.items()}

    def _cut_heads(self, done: _Done, rows: Rows) -> None:
        if self.heads is None:
            return
        wanted = self.heads if isinstance(self.heads, Heads) else Heads(keep=self.heads)
        found = heads.attentions(done.module)
        values = heads.scores(found, self.importance, done.module, rows)
        kept = heads.chosen(found, values, wanted.keep, wanted.scope == "global", self._comparable)
        heads.cut(done.module, found, kept, rows.feeds[0])
        for one, value, stay in zip(found, values, kept, strict=True):
            done.removed.append((one.path, "heads", one.count, len(stay), share(value, stay)))

    def _cut_channels(self, done: _Done, rows: Rows) -> None:
        if self.channels is None:
            return
        graph = channels.Graph(done.module, rows.feeds[0], self.channels)
        values = graph.values(self.importance, rows)
        costs = graph.costs({name: each for name, (_, each) in done.work.by_layer.items()})
        gone = channels.chosen(graph.groups, values, self.channels, costs, self._comparable)
        graph.cut(gone)
        count, used = graph.recalibrate(rows.feeds) if self.channels.recalibrate else (0, 0)
        if count:
            done.notes.append(Note(text=f"channels: {count} batch normalizations were measured anew on {used} training rows"))
        for group in graph.groups:
            left = [i for i in range(group.width) if i not in set(gone.get(group.name, ()))]
            done.removed.append((" + ".join(group.layers), "channels", group.width, len(left), share(values[group.name], left)))
        if whole := [group.name for group in graph.groups if group.name not in gone]:
            text = f"channels: {len(whole)} of {len(graph.groups)} groups of layers stay whole (ratio and round_to): {', '.join(whole[:6])}"
            done.notes.append(Note(text=text))
        if unchecked := sum(group.normalized and group.name in gone for group in graph.groups):
            text = f"channels: {unchecked} groups have a normalization over channels, which shifts what stays"
            done.notes.append(Note(text=f"{text}; from the first of them on only shapes were checked"))

    @property
    def _comparable(self) -> bool:
        """Whether importance of two layers is in one unit: a change of the loss is."""
        return self.importance is Importance.TAYLOR

    def _zero(self, done: _Done, rows: Rows) -> None:
        if self.sparsity is None:
            return
        before = sparsity.compressed_size(done.module)
        zeroed, unfit = sparsity.sparsify(done.module, self.sparsity, self.importance, rows.feeds)
        if not zeroed:
            raise StepError(f"sparsity: no layer has inputs in runs of {self.sparsity.pattern}; nothing was set to zero")
        for layer in zeroed:
            done.removed.append((layer.name, "weights that are not zero", layer.weights - layer.before, layer.weights - layer.after, None))
        zeros = sum(layer.after for layer in zeroed) / sum(layer.weights for layer in zeroed)
        after = sparsity.compressed_size(done.module)
        done.metrics |= {"sparsity": zeros, "compressed_size_bytes": float(after), "compressed_size_ratio": after / before}
        text = f"sparsity: {zeros:.0%} of the weights of {len(zeroed)} layers are zero; the runtimes multiply by them as before"
        done.notes.append(Note(text=f"{text}, the file compresses to {after / before:.0%} of what it did", level=Level.WARNING))
        if unfit:
            text = f"sparsity: {len(unfit)} layers have inputs that {self.sparsity.pattern} does not divide and stay whole"
            done.notes.append(Note(text=f"{text}: {', '.join(unfit[:6])}"))

    def _trim(self, done: _Done, model: ModelArtifact, ctx: Context, folder: Path) -> None:
        examples = list(ctx.task.examples(ctx.table("training"), model))
        done.module, note, written = trim(done.module, model, examples, self.min_count, folder)
        done.notes.append(note)
        done.assets += written

    def _outcome(self, model: ModelArtifact, done: _Done, after: Work, loader: Mapping[str, Any], assets: tuple[str, ...]) -> Outcome:
        before = done.work
        if changed := [name for name in self._asked(PARTS) if name != "vocabulary"]:
            text = f"{', '.join(changed)}: the answers changed and nothing was trained yet"
            done.notes.append(Note(text=f"{text}; `distill` with `teacher: source` does it", level=Level.WARNING))
        return Outcome(
            written=Written(
                format=Format.TORCH,
                entry=model.entry,
                inputs=model.inputs,
                outputs=model.outputs,
                assets=assets,
                facts={**model.facts, "loader": loader, "parameters": after.parameters},
            ),
            metrics={
                "parameters": float(after.parameters),
                "multiply_adds": after.multiply_adds,
                **{name: float(value) for name, value in done.sizes.items()},
                "parameters_ratio": after.parameters / before.parameters,
                "multiply_adds_ratio": after.multiply_adds / before.multiply_adds,
                **done.metrics,
            },
            tables=done.tables(after),
            notes=tuple(done.notes),
            facts={"importance": self.importance.value, "rows": MEASURED_ROWS},
        )


@dataclass
class _Done:
    """The module as it becomes smaller, and what is to be said about it."""

    module: Any
    work: Work
    """Before anything was removed."""
    removed: list[tuple[str, str, int, int, float | None]] = field(default_factory=list)
    """Where, of what, how many there were and are, share of all importance that stays."""
    notes: list[Note] = field(default_factory=list)
    assets: list[str] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sizes_before = self.sizes

    @property
    def sizes(self) -> dict[str, int]:
        """Of an encoder: layers, neurons of a feed-forward, words."""
        if not hasattr(getattr(self.module, "config", None), "num_hidden_layers"):
            return {}
        return {name: value for name, value in sizes(self.module).items() if name != "parameters"}

    def tables(self, after: Work) -> tuple[TableFigure, ...]:
        before = self.work
        rows: list[tuple[str, int, int]] = [
            ("parameters", before.parameters, after.parameters),
            ("multiply-adds of a row", round(before.multiply_adds), round(after.multiply_adds)),
            *((name, value, self.sizes[name]) for name, value in self.sizes_before.items()),
        ]
        found = [TableFigure(title="What is left", columns=("of", "before", "after"), rows=tuple(rows))]
        if self.removed:
            columns = ("where", "of", "before", "after", "importance kept")
            found.append(TableFigure(title="What was removed", columns=columns, rows=tuple(self.removed)))
        if (layers := layers_table(before, after)).rows:
            found.append(layers)
        return tuple(found)
