"""Takes parts out of a model, so that what is left is smaller in shape and faster on every runtime."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from ioptim.core.artifact import Format, ModelArtifact
from ioptim.core.step import Context, Level, Note, Outcome, Step, TableFigure, Where, Written
from ioptim.errors import StepError
from ioptim.shrink import activation_importance, cut, keep_words, layer_influence, sizes
from ioptim.steps.prune.vocabulary import kept_ids, trimmed, trimmed_config

if TYPE_CHECKING:
    import torch

TOKENIZER, TOKENIZER_CONFIG, ADDED = "tokenizer.json", "tokenizer_config.json", "added_tokens.json"
WORDS, CONFIG = "vocab.txt", "config.json"
MEASURED_ROWS = 256
"""Training rows that importance is measured on."""
TRIED_ROWS = 32
TOLERANCE = 1e-5
"""Of an output after the vocabulary was trimmed, as a fraction of its largest value: the arithmetic is the same."""


class Prune(Step):
    """Remove words, feed-forward neurons or whole layers of a transformers encoder.

    `vocabulary` drops the word pieces that never occur in `data.training` and builds the tokenizer anew. Texts made of what is left get
    the very same answers, which is checked; a piece that is gone falls apart into smaller ones. It shrinks the file, not the time.

    `feed_forward` and `layers` change what is computed, so the answers change as well: what goes is what matters least on
    `data.training`. Nothing is trained here; for that, let `distill` cut its student instead.

    Raises:
        StepError: not a transformers encoder, another tokenizer than WordPiece, outputs that changed although only words went.
    """

    step: Literal["prune"] = "prune"
    accepts: ClassVar[frozenset[Format]] = frozenset({Format.TORCH})
    libraries: ClassVar[tuple[str, ...]] = ("torch", "transformers", "safetensors", "tokenizers", "numpy")
    uses_data: ClassVar[tuple[str, ...]] = ("training",)

    vocabulary: bool = Field(False, description="drop the word pieces that occur less than `min_count` times in data.training")
    min_count: int = Field(1, ge=1, description="occurrences that a word piece needs to stay; single characters always stay")
    feed_forward: int | None = Field(None, ge=8, description="neurons to keep in each feed-forward; all when left out")
    layers: int | None = Field(None, ge=1, description="layers to keep, those that change their input most; all when left out")

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.vocabulary and self.feed_forward is None and self.layers is None:
            raise ValueError("nothing is pruned: give `vocabulary: true`, `feed_forward` or `layers`")
        if not self.vocabulary and self.min_count != 1:
            raise ValueError("`min_count` is of the vocabulary, which is not trimmed: give `vocabulary: true` or leave it out")
        return self

    def check(self, where: Where) -> list[str]:
        objections = []
        if not where.task.auto_class:
            objections.append(f"prune works on transformers encoders; the task {where.task.task} has none")
        if self.vocabulary and not hasattr(where.task, "max_length"):
            objections.append(f"vocabulary is of models that read text; the task is {where.task.task}")
        return objections

    def run(self, model: ModelArtifact, ctx: Context) -> Outcome:
        from ioptim import torch_model

        ctx.progress(0.0, "loading the model")
        module: Any = torch_model.load_module(model, attention=None)
        if not hasattr(getattr(module, "config", None), "num_hidden_layers"):
            raise StepError(f"prune needs a transformers encoder; {type(module).__name__} has no config with num_hidden_layers")
        before = sizes(module)
        examples = list(ctx.task.examples(ctx.table("training"), model))
        notes: list[Note] = []
        if self.feed_forward is not None or self.layers is not None:
            ctx.progress(0.2, "measuring what matters")
            module, said = self._cut(module, [_tensors(example) for example in examples[:MEASURED_ROWS]])
            notes += said
        folder = ctx.out / "model"
        folder.mkdir()
        assets = [CONFIG]
        if self.vocabulary:
            ctx.progress(0.6, "trimming the vocabulary")
            module, said, written = self._trim(module, model, examples, folder)
            notes += said
            assets += written
        torch_model.save_checkpoint(module, folder, model.entry)
        return self._outcome(model, module, before, assets, notes)

    def _cut(self, module: Any, batches: Sequence[Mapping[str, torch.Tensor]]) -> tuple[Any, list[Note]]:
        """Layers first, then neurons of what is left: importance is of the model that stays."""
        notes = []
        total = module.config.num_hidden_layers
        if self.layers is not None:
            if self.layers >= total:
                raise StepError(f"layers is {self.layers}; the model has {total}, so none would go")
            influence = layer_influence(module, batches)
            kept = sorted(sorted(range(total), key=lambda i: -influence[i])[: self.layers])
            gone = ", ".join(f"{i} ({influence[i]:.3f})" for i in range(total) if i not in kept)
            module = cut(module, kept, None)
            notes.append(Note(text=f"layers removed, with their influence (1 - cosine of output and input): {gone}"))
        if self.feed_forward is not None:
            importance = activation_importance(module, batches)
            shares = [float(v.topk(min(self.feed_forward, len(v))).values.sum() / v.sum()) for v in importance.values()]
            module = cut(module, range(module.config.num_hidden_layers), self.feed_forward, importance)
            text = f"{self.feed_forward} neurons kept in each feed-forward, with {min(shares):.0%} to {max(shares):.0%} of all importance"
            notes.append(Note(text=text))
        text = "layers or neurons were removed and nothing was trained afterwards; `distill` with a `student` trains what it cuts"
        return module, [*notes, Note(text=text, level=Level.WARNING)]

    def _trim(self, module: Any, model: ModelArtifact, examples: Sequence[Any], folder: Path) -> tuple[Any, list[Note], list[str]]:
        """Fewer words in the module and in its tokenizer; the names of the files written."""
        path = model.path / TOKENIZER
        if not path.is_file():
            raise StepError(f"{model.path} has no {TOKENIZER}; vocabulary needs the fast tokenizer")
        tokenizer = json.loads(path.read_text(encoding="utf-8"))
        counts = Counter(int(number) for example in examples for number in example["input_ids"].ravel())
        kept = kept_ids(tokenizer, counts, self.min_count)
        total = module.config.vocab_size
        if (model.path / ADDED).is_file():
            raise StepError(f"{model.path} has {ADDED}, tokens that older tokenizers kept apart; save the tokenizer as {TOKENIZER} alone")
        stay = set(kept)
        tried = [example for example in examples if stay.issuperset(example["input_ids"].ravel().tolist())][:TRIED_ROWS]
        if not tried:
            raise StepError(f"no training row is made of pieces that stay, so nothing can be compared; lower min_count ({self.min_count})")
        wanted = [_answers(module, example) for example in tried]
        module = keep_words(module, kept)
        smaller = trimmed(tokenizer, kept)
        _require_same(module, tried, wanted, kept)
        _require_same_pieces(tokenizer, smaller, tried, kept)
        _write_json(folder / TOKENIZER, smaller)
        written = [TOKENIZER]
        if (model.path / TOKENIZER_CONFIG).is_file():
            _write_json(folder / TOKENIZER_CONFIG, trimmed_config(json.loads((model.path / TOKENIZER_CONFIG).read_text("utf-8")), kept))
            written.append(TOKENIZER_CONFIG)
        if (model.path / WORDS).is_file():
            lines = (model.path / WORDS).read_text("utf-8").removesuffix("\n").split("\n")
            (folder / WORDS).write_text("".join(f"{lines[i]}\n" for i in kept if i < len(lines)), "utf-8")
            written.append(WORDS)
        text = f"vocabulary: {len(kept):,} of {total:,} word pieces stay; outputs on {len(tried)} training rows are the same"
        return module, [Note(text=text)], written

    def _outcome(
        self, model: ModelArtifact, module: Any, before: Mapping[str, int], assets: Sequence[str], notes: Sequence[Note]
    ) -> Outcome:
        after = sizes(module)
        rows = tuple((name, before[name], after[name]) for name in before)
        return Outcome(
            written=Written(
                format=Format.TORCH,
                entry=model.entry,
                inputs=model.inputs,
                outputs=model.outputs,
                assets=tuple(assets),
                facts={**model.facts, "parameters": after["parameters"]},
            ),
            metrics={name: float(value) for name, value in after.items()}
            | {"parameters_ratio": after["parameters"] / before["parameters"]},
            tables=(TableFigure(title="What is left", columns=("of", "before", "after"), rows=rows),),
            notes=tuple(notes),
        )


def _tensors(example: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    import torch

    return {name: torch.from_numpy(array) for name, array in example.items()}


def _answers(module: Any, example: Mapping[str, Any]) -> torch.Tensor:
    import torch

    with torch.inference_mode():
        found: torch.Tensor = module(**_tensors(example))[0]
    return found


def _require_same(module: Any, examples: Sequence[Mapping[str, Any]], wanted: Sequence[torch.Tensor], kept: Sequence[int]) -> None:
    """Only words went, so the same words must get the same answers.

    Raises:
        StepError: they do not.
    """
    import numpy as np

    places = {before: after for after, before in enumerate(kept)}
    for example, answer in zip(examples, wanted, strict=True):
        ids = np.vectorize(places.__getitem__, otypes=[example["input_ids"].dtype])(example["input_ids"])
        difference = float((_answers(module, {**example, "input_ids": ids}) - answer).abs().max() / answer.abs().max())
        if not difference <= TOLERANCE:
            raise StepError(f"after the vocabulary was trimmed an output differs by {difference:.2g} of its largest value; none may")


def _require_same_pieces(old: Mapping[str, Any], new: Mapping[str, Any], examples: Sequence[Any], kept: Sequence[int]) -> None:
    """The new tokenizer must cut what the old one says of these rows into the same pieces.

    Raises:
        StepError: it does not.
    """
    from tokenizers import Tokenizer

    before, after = (Tokenizer.from_str(json.dumps(content)) for content in (old, new))
    for example in examples:
        text = before.decode(example["input_ids"].ravel().tolist())
        for tokenizer in (before, after):
            tokenizer.no_padding()
        known = before.encode(text)
        if set(known.ids) <= set(kept) and known.tokens != after.encode(text).tokens:
            raise StepError(f"the trimmed tokenizer cuts {text[:80]!r} into other pieces than before")


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2), "utf-8")
