from __future__ import annotations

from pathlib import Path

import pytest

from ioptim.core import document
from ioptim.errors import RecipeError


def test_values_know_their_line() -> None:
    found = document.parse("a: 1\nb:\n  - x: yes\n  - 2.5\n")
    assert found.data == {"a": 1, "b": [{"x": True}, 2.5]}
    assert found.line(("b", 0, "x")) == 3
    assert found.line(("b", 1)) == 4
    assert found.line(("b", 1, "nothing")) == 4


def test_a_tab_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        document.parse("steps:\n\t- profile\n", "r.yaml")
    assert str(caught.value) == "r.yaml: line 2: the line is indented with a tab; YAML takes spaces only. Replace each tab by two spaces"


def test_an_alias_bomb_is_refused_at_once() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    with pytest.raises(RecipeError, match="expands to more than 50,000 values"):
        document.parse("\n".join(lines))


CHAIN = "\n".join(["a0: &a0 [x]", *(f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 101))])


@pytest.mark.parametrize("text", ["[" * 101 + "]" * 101, "- " * 101 + "x", "? " * 101 + "x", "[" * 500_000, "&a [*a]", CHAIN])
def test_deep_nesting_is_refused(text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        document.parse(text, "r.yaml")
    assert str(caught.value) == "r.yaml: the file is nested too deeply to be a recipe (more than 100 levels)"


def test_a_hundred_levels_are_read() -> None:
    data = document.parse("[" * 100 + "x" + "]" * 100 + "\n").data
    for _ in range(100):
        (data,) = data
    assert data == "x"


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    with path.open("wb") as file:
        file.truncate(100 << 20)
    with pytest.raises(RecipeError, match=r"the file has 104,857,600 bytes; a recipe has at most 1,048,576"):
        document.load(path)


def test_repeated_keys_and_tags_are_all_named() -> None:
    with pytest.raises(RecipeError) as caught:
        document.parse("a: 1\na: 2\nb: !!python/object/apply:os.system [ls]\nc: .nan\nd:\n  <<: {x: 1}\n")
    text = str(caught.value)
    assert "line 2: a: the key 'a' stands twice, first on line 1; keep one" in text
    assert "line 3: b: the tag tag:yaml.org,2002:python/object/apply:os.system is not accepted: a recipe holds plain values only" in text
    assert "line 4: c: .nan is not a number that a recipe can use" in text
    assert "line 6: d: merge keys (<<) are not accepted; write the keys out" in text


def test_a_missing_file_lists_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "bert.yaml").touch()
    with pytest.raises(RecipeError, match=r"there is no such file; .* has bert.yaml"):
        document.load(tmp_path / "brt.yaml")
    with pytest.raises(RecipeError, match="this is a folder"):
        document.load(tmp_path)


def test_numbers_with_an_exponent_need_no_point() -> None:
    data = document.parse("a: 2e-4\nb: 1E3\nc: '2e-4'\nd: 2e\ne: 1.5e+2\n").data
    assert data == {"a": 0.0002, "b": 1000.0, "c": "2e-4", "d": "2e", "e": 150.0}


def test_on_and_off_are_names_of_choices() -> None:
    assert document.parse("a: off\nb: On\nc: yes\nd: false\n").data == {"a": "off", "b": "on", "c": True, "d": False}


def test_not_yaml_and_not_text(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="line 2: this is not YAML: while parsing a flow sequence did not find expected"):
        document.parse("a: [1, 2\n")
    binary = tmp_path / "model.yaml"
    binary.write_bytes(b"\x80\x02\xff")
    with pytest.raises(RecipeError, match="not UTF-8 text"):
        document.load(binary)
