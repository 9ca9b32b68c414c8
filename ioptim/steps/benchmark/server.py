"""How many requests per second a model serves within a bound: arrivals by LoadGen, a dynamic batcher, and the search for the rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from statistics import fmean, median
from typing import Any

from ioptim import timing
from ioptim.core.step import Level, Note
from ioptim.errors import StepError
from ioptim.intervals import Interval, quantile_interval
from ioptim.loadgen import Scenario
from ioptim.steps.benchmark.rounds import FEWEST_ROUNDS, LEAD_IN, Say
from ioptim.steps.benchmark.search import Search, ServerLoad, Setting
from ioptim.steps.benchmark.subjects import Asked, Subject, Watch, prepare

MOST_TRIALS = 12
"""Of a round: at a tolerance of 5 % they come down to half of a rate that was found in a good moment of the machine."""
REACHED = 0.95
"""Share of the rate asked for that LoadGen must be able to issue."""

Start = tuple[Setting, float]
"""A setting, and the rate of the next trial."""


@dataclass(frozen=True)
class Trial:
    """Requests at one rate. `tail_s` is their percentile."""

    setting: Setting
    rate_per_s: float
    seconds: list[float]
    tail_s: float
    met: bool
    mean_batch: float
    padded_share: float


@dataclass
class Served:
    """What one model can serve: trials of the search, then rounds in turn with the other models with the best setting."""

    asked: ServerLoad
    trials: list[Trial] = field(default_factory=list)
    rounds: list[list[Trial]] = field(default_factory=list)
    """Trials of each round, at falling rates until one met the bound; none where the search has shown that no rate does."""
    converged: bool = True
    conditions: dict[str, float] = field(default_factory=dict)
    """What else the machine did during the rounds, the same for all models."""

    @property
    def setting(self) -> Setting | None:
        return self.ends[0].setting if self.ends else None

    @property
    def ends(self) -> list[Trial]:
        """The last trial of each round."""
        return [trials[-1] for trials in self.rounds if trials]

    @property
    def rates(self) -> list[float]:
        """Of each round the rate asked for; of a search the rate that met the bound, 0 where none did, which gates are judged from."""
        return self.met_rates if self.asked.rate_per_s is None else [self.asked.rate_per_s] * len(self.rounds)

    @property
    def met_rates(self) -> list[float]:
        """Of each round the rate that met the bound, 0 where none did, asked for or not: what gates on the cost are judged from."""
        return [trials[-1].rate_per_s if trials and trials[-1].met else 0.0 for trials in self.rounds]

    @property
    def every(self) -> list[Trial]:
        """Of the search and of the rounds."""
        return [*self.trials, *chain.from_iterable(self.rounds)]

    @property
    def rate_per_s(self) -> float | None:
        """The rate asked for; of a search the median of the rounds, as a gate sees it. 0 where no rate meets the bound, None where the
        search ended before it knew.
        """
        return median(self.rates) if self.rates else None

    @property
    def interval(self) -> Interval | None:
        """Of a searched rate: between order statistics of the rounds' rates, as a gate sees it."""
        return quantile_interval(self.rates, 0.5, 0.95) if self.rates and self.asked.rate_per_s is None else None

    @property
    def tail_ms(self) -> float | None:
        """Median of the rounds; of a search of those that met the bound, at the rates at which they did."""
        tails = [trial.tail_s for trial in self.ends if trial.met or self.asked.rate_per_s is not None]
        return median(tails) * 1e3 if tails and self.rate_per_s else None

    @property
    def met_rate_per_s(self) -> float | None:
        """The rate that a cost is of; None where the median round does not meet the bound."""
        return self.rate_per_s if self.tail_ms is not None and self.tail_ms <= self.asked.latency_bound_ms else None

    def facts(self) -> dict[str, Any]:
        if self.setting is None:
            return {"trials": len(self.trials), **self.conditions}
        return {
            "max_batch": self.setting.max_batch,
            "max_delay_ms": self.setting.max_delay_ms,
            "mean_batch": round(fmean(trial.mean_batch for trial in self.ends), 2),
            "padded_share": round(fmean(trial.padded_share for trial in self.ends), 4),
            "rates_of_rounds_per_s": [round(rate, 3) for rate in self.rates],
            "trials_of_rounds": [len(trials) for trials in self.rounds],
            "trials": len(self.trials),
            **self.conditions,
        }

    def notes(self, name: str, cost: float | None) -> list[Note]:
        rate, tail_ms, bound = self.rate_per_s, self.tail_ms, self.asked.bound
        if not self.ends:
            return [Note(text=f"server: {self._none(name)}", level=Level.WARNING)]
        price = "" if cost is None else f", at {cost:.3g} per million"
        if self.asked.rate_per_s is not None:
            assert tail_ms is not None, "every round has a tail"
            met = self.met_rate_per_s is not None
            text = f"{name} answers {rate:.4g} requests per second {'' if met else 'not '}within {bound} ({tail_ms:.3g} ms)"
            return [Note(text=f"server: {text} with {self.setting}{price}", level=Level.INFO if met else Level.WARNING)]
        notes = []
        if rate:
            notes.append(Note(text=f"server: {name} answers {rate:.4g} requests per second under {bound} with {self.setting}{price}"))
        if none := self.rates.count(0.0):
            lowest = min(trial.rate_per_s for trial in self.ends if not trial.met)
            text = f"{none} of {len(self.rates)} rounds of {name} met the bound at no rate, down to {lowest:.4g} requests per second"
            notes.append(Note(text=f"server: {text}; for gates they are 0", level=Level.WARNING))
        if not self.converged:
            text = f"the search for {name} ended after {self.asked.duration_s:g} s; a higher rate may be possible"
            notes.append(Note(text=f"server: {text}. Raise server.duration_s", level=Level.WARNING))
        return notes

    def _none(self, name: str) -> str:
        """Why there is no rate."""
        bound = self.asked.bound
        ended = f"the search for {name} ended after {self.asked.duration_s:g} s"
        if not self.trials:
            return f"{ended} without a trial: {self.asked.fewest} requests of it take longer. Raise server.duration_s"
        slowest = min(self.trials, key=lambda trial: trial.rate_per_s)
        text = f"at {slowest.rate_per_s:.3g} requests per second it is {slowest.tail_s * 1e3:.3g} ms"
        if self.converged:
            return f"no rate of {name} meets {bound}: {text}"
        return f"{ended} before a rate met {bound}: {text}. Raise server.duration_s"


def noise(found: Mapping[str, Served]) -> list[Note]:
    """What else the machine did during the rounds of all models, where a reader must know it."""
    one = next(iter(found.values()))
    notes = [Note(text=f"server: {text}", level=Level.WARNING) for text in timing.disturbances(one.conditions)]
    if (most := max(len(served.rounds) for served in found.values())) > FEWEST_ROUNDS:
        notes.append(Note(text=f"server: {most} rounds instead of {FEWEST_ROUNDS}, because the machine was busy"))
    return notes


class Server:
    """The scenario, for all models: each is searched alone, then all go in turns."""

    def __init__(self, asked: ServerLoad, subjects: Sequence[Subject], say: Say) -> None:
        self.asked = asked
        self.subjects = subjects
        self.say = say

    def measure(self, padding: str, rows: int) -> dict[str, Served]:
        """Raises:
        StepError: LoadGen cannot issue the rate asked for on this machine.
        """
        prepare(self.subjects, 1, padding, rows)
        found = {subject.name: Served(self.asked) for subject in self.subjects}
        starts = {}
        for i, subject in enumerate(self.subjects):
            self.say(i / (len(self.subjects) + 1), f"searching the rate of {subject.name}")
            starts[subject.name] = self._start(subject, found[subject.name])
        self._rounds(found, starts)
        return found

    def _start(self, subject: Subject, served: Served) -> Start | None:
        """The best setting of one model and its rate; None where no rate meets the bound."""
        most = float(subject.call("floor")["per_s"])
        rate = self.asked.rate_per_s
        if rate is not None and most * REACHED < rate:
            text = f"server: rate_per_s {rate:g} was asked for, but this machine issues at most {most:.0f} requests per second even where"
            raise StepError(f"{text} nothing answers them; lower rate_per_s")

        def trial(setting: Setting, rate: float) -> Trial:
            served.trials.append(self._trial(subject, setting, rate, seed=0))
            return served.trials[-1]

        if rate is not None:
            best = min((trial(setting, rate) for setting in self.asked.settings), key=lambda each: each.tail_s)
            return best.setting, rate
        single = subject.whole(Asked(Scenario.SINGLE_STREAM, 8, 1, 2))
        search = Search(lambda setting, rate: trial(setting, rate).met, 0.5 / median(single.seconds), most, self.asked)
        best_of_all = search.best()
        served.converged = search.converged
        return best_of_all

    def _rounds(self, found: Mapping[str, Served], starts: Mapping[str, Start | None]) -> None:
        """All models in turns, each from where its round before ended; half as many rounds again where the machine was busy."""
        # Where time ran out before any rate met the bound, nothing is known; where none does, every round says so.
        known = {name: start for name, start in starts.items() if start is not None or found[name].converged}
        subjects = {subject.name: subject for subject in self.subjects}
        watch = Watch(self.subjects)

        def rounds(numbers: range) -> dict[str, float]:
            for number in numbers:
                for name in timing.turn(list(known), number):
                    left = max(0, FEWEST_ROUNDS - number) / FEWEST_ROUNDS / (len(subjects) + 1)
                    self.say(1 - left, f"round {number + 1}, {name}")
                    trials, known[name] = self._round(subjects[name], known[name], number)
                    found[name].rounds.append(trials)
            return watch.conditions()

        conditions = rounds(range(FEWEST_ROUNDS))
        if timing.disturbances(conditions):
            conditions = rounds(range(FEWEST_ROUNDS, FEWEST_ROUNDS + FEWEST_ROUNDS // 2))
        for served in found.values():
            served.conditions = conditions

    def _round(self, subject: Subject, start: Start | None, number: int) -> tuple[list[Trial], Start | None]:
        """The trials of a round, and where the next one starts.

        Up and down (Dixon and Mood, 1948): one step above the rate that met the bound in the round before, then down until one meets it.
        All trials of a round have the same arrivals, only closer or wider apart: none meets the bound because it was drawn again.
        """
        if start is None:
            return [], None
        setting, rate = start
        if self.asked.rate_per_s is not None:
            return [self._trial(subject, setting, rate, number + 1)], start
        trials: list[Trial] = []
        while not (trials and trials[-1].met) and len(trials) < MOST_TRIALS:
            trials.append(self._trial(subject, setting, rate, number + 1))
            rate *= 1 + self.asked.tolerance if trials[-1].met else 1 / (1 + self.asked.tolerance)
        return trials, (setting, rate)

    def _trial(self, subject: Subject, setting: Setting, rate: float, seed: int) -> Trial:
        """With the same seed all models are asked the same. The search's is 0; its arrivals are not those of any round."""
        load: dict[str, Any] = {
            "queries": self.asked.requests(rate),
            "rate_per_s": rate,
            "bound_s": self.asked.latency_bound_ms / 1e3,
            "percentile": self.asked.percentile,
            "seed": seed,
        }
        batches = {"max_batch": setting.max_batch, "max_delay_s": setting.max_delay_ms / 1e3, "lead_in": LEAD_IN}
        answer = subject.call("serve", {"load": load, **batches})
        tail_s = timing.percentile(answer["seconds"], self.asked.percentile)
        assert tail_s is not None, "a trial has as many requests as its percentile needs"
        met = tail_s * 1e3 <= self.asked.latency_bound_ms
        return Trial(setting, rate, answer["seconds"], tail_s, met, answer["mean_batch"], answer["padded_share"])
