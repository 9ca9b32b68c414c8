"""What is installed: packages, data files, extras and pins."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

import ioptim

ROOT = Path(__file__).parents[1]
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS: dict[str, list[str]] = CONFIG["project"]["optional-dependencies"]
CONSTRAINTS = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]


def _name(requirement: str) -> str:
    """The distribution in its normal spelling (PEP 503)."""
    return re.sub(r"[-_.]+", "-", re.match(r"[A-Za-z0-9._-]+", requirement)[0]).lower()  # type: ignore[index]


def _names(extra: str) -> set[str]:
    """Distributions of an extra, those of the extras it includes too."""
    found = set()
    for requirement in EXTRAS[extra]:
        included = re.fullmatch(r"ioptim\[(.*)\]", requirement)
        found |= set().union(*map(_names, included[1].split(","))) if included else {_name(requirement)}
    return found


def test_every_package_is_listed() -> None:
    present = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "ioptim").rglob("*.py")}
    assert set(CONFIG["tool"]["setuptools"]["packages"]) - {"ioptim.data"} == present - {"ioptim.data"}


def test_every_other_file_is_installed_too() -> None:
    """Whatever in `ioptim/` is not Python must match a pattern of `package-data`, or an installed copy lacks it."""
    patterns = CONFIG["tool"]["setuptools"]["package-data"]
    files = [path for path in (ROOT / "ioptim").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
    missing = []
    for path in files:
        package = ".".join(path.parent.relative_to(ROOT).parts)
        if not any(path.match(pattern) for pattern in patterns.get(package, [])):
            missing.append(str(path.relative_to(ROOT)))
    assert not missing


def test_version_is_the_package_s() -> None:
    assert CONFIG["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "ioptim.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", ioptim.__version__)


def test_the_core_needs_three_small_libraries() -> None:
    assert {_name(requirement) for requirement in CONFIG["project"]["dependencies"]} == {"pydantic", "pyyaml", "psutil"}


def test_cpu_and_gpu_exclude_each_other() -> None:
    """onnxruntime and onnxruntime-gpu install the same package over each other, so no extra may bring both."""
    both = {"onnxruntime", "onnxruntime-gpu"}
    assert [extra for extra in EXTRAS if both <= _names(extra)] == []


def test_the_pins_that_guard_other_projects_stand() -> None:
    """prefect 3.8.8 installs with newer ones and then does not run flows (fastapi) or its scheduler (sqlalchemy)."""
    assert {"fastapi>=0.139,<0.151", "sqlalchemy>=2.0,<2.1"} <= set(EXTRAS["track"])


def test_constraints_are_exact_and_hold_on_every_machine() -> None:
    wrong = [line for line in CONSTRAINTS if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line)]
    assert not wrong, "a local version (+cpu), an address or a range holds on one machine only"


@pytest.mark.parametrize("extra", ["cpu", "demo", "dev"])
def test_constraints_name_everything_that_is_asked_for(extra: str) -> None:
    assert _names(extra) <= {_name(line) for line in CONSTRAINTS}, "run `make constraints`"


def test_no_registry_is_named() -> None:
    """Which index to install from is the machine's business (pip's own configuration)."""
    for name in ("pyproject.toml", "constraints.txt", "Makefile", ".ci/run"):
        assert "://" not in (ROOT / name).read_text(), name


def test_every_library_that_a_plan_may_miss_comes_with_an_extra() -> None:
    from ioptim.recipe import RUNTIMES, STEPS, TASKS

    provided = set().union(*map(_names, EXTRAS)) | {_name(requirement) for requirement in CONFIG["project"]["dependencies"]}
    for kind in (*STEPS.values(), *RUNTIMES.values(), *TASKS.values()):
        lacking = {_name(library) for library in kind.libraries} - provided
        assert not lacking, f"{kind.__name__} needs {lacking}, which no extra installs"


def test_every_runtime_names_an_extra_that_installs_it() -> None:
    """One that names none is served by any; the plan then offers `cpu`."""
    from ioptim.recipe import RUNTIMES

    for tag, runtime in RUNTIMES.items():
        assert {_name(library) for library in runtime.libraries} <= _names(runtime.extra or "cpu"), tag


def test_every_extra_named_in_a_message_exists() -> None:
    """`pip install 'ioptim[NAME]'` in the sources and the docs."""
    wrong = []
    texts = [path for pattern in ("ioptim/**/*.py", "docs/**/*.md", "*.md", "recipes/*.yaml") for path in ROOT.glob(pattern)]
    for path in texts:
        for names in re.findall(r"ioptim\[([a-z, ]+)\]", path.read_text()):
            wrong += [f"{path.relative_to(ROOT)}: {name}" for name in re.split(r", *", names) if name not in EXTRAS]
    assert not wrong
