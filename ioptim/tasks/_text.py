"""What every task on text shares: tokens in, padding, and counting what was cut."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from ioptim.core.artifact import ModelArtifact, TensorSpec
from ioptim.core.task import Table, Task
from ioptim.errors import StepError, UnavailableError
from ioptim.tasks._assets import DEFAULT_LONGEST, longest_input, read_asset

if TYPE_CHECKING:
    from ioptim.core.task import Feeds

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_CHUNK = 1024


class TextTask(Task, ABC):
    """A task whose rows are texts. The tokenizer is the model's own `tokenizer.json`, run without transformers."""

    libraries = ("numpy", "tokenizers")
    length_unit = "tokens"
    max_length: int | None = Field(None, ge=4, description="tokens a text is cut at; the model's limit, at most 512, when left out")

    @abstractmethod
    def texts(self, table: Table) -> list[str]:
        """One text per example, in the order of `examples`."""

    def check_table(self, table: Table, role: str) -> list[str]:
        """A missing column, or the first rows whose text is empty or no text."""
        names = self.columns if role == "validation" else self.calibration_columns
        return super().check_table(table, role) or self.check_texts(table, list(names))

    def check_texts(self, table: Table, names: Sequence[str]) -> list[str]:
        """Objections to the texts of these columns."""
        objections = []
        for name in names:
            if name == "label":
                continue
            values = zip(table.rows, table.columns[name], strict=True)
            bad = [row for row, value in values if not isinstance(value, str) or not value.strip()]
            if bad:
                where = ", ".join(bad[:3]) + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")
                objections.append(f"{table.origin}: the column {name!r} must hold text; it is empty or no text in {where}")
        return objections

    def examples(self, table: Table, model: ModelArtifact) -> Iterator[Feeds]:
        """(1, tokens) each. A model whose sequence axis is fixed gets every text padded to it."""
        fixed = _fixed_length(model)
        for encoding in self._encoded(self.texts(table), model):
            yield _pad(_feeds(encoding, model), fixed or len(encoding.ids), model)

    def collate(self, examples: Sequence[Feeds], model: ModelArtifact) -> Feeds:
        """(batch, tokens of the longest); padding is masked."""
        import numpy as np

        longest = max(next(iter(example.values())).shape[1] for example in examples)
        padded = [_pad(example, longest, model) for example in examples]
        return {name: np.concatenate([example[name] for example in padded]) for name in padded[0]}

    def dummy_feeds(self, model: ModelArtifact, batch: int, length: int) -> Feeds:
        """Random tokens. In a batch, rows have a padded tail or head, so that a graph that lost its mask, or counts its tokens, shows."""
        import numpy as np

        tokens = _fixed_length(model) or length
        draw = np.random.default_rng(0)
        ids = draw.integers(0, _vocabulary(model), (batch, tokens))
        mask: np.ndarray = np.ones((batch, tokens), dtype=np.int64)
        mask[1::2, tokens - tokens // 4 :] = 0
        mask[2::4, : tokens // 4] = 0
        every = {
            "input_ids": np.where(mask == 1, ids, _pad_id(model)),
            "attention_mask": mask,
            "token_type_ids": np.zeros_like(mask),
        }
        return {spec.name: every[spec.name].astype(spec.dtype) for spec in _known_inputs(model)}

    def input_specs(self, parameters: Sequence[str]) -> tuple[TensorSpec, ...]:
        """int64 (batch, sequence) for each of the usual three that `forward` takes."""
        if "input_ids" not in parameters:
            takes = ", ".join(parameters) or "nothing"
            raise StepError(f"the task {self.task} feeds {', '.join(INPUTS)}; forward takes {takes}. Call its first input input_ids")
        return tuple(TensorSpec(name=name, dtype="int64", shape=("batch", "sequence")) for name in INPUTS if name in parameters)

    def notes(self, table: Table, model: ModelArtifact) -> list[str]:
        """How many texts were cut, and at how many tokens."""
        texts = self.texts(table)
        cut = sum(bool(encoding.overflowing) for encoding in self._encoded(texts, model))
        return [f"{cut} of {len(texts)} texts were cut at {self.longest(model)} tokens"] if cut else []

    def lengths(self, texts: Sequence[str], model: ModelArtifact) -> list[int]:
        """Tokens of each text as the model sees it, padding not counted."""
        return [len(encoding.ids) for encoding in self._encoded(texts, model)]

    def input_lengths(self, table: Table, model: ModelArtifact) -> list[int]:
        """Tokens of each row's longest text."""
        lengths = self.lengths(self.texts(table), model)
        per_row = len(lengths) // len(table)
        return [max(lengths[i : i + per_row]) for i in range(0, len(lengths), per_row)]

    def longest(self, model: ModelArtifact) -> int:
        """Tokens a text is cut at.

        Raises:
            StepError: `max_length` is more than the model takes.
        """
        limits = [limit for limit in (longest_input(model.path), _fixed_length(model)) if limit is not None]
        limit = min(limits, default=None)
        if self.max_length is None:
            return min(DEFAULT_LONGEST, *limits) if limits else DEFAULT_LONGEST
        if limit is not None and self.max_length > limit:
            raise StepError(f"max_length: {self.max_length} was asked for, but the model takes at most {limit} tokens")
        return self.max_length

    def _encoded(self, texts: Sequence[str], model: ModelArtifact) -> Iterator[Any]:
        """One `tokenizers.Encoding` for each text, cut but not padded."""
        tokenizer = _load_tokenizer(model.path, self.longest(model))
        for start in range(0, len(texts), _CHUNK):
            yield from tokenizer.encode_batch(list(texts[start : start + _CHUNK]))


@lru_cache(maxsize=4)
def _load_tokenizer(folder: Path, max_length: int) -> Any:
    """A `tokenizers.Tokenizer` that cuts at `max_length` and never pads."""
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file)) if file.is_file() else _converted_tokenizer(folder)
    tokenizer.enable_truncation(max_length)
    tokenizer.no_padding()
    return tokenizer


def _converted_tokenizer(folder: Path) -> Any:
    """The fast tokenizer that transformers builds from older files (vocab.txt, merges.txt)."""
    if not any((folder / name).is_file() for name in ("vocab.txt", "vocab.json", "tokenizer.model", "spiece.model")):
        raise StepError(f"the model has no tokenizer: {folder} holds no tokenizer.json. Put it beside the weights")
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise UnavailableError("the model has no tokenizer.json; to convert its older files: pip install transformers") from error
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True).backend_tokenizer
    except (ValueError, OSError, AttributeError, ImportError) as error:
        raise StepError(f"transformers cannot make a fast tokenizer from the files in {folder}: {error}") from error


def _known_inputs(model: ModelArtifact) -> Sequence[TensorSpec]:
    unknown = [spec.name for spec in model.inputs if spec.name not in INPUTS]
    if unknown:
        raise StepError(f"the model asks for the inputs {', '.join(unknown)}; a text task feeds {', '.join(INPUTS)}")
    return model.inputs


def _feeds(encoding: Any, model: ModelArtifact) -> Feeds:
    import numpy as np

    every = {"input_ids": encoding.ids, "attention_mask": encoding.attention_mask, "token_type_ids": encoding.type_ids}
    return {spec.name: np.asarray([every[spec.name]], dtype=spec.dtype) for spec in _known_inputs(model)}


def _pad(example: Feeds, length: int, model: ModelArtifact) -> Feeds:
    import numpy as np

    padded = {}
    for name, array in example.items():
        short = length - array.shape[1]
        value = _pad_id(model) if name == "input_ids" else 0
        padded[name] = np.pad(array, ((0, 0), (0, short)), constant_values=value) if short > 0 else array
    return padded


def _fixed_length(model: ModelArtifact) -> int | None:
    """Length of the sequence axis of a model that has it fixed."""
    shape = next((spec.shape for spec in model.inputs if spec.name == "input_ids"), ())
    return shape[1] if len(shape) == 2 and isinstance(shape[1], int) else None


def _pad_id(model: ModelArtifact) -> int:
    said = read_asset(model.path, "config.json").get("pad_token_id")
    if said is None:
        said = (read_asset(model.path, "tokenizer.json").get("padding") or {}).get("pad_id")
    return int(said or 0)


def _vocabulary(model: ModelArtifact) -> int:
    said = read_asset(model.path, "config.json").get("vocab_size")
    return int(said) if said else int(_load_tokenizer(model.path, DEFAULT_LONGEST).get_vocab_size())
