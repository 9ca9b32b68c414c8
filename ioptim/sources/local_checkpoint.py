"""A model in a folder of this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ioptim.core.outline import Outline
from ioptim.core.source import ModelSource, ModelSpec
from ioptim.core.step import Outcome
from ioptim.core.task import Task
from ioptim.errors import StepError
from ioptim.sources._checkpoint import CHECKPOINT_LIBRARIES, Checkpoint
from ioptim.sources._paths import located, missing, outside
from ioptim.sources._pickle import SUFFIXES, refusal


class LocalCheckpoint(ModelSource):
    """A folder as `save_pretrained` of transformers writes it."""

    libraries = CHECKPOINT_LIBRARIES

    def __init__(self, spec: ModelSpec, base: Path, root: Path | None) -> None:
        self.spec = spec
        self.root = root
        self.folder = located(spec.source, base)

    def check(self) -> list[str]:
        """A path that is not there, leaves the root or is no folder; then whatever is wrong with the checkpoint."""
        if objections := outside(self.folder, self.root):
            return objections
        if not self.folder.exists():
            return [f"{missing(self.folder, 'folder')}. A model of the Hugging Face hub is written hf:ORG/NAME"]
        if self.folder.suffix in SUFFIXES and self.folder.is_file():
            return [refusal(self.folder, self.folder.with_suffix(".safetensors"))]
        if self.folder.is_file():
            return [
                f"{self.folder} is a file; a model is a folder with config.json and model.safetensors, or an .onnx file."
                " Weights alone go with a factory: `source: python:MODULE:FACTORY` and `weights: FILE.safetensors`"
            ]
        return self._escaping() or self._checkpoint.check()

    def identity(self) -> Mapping[str, str]:
        """Digests of the checkpoint's files."""
        return self._checkpoint.identity()

    def outline(self) -> Outline | None:
        """Of the checkpoint."""
        return self._checkpoint.outline()

    def fetch(self, out: Path, task: Task) -> Outcome:
        """Copy it and load it once."""
        if objections := self.check():
            raise StepError("; ".join(objections))
        return self._checkpoint.fetch(out, task)

    @property
    def _checkpoint(self) -> Checkpoint:
        return Checkpoint(self.folder, self.spec)

    def _escaping(self) -> list[str]:
        """Files in the folder that are links to a place outside the root."""
        if self.root is None:
            return []
        return [text for path in sorted(self.folder.iterdir()) for text in outside(path, self.root)]
