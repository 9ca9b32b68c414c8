"""Makes `ioptim/data/english.parquet` (`builtin:english`) from `everyday.jsonl` and the files of WordNet 3.0; always the same bytes.

    apt-get install wordnet-base
    python scripts/make_english.py [--wordnet /usr/share/wordnet]

Everyday texts: each question and passage, the sentences of a passage alone, and two passages of a topic joined. WordNet: short rows are one
entry (`beagle: a small short-legged smooth-coated breed of hound`) or one example sentence; long ones join an entry with entries below or
beside it, so that lengths run from a search query to a paragraph. Every definition is in one of these rows at most, and half as many rows
are drawn as there are everyday ones: a student of four layers comes closer to its teacher on questions and passages with more of those than
with all of WordNet (70,618 rows).
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow
from pyarrow import parquet

FOLDER = Path(__file__).parents[1] / "ioptim" / "data"
EVERYDAY = FOLDER / "everyday.jsonl"
TARGET = FOLDER / "english.parquet"
PARTS = {"n": "noun", "v": "verb", "a": "adj", "s": "adj", "r": "adv"}
BELOW = "~"
"""WordNet's mark for an entry of narrower meaning."""
LONG_SHARE = 0.5
"""Of the entries that begin a row, those that begin a passage."""
SENTENCE_WORDS = 6
"""An example of fewer words is a phrase, no sentence: it stays with its entry."""


@dataclass(frozen=True)
class Entry:
    """One meaning: its words, definition, example sentences, and the entries below it."""

    words: tuple[str, ...]
    definition: str
    examples: tuple[str, ...]
    below: tuple[tuple[str, str], ...]

    def text(self) -> str:
        """Words, definition and the examples that are phrases."""
        phrases = [example for example in self.examples if len(example.split()) < SENTENCE_WORDS]
        return "; ".join([f"{', '.join(self.words[:3])}: {self.definition}", *phrases])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"))
    entries = {key: entry for part in dict.fromkeys(PARTS.values()) for key, entry in read(parser.parse_args().wordnet, part)}
    draw = random.Random(0)
    modern = list(dict.fromkeys(everyday()))
    dictionary = list(dict.fromkeys([*passages(entries, draw), *sentences(entries)]))
    drawn = draw.sample(dictionary, len(modern) // 2)
    texts = modern + drawn
    columns = {"text": texts, "origin": ["everyday"] * len(modern) + ["wordnet"] * len(drawn), "split": ["train"] * len(texts)}
    parquet.write_table(
        pyarrow.table(columns), TARGET, compression="zstd", compression_level=22, use_dictionary=["origin", "split"], data_page_size=1 << 26
    )
    words = sorted(len(text.split()) for text in texts)
    quarters = ", ".join(str(words[len(words) * quarter // 4]) for quarter in (1, 2, 3))
    print(f"{TARGET}: {len(texts)} rows ({len(modern)} everyday), {TARGET.stat().st_size / 1e6:.2f} MB")
    print(f"quartiles of words: {quarters}")


def everyday() -> Iterator[str]:
    """Each text; of the passages also the sentences alone, and every two of a topic together."""
    rows = [json.loads(line) for line in EVERYDAY.read_text().splitlines()]
    by_topic: dict[str, list[str]] = {}
    for row in rows:
        yield row["text"]
        if row["kind"] == "passage":
            by_topic.setdefault(row["topic"], []).append(row["text"])
            parts = re.split(r"(?<=[.!?;]) +", row["text"])
            yield from (part for part in parts if len(parts) > 1 and len(part.split()) >= SENTENCE_WORDS)
    for texts in by_topic.values():
        yield from (" ".join(pair) for pair in zip(texts[::2], texts[1::2], strict=False))


def read(folder: Path, part: str) -> Iterator[tuple[tuple[str, str], Entry]]:
    """The entries of one part of speech; the format is WordNet's wndb(5)."""
    for line in (folder / f"data.{part}").read_text(encoding="latin-1").splitlines():
        if line.startswith("  "):  # the licence
            continue
        head, _, gloss = line.partition(" | ")
        fields = head.split()
        count = int(fields[3], 16)
        words = tuple(re.sub(r"\(.*\)$", "", fields[4 + 2 * i]).replace("_", " ") for i in range(count))
        rest = fields[5 + 2 * count :]
        below = tuple((PARTS[rest[i + 2]], rest[i + 1]) for i in range(0, 4 * int(fields[4 + 2 * count]), 4) if rest[i] == BELOW)
        examples = tuple(re.findall(r'"([^"]+)"', gloss))
        definition = re.split(r'[;:]? *"', gloss)[0].strip().rstrip(";")
        if definition:
            yield (part, fields[0]), Entry(words, definition, examples, below)


def passages(entries: dict[tuple[str, str], Entry], draw: random.Random) -> Iterator[str]:
    """Each entry alone, or with two to four that stand below it or, where too few do, next in the file."""
    keys = list(entries)
    place = {key: index for index, key in enumerate(keys)}
    used: set[tuple[str, str]] = set()
    for key in keys:
        if key in used:
            continue
        used.add(key)
        row = [key]
        if draw.random() < LONG_SHARE:
            beside = keys[place[key] + 1 : place[key] + 9]
            free = [other for other in dict.fromkeys([*entries[key].below, *beside]) if other in entries and other not in used]
            row += free[: draw.randint(2, 4)]
            used.update(row)
        yield ". ".join(entries[one].text() for one in row)


def sentences(entries: dict[tuple[str, str], Entry]) -> Iterator[str]:
    """Examples that are sentences."""
    for entry in entries.values():
        yield from (example for example in entry.examples if len(example.split()) >= SENTENCE_WORDS)


if __name__ == "__main__":
    main()
