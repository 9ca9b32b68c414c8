"""Where models and data come from: one file per prefix (`hf:` is hf.py); a path without one is a `local_*` file's.

A module holds a `ModelSource`, a `DataSource` or both, as a class taking `(spec, base, root)`. Nothing else lists them.
"""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import re
from pathlib import Path
from typing import TypeVar

from ioptim.core.artifact import ModelArtifact
from ioptim.core.outline import Outline, width_in
from ioptim.core.registry import did_you_mean
from ioptim.core.source import DataSource, DataSpec, ModelSource, ModelSpec
from ioptim.errors import PlanError
from ioptim.sources._safetensors import NotSafetensorsError, read_header

T = TypeVar("T")

_PREFIX = re.compile(r"^([A-Za-z][A-Za-z0-9_+.-]*):(.*)$", re.DOTALL)


def model_source(spec: ModelSpec, base: Path, root: Path | None) -> ModelSource:
    """The model that a recipe names. Relative paths start from `base`; none may leave `root` when one is set.

    Raises:
        PlanError: a prefix that no model source has.
    """
    return _model_class(spec.source)(spec, base, root)  # type: ignore[call-arg]


def outline_of(model: ModelArtifact) -> Outline | None:
    """Names and shapes of the tensors of a sealed torch model; None where its weights are no safetensors file that can be read."""
    try:
        shapes = read_header(model.model_path).float_shapes
    except (OSError, NotSafetensorsError):
        return None
    config = model.path / "config.json"
    return Outline(shapes, width_in(json.loads(config.read_text(encoding="utf-8"))) if config.is_file() else 0)


def loading_libraries(source: str) -> tuple[str, ...]:
    """Distributions that load the model of this source; none where no such source exists."""
    try:
        return _model_class(source).libraries
    except PlanError:
        return ()


def data_source(spec: DataSpec, base: Path, root: Path | None) -> DataSource:
    """The data set that a recipe names; paths as for `model_source`.

    Raises:
        PlanError: a prefix that no data source has.
    """
    accepted = "a .tsv, .csv, .jsonl or .parquet file, or a folder of them"
    return _class_for(spec.source, DataSource, "local_table", accepted)(spec, base, root)  # type: ignore[call-arg]


def _model_class(source: str) -> type[ModelSource]:
    local = "local_onnx" if source.lower().endswith(".onnx") else "local_checkpoint"
    return _class_for(source, ModelSource, local, "a folder, or an .onnx file")


def _class_for(source: str, base: type[T], local: str, paths: str) -> type[T]:
    match = _PREFIX.match(source)
    name = match[1].lower() if match else local
    modules = _modules()
    found = _class_in(name, base) if name in modules else None
    if found is not None:
        return found
    prefixes = [f"{m}:" for m in modules if not m.startswith("local_") and _class_in(m, base)]
    what = "model" if base is ModelSource else "data set"
    hint = did_you_mean(f"{name}:", prefixes) or "."
    raise PlanError(
        f"{source!r}: no {what} comes from {name!r}{hint} Accepted: {', '.join(prefixes)} or a path to {paths};"
        f" a path with a colon in it starts with ./"
    )


def _modules() -> list[str]:
    return sorted(info.name for info in pkgutil.iter_modules(__path__) if not info.name.startswith("_"))


def _class_in(module_name: str, base: type[T]) -> type[T] | None:
    module = importlib.import_module(f"{__name__}.{module_name}")
    for value in vars(module).values():
        if inspect.isclass(value) and issubclass(value, base) and value.__module__ == module.__name__:
            return value
    return None
