"""A model at rest: a sealed directory whose files are known by digest.

Layout of the directory:

    artifact.json     the manifest below; written last, so a directory without it was never finished
    <entry>           the file or folder that a loader opens (model.onnx, model.xml, model.safetensors)
    ...               whatever else the format needs, and the assets (tokenizer, config, label names)
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import Field

from ioptim.core.base import Frozen, digest_of
from ioptim.errors import StepError

MANIFEST = "artifact.json"


class Format(StrEnum):
    """How a model lies on disk. A step says which it accepts; the plan inserts `export` between two that differ."""

    TORCH = "torch"
    ONNX = "onnx"
    OPENVINO = "openvino"
    TENSORRT = "tensorrt"
    NULL = "null"


class TensorSpec(Frozen):
    """One input or output. `shape` holds a number for a fixed axis and a name for one that varies."""

    name: str
    dtype: str = Field(description="NumPy name: float32, int64, ...")
    shape: tuple[int | str, ...]


class FileRecord(Frozen):
    """One file of a sealed directory."""

    sha256: str
    size_bytes: int


class ModelArtifact(Frozen):
    """The manifest of a sealed model directory, and where it is.

    `facts` say what a later reader must know to open it (JSON values only): for a torch model how to rebuild the module
    (`loader`), for a compiled one the `runtime` it was compiled for.
    """

    path: Path = Field(exclude=True)
    target: str | None = Field(None, exclude=True, description="the target to open it on, as this run calls it; whoever opens it says so")
    format: Format
    entry: str
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    assets: tuple[str, ...] = Field((), description="files carried along unchanged by every step: tokenizer, config, labels")
    facts: Mapping[str, Any] = Field(default_factory=dict)
    files: Mapping[str, FileRecord] = Field(default_factory=dict)
    provenance: Mapping[str, Any] = Field(default_factory=dict, description="who made it from what; not part of the digest")
    digest: str = ""

    @property
    def model_path(self) -> Path:
        """Absolute path of the entry file."""
        return self.path / self.entry

    @property
    def size_bytes(self) -> int:
        """Size of what makes up the model, without its assets (a tokenizer does not get smaller by quantization)."""
        return sum(record.size_bytes for name, record in self.files.items() if name not in self.assets)


def seal(model: ModelArtifact) -> ModelArtifact:
    """Hash every file under `model.path`, write the manifest last, and return the sealed artifact.

    Raises:
        StepError: the entry file is missing, or the directory holds a link or a special file.
    """
    files = hash_tree(model.path)
    if model.entry not in files:
        raise StepError(f"the artifact in {model.path} names {model.entry!r} as its entry, but its files are {sorted(files)}")
    sealed = model.model_copy(update={"files": files})
    sealed = sealed.model_copy(update={"digest": _digest(sealed)})
    write_json(model.path / MANIFEST, sealed.model_dump(mode="json"))
    return sealed


def open_artifact(path: Path, target: str | None = None) -> ModelArtifact:
    """Read the manifest of a sealed directory. Does not read the files: `verify` does."""
    manifest = path / MANIFEST
    if not manifest.is_file():
        raise StepError(f"{path} is not a sealed artifact: it has no {MANIFEST}")
    return ModelArtifact(path=path, target=target, **json.loads(manifest.read_text()))


def verify(model: ModelArtifact) -> list[str]:
    """What is wrong with the files of a sealed artifact; empty when every byte is as it was sealed."""
    wrong = []
    for name, record in model.files.items():
        file = model.path / name
        if not file.is_file():
            wrong.append(f"{name} is missing")
        elif file.stat().st_size != record.size_bytes:
            wrong.append(f"{name} has {file.stat().st_size} bytes, sealed with {record.size_bytes}")
        elif hash_file(file) != record.sha256:
            wrong.append(f"{name} has other content than was sealed")
    present = {str(p.relative_to(model.path)) for p in model.path.rglob("*") if p.is_file()} - {MANIFEST}
    wrong += [f"{name} was added after sealing" for name in sorted(present - set(model.files))]
    if _digest(model) != model.digest:
        wrong.append(f"{MANIFEST} does not match its own digest")
    return wrong


def hash_file(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_tree(root: Path) -> dict[str, FileRecord]:
    """Digest and size of every file under `root` except the manifest, by path relative to it (POSIX slashes)."""
    files = {}
    for path in sorted(root.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise StepError(f"{path} is a link or a special file; an artifact holds plain files only")
        name = path.relative_to(root).as_posix()
        if path.is_file() and name != MANIFEST:
            files[name] = FileRecord(sha256=hash_file(path), size_bytes=path.stat().st_size)
    return files


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a crash leaves the old file or the new one, never half of it."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with aside.open("w") as file:
        json.dump(value, file, indent=1, sort_keys=True, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def _digest(model: ModelArtifact) -> str:
    return digest_of(model.model_dump(mode="json", exclude={"provenance", "digest"}))
