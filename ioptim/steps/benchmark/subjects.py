"""The models of a benchmark, seen from the step: each in a process of its own, asleep unless it is being timed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ioptim import timing
from ioptim.core.artifact import ModelArtifact
from ioptim.core.step import Context
from ioptim.errors import IoptimError, StepError
from ioptim.isolate import Worker
from ioptim.loadgen import Scenario


@dataclass(frozen=True)
class Asked:
    """One LoadGen test, the same for every model. `queries` counts calls: of one row, of `batch_size` rows in the other scenarios."""

    scenario: Scenario
    queries: int
    batch_size: int
    lead_in: int

    @property
    def rows(self) -> int:
        """How many rows it answers."""
        return self.queries * self.batch_size

    def message(self) -> dict[str, Any]:
        offline = self.scenario is Scenario.OFFLINE  # LoadGen asks for all rows in one query
        load = {"scenario": self.scenario.value, "queries": self.rows if offline else self.queries}
        load["rows_per_query"] = 1 if offline else self.batch_size
        return {"load": load, "batch_size": self.batch_size, "lead_in": self.lead_in}


@dataclass(frozen=True)
class Block:
    """What a test of one model gave: seconds of each query; offline, from the start to the answer to each batch."""

    seconds: list[float]
    padded_share: float
    overhead_s: float

    @property
    def offline_s(self) -> float:
        return max(self.seconds)


class Subject:
    """One model in its process."""

    def __init__(self, name: str, model: ModelArtifact, ctx: Context) -> None:
        self.name = name
        self.model = model
        self.target = ctx.target_of(model)
        self.threads = self.target.threads or ctx.hardware.cores
        self.facts: dict[str, Any] = {}
        self.startup: dict[str, float] = {}
        self.peak_memory_bytes: int | None = None
        # There is one model in that process, so that its target is the only one.
        request = {**ctx.request, "target": self.target.name}
        with self._named():
            self._worker = Worker(
                ctx.subject_worker,
                {"request": request, "model": str(model.path), "logs": str(ctx.out / "files" / "loadgen" / name)},
                log=ctx.out / "logs" / f"{name}.log",
                env={**dict.fromkeys(_THREADS_OF_POOLS, str(self.threads)), **_AS_BY_DEFAULT, "TOKENIZERS_PARALLELISM": "false"},
                cpus=timing.cpus_for(self.threads),
            )

    def call(self, method: str, argument: Any = None) -> Any:
        """Wake the process, let it work alone, put it to sleep."""
        with self._named():
            answer = self._worker.call(method, argument)
            self._worker.pause()
            return answer

    def begin(self, asked: Asked) -> Block | None:
        """Run a test to its last answer; returns what the test before gave (LoadGen closes its books while the process sleeps)."""
        return _block(self.call("begin", asked.message()))

    def finish(self) -> Block:
        """What the last test gave."""
        block = _block(self.call("finish"))
        assert block is not None, "a test was begun"
        return block

    def whole(self, asked: Asked) -> Block:
        self.begin(asked)
        return self.finish()

    def cpu_seconds(self) -> float | None:
        return self._worker.cpu_seconds()

    def end(self) -> None:
        """Ask what can be known only at the end."""
        self.facts = {"threads": self.threads, **self.call("facts")}
        self.peak_memory_bytes = self._worker.peak_memory_bytes()

    def close(self) -> None:
        self._worker.close()

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except IoptimError as error:
            raise type(error)(f"{self.name}: {error}") from error


def prepare(subjects: Sequence[Subject], batch_size: int, padding: str, limit: int) -> int:
    """Build the same rows in every process and return how many.

    Raises:
        StepError: they are not as many everywhere.
    """
    argument = {"batch_size": batch_size, "padding": padding, "limit": limit}
    rows = {subject.name: int(subject.call("prepare", argument)["rows"]) for subject in subjects}
    first, expected = next(iter(rows.items()))
    for name, found in rows.items():
        if found != expected:
            raise StepError(f"{name} got {found} rows and {first} {expected}; they cannot be compared")
    return expected


class Watch:
    """Looks at the machine from now on, while these models are measured."""

    def __init__(self, subjects: Sequence[Subject]) -> None:
        self._subjects = subjects
        self.before, self._own_before_s = timing.Machine.now(), self._own_s()

    def conditions(self) -> dict[str, float]:
        """What else it did until now."""
        own_s = self._own_s()
        own_s = None if own_s is None or self._own_before_s is None else own_s - self._own_before_s
        return timing.conditions(self.before, timing.Machine.now(), own_s)

    def _own_s(self) -> float | None:
        """CPU time of this process and of all subjects; None where the system does not tell."""
        times = [subject.cpu_seconds() for subject in self._subjects]
        return None if None in times else time.process_time() + sum(t for t in times if t is not None)


def _block(answer: Mapping[str, Any] | None) -> Block | None:
    return Block(answer["seconds"], answer["padded_share"], answer["overhead_s"]) if answer else None


_THREADS_OF_POOLS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_AS_BY_DEFAULT = {"GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "300000")}
"""What libgomp spins by default, over the OMP_WAIT_POLICY that the other steps get: a torch model is timed as its users run it."""
