"""The documentation is true: links lead somewhere, recipes in it are accepted, commands in it exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from ioptim.cli import _parser
from ioptim.recipe import read_recipe

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    dead = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert not dead


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_whole_recipes_in_a_page_are_accepted(page: Path, tmp_path: Path) -> None:
    """A YAML block with `model`, `targets` and `steps` is a recipe; shorter ones are parts."""
    for number, block in enumerate(re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL)):
        document = yaml.safe_load(block)
        if isinstance(document, dict) and {"model", "targets", "steps"} <= set(document):
            path = tmp_path / f"r{number}.yaml"
            path.write_text(block)
            read_recipe(path)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_in_a_page_are_accepted(page: Path) -> None:
    """Indented lines that begin with `ioptim` and hold no placeholder parse."""
    for line in re.findall(r"^    (?:\.venv/bin/)?ioptim ([^\n\[{|]+?)(?:\s+#.*)?$", page.read_text(), re.MULTILINE):
        _parser().parse_args(line.split())


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    missing = [name for name in NAMES if name.startswith("docs/") and name != "docs/README.md" and f"({name[5:]})" not in index]
    assert not missing
