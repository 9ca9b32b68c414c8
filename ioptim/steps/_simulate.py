"""A torch module that computes in float what 8 or 4 bits would make of it, and can be trained so.

Rounding has no gradient, so it is passed straight through (Bengio et al., https://arxiv.org/abs/1308.3432); what a range cuts off
gets none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

What = Literal["int8", "int4-weights"]

LOW, HIGH = "simulated_low", "simulated_high"
"""Buffers of a layer: the range of its input, a moving mean while it is trained."""

MOMENTUM = 0.05


@dataclass(frozen=True)
class Simulated:
    """The layers of a module that compute as if quantized, and the names of the linear ones that cannot."""

    layers: tuple[torch.nn.Module, ...]
    left: tuple[str, ...]

    def end(self) -> None:
        """Make them ordinary float layers again."""
        for layer in self.layers:
            layer.__class__ = type(layer).__mro__[1]
            for name in (LOW, HIGH):
                layer._buffers.pop(name, None)


def simulate(module: torch.nn.Module, what: What, block: int) -> Simulated:
    """Let the linear layers and embeddings of a module round their weights and, for `int8`, their inputs, in place.

    `int8`: weights to 255 values per output channel, inputs to 256 values over one range, embedding tables to 256 values.
    `int4-weights`: weights to 16 values per `block` of inputs. Names of parameters stay as they are.
    """
    import torch

    kinds = _kinds(what, block)
    layers, left = [], []
    for name, part in module.named_modules():
        kind = kinds.get(type(part))
        if kind is None:
            continue
        if what == "int4-weights" and isinstance(part, torch.nn.Linear) and part.in_features % block:
            left.append(name)
            continue
        part.__class__ = kind
        if what == "int8" and isinstance(part, torch.nn.Linear):
            part.register_buffer(LOW, torch.zeros(()))
            part.register_buffer(HIGH, torch.zeros(()))
        layers.append(part)
    return Simulated(tuple(layers), tuple(left))


def _kinds(what: What, block: int) -> dict[type, type]:
    import torch
    from torch.nn import functional

    class Linear8(torch.nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return functional.linear(_rounded_input(self, input.float()), _per_row(self.weight), self.bias)

    class Linear4(torch.nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return functional.linear(input, _per_block(self.weight, block), self.bias)

    class Embedding8(torch.nn.Embedding):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return _in_levels(super().forward(input), *torch.aminmax(self.weight.detach()))

    return {torch.nn.Linear: Linear8, torch.nn.Embedding: Embedding8} if what == "int8" else {torch.nn.Linear: Linear4}


def _through(exact: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
    """The rounded value, with the gradient of the exact one."""
    return exact + (rounded - exact).detach()


def _per_row(weight: torch.Tensor) -> torch.Tensor:
    scale = weight.detach().abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / 127
    return _through(weight, (weight / scale).round() * scale)


def _per_block(weight: torch.Tensor, block: int) -> torch.Tensor:
    """As MatMulNBits stores it: the largest value of a block, by size, becomes -8."""
    import torch

    blocks = weight.reshape(len(weight), -1, block)
    largest = blocks.detach().gather(-1, blocks.detach().abs().argmax(dim=-1, keepdim=True))
    scale = torch.where(largest == 0, torch.ones_like(largest), largest / -8)
    return _through(blocks, (blocks / scale).round().clamp(-8, 7) * scale).reshape(weight.shape)


def _rounded_input(layer: Any, value: torch.Tensor) -> torch.Tensor:
    import torch

    if layer.training:
        ends = torch.aminmax(value.detach())
        for name, end in zip((LOW, HIGH), ends, strict=True):
            buffer = getattr(layer, name)
            buffer.copy_(end if not buffer else buffer.lerp(end, MOMENTUM))
    return _in_levels(value, getattr(layer, LOW), getattr(layer, HIGH))


def _in_levels(value: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """256 values from `low` to `high`, zero among them."""
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = ((high - low) / 255).clamp_min(1e-12)
    zero = (-low / scale).round()
    inside = value.clamp(float(-zero * scale), float((255 - zero) * scale))
    return _through(inside, (inside / scale).round() * scale)
