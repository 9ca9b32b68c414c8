"""The small files that travel with a model: how it is configured, and how text becomes tokens."""

from __future__ import annotations

import shutil
from pathlib import Path

TOKENIZER = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)
ASSETS = (
    "config.json",
    *TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "preprocessor_config.json",
    "generation_config.json",
)


def assets_in(folder: Path) -> tuple[str, ...]:
    """Names of the assets that a folder has."""
    return tuple(name for name in ASSETS if (folder / name).is_file())


def copy_assets(folder: Path, out: Path) -> tuple[str, ...]:
    """Copy a folder's assets (their content, where they are links) and name them."""
    names = assets_in(folder)
    for name in names:
        shutil.copyfile(folder / name, out / name)
    return names
