"""How much smaller and faster a step's model will be, before it runs: for a plan."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ioptim.cache import Store
from ioptim.core.artifact import Format
from ioptim.core.outline import Outline
from ioptim.graph import Node
from ioptim.keys import Forecast
from ioptim.plan import Plan, changes_shape, outlined
from ioptim.sources import outline_of

TOKENS = 128
"""The typical input: what texts are cut at in training."""
PRODUCTS = ("matrix_products_share", "attention_share")
ONCE = ("embeddings_share",)
"""Kinds of operator whose time goes with the multiply-adds, and that run once whatever the layers; the others run in every layer."""


@dataclass(frozen=True)
class Estimate:
    """Of a step's model against the one it is made from or taught by; None is what is not known before it runs.

    `at_most`: unused words leave it, nobody knows yet how many.
    """

    parameters: int
    of_parameters: int
    operations: int | None
    of_operations: int | None
    speedup: float | None
    basis: str
    at_most: bool = False

    def __str__(self) -> str:
        text = f"{'at most ' if self.at_most else ''}{self.parameters:,} of {self.of_parameters:,} parameters"
        if self.operations is None or self.of_operations is None or self.speedup is None:
            return f"{text}; operations and speed are not known before it runs"
        text += f", {self.operations / 1e6:,.0f} of {self.of_operations / 1e6:,.0f} million multiply-adds for {TOKENS} tokens"
        return f"{text}; about {self.speedup:.1f} times as fast, {self.basis}"


def estimates(plan: Plan, store: Store, states: Mapping[str, Forecast]) -> dict[str, Estimate | None]:
    """Of every step that changes the shape of a torch model, by node; None where nothing is known before it runs.

    Models that the store already has are read there (their headers); the others follow from them and from the plan's sources.
    """
    wanted = [node for node in plan.nodes if changes_shape(node)]
    if not wanted:
        return {}
    outlines = outlined(plan.nodes, {**_of_sources(plan), **_in_store(plan, store, states)})
    return {node.id: _estimate(plan, node, outlines, store, states) for node in wanted}


def _of_sources(plan: Plan) -> dict[str, Outline]:
    return {node.id: plan.outlines[node.id] for node in plan.nodes if node.source is not None and node.id in plan.outlines}


def _in_store(plan: Plan, store: Store, states: Mapping[str, Forecast]) -> dict[str, Outline]:
    found = {}
    for node in plan.nodes:
        state = states.get(node.id)
        if node.format is Format.TORCH and node.step.transforms and state is not None and state.state == "cached" and state.key:
            result = store.has(state.key)
            outline = outline_of(store.model(result.model)) if result is not None and result.model is not None else None
            if outline is not None:
                found[node.id] = outline
    return found


def _estimate(plan: Plan, node: Node, outlines: Mapping[str, Outline], store: Store, states: Mapping[str, Forecast]) -> Estimate | None:
    reference = node.baselines.get("teacher", node.model)
    mine, theirs = outlines.get(node.id), outlines.get(reference or "")
    if mine is None or theirs is None:
        return None
    operations = mine.operations(TOKENS), theirs.operations(TOKENS)
    sizes = mine.parameters, theirs.parameters
    if None in operations:
        return Estimate(*sizes, None, None, None, "", mine.at_most)
    assert operations[0] is not None and operations[1] is not None
    alike = {name for name, each in outlines.items() if (each.layers, each.operations(TOKENS)) == (theirs.layers, operations[1])}
    profile = _profile_of(alike, plan, store, states)
    if profile is None:
        return Estimate(*sizes, *operations, operations[1] / operations[0], "by the operations alone", mine.at_most)
    name, shares = profile
    speedup = 1 / _time_left(shares, operations[0] / operations[1], mine, theirs)
    return Estimate(*sizes, *operations, speedup, f"by the times that {name} has measured", mine.at_most)


def _profile_of(
    alike: Collection[str], plan: Plan, store: Store, states: Mapping[str, Forecast]
) -> tuple[str, Mapping[str, float]] | None:
    """The first profile in the plan of one of these models whose result is in the store: its id and the share of each kind of operator.

    They are the reference and what differs from it in words alone, which multiply nothing.
    """
    for node in plan.nodes:
        state = states.get(node.id)
        if node.step.step == "profile" and node.model in alike and state is not None and state.state == "cached" and state.key:
            result = store.has(state.key)
            if result is not None:
                shares = {name: value for name, value in result.outcome.metrics.items() if name in _SHARES}
                return (node.id, shares) if sum(shares.values()) > 0 else None
    return None


def _time_left(shares: Mapping[str, float], operations: float, mine: Outline, theirs: Outline) -> float:
    """Share of the time that stays: products go with their operations, what runs in every layer with the layers, look-ups stay."""
    layers = mine.layers / theirs.layers
    factors = {**dict.fromkeys(PRODUCTS, operations), **dict.fromkeys(ONCE, 1.0)}
    return sum(share * factors.get(name, layers) for name, share in shares.items()) / sum(shares.values())


_KINDS = "matrix_products attention softmax normalization activations embeddings pooling copies_and_layout elementwise other"
_SHARES = frozenset(f"{kind}_share" for kind in _KINDS.split())
