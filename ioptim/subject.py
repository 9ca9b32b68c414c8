"""One model of a benchmark, alone in its process: opened once, then asked by LoadGen."""

from __future__ import annotations

import gc
import math
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ioptim import loadgen, non_finite
from ioptim.batching import Batcher
from ioptim.core.artifact import open_artifact
from ioptim.core.runtime import Session
from ioptim.errors import StepError
from ioptim.inputs import Inputs, Rows
from ioptim.loadgen import Load, Scenario
from ioptim.worker import WorkerContext

if TYPE_CHECKING:
    from ioptim.core.task import Outputs

FLOOR_QUERIES = 1000
UNREACHABLE_PER_S = 1e7
LOOK_S = 1.0
"""How long, before a model is timed, its rows are answered one by one to look at the outputs."""
ALIKE = 0.9
"""Least cosine between rows' outputs in batches and alone. MiniLM on `builtin:retrieval` in batches of 8 and 32: 1.00 in float32, 0.99 in
int8-dynamic, whose scales depend on the batch, and 0.79 to 0.88 where padding is not masked."""
SWITCH_S = 0.0002
"""How long Python lets one thread run while another waits (its default is 5 ms): a request must not wait for a batch to be padded."""


class Subject:
    """Every method takes and returns one JSON value. All of the model's work is done in one thread, so that a thread pool that belongs
    to a thread (OpenMP's) lives as long as the process."""

    def __init__(self, argument: Mapping[str, Any]) -> None:
        self._logs = Path(argument["logs"])
        self._thread = ThreadPoolExecutor(1, "loadgen")
        self._running: Future[dict[str, Any]] | None = None
        self._thread.submit(self._open, argument).result()

    def _open(self, argument: Mapping[str, Any]) -> None:
        self.ctx = WorkerContext(argument["request"])
        self.model = open_artifact(Path(argument["model"]))
        start = time.perf_counter()
        self.session: Session = self.ctx.open(self.model)
        self.load_s = time.perf_counter() - start
        self.first_inference_s = 0.0
        self._looked_at = 1  # the first call is

    def prepare(self, argument: Mapping[str, Any]) -> dict[str, Any]:
        """Build the rows before any clock runs: `limit` of them, padded as `padding` says. Whole batches of `batch_size` where it can."""
        answer: dict[str, Any] = self._thread.submit(self._prepare, argument).result()
        return answer

    def _prepare(self, argument: Mapping[str, Any]) -> dict[str, Any]:
        self.inputs = Inputs(self.ctx.task, self.ctx.table("validation"), self.model, argument["padding"], argument["limit"])
        found, batch_size = len(self.inputs), argument["batch_size"]
        self.rows = found - found % batch_size if found > batch_size else found
        self._batches_looked_at: set[Rows] = set()
        if not self.first_inference_s:
            feed = self.inputs.feed((0,))
            start = time.perf_counter()
            outputs = self.session.run(feed)
            self.first_inference_s = time.perf_counter() - start
            self._require_numbers((0,), outputs)
        self._look()
        # What is loaded stays. Looking through it for garbage before every block would take 0.2 s where transformers is loaded.
        gc.collect()
        gc.freeze()
        return {"rows": self.rows}

    def _look(self) -> None:
        """Answer every row once before any is timed, for a second at most: the speed of a model that answers NaN is no speed."""
        end = time.monotonic() + LOOK_S
        while self._looked_at < self.rows and time.monotonic() < end:
            self._require_numbers((self._looked_at,), self.session.run(self.inputs.feed((self._looked_at,))))
            self._looked_at += 1

    def _look_at(self, batches: Iterable[Rows]) -> None:
        """Answer batches once before they are timed: they must be numbers and, as far as a second of rows goes, what the rows alone get.

        Raises:
            StepError: the model answers NaN, or otherwise in a batch than alone.
        """
        agreement, left_s = _Agreement(), LOOK_S
        for rows in sorted(set(batches) - self._batches_looked_at):
            self._batches_looked_at.add(rows)
            outputs = self.session.run(self.inputs.feed(rows))
            self._require_numbers(rows, outputs)
            start = time.monotonic()
            for place in sorted(range(len(rows)), key=lambda place: self.inputs.lengths[rows[place]]):  # the most padded first
                if time.monotonic() - start < left_s:
                    agreement.add(outputs, place, self.session.run(self.inputs.feed((rows[place],))))
            left_s -= time.monotonic() - start
        for name, cosine in agreement.cosines().items():
            if cosine < ALIKE:
                text = f"in a batch, {agreement.rows} rows get another output {name!r} than alone: cosine {cosine:.2f}"
                accepted = f"at least {ALIKE} is accepted (padding: {self.inputs.padding})"
                mend = "Does the model take an attention_mask, and heed it? To time rows alone, set batch_size and server.max_batch to 1"
                raise StepError(f"{text}, {accepted}. {mend}")

    def _require_numbers(self, rows: Rows, outputs: Outputs) -> None:
        if said := non_finite.holes(outputs):
            table = self.ctx.table("validation")
            examples = sum(1 for _ in self.ctx.task.examples(table, self.model))
            named = table.rows[rows[0] * len(table) // examples]  # one row may be a query and a passage
            where = named if len(rows) == 1 else f"a batch of {len(rows)} rows, the first of them {named}"
            raise StepError(f"{said} for {where}{non_finite.begins(self.model, self.inputs.feed(rows))}")

    def begin(self, argument: Mapping[str, Any]) -> dict[str, Any] | None:
        """Start a LoadGen test (the fields of `Load` but `rows`; `batch_size`, `lead_in`) and return when its last query is answered.

        LoadGen then takes 30 ms to close its books, mostly asleep. They pass while this process is stopped: the answers of a test are
        what the next `begin`, or `finish`, returns.
        """
        before = self.finish()
        answered = threading.Event()
        self._running = self._thread.submit(self._block, argument, answered.set)
        self._running.add_done_callback(lambda _: answered.set())
        answered.wait()
        return before

    def finish(self, _: Any = None) -> dict[str, Any] | None:
        """The answers of the last test: `seconds` of its queries (offline: from the start to the answer to each batch), `padded_share` of
        what was computed, and `overhead_s` that went by before the last answer with no query under way and no lead-in running."""
        running, self._running = self._running, None
        return running.result() if running else None

    def _block(self, argument: Mapping[str, Any], answered: Callable[[], None]) -> dict[str, Any]:
        start = time.perf_counter()
        load = Load(**{**argument["load"], "scenario": Scenario(argument["load"]["scenario"])}, rows=self.rows)
        system = _InTurn(self._call, self._order, argument["batch_size"], argument["lead_in"], answered, self._look_at)
        with _undisturbed():
            answers = loadgen.run(load, system, self._logs / load.scenario.value)
        system.check()
        offline = load.scenario is Scenario.OFFLINE
        # The rows of a batch are answered together.
        seconds = [*answers.seconds[:: argument["batch_size"]]] if offline else answers.seconds
        busy = max(seconds) if offline else sum(seconds)
        return {
            "seconds": seconds,
            "overhead_s": max(0.0, system.ended - start - system.lead_in_s - busy),
            "padded_share": self.inputs.padded_share(system.batches),
        }

    def serve(self, argument: Mapping[str, Any]) -> dict[str, Any]:
        """One test of the server scenario through a dynamic batcher (`max_batch`, `max_delay_s`)."""
        load = Load(**argument["load"], scenario=Scenario.SERVER, rows=self.rows)
        max_batch = argument["max_batch"]
        if max_batch > 1:
            full = [tuple((first + i) % self.rows for i in range(max_batch)) for first in range(0, self.rows, max_batch)]
            self._thread.submit(self._look_at, full).result()
        for i in range(argument["lead_in"]):
            self._thread.submit(self._answer, [(i + j) % self.rows for j in range(max_batch)]).result()
        # Batches form as requests arrive, so padding them is part of what a server does: the clock covers it.
        lengths = self.inputs.lengths if self.inputs.padding == "bucketed" else None
        batcher = Batcher(self._answer, loadgen.completer(), max_batch, argument["max_delay_s"], lengths)
        answers = self._served(load, batcher, self._logs / load.scenario.value)
        return {
            "seconds": answers.seconds,
            "mean_batch": len(answers.seconds) / len(batcher.batches),
            "padded_share": self.inputs.padded_share(batcher.batches),
        }

    def _served(self, load: Load, batcher: Batcher, folder: Path) -> loadgen.Answers:
        """LoadGen issues in this thread, the model answers in its own."""
        working = self._thread.submit(batcher.work)
        try:
            with _undisturbed(SWITCH_S):
                answers = loadgen.run(load, _Queued(batcher), folder)
        finally:
            batcher.close()
            working.result()
        return answers

    def floor(self, _: Any = None) -> dict[str, float]:
        """What LoadGen, this process and the null runtime take by themselves: `query_s`, and the most requests issued `per_s`."""
        from ioptim.runtimes.null import Null

        session = Null().open(self.model, self.ctx.target)
        feeds = [self.inputs.feed((row,)) for row in range(self.rows)]

        def nothing(rows: Sequence[int]) -> None:
            session.run(feeds[rows[0]])

        with tempfile.TemporaryDirectory() as folder:
            alone = _InTurn(nothing, self._order, 1, 10, lambda: None)
            with _undisturbed():
                single = loadgen.run(Load(Scenario.SINGLE_STREAM, FLOOR_QUERIES, self.rows), alone, Path(folder))
            load = Load(Scenario.SERVER, FLOOR_QUERIES, self.rows, rate_per_s=UNREACHABLE_PER_S)
            served = self._served(load, Batcher(nothing, loadgen.completer(), 32, 0.0), Path(folder))
        # At a rate that no machine issues, the last query is as late as issuing them all took.
        per_s = FLOOR_QUERIES / (FLOOR_QUERIES / UNREACHABLE_PER_S + served.late_s[-1])
        return {"query_s": statistics.median(single.seconds), "per_s": per_s}

    def startup(self, _: Any = None) -> dict[str, float]:
        return {"load_s": self.load_s, "first_inference_s": self.first_inference_s}

    def facts(self, _: Any = None) -> dict[str, Any]:
        return dict(self.session.facts)

    def _call(self, rows: Rows) -> None:
        self.session.run(self.inputs.kept(rows))

    def _answer(self, rows: Sequence[int]) -> None:
        self.session.run(self.inputs.feed(tuple(rows)))

    def _order(self, indices: Sequence[int]) -> list[int]:
        """Which row stands for each of LoadGen's samples: with `bucketed`, rows of alike length lie beside each other in its order."""
        row_of = list(range(self.rows))
        if self.inputs.padding == "bucketed":
            by_length = sorted(row_of, key=lambda row: self.inputs.lengths[row])
            # In multi-stream LoadGen loads the first few once more after the last, so that a query may begin at any of them.
            for index, row in zip(dict.fromkeys(indices), by_length, strict=True):
                row_of[index] = row
        return row_of


class _Agreement:
    """Rows' outputs in batches beside theirs alone: of each output the cosine between all rows' values taken together, padding cut off.

    Together, because a row whose scores are near zero has no direction of its own.
    """

    def __init__(self) -> None:
        self.rows = 0
        self._sums: dict[str, list[float]] = {}  # of products, and of the squares on either side

    def add(self, outputs: Outputs, place: int, alone: Outputs) -> None:
        """Row `place` of a batch. Outputs of other shapes than a batch of such rows would have are passed over, and infinite values."""
        import numpy as np

        self.rows += 1
        for name, wanted in alone.items():
            if wanted.dtype.kind != "f" or wanted.ndim != outputs[name].ndim or wanted.shape[:1] != (1,) or place >= len(outputs[name]):
                continue
            got: np.ndarray = outputs[name][place][tuple(map(slice, wanted.shape[1:]))].astype("float64")
            wanted = wanted[0].astype("float64")
            if got.shape != wanted.shape or not (np.isfinite(got).all() and np.isfinite(wanted).all()):
                continue
            sums = self._sums.setdefault(name, [0.0, 0.0, 0.0])
            for i, product in enumerate((got * wanted, got * got, wanted * wanted)):
                sums[i] += float(product.sum())

    def cosines(self) -> dict[str, float]:
        """By output; 1 where both are zero, 0 where one is."""
        return {name: both / math.sqrt(a * b) if a and b else float(a == b) for name, (both, a, b) in self._sums.items()}


class _InTurn:
    """Answers in LoadGen's own thread, `batch_size` rows at a time, in its order. `order` gives the row of each sample."""

    def __init__(
        self,
        call: Callable[[Rows], object],
        order: Callable[[Sequence[int]], list[int]],
        batch_size: int,
        lead_in: int,
        done: Callable[[], None],
        look_at: Callable[[Iterable[Rows]], None] = lambda batches: None,
    ) -> None:
        self._call, self._order, self._batch_size, self._lead_in, self._done = call, order, batch_size, lead_in, done
        self._look_at = look_at
        self._complete = loadgen.completer()
        self._error: BaseException | None = None
        self.batches: list[Rows] = []
        self.lead_in_s = self.ended = 0.0

    def load(self, indices: Sequence[int]) -> None:
        """Before the clock: a look at the batches, and the calls of the lead-in, over the first rows that LoadGen loaded."""
        self._row_of = self._order(indices)
        rows, size = [self._row_of[index] for index in indices], self._batch_size
        start = time.perf_counter()
        if size > 1:
            self._guarded(self._look_at, [tuple(rows[i : i + size]) for i in range(0, len(rows) - size + 1, size)])
        for i in range(self._lead_in):
            first = i * size % len(rows)
            self._guarded(self._call, tuple(rows[first : first + size]))
        self.lead_in_s = time.perf_counter() - start

    def issue(self, samples: Sequence[Any]) -> None:
        for i in range(0, len(samples), self._batch_size):
            chunk = samples[i : i + self._batch_size]
            rows = tuple([self._row_of[sample.index] for sample in chunk])
            self._guarded(self._call, rows)
            self._complete([sample.id for sample in chunk])
            self.batches.append(rows)

    def flush(self) -> None:
        self.ended = time.perf_counter()
        self._done()

    def _guarded(self, call: Callable[[Any], object], argument: object) -> None:
        """An exception must not cross LoadGen: it is kept, nothing more is asked of the model, and `check` raises it."""
        if self._error is None:
            try:
                call(argument)
            except BaseException as error:  # noqa: BLE001  # see above
                self._error = error

    def check(self) -> None:
        if self._error is not None:
            raise self._error


class _Queued:
    """Hands every request to a batcher, which answers it in its own time."""

    def __init__(self, batcher: Batcher) -> None:
        self._batcher = batcher

    def load(self, indices: Sequence[int]) -> None:
        pass

    def issue(self, samples: Sequence[Any]) -> None:
        for sample in samples:
            self._batcher.submit(sample.id, sample.index)

    def flush(self) -> None:
        pass


class _undisturbed:
    """Python's garbage collector rests meanwhile, and threads change as often as said."""

    def __init__(self, switch_s: float | None = None) -> None:
        self._switch_s = switch_s

    def __enter__(self) -> None:
        self._before = sys.getswitchinterval()
        if self._switch_s is not None:
            sys.setswitchinterval(self._switch_s)
        gc.collect()
        gc.disable()

    def __exit__(self, *_: object) -> None:
        gc.enable()
        sys.setswitchinterval(self._before)
