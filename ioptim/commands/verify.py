"""`ioptim verify RUN`: does what a run recorded still hold? Every byte, every verdict and the recipe, read again."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from ioptim import gates, hardware
from ioptim.cache import Store
from ioptim.commands._common import home_of, print_json
from ioptim.core.base import digest_of
from ioptim.core.document import dotted, parse
from ioptim.core.gate import Gate, GateResult
from ioptim.core.metrics import Kind, Samples, read_samples
from ioptim.core.record import NodeRecord, RunRecord, Status
from ioptim.errors import ExitCode, IoptimError, RecipeError
from ioptim.keys import code_digest
from ioptim.recipe import parse_recipe
from ioptim.tracking import local

_MOST = 3
"""Figures that one check names."""


class State(StrEnum):
    """Of a check. A `note` says what is otherwise here than where the run was; it does not make the run wrong."""

    OK = "ok"
    WRONG = "wrong"
    NOTE = "note"


@dataclass(frozen=True)
class Check:
    """One thing looked at and what was found."""

    subject: str
    state: State
    detail: str


def main(args: argparse.Namespace) -> ExitCode:
    home = home_of(args)
    record = local.read_run(home, args.run)
    store = Store(home / "store")
    code = _code_changed(record, store)
    checks = [*_recipe(record, local.run_folder(home, record.run_id), bool(code)), *_objects(record, store)]
    checks += [*_figures(record, store, bool(code)), *_verdicts(record, store), *_surroundings(record), *code]
    wrong = [check for check in checks if check.state is State.WRONG]
    if args.json:
        print_json({"run_id": record.run_id, "holds": not wrong, "checks": [asdict(check) for check in checks]})
    else:
        print(_table(record, checks))
    return ExitCode.GATE if wrong else ExitCode.PASS


def _table(record: RunRecord, checks: list[Check]) -> str:
    width = max(len(check.subject) for check in checks)
    lines = [f"{check.state.value:<5}  {check.subject:<{width}}  {check.detail}" for check in checks]
    counts = {state: sum(check.state is state for check in checks) for state in State}
    verdict = "holds" if not counts[State.WRONG] else "does not hold"
    return "\n".join(
        [
            f"{record.run_id} ({record.status.value})",
            *lines,
            f"{verdict}: {counts[State.OK]} ok, {counts[State.WRONG]} wrong, {counts[State.NOTE]} to note",
        ]
    )


# --- the recipe


def _recipe(record: RunRecord, folder: Path, other_code: bool) -> Iterator[Check]:
    """The text in the folder is the record's, the digest is the configuration's, and the text gives this configuration."""
    kept = folder / local.RECIPE
    if not kept.is_file() or kept.read_text() != record.recipe_text:
        yield Check("recipe text", State.WRONG, f"{kept} is not the text that the run recorded")
    if digest_of(record.recipe_config) != record.recipe_digest:
        yield Check("recipe digest", State.WRONG, "the recorded configuration has another digest than the recorded one")
        return
    try:
        recipe = parse_recipe(parse(record.recipe_text), Path(record.recipe_path or f"{record.recipe}.yaml"), record.overrides).recipe
    except RecipeError as error:
        yield Check("recipe", State.NOTE if other_code else State.WRONG, f"this version of ioptim does not accept the text: {error}")
        return
    said, now = (recipe.model_dump(mode="json", exclude_unset=unset) for unset in (True, False))
    changed = [dotted(loc) for loc in _differences(said, record.recipe_config, only_left=True)]
    filled_in = [dotted(loc) for loc in _differences(now, record.recipe_config)]
    if changed:
        yield Check("recipe", State.WRONG, f"the recorded configuration is not what the text says: {', '.join(changed)}")
    elif filled_in and not other_code:
        yield Check("recipe", State.WRONG, f"the recorded configuration has values that nobody wrote: {', '.join(filled_in)}")
    elif filled_in:
        yield Check("recipe", State.NOTE, f"what the text leaves out has other defaults in this version: {', '.join(filled_in)}")
    else:
        yield Check("recipe", State.OK, f"digest {record.recipe_digest[:12]} is that of the recorded text")


def _differences(left: Any, right: Any, loc: tuple[str | int, ...] = (), only_left: bool = False) -> Iterator[tuple[str | int, ...]]:
    """Places where two documents differ; with `only_left`, only those that the left one has."""
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        for key in left if only_left else dict.fromkeys([*left, *right]):
            if key in left and key in right:
                yield from _differences(left[key], right[key], (*loc, key), only_left)
            else:
                yield (*loc, key)
    elif isinstance(left, list | tuple) and isinstance(right, list | tuple) and len(left) == len(right):
        for i, (one, other) in enumerate(zip(left, right, strict=True)):
            yield from _differences(one, other, (*loc, i), only_left)
    elif left != right:
        yield loc


# --- what is in the store


def _objects(record: RunRecord, store: Store) -> Iterator[Check]:
    """Every model and every folder of kept files, once each however many nodes name it."""
    named: dict[str, list[str]] = {}
    for node in record.nodes:
        if node.artifact is not None:
            named.setdefault(node.artifact.digest, []).append(node.id)
        if node.files is not None:
            named.setdefault(_digest_of_files(node.files), []).append(f"files of {node.id}")
    for digest, names in named.items():
        problem = store.problem(digest)
        yield Check(", ".join(names), State.WRONG if problem else State.OK, problem or f"object {digest[:12]} is as it was sealed")


def _digest_of_files(path: str) -> str:
    """A sealed folder is named by its digest, wherever the store has been moved since."""
    return Path(path).name


# --- figures


def _figures(record: RunRecord, store: Store, other_code: bool) -> Iterator[Check]:
    """Every figure of a model that stands in the record is what its samples come to."""
    for node in record.nodes:
        if not node.subjects or node.files is None or store.problem(_digest_of_files(node.files)):
            continue  # what is missing or damaged is said of the objects
        samples = read_samples(store.files(_digest_of_files(node.files)))
        wrong = [text for sample in samples if not _is_searched(sample, samples) for text in _unlike(node, sample)]
        if samples and not wrong:
            yield Check(f"figures of {node.id}", State.OK, "follow from the recorded samples")
        elif wrong:
            more = f"; and {len(wrong) - _MOST} more" if len(wrong) > _MOST else ""
            yield Check(f"figures of {node.id}", State.NOTE if other_code else State.WRONG, "; ".join(wrong[:_MOST]) + more)


def _is_searched(sample: Samples, samples: tuple[Samples, ...]) -> bool:
    """A rate that was searched for, and its cost: the figure is of all trials, the samples are of the rounds alone."""
    served = any(each.metric.name.startswith("server_") for each in samples)
    return served and sample.metric.name.startswith(("server_", "cost_"))


def _unlike(node: NodeRecord, sample: Samples) -> Iterator[str]:
    name = sample.metric.name
    for subject, values in sample.values.items():
        recorded = node.subjects.get(subject, {}).get(name)
        numbers = [value for value in values if value is not None]
        given = sample.centre(numbers)
        if recorded is not None and (given is None or not math.isclose(recorded, given, rel_tol=1e-9, abs_tol=1e-12)):
            said = "nothing" if given is None else f"{given:.6g}"
            yield f"{name} of {subject} is recorded as {recorded:.6g}, and the samples say {said}"


# --- verdicts


def _verdicts(record: RunRecord, store: Store) -> Iterator[Check]:
    for node in record.nodes:
        asked = [Gate.model_validate(gate) for gate in node.config.get("gates") or ()]
        if not asked and not node.gates:
            continue
        if node.status not in (Status.PASSED, Status.GATE_FAILED):
            yield Check(f"gates of {node.id}", State.NOTE, f"not judged: the step ended as {node.status.value}")
        elif node.files is None or store.problem(_digest_of_files(node.files)):
            yield Check(f"gates of {node.id}", State.WRONG, "the samples that they were judged from are missing or damaged")
        else:
            yield from _verdicts_of(node, asked, read_samples(store.files(_digest_of_files(node.files))), record)
    blocked = any(result.blocks for result in record.gates)
    if blocked and record.exit_code is ExitCode.PASS:
        yield Check("exit code", State.WRONG, "0 is recorded, and a gate blocks")


def _verdicts_of(node: NodeRecord, asked: list[Gate], samples: tuple[Samples, ...], record: RunRecord) -> Iterator[Check]:
    for result in node.gates:
        problem = _why_it_does_not_follow(result, samples)
        detail = problem or f"{result.verdict.value} follows from the recorded samples"
        subject = f"{node.id}: {_name(result.gate)} of {result.candidate}"
        yield Check(subject, State.WRONG if problem else State.OK, detail)
        if not problem and (said := gates.judge(result.gate, samples, [result.candidate])[0].reason) != result.reason:
            yield Check(f"words of {subject}", State.NOTE, f"this version of ioptim says it otherwise: {said}")
    judged = {_without_baseline(result.gate) for result in node.gates}
    for gate in asked:
        if _without_baseline(gate) not in judged:
            yield Check(f"{node.id}: {_name(gate)}", State.WRONG, "the recipe has this gate, and the record no verdict on it")
    if (node.status is Status.GATE_FAILED) is not any(result.blocks for result in node.gates):
        yield Check(node.id, State.WRONG, f"the step ended as {node.status.value}, which does not follow from its verdicts")
    here = record.hardware.fingerprint
    elsewhere = {mark for each in samples if each.kind is Kind.BLOCKS for mark in each.hardware.values()} - {here}
    if elsewhere:
        text = f"taken on other hardware ({', '.join(sorted(elsewhere))}) than the run's ({here})"
        yield Check(f"times of {node.id}", State.WRONG, text)


def _why_it_does_not_follow(result: GateResult, samples: tuple[Samples, ...]) -> str:
    """What the samples say instead; nothing when they say what is recorded."""
    try:
        (again,) = gates.judge(result.gate, samples, [result.candidate])
    except IoptimError as error:
        return f"{result.verdict.value} is recorded, and the samples cannot be judged: {error}"
    if again.verdict is not result.verdict:
        return f"{result.verdict.value} is recorded, and the samples say {again.verdict.value}: {again.reason}"
    unlike = [
        name for name in ("estimate", "interval", "n", "slice", "candidate_value", "baseline_value") if not _same(result, again, name)
    ]
    return f"another {', '.join(unlike)} is recorded than the samples give: {again.reason}" if unlike else ""


def _same(recorded: GateResult, again: GateResult, name: str) -> bool:
    """To 9 digits: another build of NumPy may add in another order."""
    one, other = (getattr(result, name) for result in (recorded, again))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12)
    if isinstance(one, tuple) and isinstance(other, tuple):
        return all(math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def _without_baseline(gate: Gate) -> Gate:
    """Several targets have several fp32 baselines: the record names the one that was meant."""
    return gate.model_copy(update={"baseline": gate.baseline.partition("@")[0]})


def _name(gate: Gate) -> str:
    kind, bound = gate.bound
    return f"{gate.metric} {kind} {bound:g}" + (f" by {gate.slices}" if gate.slices else "")


# --- where the run was, and where this is


def _surroundings(record: RunRecord) -> Iterator[Check]:
    here = hardware.probe()
    if here.fingerprint == record.hardware.fingerprint:
        yield Check("hardware", State.OK, f"this machine ({here.fingerprint})")
    else:
        then = f"{record.hardware.cpu_model}, {record.hardware.cores} cores ({record.hardware.fingerprint})"
        yield Check("hardware", State.NOTE, f"measured on {then}; this is {here.cpu_model}, {here.cores} cores ({here.fingerprint})")
    now = hardware.versions(record.environment)
    other = [f"{name} {then} (here {now[name] or 'none'})" for name, then in record.environment.items() if now[name] != then]
    if other:
        yield Check("libraries", State.NOTE, f"measured with {', '.join(other)}")
    else:
        yield Check("libraries", State.OK, "the versions that it was measured with")


def _code_changed(record: RunRecord, store: Store) -> list[Check]:
    """A note when the steps' code is not what ran, as far as the store still tells."""
    results = (store.has(node.key) for node in record.nodes if node.key is not None)
    codes = {result.ingredients.get("ioptim") for result in results if result is not None}
    if codes <= {code_digest()}:
        return []
    return [Check("ioptim", State.NOTE, "the code of the steps has changed since: measured again, the numbers may differ")]
