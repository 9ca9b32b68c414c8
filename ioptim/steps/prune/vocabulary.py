"""Fewer words: a WordPiece tokenizer that knows only some of its pieces."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ioptim.core.step import Note
from ioptim.errors import StepError
from ioptim.shrink import keep_words

if TYPE_CHECKING:
    import torch

    from ioptim.core.artifact import ModelArtifact

TOKENIZER, TOKENIZER_CONFIG, ADDED, WORDS = "tokenizer.json", "tokenizer_config.json", "added_tokens.json", "vocab.txt"
TRIED_ROWS = 32
TOLERANCE = 1e-5
"""Of an output after the vocabulary was trimmed, as a fraction of its largest value: the arithmetic is the same."""


def trim(module: Any, model: ModelArtifact, examples: Sequence[Any], min_count: int, folder: Path) -> tuple[Any, Note, list[str]]:
    """Fewer words in the module and in its tokenizer, which is written to `folder`; the names of the files written.

    Raises:
        StepError: another tokenizer than WordPiece, nothing to compare by, or outputs that changed although only words went.
    """
    path = model.path / TOKENIZER
    if not path.is_file():
        raise StepError(f"{model.path} has no {TOKENIZER}; vocabulary needs the fast tokenizer")
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    counts = Counter(int(number) for example in examples for number in example["input_ids"].ravel())
    kept = kept_ids(tokenizer, counts, min_count)
    total = module.config.vocab_size
    if (model.path / ADDED).is_file():
        raise StepError(f"{model.path} has {ADDED}, tokens that older tokenizers kept apart; save the tokenizer as {TOKENIZER} alone")
    stay = set(kept)
    tried = [example for example in examples if stay.issuperset(example["input_ids"].ravel().tolist())][:TRIED_ROWS]
    if not tried:
        raise StepError(f"no training row is made of pieces that stay, so nothing can be compared; lower min_count ({min_count})")
    wanted = [_answers(module, example) for example in tried]
    module = keep_words(module, kept)
    smaller = trimmed(tokenizer, kept)
    _require_same(module, tried, wanted, kept)
    _require_same_pieces(tokenizer, smaller, tried, kept)
    text = f"vocabulary: {len(kept):,} of {total:,} word pieces stay; outputs on {len(tried)} training rows are the same"
    return module, Note(text=text), _write(model, smaller, kept, folder)


def _write(model: ModelArtifact, tokenizer: Mapping[str, Any], kept: Sequence[int], folder: Path) -> list[str]:
    _write_json(folder / TOKENIZER, tokenizer)
    written = [TOKENIZER]
    if (model.path / TOKENIZER_CONFIG).is_file():
        _write_json(folder / TOKENIZER_CONFIG, trimmed_config(json.loads((model.path / TOKENIZER_CONFIG).read_text("utf-8")), list(kept)))
        written.append(TOKENIZER_CONFIG)
    if (model.path / WORDS).is_file():
        lines = (model.path / WORDS).read_text("utf-8").removesuffix("\n").split("\n")
        (folder / WORDS).write_text("".join(f"{lines[i]}\n" for i in kept if i < len(lines)), "utf-8")
        written.append(WORDS)
    return written


def kept_ids(tokenizer: Mapping[str, Any], counts: Mapping[int, int], min_count: int) -> list[int]:
    """Ids to keep, in their old order: pieces that occur, special tokens, and every single character.

    With the characters, a word that is new still becomes pieces and not one unknown token. A text whose pieces are all kept is cut
    into the same pieces as before: WordPiece takes the longest piece that fits, and a piece that it never took is not missed.

    Raises:
        StepError: the tokenizer is of another kind.
    """
    model = tokenizer["model"]
    if model.get("type") != "WordPiece":
        raise StepError(f"vocabulary can be trimmed of WordPiece tokenizers; this one is {model.get('type')}")
    prefix = model.get("continuing_subword_prefix", "##")
    special = {token["id"] for token in tokenizer.get("added_tokens", ())} | {model["vocab"][model["unk_token"]]}
    kept = {number for number, count in counts.items() if count >= min_count} | special
    kept |= {number for piece, number in model["vocab"].items() if len(piece.removeprefix(prefix)) == 1}
    return sorted(kept)


def trimmed(tokenizer: Mapping[str, Any], kept: list[int]) -> dict[str, Any]:
    """The content of tokenizer.json with these pieces only, numbered anew."""
    new = copy.deepcopy(dict(tokenizer))
    places = {before: after for after, before in enumerate(kept)}
    new["model"]["vocab"] = {piece: places[number] for piece, number in tokenizer["model"]["vocab"].items() if number in places}
    for token in new.get("added_tokens", ()):
        token["id"] = places[token["id"]]
    special = (new.get("post_processor") or {}).get("special_tokens", {})
    for entry in special.values():
        entry["ids"] = [places[number] for number in entry["ids"]]
    processor = new.get("post_processor") or {}
    for name in ("cls", "sep"):  # BertProcessing and RobertaProcessing: ["[CLS]", 101]
        if isinstance(processor.get(name), list):
            processor[name][1] = places[processor[name][1]]
    if (padding := new.get("padding")) and padding.get("pad_id") in places:
        padding["pad_id"] = places[padding["pad_id"]]
    return new


def trimmed_config(config: Mapping[str, Any], kept: list[int]) -> dict[str, Any]:
    """The content of tokenizer_config.json with the ids of its added tokens numbered anew."""
    places = {str(before): str(after) for after, before in enumerate(kept)}
    added = config.get("added_tokens_decoder")
    if not added:
        return dict(config)
    return {**config, "added_tokens_decoder": {places[number]: token for number, token in added.items() if number in places}}


def _answers(module: Any, example: Mapping[str, Any]) -> torch.Tensor:
    import torch

    with torch.inference_mode():
        found: torch.Tensor = module(**{name: torch.from_numpy(array) for name, array in example.items()})[0]
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
