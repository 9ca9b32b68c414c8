"""From the recipe's steps to the nodes of the graph: order, targets, exports and baselines."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ioptim.champions import Champion
from ioptim.core.artifact import Format
from ioptim.core.document import Loc
from ioptim.core.gate import Gate
from ioptim.core.registry import did_you_mean
from ioptim.core.runtime import Target
from ioptim.core.source import ModelSpec
from ioptim.core.step import MeasuringStep, Step, Where
from ioptim.core.target import Hardware
from ioptim.errors import PlanError, Problem, UnavailableError
from ioptim.recipe import STEPS, Loaded
from ioptim.sources import loading_libraries

SOURCE = "source"
RUNTIME_FP32 = "runtime-fp32"
CHAMPION = "champion"
EXPORT_TO = (Format.ONNX, Format.OPENVINO)
"""Formats that `export` can write, preferred first."""


@dataclass(frozen=True)
class Node:
    """One thing to run: a step, resolved, at its place in the graph.

    `parents` is everything it waits for. Of these, `model` is the node whose model it takes, `candidates` are the nodes whose models
    a comparison takes, and `baselines` maps the name of a baseline, or the field that names a further model, to the node that
    provides it.
    """

    id: str
    step: Step
    target: Target | None
    parents: tuple[str, ...]
    model: str | None
    candidates: tuple[str, ...]
    baselines: Mapping[str, str]
    where: Where
    format: Format
    inserted: str = ""
    libraries: tuple[str, ...] = ()
    source: ModelSpec | None = None
    """The model that a `source` node brings in; None for every other."""

    @property
    def provides(self) -> str:
        """The node whose model leaves this one: itself, or for a measuring step the one it measured."""
        return self.id if self.step.transforms or self.model is None else self.model


def target_of(node_id: str, node_of: Callable[[str], Node]) -> Target | None:
    """The target that a node's model was made for; None while it is shared by all."""
    current: str | None = node_of(node_id).provides
    while current is not None:
        node = node_of(current)
        if node.target is not None:
            return node.target
        current = node.model
    return None


# The recipe's steps by id, and their order.


@dataclass(frozen=True)
class NamedStep:
    """A step of the recipe with its final id, what it follows and where it stands in the YAML."""

    id: str
    step: Step
    after: tuple[str, ...]
    index: int

    @property
    def waits_for(self) -> tuple[str, ...]:
        """What it follows, and what made the other models it reads."""
        return tuple(dict.fromkeys((*self.after, *self.step.reads().values())))


def named_steps(loaded: Loaded) -> dict[str, NamedStep]:
    named: dict[str, NamedStep] = {}
    problems = []
    previous: tuple[str, ...] = (SOURCE,)
    for index, step in enumerate(loaded.recipe.steps):
        step_id = step.id or _free_name(step.step, named)
        if step_id in (SOURCE, RUNTIME_FP32, CHAMPION) or step_id in named:
            why = "is taken by the plan" if step_id not in named else f"is already the id of steps[{named[step_id].index}]"
            problems.append(loaded.problem(("steps", index, "id"), f"the id {step_id!r} {why}; choose another"))
            step_id = _free_name(step_id, named)
        after = previous if step.after is None else tuple(dict.fromkeys(step.after)) or (SOURCE,)
        named[step_id] = NamedStep(step_id, step, after, index)
        previous = (step_id,)
    known = [SOURCE, *named]
    for item in named.values():
        for key, name in (*(("after", name) for name in item.after), *item.step.reads().items()):
            if name not in known:
                hint = did_you_mean(name, known)
                message = f"there is no step with the id {name!r}{hint or '.'} There are: {', '.join(known)}"
                problems.append(loaded.problem(("steps", item.index, key), message))
    if problems:
        raise PlanError(problems, str(loaded.path))
    return named


def _free_name(wanted: str, taken: Iterable[str]) -> str:
    names, number = set(taken), 2
    name = wanted
    while name in names:
        name, number = f"{wanted}-{number}", number + 1
    return name


def in_order(loaded: Loaded, steps: Mapping[str, NamedStep]) -> list[str]:
    """Ids so that each follows what it is after, otherwise in the order of the recipe."""
    order: list[str] = []
    waiting = dict(steps)
    while waiting:
        ready = next((i for i, s in waiting.items() if all(a == SOURCE or a in order for a in s.waits_for)), None)
        if ready is None:
            raise PlanError([_cycle(loaded, waiting)], str(loaded.path))
        order.append(ready)
        del waiting[ready]
    return order


def _cycle(loaded: Loaded, waiting: Mapping[str, NamedStep]) -> Problem:
    path = [next(iter(waiting))]
    while path[-1] not in path[:-1]:
        path.append(next(a for a in waiting[path[-1]].waits_for if a in waiting))
    ring = path[path.index(path[-1]) :]
    first = waiting[ring[0]]
    links = itertools.pairwise(ring)
    key = next((key for a, b in links for key, name in waiting[a].step.reads().items() if name == b and b not in waiting[a].after), "after")
    message = f"these steps wait for each other in a circle: {' after '.join(ring)}. "
    message += "Remove one `after`" if key == "after" else f"Name an earlier step as the {key}"
    return loaded.problem(("steps", first.index, key), message)


# The nodes: one per step and target, with exports and baselines put in where they are needed.


class Grower:
    """Grows the nodes step by step; `made[step id]` are the nodes a step became. `champion_of` reads the champion of a target."""

    def __init__(
        self,
        loaded: Loaded,
        hardware: Hardware,
        steps: Mapping[str, NamedStep],
        problems: list[Problem],
        champion_of: Callable[[str], Champion | None],
    ) -> None:
        self.loaded = loaded
        self.recipe = loaded.recipe
        self.hardware = hardware
        self.steps = steps
        self.problems = problems
        self.champion_of = champion_of
        self.targets: dict[str, Target] = {t.name: t for t in self.recipe.targets}
        if len(self.targets) < len(self.recipe.targets):
            self._object(("targets",), "two targets have the same name; give each its own")
        self.nodes: list[Node] = []
        self.by_id: dict[str, Node] = {}
        self.made: dict[str, list[str]] = {}
        self.exports: dict[tuple[str, Format], str] = {}
        """What the plan has put in, by what it exports and to which format."""
        self.loading = loading_libraries(self.recipe.model.source)
        self.brought: dict[str, tuple[ModelSpec, Loc]] = {}
        """Every model that comes from outside: the node that brings it, and where the recipe names it."""
        self._bring(SOURCE, self.recipe.model, ("model", "source"), "brings the model in")
        self.made[SOURCE] = [SOURCE]
        for index, target in enumerate(self.recipe.targets):
            for text in target.runtime.check(target, hardware):
                self._object(("targets", index), text)
            if target.pool is not None:
                text = f"steps cannot be sent to a work pool yet ({target.pool!r});"
                text += " leave `pool` out and run on the machine that has the hardware"
                self._object(("targets", index, "pool"), text)

    def grow(self, step_id: str) -> None:
        """Add the nodes of one step, after everything it follows has its own."""
        named = self.steps[step_id]
        parents = [node for name in named.after for node in self.made[name]]
        explicit = self._explicit_target(named)
        places = [explicit] if explicit else self._places(named, parents)
        self.made[step_id] = []
        for target in places:
            here = self._arriving(named, target, explicit is not None) if explicit or len(places) > 1 else parents
            node_id = step_id if len(places) == 1 else f"{step_id}@{target.name if target else ''}"
            self.made[step_id].append(self._node(node_id, named, target, here))

    def _arriving(self, named: NamedStep, target: Target | None, explicit: bool) -> list[str]:
        """Of the nodes that the steps before became, those for this target. A step that names its target and has none for it keeps what
        there is, for `_node` to object to."""
        here = []
        for name in named.after:
            fitting = [node for node in self.made[name] if target is None or self._target_of(node) in (None, target.name)]
            here += fitting or (self.made[name] if explicit else [])
        return here

    def _places(self, named: NamedStep, parents: Sequence[str]) -> list[Target | None]:
        """The targets a step without one of its own runs for: None once where it is shared by all."""
        reached = [name for name in dict.fromkeys(self._target_of(p) for p in parents) if name is not None]
        if named.step.compares and len(named.after) > 1:
            return [self.targets[reached[0]] if reached else self.recipe.targets[0]]
        if reached:
            return [self.targets[name] for name in reached]
        if named.step.per_target:
            return list(self.recipe.targets)
        return [self.recipe.targets[0]] if named.step.measures else [None]

    def _node(self, node_id: str, named: NamedStep, target: Target | None, parents: Sequence[str]) -> str:
        candidates = self._candidates(named.step, parents)
        loc = ("steps", named.index)
        if len(candidates) > 1 and not named.step.compares:
            self._object((*loc, "after"), f"{named.id} takes one model, and {len(candidates)} arrive: {', '.join(candidates)}")
        serves = (target,) if named.step.per_target and target else self._serves(named.id)
        model = candidates[0]
        if not named.step.compares:
            model = self._in_format(model, named.step, target, loc)
        where = self._where(self.by_id[model].format, serves)
        step = named.step.resolve(where)
        for text in step.check(where):
            self._object(loc, text)
        for role in step.data_roles():
            if getattr(self.recipe.data, role) is None:
                self._object(("data",), f"{named.id} needs data.{role}, and the recipe has none")
        if target and not step.compares and (made_for := self._target_of(model)) not in (None, target.name):
            self._object(loc, f"{named.id} is for the target {target.name}, but {model} made its model for {made_for}")
        baselines = self._baselines(step, candidates, target, loc) if step.needs_baselines else self._others(named, step, model)
        needed = tuple(dict.fromkeys([*parents, model, *baselines.values()]))
        libraries = self._libraries(step, where, [model, *candidates, *baselines.values()], target)
        libraries += tuple(name for spec in step.brings().values() for name in loading_libraries(spec.source) if name not in libraries)
        node = Node(
            node_id,
            step,
            target,
            needed,
            model,
            candidates if step.compares else (model,),
            baselines,
            where,
            step.produces(where),
            "",
            libraries,
        )
        return self._add(node)

    def _candidates(self, step: Step, parents: Sequence[str]) -> tuple[str, ...]:
        """The models that arrive: what the parents provide, less what another of them was made from.

        A step that compares keeps what a step it names has made: the model before and after another step is a comparison too.
        """
        provided = list(dict.fromkeys(self.by_id[p].provides for p in parents))
        older = {ancestor for p in provided for ancestor in self._model_ancestors(p)}
        return tuple(p for p in provided if p not in older or (step.compares and p in parents))

    def _model_ancestors(self, node_id: str) -> Iterable[str]:
        current = self.by_id[node_id].model
        while current is not None:
            yield current
            current = self.by_id[current].model

    def _in_format(self, provider: str, step: Step, target: Target | None, loc: Loc) -> str:
        """The provider, or an export of it where the step does not take its format."""
        accepted = target.runtime.accepts if step.step == "compile" and target else step.accepts
        found = self.by_id[provider].format
        if found in accepted or not accepted:
            return provider
        to = next((f for f in EXPORT_TO if f in accepted), None)
        if to is None or found not in STEPS["export"].accepts:
            who = f"the runtime {target.runtime.runtime}" if step.step == "compile" and target else step.step
            takes = ", ".join(sorted(accepted))
            self._object(loc, f"{who} takes {takes}; {provider} provides {found}, and nothing turns {found} into that")
            return provider
        return self._insert_export(provider, to)

    def _insert_export(self, provider: str, to: Format) -> str:
        if (provider, to) in self.exports:
            return self.exports[provider, to]
        plain = "export" if provider == SOURCE and to is Format.ONNX else f"export-{provider}-{to}"
        node_id = plain if plain not in {*self.steps, *self.by_id} else _free_name(f"export-{provider}-{to}", {*self.steps, *self.by_id})
        self.exports[provider, to] = node_id
        origin = self.by_id[provider]
        where = self._where(origin.format, origin.where.targets)
        step = STEPS["export"].model_validate({"to": to}).resolve(where)
        libraries = self._libraries(step, where, [provider], None)
        why = f"{provider} is {origin.format}, what follows takes {to}"
        return self._add(Node(node_id, step, None, (provider,), provider, (provider,), {}, where, to, why, libraries))

    # Models that a step takes beside the one that arrives.

    def _others(self, named: NamedStep, step: Step, model: str) -> dict[str, str]:
        """The nodes that provide them, by the field that names each."""
        found = {}
        for field, step_id in step.reads().items():
            loc = ("steps", named.index, field)
            providers = dict.fromkeys(self.by_id[node].provides for node in self.made[step_id])
            provider = next(iter(providers))
            if len(providers) > 1:
                self._object(loc, f"{step_id} makes {len(providers)} models, one for each target; name a step before the targets part")
            elif self.by_id[provider].format not in step.accepts:
                takes = ", ".join(sorted(step.accepts))
                text = f"the {field} {step_id} is {self.by_id[provider].format}, and {step.step} takes {takes}"
                self._object(loc, f"{text}; name a step before that, for example {SOURCE}")
            elif provider == model:
                self._object(loc, f"the {field} {step_id} is the model that arrives; name an earlier step, or leave `{field}` out")
            found[field] = provider
        for field, spec in step.brings().items():
            node_id = _free_name(f"{named.id}-{field}", {*self.steps, *self.by_id})
            self._bring(node_id, spec, ("steps", named.index, field), f"brings the {field} of {named.id} in")
            if self.by_id[node_id].format not in step.accepts:
                takes = ", ".join(sorted(step.accepts))
                self._object(("steps", named.index, field), f"{spec.source} is {self.by_id[node_id].format}, and {step.step} takes {takes}")
            found[field] = node_id
        return found

    def _bring(self, node_id: str, spec: ModelSpec, loc: Loc, why: str) -> None:
        """A node for a model from outside."""
        form = Format.ONNX if spec.source.endswith(".onnx") else Format.TORCH
        step = STEPS["source"]()  # type: ignore[call-arg]
        where, libraries = self._where(form, ()), loading_libraries(spec.source)
        self.brought[node_id] = (spec, loc)
        self._add(Node(node_id, step, None, (), None, (), {}, where, form, why, libraries, spec))

    # Baselines: the model as given, the same model in fp32 on the same runtime, and what gates name beside these.

    def _baselines(self, step: Step, candidates: Sequence[str], target: Target | None, loc: Loc) -> dict[str, str]:
        found = {SOURCE: SOURCE}
        own = target or self.recipe.targets[0]
        places = {c: self._target_of(c) or own.name for c in candidates}
        names = list(dict.fromkeys(places.values()))
        for name in names:
            baseline = self._insert_fp32(self.targets[name], loc)
            if baseline is not None:
                found[RUNTIME_FP32 if len(names) == 1 else f"{RUNTIME_FP32}@{name}"] = baseline
        if not isinstance(step, MeasuringStep):
            return found
        for index, gate in enumerate(step.gates):
            self._check_gate(step, gate, (*loc, "gates", index), found, places)
        return found

    def _check_gate(self, step: MeasuringStep, gate: Gate, loc: Loc, found: dict[str, str], candidates: Mapping[str, str]) -> None:
        """`candidates` are the targets of the models that are judged, by node. Adds to `found` what the gate compares them with."""
        metrics = step.metric_names(self.recipe.model.task)
        if gate.metric not in metrics:
            hint = did_you_mean(gate.metric, metrics)
            self._object((*loc, "metric"), f"{step.step} has no metric {gate.metric!r}{hint or '.'} It has: {', '.join(metrics)}")
        if gate.needs_baseline and gate.baseline.partition("@")[0] == CHAMPION:
            self._add_champions(gate, (*loc, "baseline"), found, candidates)
        known = {name.partition("@")[0] for name in found} | set(found) | set(candidates)
        known |= {CHAMPION, *(f"{CHAMPION}@{name}" for name in candidates.values())}
        if gate.needs_baseline and gate.baseline not in known:
            models = [name for name, nodes in self.made.items() if any(self.by_id[node].step.transforms for node in nodes)]
            if gate.baseline in models:
                self._add_made(gate.baseline, (*loc, "baseline"), found, candidates)
            else:
                every = [*models, RUNTIME_FP32, CHAMPION]
                what = f"no model is called {gate.baseline!r}{did_you_mean(gate.baseline, every) or '.'}"
                self._object((*loc, "baseline"), f"{what} There are: {', '.join(every)}")
        if gate.candidate is not None and gate.candidate not in candidates:
            self._object((*loc, "candidate"), f"{gate.candidate!r} is not measured here; candidates are {', '.join(candidates)}")
        judged = [name for name in candidates if gate.candidate in (None, name)]
        themselves = {gate.baseline, *(node for name, node in found.items() if name.partition("@")[0] == gate.baseline)}
        if gate.needs_baseline and judged and themselves.issuperset(judged):
            self._object((*loc, "baseline"), f"{', '.join(judged)} would be compared with itself; name another baseline")

    def _add_made(self, step_id: str, loc: Loc, found: dict[str, str], candidates: Mapping[str, str]) -> None:
        """A step as a baseline: for each candidate what it made for that one's target; the same for all where it made only one model."""
        made, names = self.made[step_id], list(dict.fromkeys(candidates.values()))
        for name in names:
            provider = made[0] if len(made) == 1 else next((node for node in made if self._target_of(node) == name), None)
            if provider is None:
                self._object(loc, f"{step_id} makes {len(made)} models, one for each target, and none for {name}; name another baseline")
                continue
            # A model that is also a candidate keeps its name, and is not measured twice. A node of several is called step@target.
            shared = (len(made) == 1 or len(names) == 1) and provider not in candidates
            found[step_id if shared else provider] = provider

    def _add_champions(self, gate: Gate, loc: Loc, found: dict[str, str], candidates: Mapping[str, str]) -> None:
        """For each candidate that the gate judges the champion of that one's target, or the one that it names as champion@target."""
        names, only = set(candidates.values()), gate.baseline.partition("@")[2]
        wanted = [on for name, on in candidates.items() if gate.candidate in (None, name)] if not only else [only]
        for name in dict.fromkeys(on for on in wanted if on in names):
            champion = self._insert_champion(self.targets[name], loc)
            if champion is not None:
                found[f"{CHAMPION}@{name}" if only or len(names) > 1 else CHAMPION] = champion

    def _insert_champion(self, target: Target, loc: Loc) -> str | None:
        node_id = CHAMPION if len(self.targets) == 1 else f"{CHAMPION}@{target.name}"
        if node_id in self.by_id:
            return node_id
        champion = self._champion(target, loc)
        if champion is None:
            return None
        fields = STEPS["champion"].model_fields
        given = {name: value for name, value in champion.model_dump(mode="json").items() if name in fields}
        step = STEPS["champion"].model_validate({**given, "folder": str(champion.folder)})
        where = self._where(champion.format, (target,))
        why = f"baseline: the champion, {champion.made_by} of run {champion.run_id}"
        return self._add(Node(node_id, step, target, (), None, (), {}, where, champion.format, why))

    def _champion(self, target: Target, loc: Loc) -> Champion | None:
        """The target's champion; None with an objection where there is none that it can open."""
        try:
            champion = self.champion_of(target.name)
        except UnavailableError as error:
            self._object(loc, str(error))
            return None
        name, runtime = target.name, target.runtime.runtime
        if champion is None:
            once = f"ioptim run {self.loaded.path} --set {'.'.join(map(str, loc))}={SOURCE}"
            text = f"{self.recipe.name} has no champion for the target {name} yet. Run it once with another baseline in this gate ({once}),"
            self._object(loc, f"{text} then make what that run compiled the champion: ioptim promote RUN")
        elif champion.runtime != runtime:  # its file may have the right format, and operators that no other runtime has
            text = f"the champion for the target {name}, {champion.made_by} of run {champion.run_id}, was compiled for {champion.runtime};"
            self._object(loc, f"{text} {name} now runs {runtime}, which cannot open it. Give this target another name, or the old runtime")
            return None
        return champion

    def _insert_fp32(self, target: Target, loc: Loc) -> str | None:
        node_id = RUNTIME_FP32 if len(self.targets) == 1 else f"{RUNTIME_FP32}@{target.name}"
        if node_id in self.by_id:
            return node_id
        step = STEPS["compile"].model_validate({})
        before = len(self.problems)
        provider = self._in_format(SOURCE, step, target, loc)
        if len(self.problems) > before:
            return None
        where = self._where(self.by_id[provider].format, (target,))
        libraries = self._libraries(step, where, [provider], target)
        why = f"baseline: the model as given, in fp32 on {target.runtime.runtime}"
        node = Node(node_id, step, target, (provider,), provider, (provider,), {}, where, step.produces(where), why, libraries)
        return self._add(node)

    # Small questions.

    def _explicit_target(self, named: NamedStep) -> Target | None:
        name = named.step.target
        if name is None:
            return None
        if name not in self.targets:
            hint = did_you_mean(name, self.targets)
            message = f"there is no target {name!r}{hint or '.'} There are: {', '.join(self.targets)}"
            self._object(("steps", named.index, "target"), message)
            return self.recipe.targets[0]
        return self.targets[name]

    def _target_of(self, node_id: str) -> str | None:
        found = target_of(node_id, self.by_id.__getitem__)
        return found.name if found else None

    def _serves(self, step_id: str) -> tuple[Target, ...]:
        """Targets that the models made by this step will run on, as far as the recipe says."""
        reached: dict[str, Target] = {}
        waiting, seen = [step_id], set()
        while waiting:
            current = waiting.pop()
            seen.add(current)
            step = self.steps[current].step
            if step.target is not None and step.target in self.targets:
                reached[step.target] = self.targets[step.target]
                continue
            followers = [s.id for s in self.steps.values() if current in s.after and s.id not in seen]
            if step.per_target or not followers:
                reached.update(self.targets)
            waiting += followers
        return tuple(t for name, t in self.targets.items() if name in reached)

    def _where(self, format: Format, targets: Sequence[Target]) -> Where:
        return Where(
            format=format,
            targets=tuple(targets) or tuple(self.recipe.targets),
            task=self.recipe.model.task,
            hardware=self.hardware,
            has_calibration=self.recipe.data.calibration is not None,
        )

    def _libraries(self, step: Step, where: Where, models: Sequence[str], target: Target | None) -> tuple[str, ...]:
        """Distributions a node needs: the step's, the task's, and those that load or open the models."""
        names = [*step.library_names(where), *(self.recipe.model.task.libraries if step.data_roles() else ())]
        for model in models if step.measures else models[:1]:
            name, format = self._target_of(model), self.by_id[model].format
            if step.measures:
                names += self.targets[name].runtime.libraries if name else _OPEN.get(format, ())
            names += self.loading if format is Format.TORCH else ()
        return tuple(dict.fromkeys(names))

    def _object(self, loc: Loc, message: str) -> None:
        self.problems.append(self.loaded.problem(loc, message))

    def _add(self, node: Node) -> str:
        self.nodes.append(node)
        self.by_id[node.id] = node
        return node.id


_OPEN: Mapping[Format, tuple[str, ...]] = {Format.ONNX: ("onnx", "onnxruntime")}
"""What opens a model that no target has compiled yet, beside what loads it."""
