"""The far side of the process boundary: what runs inside a step's own process, rebuilt from one JSON document.

`execute` writes the request and reads the answer; nothing else passes between the two processes but files in the work folder.
"""

from __future__ import annotations

import errno
import math
import shutil
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from ioptim import isolate
from ioptim.core.artifact import Format, ModelArtifact, open_artifact
from ioptim.core.metrics import write_samples
from ioptim.core.runtime import Runtime, Session, Target
from ioptim.core.source import DataSpec, ModelSource, ModelSpec
from ioptim.core.step import Outcome, Step
from ioptim.core.target import Hardware
from ioptim.core.task import Table, Task
from ioptim.environment import quiet_environment
from ioptim.errors import StepError, UnavailableError
from ioptim.recipe import RUNTIMES, STEPS, TASKS, RecipeTarget
from ioptim.sources import data_source, model_source

# The environment is inherited, what is switched off inside Python is not: again here, before a step imports its libraries.
quiet_environment()


FULL_BYTES = 1 << 20
"""A disk with less room than this is full: the smallest model that anybody compiles is larger."""


def run_step(request: dict[str, Any]) -> dict[str, Any]:
    """Run one step here and return its outcome as JSON; models and files lie in the request's `out`.

    Raises:
        IoptimError: as the step raised it.
        UnavailableError: the disk is full.
    """
    ctx = WorkerContext(request)
    step: Step = STEPS[request["step"]["step"]].model_validate(request["step"], strict=False)
    model = next(iter(ctx.candidates.values()), None)
    try:
        outcome = step.run(model, ctx)  # type: ignore[arg-type]  # only Source gets None
        _check_numbers(outcome)
        if outcome.samples:
            (ctx.out / "files").mkdir(exist_ok=True)
            write_samples(ctx.out / "files", outcome.samples, ctx.hardware.fingerprint)
    except Exception as error:
        if _is_full(error, ctx.out):
            text = f"the disk that holds {ctx.out} is full: nothing half-written was kept. Free some room (`ioptim cache prune`)"
            raise UnavailableError(f"{text}, or name another folder with --home or IOPTIM_HOME") from error
        raise
    return outcome.model_dump(mode="json")


def _is_full(error: Exception, folder: Path) -> bool:
    """Libraries that write files themselves raise errors of their own, which seldom say that the disk was full."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return "No space left on device" in str(error) or shutil.disk_usage(folder).free < FULL_BYTES


def _check_numbers(outcome: Outcome) -> None:
    """A metric that is not a number is the step's failure, not a record that nothing can read."""
    of_subjects = {f"{name}.{key}": value for name, values in outcome.subjects.items() for key, value in values.items()}
    wrong = [name for name, value in {**outcome.metrics, **of_subjects}.items() if not math.isfinite(value)]
    if wrong:
        raise StepError(f"these metrics are not finite numbers: {', '.join(wrong)}. The model's outputs or the data are not either")


class WorkerContext:
    """`ioptim.core.step.Context` over a request."""

    subject_worker = "ioptim.subject:Subject"
    step_worker = "ioptim.worker:run_step"

    def __init__(self, request: Mapping[str, Any]) -> None:
        self.request = request
        self.out = Path(request["out"])
        self.scratch = Path(request["scratch"])
        self.task: Task = TASKS[request["task"]["task"]].model_validate(request["task"])
        self.hardware = Hardware.model_validate(request["hardware"])
        self.targets: dict[str, Target] = {t["name"]: self._target(t) for t in request["targets"]}
        self.target: Target = self.targets[request["target"]]
        self.seed: int = request["seed"]
        self.candidates = self._models(request["candidates"])
        self.baselines = self._models(request["baselines"])
        self._base = Path(request["base"])
        self._root = Path(request["root"]) if request["root"] else None

    def _target(self, given: Mapping[str, Any]) -> Target:
        """A target whose threads are left out gets one for each core that this process may use, the cgroup's quota counted."""
        return RecipeTarget.model_validate({**given, "threads": given["threads"] or self.hardware.cores})

    def _models(self, paths: Mapping[str, str]) -> dict[str, ModelArtifact]:
        """Their targets go by the name that a model has here, not by its content, which targets of the same settings share."""
        return {name: open_artifact(Path(path), self.request["opened_on"][name]) for name, path in paths.items()}

    @cached_property
    def source(self) -> ModelSource:
        return model_source(ModelSpec.model_validate(self.request["model_source"]), self._base, self._root)

    def table(self, role: str) -> Table:
        return data_source(DataSpec.model_validate(self.request["data"][role]), self._base, self._root).read()

    def target_of(self, model: ModelArtifact) -> Target:
        return self.targets[model.target] if model.target else self.target

    def runtime_for(self, model: ModelArtifact) -> Runtime:
        runtime = self.target_of(model).runtime
        if "runtime" in model.facts or (model.format is not Format.TORCH and model.format in runtime.accepts):
            return runtime
        # Nothing has compiled it: the plainest runtime of its format, which for a torch model is eager fp32.
        return RUNTIMES[(tag := _PLAIN[model.format])](runtime=tag)

    def open(self, model: ModelArtifact) -> Session:
        return self.runtime_for(model).open(model, self.target_of(model))

    def progress(self, done: float, message: str) -> None:
        isolate.progress(done, message)


_PLAIN = {
    Format.TORCH: "torch",
    Format.ONNX: "onnxruntime",
    Format.OPENVINO: "openvino",
    Format.TENSORRT: "tensorrt",
    Format.NULL: "null",
}
