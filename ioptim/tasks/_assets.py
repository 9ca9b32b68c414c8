"""What the files beside a model say about it: its tokenizer's limits, its labels."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from ioptim.core.artifact import ModelArtifact

_RESERVED_POSITIONS = frozenset({"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "longformer", "mpnet", "data2vec-text"})
"""Model types that number positions from `pad_token_id + 1`, so that many fewer tokens fit than there are positions."""

DEFAULT_LONGEST = 512


@lru_cache(maxsize=64)
def read_asset(folder: Path, name: str) -> dict[str, Any]:
    """A JSON asset of a sealed model; empty when the model has none."""
    path = folder / name
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def labels_of(model: ModelArtifact) -> tuple[str, ...]:
    """Names of the classes in the order of the logits, from `id2label`; empty when the model does not name them."""
    names = read_asset(model.path, "config.json").get("id2label") or {}
    return tuple(str(names[key]) for key in sorted(names, key=int))


def longest_input(folder: Path) -> int | None:
    """Tokens that the model takes at most, special tokens included; None when neither model nor tokenizer says."""
    config, tokenizer = read_asset(folder, "config.json"), read_asset(folder, "tokenizer_config.json")
    limits = []
    positions = config.get("max_position_embeddings") or config.get("n_positions")
    if isinstance(positions, int) and positions > 0:
        reserved = int(config.get("pad_token_id") or 0) + 1 if config.get("model_type") in _RESERVED_POSITIONS else 0
        limits.append(positions - reserved)
    said = tokenizer.get("model_max_length")
    if isinstance(said, int) and 0 < said < 10**9:  # transformers writes 10**30 for "no limit"
        limits.append(said)
    return min(limits, default=None)
