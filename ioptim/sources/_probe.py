"""What a torch module takes and gives, found by running it twice on inputs of different sizes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from ioptim.core.artifact import ModelArtifact, TensorSpec
from ioptim.core.task import Task
from ioptim.errors import StepError

Specs = tuple[TensorSpec, ...]

_SIZES = ((2, 8), (3, 12))
"""(batch, length) of the two runs. An axis of the output that follows one of them varies; any other is fixed."""


def parameters_of(module: Any) -> list[str]:
    """Names of the parameters that `forward` takes, in order."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p.name for p in inspect.signature(module.forward).parameters.values() if p.kind in kinds]


def probe(
    module: Any, task: Task, parameters: Sequence[str], draft: ModelArtifact, image_shape: tuple[int, int, int] | None = None
) -> tuple[Specs, Specs]:
    """Input and output specs of a module in evaluation mode.

    Raises:
        StepError: the task cannot feed it, it fails on random feeds, or what it gives has no output that the task reads.
    """
    if image_shape is not None and "pixel_values" in parameters:
        inputs: Specs = (TensorSpec(name="pixel_values", dtype="float32", shape=("batch", *image_shape)),)
    else:
        inputs = task.input_specs(parameters)
    model = draft.model_copy(update={"inputs": inputs})
    runs = [_named(_run(module, task.dummy_feeds(model, *size)), task) for size in _SIZES]
    return inputs, tuple(_spec(name, runs[0][name], runs[1][name]) for name in runs[0])


def _run(module: Any, feeds: Mapping[str, Any]) -> Any:
    import torch

    shapes = ", ".join(f"{name} {list(array.shape)} {array.dtype}" for name, array in feeds.items())
    try:
        with torch.inference_mode():
            return module(**{name: torch.from_numpy(array) for name, array in feeds.items()})
    # User's code: whatever it raises is the answer to what it was fed.
    except Exception as error:
        text = " ".join(str(error).split())[:400]
        raise StepError(f"the model failed on random input ({shapes}): {type(error).__name__}: {text}") from error


def _named(result: Any, task: Task) -> dict[str, Any]:
    """The one output that the task reads, by the task's name for it when the module gives a bare tensor."""
    import torch

    if isinstance(result, torch.Tensor):
        return {task.output: result}
    if isinstance(result, Mapping):
        if isinstance(result.get(task.output), torch.Tensor):
            return {task.output: result[task.output]}
        raise StepError(f"the task {task.task} reads the output {task.output!r}; the model gives {', '.join(result) or 'nothing'}")
    if isinstance(result, list | tuple) and result and isinstance(result[0], torch.Tensor):
        return {task.output: result[0]}
    raise StepError(f"forward must return a tensor, a tuple of tensors or a dict of them; it returned {type(result).__name__}")


def _spec(name: str, first: Any, second: Any) -> TensorSpec:
    (batch_a, length_a), (batch_b, length_b) = _SIZES
    shape: list[int | str] = []
    for a, b in zip(first.shape, second.shape, strict=True):
        known = {(batch_a, batch_b): "batch", (length_a, length_b): "sequence"}
        shape.append(known.get((a, b), a if a == b else f"axis_{len(shape)}"))
    return TensorSpec(name=name, dtype=str(first.dtype).removeprefix("torch."), shape=tuple(shape))
