"""Every command has its page, and what `--help` lists is what there is."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from ioptim.cli import _parser

ROOT = Path(__file__).parents[2]


def commands() -> dict[str, argparse.ArgumentParser]:
    [action] = [a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return dict(action.choices)


@pytest.mark.parametrize("name", commands())
def test_each_command_has_a_page_that_names_its_options(name: str) -> None:
    page = (ROOT / "docs" / "commands" / f"{name}.md").read_text()
    assert page.startswith(f"# ioptim {name}\n")
    own = [s for a in commands()[name]._actions for s in a.option_strings if s.startswith("--") and s not in ("--help", "--debug")]
    missing = [option for option in own if option not in page]
    assert not missing


def test_no_page_is_left_of_a_command_that_is_gone() -> None:
    assert {path.stem for path in (ROOT / "docs" / "commands").glob("*.md")} == set(commands())
