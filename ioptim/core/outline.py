"""What a model will be like, from its tensors' names and shapes alone: so that a plan can say it before anything is loaded."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ioptim.errors import StepError

LAYER = re.compile(r"^((?:.*\.)?(?:layers?|h|block)\.)(\d+)(\..*)$")
"""A tensor of one of several equal layers: what comes before the number, the number, what comes after."""
WIDTHS = ("intermediate_size", "hidden_dim", "ffn_dim", "d_ff")
"""What configurations call the width of the feed-forward; the first that is there."""
_QUERY = re.compile(r"(?:\bquery|\bq_lin|\bq_proj|\bq)\.weight$")


def width_in(config: Mapping[str, Any]) -> int:
    """The width of a feed-forward that a configuration names; 0 where it names none."""
    return next((config[key] for key in WIDTHS if isinstance(config.get(key), int)), 0)


@dataclass(frozen=True)
class Outline:
    """The floating tensors of a model by name; `feed_forward` is the width of each layer's, 0 where it is not known.

    `at_most`: there may be fewer words in it than the shapes say.
    """

    shapes: Mapping[str, tuple[int, ...]]
    feed_forward: int = 0
    at_most: bool = False

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def layers(self) -> int:
        """How many equal layers there are, one after the other; 0 where names do not tell."""
        numbers = [(match[1], int(match[2])) for name in self.shapes if (match := LAYER.match(name))]
        stacks = {before for before, _ in numbers}
        return len(set(numbers)) if len(stacks) == 1 else 0

    def operations(self, tokens: int) -> int | None:
        """Multiply-adds for one input of so many tokens; None for what is no encoder of tokens (convolutions depend on more than weights).

        A matrix of a layer is applied to every token, one of the head once; a layer's scores and weighted sums take twice
        tokens² x width. Looking a word up multiplies nothing.
        """
        if not self.layers or any(len(shape) > 2 for shape in self.shapes.values()):
            return None
        total = 0
        for name, shape in self.shapes.items():
            if len(shape) == 2 and "embed" not in name:
                total += math.prod(shape) * (tokens if LAYER.match(name) else 1)
            if LAYER.match(name) and _QUERY.search(name):
                total += 2 * tokens * tokens * shape[0]
        return total

    def cut(self, layers: Sequence[int], feed_forward: int | None = None) -> Outline:
        """With these of the layers, and so many neurons in each feed-forward.

        Raises:
            StepError: as `ioptim.shrink.cut`, which does it: more than there are, or nothing that would become smaller.
        """
        there, width = self.layers, self.feed_forward
        if wrong := [i for i in layers if not 0 <= i < there]:
            raise StepError(f"layers {wrong} were named; the model's are 0 to {there - 1}")
        if feed_forward is not None and width and feed_forward > width:
            raise StepError(f"feed_forward is {feed_forward}; the model's is {width} and cannot grow")
        if len(layers) == there and feed_forward in (None, width):
            raise StepError(f"nothing would become smaller ({there} layers); name fewer layers or a narrower feed_forward")
        kept = replace(self, shapes=self._with_layers(layers))
        return kept if feed_forward is None else kept._narrowed(feed_forward)

    def _with_layers(self, layers: Sequence[int]) -> dict[str, tuple[int, ...]]:
        found = {}
        for name, shape in self.shapes.items():
            match = LAYER.match(name)
            if match is None:
                found[name] = shape
            elif int(match[2]) in layers:
                found[f"{match[1]}{list(layers).index(int(match[2]))}{match[3]}"] = shape
        return found

    def _narrowed(self, width: int) -> Outline:
        def of(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(width if n == self.feed_forward else n for n in shape) if LAYER.match(name) else shape

        return replace(self, shapes={name: of(name, shape) for name, shape in self.shapes.items()}, feed_forward=width)
