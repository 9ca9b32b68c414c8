"""No runtime at all: a test double, and the floor of every timing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ioptim.core.artifact import Format, ModelArtifact, write_json
from ioptim.core.runtime import Runtime, Session, Target
from ioptim.core.step import Note, Outcome, Written

if TYPE_CHECKING:
    import numpy as np

ENTRY = "null.json"


class Null(Runtime):
    """Takes any model and answers zeros of the right shapes at once.

    What a benchmark measures on it is the harness itself. Its quality is that of a model that knows nothing.
    """

    runtime: Literal["null"] = "null"
    libraries = ("numpy",)
    accepts = frozenset(Format)
    compiled = Format.NULL

    def compile(self, model: ModelArtifact, target: Target, out: Path) -> Outcome:
        write_json(out / ENTRY, {"model": model.digest})
        written = Written(format=Format.NULL, entry=ENTRY, facts={"runtime": self.runtime})
        note = Note(text="the null runtime computes nothing: every output is zero")
        return Outcome(written=written, notes=(note,), facts={"runtime": self.runtime, "device": "none"})

    def open(self, model: ModelArtifact, target: Target) -> Session:
        return _NullSession(model)

    def self_check(self, target: Target) -> list[float]:
        """Python's own arithmetic: there is no model that could compute."""
        return [2.0 * x for x in (1.0, 2.0, 3.0)]


class _NullSession:
    """Zeros for `model.outputs`; an axis with a name is as long as the input axis of that name, 1 where there is none."""

    def __init__(self, model: ModelArtifact) -> None:
        self.inputs = model.inputs
        self.outputs = model.outputs
        self.facts: Mapping[str, object] = {"runtime": "null", "device": "none"}

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        import numpy as np

        sizes: dict[str | int, int] = {}
        for spec in self.inputs:
            if spec.name in feeds:
                sizes.update(zip(spec.shape, feeds[spec.name].shape, strict=False))
        shapes = {spec.name: [axis if isinstance(axis, int) else sizes.get(axis, 1) for axis in spec.shape] for spec in self.outputs}
        return {spec.name: np.zeros(shapes[spec.name], spec.dtype) for spec in self.outputs}

    def close(self) -> None:
        pass
