"""`ioptim plan`: the resolved graph, what is cached, what is missing and every objection. Runs nothing."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from ioptim import hardware
from ioptim.cache import Store
from ioptim.commands._common import home_of, load, plan_of, print_json
from ioptim.errors import ExitCode
from ioptim.estimate import Estimate, estimates
from ioptim.graph import Node
from ioptim.keys import Forecast, forecast
from ioptim.plan import Plan, missing_text


def main(args: argparse.Namespace) -> ExitCode:
    plan = plan_of(args, load(args), hardware.probe())
    store = Store(home_of(args) / "store")
    states = {f.node: f for f in forecast(plan, store)} if not plan.objections else {}
    expected = estimates(plan, store, states) if not plan.objections else {}
    code = ExitCode.BAD_RECIPE if plan.objections else ExitCode.UNAVAILABLE if plan.missing else ExitCode.PASS
    if args.json:
        print_json(_document(plan, states, expected, code))
    else:
        _show(plan, states, expected)
    return code


def _document(plan: Plan, states: dict[str, Forecast], expected: Mapping[str, Estimate | None], code: ExitCode) -> dict[str, Any]:
    return {
        "recipe": plan.loaded.recipe.name,
        "exit_code": int(code),
        "hardware": plan.hardware.model_dump(mode="json") | {"fingerprint": plan.hardware.fingerprint},
        "nodes": [
            {
                "id": node.id,
                "step": node.step.step,
                "target": node.target.name if node.target else None,
                "parents": list(node.parents),
                "inserted": node.inserted or None,
                "takes": node.where.format.value,
                "produces": node.format.value if node.step.transforms else "measurements",
                "config": node.step.model_dump(mode="json"),
                "state": states[node.id].state if node.id in states else "unknown",
                "key": states[node.id].key if node.id in states else None,
                "expected": vars(estimate) if (estimate := expected.get(node.id)) else None,
            }
            for node in plan.nodes
        ],
        "objections": [vars(p) for p in plan.objections],
        "missing": {name: list(nodes) for name, nodes in plan.missing.items()},
        "warnings": list(plan.warnings),
    }


def _show(plan: Plan, states: dict[str, Forecast], expected: Mapping[str, Estimate | None]) -> None:
    recipe = plan.loaded.recipe
    print(f"{recipe.name}: {len(plan.nodes)} nodes on {plan.hardware.cpu_model} ({plan.hardware.fingerprint})\n")
    width = max(len(node.id) for node in plan.nodes)
    for node in plan.nodes:
        state = states.get(node.id)
        print(f"  {node.id:<{width}}  {_state(state):<12} {_what(node)}")
        for line in _details(node):
            print(f"  {'':<{width}}  {'':<12} {line}")
        if node.id in expected:
            what = expected[node.id] or "parameters, operations and speed are not known before it runs"
            print(f"  {'':<{width}}  {'':<12} expected: {what}")
    if plan.warnings:
        print("\n" + "\n".join(f"warning: {text}" for text in plan.warnings))
    if plan.objections:
        print("\nObjections (nothing would run):")
        for problem in plan.objections:
            print(f"  {problem}")
    if plan.missing:
        print(f"\n{missing_text(plan.missing)}")
    if not plan.objections and not plan.missing:
        cached = sum(state.state == "cached" for state in states.values())
        print(f"\nReady: {cached} of {len(plan.nodes)} nodes are in the store. Run it with: ioptim run {plan.loaded.path}")


def _state(state: Forecast | None) -> str:
    return {"cached": "cached", "run": "will run", "unknown": "will run?"}[state.state] if state else "-"


def _what(node: Node) -> str:
    made = f"{node.where.format} → {node.format}" if node.step.transforms and node.model else node.format.value
    where = f" on {node.target.name} ({node.target.runtime.runtime})" if node.target else ""
    return f"{node.step.step}{where}: " + (made if node.step.transforms else f"measures {', '.join(node.candidates)}")


def _details(node: Node) -> list[str]:
    lines = []
    if node.inserted:
        lines.append(f"inserted: {node.inserted}")
    if node.parents:
        lines.append(f"after {', '.join(node.parents)}")
    settings = node.step.model_dump(mode="json", exclude={"step", "id", "after", "target", "gates"}, exclude_defaults=True)
    if settings:
        lines.append(", ".join(f"{key}={value}" for key, value in settings.items()))
    for gate in getattr(node.step, "gates", ()):
        bound, value = gate.bound
        against = f" against {gate.baseline}" if gate.needs_baseline else ""
        by = f" in every slice by {gate.slices}" if gate.slices else ""
        lines.append(f"gate: {gate.metric} {bound} {value}{against}{by} at {gate.confidence:.0%}")
    return lines
