"""What a result is kept under: the digest of everything that can change its bytes or its numbers, by content."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import ioptim
from ioptim import hardware
from ioptim.cache import Store
from ioptim.core.base import digest_of
from ioptim.core.runtime import Target
from ioptim.core.step import Step
from ioptim.graph import Node, target_of
from ioptim.plan import Plan


def ingredients(plan: Plan, node: Node, digests: Mapping[str, str]) -> dict[str, Any]:
    """What a node's key is the digest of. `digests` are those of the models made so far, by node id."""
    recipe, step = plan.loaded.recipe, node.step
    on_hardware = step.measures or step.per_target
    found: dict[str, Any] = {
        "ioptim": code_digest(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "step": step.model_dump(mode="json", exclude=set(step.not_in_key)),
        "task": recipe.model.task.model_dump(mode="json"),
        "seed": recipe.seed,
        "model": digests[node.model] if node.model else None,
        "data": {role: plan.data_sources[role].identity() for role in step.data_roles()},
        "libraries": hardware.versions(node.libraries),
    }
    if node.source is not None:
        # A source that cannot be made is an objection, and such a plan does not run.
        spec = node.source.model_dump(mode="json", include={"allow_pickle", "allow_remote_code"})
        found["source"] = {**plan.model_sources[node.id].identity(), **spec}
    if step.compares:
        found["candidates"] = {name: digests[name] for name in node.candidates}
        found["opened_on"] = {name: _settings(on, step) for name, on in opened_on(plan, node).items()}
    if step.compares or node.baselines:
        found["baselines"] = {name: digests[provider] for name, provider in node.baselines.items()}
    if on_hardware:
        found["target"] = _settings(node.target or recipe.targets[0], step)
        found["hardware"] = plan.hardware.fingerprint
    return found


def opened_on(plan: Plan, node: Node) -> dict[str, Target]:
    """The target of each of a node's models, by the name that it has there: the one it was made for, else the node's own."""
    own = node.target or plan.loaded.recipe.targets[0]
    models = {**node.baselines, **{name: name for name in node.candidates}}
    return {name: target_of(provider, plan.node) or own for name, provider in models.items()}


def _settings(target: Target, step: Step) -> dict[str, Any]:
    """What of a target can change a result."""
    return target.model_dump(mode="json", exclude={"name", "pool", "memory_gb", *(() if step.uses_price else ("price_per_hour",))})


@cache
def code_digest() -> str:
    """Digest of the source of everything that runs inside a step's process, so that a changed line is a changed key."""
    root = Path(ioptim.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(p for name in _RUNS_IN_A_STEP for p in root.glob(name)):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


_RUNS_IN_A_STEP = (
    "core/*.py",
    "steps/**/*.py",
    "runtimes/*.py",
    "tasks/*.py",
    "sources/*.py",
    "champions.py",
    "timing.py",
    "loadgen.py",
    "batching.py",
    "energy.py",
    "inputs.py",
    "intervals.py",
    "non_finite.py",
    "subject.py",
    "roofline.py",
    "shrink.py",
    "torch_*.py",
    "training.py",
    "onnx_*.py",
    "worker.py",
)


@dataclass(frozen=True)
class Forecast:
    """What a run would do with a node: `cached`, `run`, or `unknown` until what it follows has run."""

    node: str
    state: str
    key: str | None
    seconds: float | None = None


def forecast(plan: Plan, store: Store) -> tuple[Forecast, ...]:
    """Which nodes the store already has. Reads records only."""
    digests: dict[str, str] = {}
    seen = []
    for node in plan.nodes:
        wanted = {*node.candidates, *node.baselines.values(), *([node.model] if node.model else [])}
        if not wanted <= set(digests):
            seen.append(Forecast(node.id, "unknown", None))
            continue
        key = digest_of(ingredients(plan, node, digests))
        result = store.has(key)
        if result is not None and result.model is not None:
            digests[node.id] = result.model
        seen.append(Forecast(node.id, "cached" if result else "run", key, result.seconds if result else None))
    return tuple(seen)
