"""What a torch module takes and gives, found by running it twice on inputs of different sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ioptim.core.artifact import ModelArtifact, TensorSpec
from ioptim.core.task import Task
from ioptim.torch_model import call

Specs = tuple[TensorSpec, ...]

_SIZES = ((2, 8), (3, 12))
"""(batch, length) of the two runs. An axis of the output that follows one of them varies; any other is fixed."""


def probe(
    module: Any, task: Task, parameters: Sequence[str], draft: ModelArtifact, image_shape: tuple[int, int, int] | None = None
) -> tuple[Specs, Specs]:
    """Input and output specs of a module; the output is the one that the task reads.

    Raises:
        StepError: the task cannot feed it, it fails on random feeds, or it does not give what the task reads.
    """
    if image_shape is not None and "pixel_values" in parameters:
        inputs: Specs = (TensorSpec(name="pixel_values", dtype="float32", shape=("batch", *image_shape)),)
    else:
        inputs = task.input_specs(parameters)
    model = draft.model_copy(update={"inputs": inputs})
    wanted = (TensorSpec(name=task.output, dtype="float32", shape=()),)
    first, second = (call(module, task.dummy_feeds(model, *size), wanted)[task.output] for size in _SIZES)
    return inputs, (_spec(task.output, first, second),)


def _spec(name: str, first: Any, second: Any) -> TensorSpec:
    (batch_a, length_a), (batch_b, length_b) = _SIZES
    shape: list[int | str] = []
    for a, b in zip(first.shape, second.shape, strict=True):
        known = {(batch_a, batch_b): "batch", (length_a, length_b): "sequence"}
        shape.append(known.get((a, b), a if a == b else f"axis_{len(shape)}"))
    return TensorSpec(name=name, dtype=str(first.dtype).removeprefix("torch."), shape=tuple(shape))
