"""`ioptim verify RUN`: does what a run recorded still hold? Every byte, every verdict and the recipe, read again."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from ioptim import gates, hardware
from ioptim.cache import Result, Store
from ioptim.commands._common import home_of, print_json
from ioptim.commands._raw import derive, nearest_cost, raw_file
from ioptim.core.base import digest_of
from ioptim.core.document import dotted, parse
from ioptim.core.gate import Gate, GateResult, SliceResult
from ioptim.core.metrics import Kind, Samples, read_samples
from ioptim.core.record import NodeRecord, RunRecord, Status
from ioptim.errors import ExitCode, RecipeError, UnavailableError
from ioptim.keys import code_digest
from ioptim.recipe import parse_recipe
from ioptim.steps.benchmark.scenarios import COST, THROUGHPUT
from ioptim.steps.benchmark.search import RATE
from ioptim.tracking import local

_MOST = 3
"""Figures that one check names."""
_RETURNED = {"metrics", "subjects", "notes", "tables", "charts", "curves", "facts"}
"""What a record copies of what a step returned."""


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
    folder = local.find_run(home_of(args), args.run)
    home = folder.parent.parent  # a run named by its path may lie in another
    record = local.read_run(home, folder)
    store = Store(home / "store")
    code = _code_changed(record, store)
    checks = [*_recipe(record, folder, bool(code)), *_objects(record, store)]
    checks += [*_returned(record, store), *_samples(record, store, bool(code)), *_figures(record, store, bool(code))]
    checks += [*_verdicts(record, store), *_ending(record), *_surroundings(record), *code]
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


def _returned(record: RunRecord, store: Store) -> Iterator[Check]:
    """What the record says that each step returned is what the store kept of it."""
    ended = [node for node in record.nodes if node.computed is not None]
    kept = {node.id: _result(node, store) for node in ended}
    since, wrong = [], []
    for node in ended:
        result = kept[node.id]
        if result is None or result.computed != node.computed:
            since.append(node.id)
        else:
            said, returned = (each.model_dump(mode="json", include=_RETURNED) for each in (node, result.outcome))
            wrong += [f"{dotted(loc)} of {node.id}" for loc in _differences(said, returned)]
    if wrong:
        yield Check("results", State.WRONG, f"recorded otherwise than returned: {_most(wrong)}")
    elif since:
        yield Check("results", State.NOTE, f"computed again since, or no longer in the store, so not compared: {', '.join(since)}")
    elif ended:
        yield Check("results", State.OK, "recorded as the steps returned them")


def _samples(record: RunRecord, store: Store, other_code: bool) -> Iterator[Check]:
    """What figures and verdicts are taken from is what the raw measurements beside it come to."""
    for node, samples, folder in _measured(record, store):
        raw = raw_file(folder)
        if raw is None:
            continue
        try:
            derived = derive(raw, node, samples, _prices(record))
        except UnavailableError as error:
            yield Check(f"samples of {node.id}", State.NOTE, str(error))
            continue
        except (ValueError, KeyError) as error:
            yield Check(f"samples of {node.id}", State.WRONG, f"{raw.name} cannot be read: {error}")
            continue
        wrong = [text for each in samples if (given := derived.get(each.metric.name)) is not None for text in _unlike_raw(each, given)]
        state, detail = State.OK, f"follow from {raw.name}"
        if wrong:
            state, detail = State.NOTE if other_code else State.WRONG, f"{raw.name} gives another {_most(wrong)}"
        yield Check(f"samples of {node.id}", state, detail)


def _unlike_raw(sample: Samples, given: Mapping[str, Sequence[float | None]]) -> Iterator[str]:
    for subject, values in sample.values.items():
        if not _same(values, tuple(given.get(subject, ()))):
            yield f"{sample.metric.name} of {subject}"


def _figures(record: RunRecord, store: Store, other_code: bool) -> Iterator[Check]:
    """Every figure of a model that stands in the record is what its samples come to."""
    for node, samples, _ in _measured(record, store):
        wrong = [text for sample in samples for text in _unlike(node, sample, _prices(record))]
        if samples and not wrong:
            yield Check(f"figures of {node.id}", State.OK, "follow from the recorded samples")
        elif wrong:
            yield Check(f"figures of {node.id}", State.NOTE if other_code else State.WRONG, _most(wrong))


def _unlike(node: NodeRecord, sample: Samples, prices: Sequence[float]) -> Iterator[str]:
    name = sample.metric.name
    if name.startswith("server_"):
        return  # the figure is of all trials, the samples are of the rounds alone
    for subject, values in sample.values.items():
        figures = node.subjects.get(subject, {})
        recorded = figures.get(name)
        given, says = sample.centre([value for value in values if value is not None]), "the samples say"
        if name == COST.name:
            given, says = nearest_cost(prices, figures.get(RATE, figures.get(THROUGHPUT.metric.name)), recorded), "its rate and price say"
        if recorded is not None and (given is None or not _same(recorded, given)):
            said = "nothing" if given is None else f"{given:.6g}"
            yield f"{name} of {subject} is recorded as {recorded:.6g}, and {says} {said}"


def _measured(record: RunRecord, store: Store) -> Iterator[tuple[NodeRecord, tuple[Samples, ...], Path]]:
    """Every step that measured models, its samples and its kept files; what is missing or damaged is said of the objects."""
    for node in record.nodes:
        if node.subjects and node.files is not None and not store.problem(_digest_of_files(node.files)):
            folder = store.files(_digest_of_files(node.files))
            yield node, read_samples(folder), folder


def _prices(record: RunRecord) -> list[float]:
    return [price for target in record.recipe_config.get("targets", ()) if (price := target.get("price_per_hour")) is not None]


def _result(node: NodeRecord, store: Store) -> Result | None:
    return store.has(node.key) if node.key is not None else None


def _most(texts: Sequence[str]) -> str:
    return "; ".join(texts[:_MOST]) + (f"; and {len(texts) - _MOST} more" if len(texts) > _MOST else "")


# --- verdicts


def _verdicts(record: RunRecord, store: Store) -> Iterator[Check]:
    for node in record.nodes:
        follows = Status.GATE_FAILED if any(result.blocks for result in node.gates) else Status.PASSED
        if node.status is not follows and (node.gates or node.status is Status.GATE_FAILED):
            yield Check(node.id, State.WRONG, f"the step ended as {node.status.value}, which does not follow from its verdicts")
        if not node.config.get("gates") and not node.gates:
            continue
        if node.status not in (Status.PASSED, Status.GATE_FAILED):
            yield Check(f"gates of {node.id}", State.NOTE, f"not judged: the step ended as {node.status.value}")
        elif node.files is not None and store.problem(_digest_of_files(node.files)):
            yield Check(f"gates of {node.id}", State.WRONG, "the samples that they were judged from are missing or damaged")
        elif (result := _result(node, store)) is None:
            text = "the store no longer has the step's result, which names the models that were judged"
            yield Check(f"gates of {node.id}", State.WRONG, text)
        else:
            samples = read_samples(store.files(_digest_of_files(node.files))) if node.files else ()
            yield from _verdicts_of(node, _asked(node, result, samples, record), samples, record)


def _asked(node: NodeRecord, result: Result, samples: tuple[Samples, ...], record: RunRecord) -> list[tuple[Gate, str]]:
    """Every gate of the step with every candidate that it judges, and the baseline that it meant: of several targets, the candidate's."""
    targets = {each.id: each.target for each in record.nodes}
    candidates, baselines = (result.ingredients.get(name, {}) for name in ("candidates", "baselines"))
    found = []
    for gate in map(Gate.model_validate, node.config.get("gates") or ()):
        pairs = []
        for candidate in candidates:
            qualified = f"{gate.baseline}@{targets.get(candidate) or node.target}"
            baseline = qualified if qualified in baselines else gate.baseline
            if gate.candidate in (None, candidate) and baseline != candidate:
                pairs.append((gate.model_copy(update={"baseline": baseline}), candidate))
        # Where there is nobody to judge, a run has the verdict that says so.
        found += pairs or [(gate, nobody.candidate) for nobody in gates.judge(gate, samples, list(candidates))]
    return found


def _verdicts_of(node: NodeRecord, asked: list[tuple[Gate, str]], samples: tuple[Samples, ...], record: RunRecord) -> Iterator[Check]:
    for result in node.gates:
        subject = f"{node.id}: {_name(result.gate)} of {result.candidate}"
        if (result.gate, result.candidate) not in asked:
            yield Check(subject, State.WRONG, "the record has this verdict, and the step no such gate")
            continue
        (again,) = gates.judge(result.gate, samples, [result.candidate])
        problem = _why_it_does_not_follow(result, again)
        detail = problem or f"{result.verdict.value} follows from the recorded samples"
        yield Check(subject, State.WRONG if problem else State.OK, detail)
        if not problem and again.reason != result.reason:
            yield Check(f"words of {subject}", State.NOTE, f"this version of ioptim says it otherwise: {again.reason}")
    judged = {(result.gate, result.candidate) for result in node.gates}
    for gate, candidate in asked:
        if (gate, candidate) not in judged:
            subject = f"{node.id}: {_name(gate)} of {candidate}"
            yield Check(subject, State.WRONG, "the step has this gate, and the record no verdict on it")
    here = record.hardware.fingerprint
    elsewhere = {mark for each in samples if each.kind is Kind.BLOCKS for mark in each.hardware.values()} - {here}
    if elsewhere:
        text = f"taken on other hardware ({', '.join(sorted(elsewhere))}) than the run's ({here})"
        yield Check(f"times of {node.id}", State.WRONG, text)


def _why_it_does_not_follow(result: GateResult, again: GateResult) -> str:
    """What the samples say instead; nothing when they say what is recorded."""
    if again.verdict is not result.verdict:
        return f"{result.verdict.value} is recorded, and the samples say {again.verdict.value}: {again.reason}"
    recorded = dict(result)
    unlike = [name for name, value in again if name != "reason" and not _same(recorded[name], value)]
    return f"another {', '.join(unlike)} is recorded than the samples give: {again.reason}" if unlike else ""


def _same(one: Any, other: Any) -> bool:
    """To 9 digits: another build of NumPy may add in another order."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12)
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, SliceResult) and isinstance(other, SliceResult):
        return _same(tuple(one), tuple(other))
    return bool(one == other)


def _name(gate: Gate) -> str:
    kind, bound = gate.bound
    return f"{gate.metric} {kind} {bound:g}" + (f" by {gate.slices}" if gate.slices else "")


def _ending(record: RunRecord) -> Iterator[Check]:
    """Passed and gate_failed, 0 and 1, are for the steps to say; that it was stopped or met an error only the run can tell."""
    blocked = any(result.blocks for result in record.gates)
    follows = (Status.GATE_FAILED, ExitCode.GATE) if blocked else (Status.PASSED, ExitCode.PASS)
    ended = (Status.PASSED, Status.GATE_FAILED, Status.SKIPPED)
    why = next((f"{node.id} ended as {node.status.value}" for node in record.nodes if node.status not in ended), "")
    claimed = record.status in (Status.PASSED, Status.GATE_FAILED) or record.exit_code in (ExitCode.PASS, ExitCode.GATE)
    if claimed and (why or (record.status, record.exit_code) != follows):
        code = "no exit code" if record.exit_code is None else f"exit code {record.exit_code:d}"
        why = why or ("a gate blocks" if blocked else "no gate blocks")
        yield Check("exit code", State.WRONG, f"{record.status.value} with {code} is recorded, and {why}")


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
