"""Weights set to zero one by one, or N of every M: the shapes stay."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, model_validator

from ioptim.core.base import Frozen
from ioptim.shrink import over_inputs
from ioptim.steps.prune.importance import Importance

if TYPE_CHECKING:
    import torch

    Feeds = Mapping[str, torch.Tensor]


class Sparsity(Frozen):
    """Which weights of linear layers and convolutions become zero: the least important of each row, counted by `ratio` or `pattern`.

    Nothing gets faster by it where ioptim runs today: ONNX Runtime, OpenVINO and torch multiply by the zeros as by any number, in
    float and in int8. TensorRT on Ampere and later has kernels for `2:4`, which its option `sparse_weights` allows. What shrinks is the
    file once something compresses it (an archive, a download), not the file itself. For speed, remove channels, heads, neurons or layers.

    With `importance: activation` a weight counts as |weight| x norm of its input on training rows (Wanda, arXiv:2306.11695), with
    `magnitude` as |weight|. Weights that stay are not changed to make up for those that went (as SparseGPT does).
    """

    ratio: float | None = Field(None, gt=0, lt=1, description="share of the weights of each row to set to zero")
    pattern: str | None = Field(None, description="`N:M`: of every M weights in a row (for a convolution, M input channels) N stay")
    exclude: tuple[str, ...] = Field((), description="names of modules that stay as they are, with all in them")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.ratio is None) == (self.pattern is None):
            raise ValueError("sparsity takes `ratio` or `pattern`, one of the two")
        if self.pattern is not None:
            match = re.fullmatch(r"(\d+):(\d+)", self.pattern)
            if match is None or not 0 < int(match[1]) < int(match[2]):
                raise ValueError(f"the pattern {self.pattern!r} is not N:M with 0 < N < M, for example 2:4")
        return self

    @property
    def n_of_m(self) -> tuple[int, int] | None:
        return (int(self.pattern.split(":")[0]), int(self.pattern.split(":")[1])) if self.pattern else None


@dataclass(frozen=True)
class Zeroed:
    """Weights of one layer, and how many of them are zero now and were before."""

    name: str
    weights: int
    before: int
    after: int


def sparsify(module: Any, wanted: Sparsity, kind: Importance, batches: Sequence[Feeds]) -> tuple[list[Zeroed], list[str]]:
    """Set weights to zero in place; what was done, by layer, and the names of layers that the pattern does not fit."""
    import torch

    layers = {
        name: child
        for name, child in module.named_modules()
        if isinstance(child, torch.nn.Linear | torch.nn.modules.conv._ConvNd)
        and not any(name == other or name.startswith(f"{other}.") for other in wanted.exclude)
    }
    norms = _input_norms(module, layers, batches) if kind is Importance.ACTIVATION else {}
    done, unfit = [], []
    for name, layer in layers.items():
        weight = layer.weight.detach()
        strength = weight.float().abs()
        if name in norms and not getattr(layer, "transposed", False):
            strength = strength * _by_input(norms[name], weight, getattr(layer, "groups", 1))
        gone = _least(strength, wanted)
        if gone is None:
            unfit.append(name)
            continue
        before = int((weight == 0).sum())
        weight[gone] = 0
        done.append(Zeroed(name, weight.numel(), before, int((weight == 0).sum())))
    return done, unfit


def compressed_size(module: Any) -> int:
    """Bytes of all parameters after zlib: what an archive or a download of them takes."""
    return sum(len(zlib.compress(parameter.detach().contiguous().view(-1).numpy().tobytes(), 6)) for parameter in module.parameters())


def _least(strength: torch.Tensor, wanted: Sparsity) -> torch.Tensor | None:
    """A mask of the weights to set to zero, by output; None where the inputs cannot be divided into runs of M."""
    import torch

    if wanted.n_of_m is None:
        rows = strength.flatten(1)
        count = round(float(wanted.ratio or 0) * rows.shape[1])
        gone = torch.zeros_like(rows, dtype=torch.bool).scatter_(1, rows.topk(count, dim=1, largest=False).indices, True)
        return gone.view_as(strength)
    n, m = wanted.n_of_m
    if strength.shape[1] % m:
        return None
    runs = strength.movedim(1, -1).unflatten(-1, (-1, m))  # (outputs, ..., inputs / M, M): TensorRT's runs are along the inputs
    gone = torch.zeros_like(runs, dtype=torch.bool).scatter_(-1, runs.topk(m - n, dim=-1, largest=False).indices, True)
    return gone.flatten(-2).movedim(-1, 1)


def _by_input(norm: torch.Tensor, weight: torch.Tensor, groups: int) -> torch.Tensor:
    """Norms of the inputs, (inputs,), so that they multiply a weight (outputs, inputs / groups, ...)."""
    by_output = norm.view(groups, -1).repeat_interleave(weight.shape[0] // groups, dim=0)
    return by_output.view(*weight.shape[:2], *[1] * (weight.ndim - 2))


def _input_norms(module: Any, layers: Mapping[str, Any], batches: Sequence[Feeds]) -> dict[str, torch.Tensor]:
    """Root of the summed squares of each input of each layer over the rows. (inputs,) each; a layer that never runs is not in it."""
    squares = over_inputs(module, layers, batches, lambda _, value: value.float().square().sum(0))
    return {name: value.sqrt() for name, value in squares.items()}
