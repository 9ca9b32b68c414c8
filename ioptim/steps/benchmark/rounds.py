"""Models timed in turns: how many calls fit, warm-up until stable, blocks A B C, C B A, and more of them where the machine was busy."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ioptim import timing
from ioptim.core.step import Level, Note
from ioptim.energy import Meter
from ioptim.loadgen import Scenario
from ioptim.steps.benchmark.scenarios import FIGURES, QUANTILES
from ioptim.steps.benchmark.subjects import Asked, Block, Subject, Watch, prepare

LEAD_IN = 3
"""Calls at the head of every block that are not recorded. A process that slept finds its caches taken by the one that ran: its first
call took up to twice as long as the rest, the second and third a few per cent."""
SLOW_S = 0.05
"""Where even the fastest model's call takes this long, filling the caches again (a millisecond or two) is lost in it: no lead-in."""
MOST_CALLS, MOST_ROWS = 1000, 8000
"""Of a block: where a call takes microseconds, more samples say nothing new."""
FEWEST_ROUNDS = 6
"""The median's exact interval at 0.95 confidence needs six blocks."""
WARM_UP_S = 5.0
"""For each model, at most."""
OVERRUN = 2
"""Times `duration_s`: a scenario that takes longer ends after its `FEWEST_ROUNDS`, and says so."""

Say = Callable[[float, str], None]
"""Gets the share done, from 0 to 1, and a message."""


@dataclass
class Taken:
    """What was measured in one scenario."""

    scenario: Scenario
    asked: Asked
    """The test that every block of every model was."""
    blocks: dict[str, list[Block]]
    warm_ups: dict[str, timing.WarmUp] = field(default_factory=dict)
    rounds_asked: int = 0
    extended: bool = False
    conditions: dict[str, float] = field(default_factory=dict)
    joules: dict[str, float] = field(default_factory=dict)
    """Energy of all blocks of each model, where it can be read."""

    @property
    def rounds(self) -> int:
        return min(map(len, self.blocks.values()))

    def seconds(self, name: str) -> list[list[float]]:
        return [block.seconds for block in self.blocks[name]]

    def padded_share(self) -> float:
        """The same for all models: they got the same rows in the same order."""
        return round(max(blocks[0].padded_share for blocks in self.blocks.values()), 4)

    def facts(self) -> dict[str, Any]:
        return {
            "calls_per_block": self.asked.queries,
            "rows_per_block": self.asked.rows,
            "unrecorded_calls_per_block": self.asked.lead_in,
            "blocks": self.rounds,
            "padded_share": self.padded_share(),
            "warm_up_blocks": {name: len(warm_up.medians) for name, warm_up in self.warm_ups.items()},
            **self.conditions,
        }

    def notes(self) -> list[Note]:
        """What a reader must know before believing a figure."""
        notes = [*self._unstable(), *self._unfinished()]
        if share := self.padded_share():
            notes.append(Note(text=f"{self.scenario}: {share:.0%} of the tokens in a batch were padding"))
        for text in timing.disturbances(self.conditions):
            notes.append(Note(text=f"{self.scenario}: {text}", level=Level.WARNING))
        return [*notes, *self._too_few()]

    def _unstable(self) -> list[Note]:
        noisy = {name: warm_up.medians for name, warm_up in self.warm_ups.items() if not warm_up.stable}
        short = {name: medians for name, medians in noisy.items() if len(medians) < timing.STABLE_BLOCKS}
        notes = []
        if short:
            text = f"{_with_medians(short)} had no time for the {timing.STABLE_BLOCKS} warm-up blocks that show whether a model is stable"
            notes.append(f"{text}; figures may carry that noise")
        if longer := {name: medians for name, medians in noisy.items() if name not in short}:
            text = f"not stable within {timing.TOLERANCE:.0%} at the end of the warm-up: {_with_medians(longer)}"
            notes.append(f"{text}; figures carry that noise")
        return [Note(text=f"{self.scenario}: {text}", level=Level.WARNING) for text in notes]

    def _unfinished(self) -> list[Note]:
        if self.extended:
            text = f"{self.scenario}: {self.rounds} blocks instead of {self.rounds_asked}, because the machine was busy"
            return [Note(text=text)]
        if self.rounds < self.rounds_asked:
            text = f"{self.scenario}: ended after {self.rounds} of {self.rounds_asked} blocks, because a round took longer than planned"
            return [Note(text=f"{text}; raise duration_s to have them all", level=Level.WARNING)]
        return []

    def _too_few(self) -> list[Note]:
        n, notes = self.asked.queries * self.rounds, []
        for figure in FIGURES[self.scenario]:
            quantile = next((q for ending, q in QUANTILES.items() if figure.metric.name.endswith(ending)), None)
            if quantile and n < (fewest := timing.fewest_for(quantile)):
                text = f"{figure.metric.name} is not reported: {n} samples, at least {fewest} are needed; raise duration_s or blocks"
                notes.append(Note(text=text))
        return notes


class Rounds:
    """One scenario, all models in turns. `say` gets the share done and a message."""

    def __init__(self, scenario: Scenario, batch_size: int, subjects: Sequence[Subject], duration_s: float, blocks: int, say: Say) -> None:
        self.scenario = scenario
        self.batch_size = batch_size
        self.subjects = {subject.name: subject for subject in subjects}
        self.duration_s = duration_s
        self.blocks = blocks
        self.say = say

    def measure(self, padding: str, rows: int, meter: Meter) -> Taken:
        self.say(0.0, "warming up")
        asked = self._fit(padding, rows)
        taken = Taken(self.scenario, asked, {name: [] for name in self.subjects}, rounds_asked=self.blocks)
        for name, subject in self.subjects.items():
            taken.warm_ups[name] = timing.warm_up(partial(_typical, subject, asked), min(self.duration_s, WARM_UP_S))
        watch = Watch(list(self.subjects.values()))
        begun = self._turns(taken, range(self.blocks), watch.before.at, meter)
        taken.conditions = watch.conditions()
        if begun == self.blocks and timing.disturbances(taken.conditions):
            # Noise of others is not ours to remove, but more blocks make the intervals narrower.
            taken.extended = self._turns(taken, range(begun, begun + self.blocks // 2), watch.before.at, meter) > 0
            taken.conditions = watch.conditions()
        for name, subject in self.subjects.items():
            taken.blocks[name].append(subject.finish())
        return taken

    def _turns(self, taken: Taken, numbers: range, since: float, meter: Meter) -> int:
        """Rounds begun: all of them unless time runs out after the fewest there must be."""
        total = max(numbers.stop, self.blocks)
        for done, number in enumerate(numbers):
            if number >= FEWEST_ROUNDS and time.monotonic() - since > OVERRUN * self.duration_s:
                return done
            for name in timing.turn(list(self.subjects), number):
                self.say(number / total, f"round {number + 1} of {total}, {name}")
                joules = meter.joules()
                before = self.subjects[name].begin(taken.asked)
                taken.joules[name] = taken.joules.get(name, 0.0) + meter.joules() - joules
                if before is not None:
                    taken.blocks[name].append(before)
        return len(numbers)

    def _fit(self, padding: str, limit: int) -> Asked:
        """The test that lets all models and blocks take about `duration_s`.

        A block is a whole number of passes over its rows: where time allows less than one pass, the rows are cut to what it allows.
        """
        subjects = list(self.subjects.values())
        rows = prepare(subjects, self.batch_size, padding, max(limit, self.batch_size))
        batch_size = min(self.batch_size, rows)
        first = Asked(self.scenario, 2, batch_size, 0)
        tried = [subject.whole(first) for subject in subjects]
        call_s = [block.offline_s / 2 if self.scenario is Scenario.OFFLINE else min(block.seconds) for block in tried]
        room_s = self.duration_s / self.blocks - sum(block.overhead_s for block in tried)
        slow = min(call_s) >= SLOW_S
        calls = max(1 if slow else 2, min(MOST_CALLS, MOST_ROWS // batch_size, int(room_s / sum(call_s))))
        lead_in = 0 if slow else min(LEAD_IN, calls // 2)
        n, in_a_pass = calls - lead_in, max(1, rows // batch_size)
        if n < in_a_pass:
            prepare(subjects, batch_size, padding, n * batch_size)
        else:
            n -= n % in_a_pass
        return Asked(self.scenario, n, batch_size, lead_in)


def _with_medians(models: Mapping[str, Sequence[float]]) -> str:
    """`source (79, 72.7, 820 ms), compile (6.67, 6.35, 2.42 ms)`: each with its last blocks."""
    told = {name: ", ".join(map(_milliseconds, medians[-timing.STABLE_BLOCKS :])) for name, medians in models.items()}
    return ", ".join(f"{name} ({medians} ms)" for name, medians in told.items())


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}" if seconds < 1 else f"{seconds * 1e3:.0f}"


def _typical(subject: Subject, asked: Asked) -> list[float]:
    """What the warm-up looks at: the calls of a block, or the one query of an offline block."""
    block = subject.whole(asked)
    return [block.offline_s] if asked.scenario is Scenario.OFFLINE else block.seconds
