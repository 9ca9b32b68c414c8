"""A model that a function of the user's own builds: `python:MODULE:FACTORY`."""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path

from ioptim.core.artifact import Format, ModelArtifact, hash_file
from ioptim.core.outline import Outline
from ioptim.core.registry import did_you_mean
from ioptim.core.source import ModelSource, ModelSpec
from ioptim.core.step import Level, Note, Outcome, Written
from ioptim.core.task import Task
from ioptim.errors import PlanError, StepError
from ioptim.sources._assets import assets_in, copy_assets
from ioptim.sources._code import local_files, module_file, names_defined, packages_imported, parse
from ioptim.sources._paths import located, missing, outside, unreadable
from ioptim.sources._pickle import SUFFIXES, convert, refusal
from ioptim.sources._probe import probe
from ioptim.sources._safetensors import NotSafetensorsError, read_header
from ioptim.torch_model import build, input_names, load_module

WEIGHTS = "model.safetensors"
CODE = "code"


class FactoryModel(ModelSource):
    """The torch module that a factory without arguments returns, with the weights of a safetensors file put into it.

    MODULE is looked up beside the recipe, then among the installed packages. Modules beside the recipe, and what they import from
    there, are copied into the artifact, so that it opens anywhere. Naming the factory in the recipe is the consent to run it.
    """

    libraries = ("torch", "safetensors")

    def __init__(self, spec: ModelSpec, base: Path, root: Path | None) -> None:
        self.spec = spec
        self.base = base
        self.root = root
        self.module, _, self.factory = spec.source.partition(":")[2].partition(":")
        self.package = self.module.partition(".")[0]
        self.weights = located(spec.weights, base) if spec.weights else None

    def check(self) -> list[str]:
        """The module, the factory in it and the weights, all read without running anything."""
        try:
            objections = self._check_code()
        except PlanError as error:
            objections = [str(error)]
        return objections + self._check_weights()

    def identity(self) -> Mapping[str, str]:
        """Digests of the code, the weights and the assets; versions of the packages that the code imports.

        The code is the factory's file and all that it imports from beside the recipe; of an installed package the factory's file alone.
        """
        if objections := self.check():
            raise PlanError("; ".join(objections))
        found = {"factory": f"{self.module}:{self.factory}", "packages": self._packages()}
        found |= {f"{CODE}/{name}": hash_file(path) for name, path in self._files().items()}
        if self.weights:
            found["weights"] = hash_file(self.weights)
        beside = self._file().parent
        return found | {name: hash_file(beside / name) for name in assets_in(beside)}

    def outline(self) -> Outline | None:
        """Of the weights given, where they are a safetensors file."""
        if self.weights is None or self.weights.suffix in SUFFIXES:
            return None
        return Outline(read_header(self.weights).float_shapes)

    def fetch(self, out: Path, task: Task) -> Outcome:
        """Copy code and weights to `out/model`, build the module from the copies, and find its inputs and outputs by running it."""
        if objections := self.check():
            raise StepError("; ".join(objections))
        folder = out / "model"
        folder.mkdir(parents=True)
        for name, path in self._code().items():
            (folder / CODE / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / CODE / name)
        assets = copy_assets(self._file().parent, folder)
        self._write_weights(folder)
        # With `packages`, another version of one is another model to the steps that follow, even where code and weights are the same.
        loader = {"kind": "factory", "factory": f"{self.module}:{self.factory}", "code": CODE, "packages": self._packages()}
        draft = ModelArtifact(path=folder, format=Format.TORCH, entry=WEIGHTS, facts={"loader": loader})
        try:
            module = load_module(draft)
        except StepError as error:  # named by the user's own file, not by the copy
            named = str(error).replace(str(folder / WEIGHTS), str(self.weights))
            raise StepError(named.replace(f"{WEIGHTS} does not", f"{self.weights} does not")) from error
        inputs, outputs = probe(module, task, input_names(module), draft)
        parameters = sum(parameter.numel() for parameter in module.parameters())
        facts = {"loader": loader, "parameters": parameters}
        written = Written(format=Format.TORCH, entry=WEIGHTS, inputs=inputs, outputs=outputs, assets=assets, facts=facts)
        return Outcome(written=written, metrics={"parameters": float(parameters)}, notes=self._notes())

    def _check_code(self) -> list[str]:
        if self.factory and (self.module.endswith(".py") or "/" in self.module):
            dotted = self.module.removesuffix(".py").strip("./").replace("/", ".")
            return [f"{self.spec.source!r} names a file; name the module as for an import: python:{dotted}:{self.factory}"]
        if not self.factory or not all(self.module.split(".")):
            return [f"{self.spec.source!r} must be python:MODULE:FACTORY, for example python:models.cnn:build"]
        path = module_file(self.base, self.module)
        if path is None:
            beside = self.base / f"{self.module.replace('.', '/')}.py"
            return [f"there is no module {self.module!r}: there is no file {beside}, and no installed package has it"]
        local = list(self._code().values())
        if local:
            local += [path.parent / name for name in assets_in(path.parent)]
        if objections := [text for file in local for text in outside(file, self.root)] + unreadable(local):
            return objections
        names = names_defined(parse(path))
        if self.factory not in names and "*" not in names:
            hint = did_you_mean(self.factory, names) or "."
            return [f"{path} has no {self.factory!r}{hint} It defines: {', '.join(names) or 'nothing'}"]
        return []

    def _check_weights(self) -> list[str]:
        path = self.weights
        if path is None:
            return []
        if objections := outside(path, self.root):
            return objections
        if not path.is_file():
            return [missing(path, "file of weights")]
        if objections := unreadable([path]):
            return objections
        if path.suffix in SUFFIXES:
            return [] if self.spec.allow_pickle else [refusal(path, path.with_suffix(".safetensors"))]
        try:
            read_header(path)
        except NotSafetensorsError as error:
            return [str(error)]
        return []

    def _write_weights(self, folder: Path) -> None:
        if self.weights is None:
            import torch
            from safetensors.torch import save_model

            torch.manual_seed(0)  # a module that draws its weights gets the same ones each time
            save_model(build(folder / CODE, f"{self.module}:{self.factory}"), str(folder / WEIGHTS), {"format": "pt"})
        elif self.weights.suffix in SUFFIXES:
            convert([self.weights], folder / WEIGHTS)
        else:
            shutil.copyfile(self.weights, folder / WEIGHTS)

    def _code(self) -> dict[str, Path]:
        """Files to copy; none when the module is of an installed package."""
        return local_files(self.base, self.module)

    def _file(self) -> Path:
        path = module_file(self.base, self.module)
        assert path is not None, "check() comes first"
        return path

    def _files(self) -> dict[str, Path]:
        """Files to copy, or the one of an installed package; by the path that their relative imports start from."""
        file = self._file()
        depth = len(self.module.split(".")) + (file.name == "__init__.py")
        return self._code() or {Path(*file.parts[-depth:]).as_posix(): file}

    def _packages(self) -> str:
        """Versions of the packages that the code imports or is in. `libraries` are in every torch step's key anyway."""
        packages = packages_imported(self._files()) | (set() if self._code() else {self.package})
        return self._versions(packages - set(self.libraries))

    def _versions(self, packages: Collection[str]) -> str:
        """Name and version of each distribution that installed one of these top-level packages."""
        names = {name for package in packages for name in self._distributions.get(package, ())}
        return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in sorted(names))

    @cached_property
    def _distributions(self) -> Mapping[str, list[str]]:
        """By top-level package. Kept: finding out takes 0.4 s where 200 distributions are installed."""
        return importlib.metadata.packages_distributions()

    def _notes(self) -> tuple[Note, ...]:
        notes = []
        if self.weights is None:
            notes.append(Note(level=Level.WARNING, text="no `weights` were given: the module keeps those its factory made (random seed 0)"))
        elif self.weights.suffix in SUFFIXES:
            text = f"allow_pickle: {self.weights.name} was read (tensors only) and kept as safetensors"
            notes.append(Note(level=Level.WARNING, text=text))
        if not self._code():
            text = f"the factory is of an installed package ({self._versions([self.package])}), which must be there to open the model"
            notes.append(Note(text=text))
        return tuple(notes)
