"""How many requests per second a model serves within a bound: arrivals by LoadGen, a dynamic batcher, and the search for the rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from ioptim import timing
from ioptim.core.step import Level, Note
from ioptim.errors import StepError
from ioptim.intervals import Interval, quantile_interval
from ioptim.loadgen import Scenario
from ioptim.steps.benchmark.rounds import FEWEST_ROUNDS, LEAD_IN, Say
from ioptim.steps.benchmark.search import Search, ServerLoad, Setting
from ioptim.steps.benchmark.subjects import Asked, Subject, prepare

REACHED = 0.95
"""Share of the rate asked for that LoadGen must be able to issue."""


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
    rounds: list[Trial] = field(default_factory=list)
    converged: bool = True

    @property
    def setting(self) -> Setting | None:
        return self.rounds[0].setting if self.rounds else None

    @property
    def comparable(self) -> list[Trial]:
        """Every trial with the best setting, the rounds too."""
        return [trial for trial in [*self.trials, *self.rounds] if trial.setting == self.setting]

    @property
    def rate_per_s(self) -> float | None:
        """The rate asked for; of a search the highest that met the bound, as all trials with the best setting see it.

        A machine has good and bad moments: the rate is where the fewest trials contradict it, the lowest of several.
        """
        if not self.rounds:
            return None
        return self.asked.rate_per_s or min((t.rate_per_s for t in self.comparable if t.met), key=lambda rate: (self.against(rate), rate))

    def against(self, rate: float) -> int:
        """Trials that missed the bound at this rate or a lower one, or met it at a higher one."""
        return sum(trial.met if trial.rate_per_s > rate else not trial.met for trial in self.comparable)

    @property
    def interval(self) -> Interval | None:
        """Of a searched rate: between order statistics of the rounds' rates, as a gate sees it."""
        rates = [trial.rate_per_s for trial in self.rounds]
        return quantile_interval(rates, 0.5, 0.95) if rates and self.asked.rate_per_s is None else None

    @property
    def tail_ms(self) -> float | None:
        """Of all requests at the rate."""
        found = [s for trial in self.comparable if trial.rate_per_s == self.rate_per_s for s in trial.seconds]
        return None if (tail_s := timing.percentile(found, self.asked.percentile)) is None else tail_s * 1e3

    def facts(self) -> dict[str, Any]:
        if self.setting is None:
            return {"trials": len(self.trials)}
        return {
            "max_batch": self.setting.max_batch,
            "max_delay_ms": self.setting.max_delay_ms,
            "mean_batch": round(sum(trial.mean_batch for trial in self.rounds) / len(self.rounds), 2),
            "padded_share": round(sum(trial.padded_share for trial in self.rounds) / len(self.rounds), 4),
            "rates_of_rounds_per_s": [round(trial.rate_per_s, 3) for trial in self.rounds],
            "trials": len(self.trials),
        }

    def notes(self, name: str, cost: float | None) -> list[Note]:
        rate, tail_ms, bound = self.rate_per_s, self.tail_ms, self.asked.bound
        if rate is None or tail_ms is None:
            return [Note(text=f"server: {self._none(name)}", level=Level.WARNING)]
        price = "" if cost is None else f", at {cost:.3g} per million"
        if self.asked.rate_per_s is not None:
            met = tail_ms <= self.asked.latency_bound_ms
            text = f"{name} answers {rate:.4g} requests per second {'' if met else 'not '}within {bound} ({tail_ms:.3g} ms)"
            return [Note(text=f"server: {text} with {self.setting}{price}", level=Level.INFO if met else Level.WARNING)]
        notes = [Note(text=f"server: {name} answers {rate:.4g} requests per second under {bound} with {self.setting}{price}")]
        if against := self.against(rate):
            text = f"{against} of {len(self.comparable)} trials contradict the rate of {name}"
            notes.append(Note(text=f"server: {text}: the machine had better and worse moments"))
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

    def _start(self, subject: Subject, served: Served) -> tuple[Setting, float] | None:
        """The best setting of one model and its rate; None where no rate meets the bound."""
        most = float(subject.call("floor")["per_s"])
        rate = self.asked.rate_per_s
        if rate is not None and most * REACHED < rate:
            text = f"server: rate_per_s {rate:g} was asked for, but this machine issues at most {most:.0f} requests per second even where"
            raise StepError(f"{text} nothing answers them; lower rate_per_s")

        def trial(setting: Setting, rate: float) -> Trial:
            served.trials.append(self._trial(subject, setting, rate))
            return served.trials[-1]

        if rate is not None:
            best = min((trial(setting, rate) for setting in self.asked.settings), key=lambda each: each.tail_s)
            return best.setting, rate
        single = subject.whole(Asked(Scenario.SINGLE_STREAM, 8, 1, 2))
        search = Search(lambda setting, rate: trial(setting, rate).met, 0.5 / median(single.seconds), most, self.asked)
        best_of_all = search.best()
        served.converged = search.converged
        return best_of_all

    def _rounds(self, found: Mapping[str, Served], starts: Mapping[str, tuple[Setting, float] | None]) -> None:
        """Up and down (Dixon and Mood, 1948): rates settle where a round meets the bound half of the time.

        Where a search ended too high, in a good moment of the machine, there are up to twice as many rounds to come down.
        """
        subjects = {subject.name: subject for subject in self.subjects}
        rates = {name: start[1] for name, start in starts.items() if start is not None}
        for number in range(2 * FEWEST_ROUNDS):
            if number >= FEWEST_ROUNDS and not any(self._falling(found[name]) for name in rates):
                break
            for name in timing.turn(list(rates), number):
                left = max(0, FEWEST_ROUNDS - number) / FEWEST_ROUNDS / (len(subjects) + 1)
                self.say(1 - left, f"round {number + 1}, {name}")
                setting, _ = starts[name] or (Setting(1, 0), 0)
                trial = self._trial(subjects[name], setting, rates[name])
                found[name].rounds.append(trial)
                if self.asked.rate_per_s is None:
                    rates[name] *= 1 + self.asked.tolerance if trial.met else 1 / (1 + self.asked.tolerance)

    def _falling(self, served: Served) -> bool:
        """Whether most rounds of a search have missed the bound."""
        return self.asked.rate_per_s is None and sum(trial.met for trial in served.rounds) * 3 < len(served.rounds)

    def _trial(self, subject: Subject, setting: Setting, rate: float) -> Trial:
        load: dict[str, Any] = {
            "queries": self.asked.requests(rate),
            "rate_per_s": rate,
            "bound_s": self.asked.latency_bound_ms / 1e3,
            "percentile": self.asked.percentile,
        }
        batches = {"max_batch": setting.max_batch, "max_delay_s": setting.max_delay_ms / 1e3, "lead_in": LEAD_IN}
        answer = subject.call("serve", {"load": load, **batches})
        tail_s = timing.percentile(answer["seconds"], self.asked.percentile)
        assert tail_s is not None, "a trial has as many requests as its percentile needs"
        met = tail_s * 1e3 <= self.asked.latency_bound_ms
        return Trial(setting, rate, answer["seconds"], tail_s, met, answer["mean_batch"], answer["padded_share"])
