"""The code in `docs/adding-a-step.md` is real: it is found by its name and does what the page says."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from ioptim.core.registry import find
from ioptim.core.step import Step

PAGE = Path(__file__).parents[1] / "docs" / "adding-a-step.md"
STEP, TEST = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A package of steps that holds the page's step and nothing else."""
    folder = tmp_path / "steps_of_the_page"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "strip.py").write_text(STEP)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("steps_of_the_page")
    for name in [name for name in sys.modules if name.startswith("steps_of_the_page")]:
        del sys.modules[name]


def test_the_step_is_found_by_its_file_s_name(package: ModuleType) -> None:
    found = find(package, Step, "step")
    assert list(found) == ["strip"]
    assert found["strip"].model_validate({"step": "strip", "metadata": False}).model_dump()["metadata"] is False


@pytest.mark.integration
def test_the_step_passes_the_page_s_test(package: ModuleType, tmp_path: Path) -> None:
    find(package, Step, "step")
    names: dict[str, object] = {}
    exec(TEST.replace("ioptim.steps.strip", "steps_of_the_page.strip"), names)
    run = next(value for name, value in names.items() if name.startswith("test_"))
    run(tmp_path)  # type: ignore[operator]
