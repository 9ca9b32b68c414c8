"""What the design promises about the tree: who imports whom, what is imported when, what has a page and a test.

The order of the layers themselves is in `pyproject.toml` (`[tool.importlinter]`) and checked by `lint-imports`.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text())
HEAVY = CONFIG["tool"]["ruff"]["lint"]["flake8-tidy-imports"]["banned-module-level-imports"]
FAMILIES = ("steps", "runtimes", "tasks")


def _members(family: str) -> list[str]:
    """Names of the steps, runtimes, tasks or sources: one public module or package each."""
    folder = ROOT / "ioptim" / family
    files = [*folder.glob("[!_]*.py"), *(path.parent for path in folder.glob("[!_]*/__init__.py"))]
    return sorted(path.stem for path in files)


def _imports(path: Path) -> set[str]:
    """Dotted names of the modules that a file may mean by its imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _loaded_by(code: str, *arguments: str) -> set[str]:
    """Heavy modules in `sys.modules` after `code` ran in a fresh process."""
    script = f"{code}\nimport sys\nprint('loaded', *sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
    ran = subprocess.run([sys.executable, "-c", script, *arguments], cwd=ROOT, env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return set(ran.stderr.splitlines()[-1].split()[1:])


@pytest.mark.parametrize("family", [*FAMILIES, "sources"])
def test_siblings_do_not_import_each_other(family: str) -> None:
    members = _members(family)
    assert members, f"ioptim/{family} has no module: has it moved?"
    wrong = []
    for name in members:
        files = [ROOT / "ioptim" / family / f"{name}.py", *(ROOT / "ioptim" / family / name).rglob("*.py")]
        others = {f"ioptim.{family}.{other}" for other in members if other != name}
        for path in filter(Path.is_file, files):
            wrong += [f"{path.relative_to(ROOT)} imports {module}" for module in sorted(_imports(path) & others)]
    assert not wrong


def test_importing_the_command_line_loads_no_heavy_library() -> None:
    assert _loaded_by("import ioptim.cli") == set()


@pytest.mark.parametrize("module", ["recipe", "plan", "cache", "gates", "execute", "worker", "tracking.local"])
def test_the_plain_loop_loads_no_heavy_library(module: str) -> None:
    assert _loaded_by(f"import ioptim.{module}") == set()


@pytest.mark.parametrize("recipe", sorted(path.name for path in (ROOT / "recipes").glob("*.yaml")))
def test_validating_a_recipe_loads_no_heavy_library(recipe: str) -> None:
    code = "import sys\nfrom ioptim.cli import main\nassert main(['validate', sys.argv[1]]) == 0"
    assert _loaded_by(code, f"recipes/{recipe}") == set()


@pytest.mark.parametrize("module", ["ioptim.core.artifact", "ioptim.core.step", "ioptim.core.runtime", "ioptim.core.task"])
def test_the_contracts_need_pydantic_alone(module: str) -> None:
    """Other libraries are hidden, as in an environment that has none."""
    hide = f"import sys\nsys.modules.update(dict.fromkeys({[*HEAVY, 'psutil', 'yaml']!r}))\nimport {module}\n"
    hide += f"for name in {HEAVY!r}: del sys.modules[name]"
    assert _loaded_by(hide) == set()


def test_the_mlflow_folder_does_not_shadow_the_library() -> None:
    """A folder `mlflow` with a Python file in it would be what `import mlflow` finds from the checkout."""
    assert not sorted((ROOT / "mlflow").rglob("*.py"))


def test_a_step_s_own_process_sends_no_telemetry() -> None:
    """The environment is inherited, but what is switched off inside Python has to be switched off again there."""
    code = """
import ioptim.worker
try:
    import openvino_telemetry
except ImportError:
    pass
else:
    raise SystemExit("openvino_telemetry can be imported")
"""
    assert _loaded_by(code) == set()


@pytest.mark.parametrize(("family", "name"), [(family, name) for family in FAMILIES for name in _members(family)])
def test_each_has_its_page_and_its_test(family: str, name: str) -> None:
    page = ROOT / "docs" / family / f"{name.replace('_', '-')}.md"
    tests = [ROOT / "tests" / family / f"test_{name}.py", *(ROOT / "tests" / family / name).glob("test_*.py")]
    assert page.is_file(), f"write {page.relative_to(ROOT)}"
    assert any(path.is_file() for path in tests), f"write tests/{family}/test_{name}.py"


@pytest.mark.parametrize("family", FAMILIES)
def test_no_page_is_left_of_something_that_is_gone(family: str) -> None:
    pages = {path.stem for path in (ROOT / "docs" / family).glob("*.md")} - {"README", "index"}
    assert pages <= {name.replace("_", "-") for name in _members(family)}
