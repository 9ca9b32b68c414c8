"""A run in a few words: what came out, how bad it is, what was risky."""

from __future__ import annotations

import re
from collections import Counter

from ioptim.core.gate import GateResult, Verdict
from ioptim.core.record import RunRecord, Status

_RISKS = {
    "allow_pickle": "The model was loaded from a pickle, which can run any code on this machine.",
    "allow_remote_code": "Python code that came with the checkpoint was run on this machine.",
}


def answer(run: RunRecord) -> str:
    """One line: `Passed: all 4 gates`, `Gate failed: 1 of 4 gates failed, 1 undecided`, `Error in quantize`."""
    if run.status is Status.ERROR:
        return f"Error in {', '.join(_with(run, Status.ERROR)) or 'the run'}" + judged(run)
    if run.status is Status.INTERRUPTED:
        return f"Interrupted during {', '.join(_with(run, Status.INTERRUPTED)[:1]) or 'the run'}" + judged(run)
    if run.status in (Status.PENDING, Status.RUNNING):
        return "Not finished"
    if not run.gates:
        return "Finished: no gate was asked, nothing was judged"
    if run.status is Status.GATE_FAILED:
        return "Gate failed" + judged(run)
    decided = all(gate.verdict is Verdict.PASS for gate in run.gates)
    return f"Passed: {_all(len(run.gates))}" if decided else "Passed" + judged(run)


def judged(run: RunRecord) -> str:
    """`: 1 of 4 gates failed, 1 undecided, 2 passed`; nothing when none was judged."""
    counts = Counter(gate.verdict for gate in run.gates)
    words = ((Verdict.FAIL, "failed"), (Verdict.UNDECIDED, "undecided"), (Verdict.PASS, "passed"))
    parts = [f"{counts[verdict]} {word}" for verdict, word in words if counts[verdict]]
    if not parts:
        return ""
    first, _, word = parts[0].partition(" ")
    return ": " + ", ".join([f"{first} of {len(run.gates)} gate{'s' if len(run.gates) > 1 else ''} {word}", *parts[1:]])


def nothing_judged(run: RunRecord) -> str:
    """Why a run has no verdict."""
    if any(node.config.get("gates") for node in run.nodes):
        return "No gate was judged: the run ended before what it bounds was measured."
    return "No gate was asked: nothing was judged."


def tone(run: RunRecord) -> str:
    """good, mixed or bad: the colour of the answer."""
    if run.status in (Status.ERROR, Status.GATE_FAILED):
        return "bad"
    decided = bool(run.gates) and all(gate.verdict is Verdict.PASS for gate in run.gates)
    return "good" if run.status is Status.PASSED and decided else "mixed"


def tolerated(result: GateResult) -> str:
    """What the recipe says of an undecided verdict that does not block; nothing of any other."""
    if result.verdict is not Verdict.UNDECIDED or result.blocks:
        return ""
    return (
        "the recipe lets an undecided verdict pass" if result.gate.undecided == "pass" else "the recipe only warns of an undecided verdict"
    )


def unsafe(run: RunRecord) -> list[tuple[str, str]]:
    """The recipe's keys that switched a safeguard off, and what that means."""
    model = run.recipe_config.get("model") or {}
    return [(f"model.{key}", risk) for key, risk in _RISKS.items() if model.get(key)]


def without_login(url: str) -> str:
    """An address without the user and password that it may carry."""
    return re.sub(r"//[^/@\s]*@", "//", url)


def _with(run: RunRecord, status: Status) -> list[str]:
    return [node.id for node in run.nodes if node.status is status]


def _all(gates: int) -> str:
    return "the one gate" if gates == 1 else f"all {gates} gates"
