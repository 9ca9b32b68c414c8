"""The far side of the process boundary: what runs inside a step's own process, rebuilt from one JSON document.

`execute` writes the request and reads the answer; nothing else passes between the two processes but files in the work folder.
"""

from __future__ import annotations

import errno
import gc
import math
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ioptim import isolate, timing
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

if TYPE_CHECKING:
    import numpy as np

# The environment is inherited, what is switched off inside Python is not: again here, before a step imports its libraries.
quiet_environment()


def run_step(request: dict[str, Any]) -> dict[str, Any]:
    """Run one step here and return its outcome as JSON; models and files lie in the request's `out`.

    Raises:
        IoptimError: as the step raised it.
        UnavailableError: the disk is full.
    """
    ctx = WorkerContext(request)
    step: Step = STEPS[request["step"]["step"]].model_validate(request["step"], strict=False)
    model = open_artifact(Path(request["model"])) if request["model"] else None
    try:
        outcome = step.run(model, ctx)  # type: ignore[arg-type]  # only Source gets None
        _check_numbers(outcome)
        if outcome.samples:
            (ctx.out / "files").mkdir(exist_ok=True)
            write_samples(ctx.out / "files", outcome.samples, ctx.hardware.fingerprint)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            text = f"the disk that holds {ctx.out} is full: nothing half-written was kept. Free some room (`ioptim cache prune`)"
            raise UnavailableError(f"{text}, or name another folder with --home or IOPTIM_HOME") from error
        raise
    return outcome.model_dump(mode="json")


def _check_numbers(outcome: Outcome) -> None:
    """A metric that is not a number is the step's failure, not a record that nothing can read."""
    of_subjects = {f"{name}.{key}": value for name, values in outcome.subjects.items() for key, value in values.items()}
    wrong = [name for name, value in {**outcome.metrics, **of_subjects}.items() if not math.isfinite(value)]
    if wrong:
        raise StepError(f"these metrics are not finite numbers: {', '.join(wrong)}. The model's outputs or the data are not either")


class WorkerContext:
    """`ioptim.core.step.Context` over a request."""

    subject_worker = "ioptim.worker:Subject"

    def __init__(self, request: Mapping[str, Any]) -> None:
        self.request = request
        self.out = Path(request["out"])
        self.task: Task = TASKS[request["task"]["task"]].model_validate(request["task"])
        self.hardware = Hardware.model_validate(request["hardware"])
        self.targets: dict[str, Target] = {t["name"]: self._target(t) for t in request["targets"]}
        self.target: Target = self.targets[request["target"]]
        self.seed: int = request["seed"]
        self.candidates = {name: open_artifact(Path(path)) for name, path in request["candidates"].items()}
        self.baselines = {name: open_artifact(Path(path)) for name, path in request["baselines"].items()}
        self._base = Path(request["base"])
        self._root = Path(request["root"]) if request["root"] else None

    def _target(self, given: Mapping[str, Any]) -> Target:
        """A target whose threads are left out gets one for each core that this process may use, the cgroup's quota counted."""
        return RecipeTarget.model_validate({**given, "threads": given["threads"] or self.hardware.cores})

    @cached_property
    def source(self) -> ModelSource:
        return model_source(ModelSpec.model_validate(self.request["model_source"]), self._base, self._root)

    def table(self, role: str) -> Table:
        return data_source(DataSpec.model_validate(self.request["data"][role]), self._base, self._root).read()

    def target_of(self, model: ModelArtifact) -> Target:
        return self.targets[model.facts["target"]] if "target" in model.facts else self.target

    def runtime_for(self, model: ModelArtifact) -> Runtime:
        if "runtime" in model.facts:
            return self.target_of(model).runtime
        if model.format is not Format.TORCH and model.format in self.target.runtime.accepts:
            return self.target.runtime
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


MAX_LENGTH = 512
"""Tokens that `padding: max_length` pads to where the task sets no other."""


class Subject:
    """One model of a benchmark, alone in its process: opened once, then timed block by block."""

    def __init__(self, argument: Mapping[str, Any]) -> None:
        self.ctx = WorkerContext(argument["request"])
        self.model = open_artifact(Path(argument["model"]))
        start = time.perf_counter()
        self.session = self.ctx.open(self.model)
        self.load_s = time.perf_counter() - start
        self.first_inference_s = 0.0
        self.feeds: Sequence[Mapping[str, np.ndarray]] = ()
        self.position = 0

    def prepare(self, argument: Mapping[str, Any]) -> dict[str, Any]:
        """Build the feeds before any clock runs: `batch_size` rows each, padded as `padding` says, from `limit` rows."""
        task, batch_size = self.ctx.task, argument["batch_size"]
        examples = []
        for example in task.examples(self.ctx.table("validation"), self.model):
            examples.append(example)
            if len(examples) == argument.get("limit"):
                break
        batches = [examples[i : i + batch_size] for i in range(0, len(examples), batch_size)]
        full = [batch for batch in batches if len(batch) == batch_size] or batches
        self.feeds = [self._padded(batch, argument["padding"], examples) for batch in full]
        self.position = 0
        if not self.first_inference_s:
            start = time.perf_counter()
            self.session.run(self.feeds[0])
            self.first_inference_s = time.perf_counter() - start
        # What is loaded stays. Looking through it for garbage before every block would take 0.2 s where transformers is loaded.
        gc.collect()
        gc.freeze()
        return {"examples": len(examples), "feeds": len(self.feeds), "rows": sum(len(batch) for batch in full)}

    def _padded(self, batch: list[dict[str, np.ndarray]], padding: str, examples: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """One feed: at its natural length (a batch: its longest row's), or as long as the longest example or the model's maximum."""
        task, model = self.ctx.task, self.model
        if padding == "natural":
            return batch[0] if len(batch) == 1 else task.collate(batch, model)
        if padding == "longest":
            longest = max(examples, key=lambda feeds: sum(array.size for array in feeds.values()))
        else:
            longest = task.dummy_feeds(model, 1, getattr(task, "max_length", None) or MAX_LENGTH)
        padded = task.collate([*batch, longest], model)  # as long as its longest row, which then goes
        return {name: array[:-1] for name, array in padded.items()}

    def block(self, argument: Mapping[str, Any]) -> list[float]:
        """Seconds of each of `n` calls, going on through the feeds where the last block stopped."""
        samples = timing.timed_block(self.session.run, self.feeds, argument["n"], self.position)
        self.position += argument["n"]
        return list(samples)

    def startup(self, _: Any = None) -> dict[str, float]:
        return {"load_s": self.load_s, "first_inference_s": self.first_inference_s}

    def facts(self, _: Any = None) -> dict[str, Any]:
        return dict(self.session.facts)
