"""A YAML file as plain values that know their line. Nothing in it can run code, expand without end or repeat a key unseen."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ioptim.errors import Problem, RecipeError

MAX_BYTES = 1 << 20
MAX_VALUES = 50_000
"""A recipe has a few hundred values; an alias bomb of nine lines has a billion."""
MAX_DEPTH = 100
"""A recipe has fewer than ten levels."""

PLAIN_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("map", "seq", "str", "int", "float", "bool", "null", "timestamp")}

READABLE = {
    "tag:yaml.org,2002:int": "a whole number of at most 64 bits; write one like 12",
    "tag:yaml.org,2002:float": "a number; write one like 0.5",
    "tag:yaml.org,2002:bool": "a boolean; write true or false",
    "tag:yaml.org,2002:timestamp": "a date; write one like 2026-01-31",
}
"""What YAML takes a value for, by its look or its tag, and how such a value is written."""

Loc = tuple[str | int, ...]

_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


class Document:
    """Plain data (dict, list, str, int, float, bool, None) and the line of every key and item."""

    def __init__(self, data: Any, lines: dict[Loc, int], text: str = "") -> None:
        self.data = data
        self.lines = lines
        self.text = text
        self.overridden: set[Loc] = set()
        """Places whose value was given on the command line, and so has no line."""

    def line(self, loc: Loc) -> int | None:
        """Line of the value at `loc`, or of the nearest one that holds it; None for a value from the command line."""
        if any(loc[:n] in self.overridden for n in range(1, len(loc) + 1)):
            return None
        while loc and loc not in self.lines:
            loc = loc[:-1]
        return self.lines.get(loc)


def load(path: Path) -> Document:
    """Read a YAML file.

    Raises:
        RecipeError: not there, too large, not UTF-8, or not plain YAML; every repeated key is named at once.
    """
    origin = str(path)
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise RecipeError("this is a folder; name the recipe file in it", origin)
        if size > MAX_BYTES:
            raise RecipeError(f"the file has {size:,} bytes; a recipe has at most {MAX_BYTES:,}. Is it the right file?", origin)
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(_not_there(path), origin) from None
    except OSError as error:
        raise RecipeError(f"the file cannot be read: {(error.strerror or str(error)).lower()}", origin) from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"the file is not UTF-8 text (byte {error.start})", origin) from error
    return parse(text, origin)


def parse(text: str, origin: str = "") -> Document:
    """The values of a YAML text; see `load` for what is refused."""
    import yaml

    try:
        kind = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        loader = kind(text)
    except UnicodeEncodeError as error:  # typed after --set in another encoding
        raise RecipeError("this is not UTF-8 text", origin) from error
    try:
        _check_depth(yaml.parse(text, kind))
        node = loader.get_single_node()
        builder = _Builder(loader)
        data = builder.build(node, ()) if node is not None else None
    except yaml.MarkedYAMLError as error:
        raise RecipeError([_syntax_problem(error, text)], origin) from error
    except yaml.YAMLError as error:
        raise RecipeError(f"this is not YAML: {error}", origin) from error
    except RecursionError as error:
        raise RecipeError(f"the file is nested too deeply to be a recipe (more than {MAX_DEPTH} levels)", origin) from error
    finally:
        loader.dispose()
    if builder.problems:
        raise RecipeError(builder.problems, origin)
    return Document(data, builder.lines, text)


def _check_depth(events: Iterable[Any]) -> None:
    """Before a tree is made of them: libyaml does that by recursion in C, where too deep is the end of the process and no exception."""
    import yaml

    depth = 0
    for event in events:
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise RecursionError


class _Builder:
    """Turns YAML nodes into plain values, counting as it goes so that aliases cannot multiply."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self.lines: dict[Loc, int] = {}
        self.problems: list[Problem] = []
        self.count = 0

    def build(self, node: Any, loc: Loc) -> Any:
        import yaml

        self.count += 1
        if self.count > MAX_VALUES:
            raise RecipeError(f"the file expands to more than {MAX_VALUES:,} values (aliases that multiply?)")
        if len(loc) > MAX_DEPTH:  # by aliases, which may hold themselves
            raise RecursionError
        line = node.start_mark.line + 1
        self.lines.setdefault(loc, line)
        if node.tag not in PLAIN_TAGS:
            self.problems.append(Problem(dotted(loc), f"the tag {node.tag} is not accepted: a recipe holds plain values only", line))
            return None
        if isinstance(node, yaml.MappingNode):
            return dict(self._items(node, loc))
        if isinstance(node, yaml.SequenceNode):
            return [self.build(child, (*loc, i)) for i, child in enumerate(node.value)]
        return self._scalar(node, loc, line)

    def _items(self, node: Any, loc: Loc) -> Iterator[tuple[str, Any]]:
        first_lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == "tag:yaml.org,2002:merge":
                self.problems.append(Problem(dotted(loc), "merge keys (<<) are not accepted; write the keys out", line))
                continue
            key = key_node.value if isinstance(key_node.value, str) else "?"
            if key in first_lines:
                again = f"the key {key!r} stands twice, first on line {first_lines[key]}; keep one"
                self.problems.append(Problem(dotted((*loc, key)), again, line))
                continue
            first_lines[key] = line
            self.lines[(*loc, key)] = line
            yield key, self.build(value_node, (*loc, key))

    def _scalar(self, node: Any, loc: Loc, line: int) -> Any:
        try:
            value = self.loader.construct_object(node)
        except (ValueError, LookupError, AttributeError, OverflowError):  # what the library lets through: 2026-13-45, 0b_, !!bool maybe
            return self._unreadable(node, loc, line)
        if isinstance(value, int) and value.bit_length() > 64:
            return self._unreadable(node, loc, line)
        if isinstance(value, str) and not node.style and _EXPONENT.fullmatch(value):
            value = float(value)  # YAML 1.1, which the library reads, wants 2.0e-4; everybody writes 2e-4
        if isinstance(value, bool) and node.value.lower() in ("on", "off"):
            return node.value.lower()  # YAML 1.1 again: what recipes call `off` is the name of a choice
        if isinstance(value, float) and not math.isfinite(value):
            self.problems.append(Problem(dotted(loc), f"{_cut(node.value)} is not a number that a recipe can use", line))
            return None
        if value is None or isinstance(value, str | int | float | bool):
            return value
        return node.value  # a date: the text as written

    def _unreadable(self, node: Any, loc: Loc, line: int) -> None:
        text = f"{_cut(node.value)!r} cannot be read as {READABLE[node.tag]}, or quote it (without a tag) to mean text"
        self.problems.append(Problem(dotted(loc), text, line))


def dotted(loc: Loc) -> str:
    """`steps[1].scheme`: how a place in a document is written for a reader."""
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _cut(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def _syntax_problem(error: Any, text: str) -> Problem:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else None
    lines = text.splitlines()
    if line and line <= len(lines) and "\t" in lines[line - 1][: len(lines[line - 1]) - len(lines[line - 1].lstrip())]:
        return Problem("", "the line is indented with a tab; YAML takes spaces only. Replace each tab by two spaces", line)
    what = " ".join(str(part) for part in (error.context, error.problem) if part)
    return Problem("", f"this is not YAML: {what}", line)


def _not_there(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"there is no such file, and no folder {folder}"
    others = sorted(p.name for p in folder.glob("*.y*ml"))[:10]
    return f"there is no such file; {folder} has {', '.join(others)}" if others else "there is no such file"
