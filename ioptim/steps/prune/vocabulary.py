"""Fewer words: a WordPiece tokenizer that knows only some of its pieces."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from ioptim.errors import StepError


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
