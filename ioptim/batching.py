"""A dynamic batcher: what stands between requests that arrive one by one and a session that is faster on several at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Request:
    """One row that waits: `id` is what its answer is handed back under."""

    id: int
    row: int
    due: float
    """Moment (`time.monotonic`) after which it may wait no longer for others."""


class Batcher:
    """Runs a batch as soon as `max_batch` requests wait, or the oldest has waited `max_delay_s` and the session is free.

    `work` runs them, one batch after another, in the thread that calls it; `answer` gets the requests of each. With `lengths` (of each
    row), the oldest request is joined by those nearest to it in length instead of the next in line, so that less is padded; nobody waits
    for ever, for the oldest always goes.
    """

    def __init__(
        self,
        run: Callable[[Sequence[int]], object],
        answer: Callable[[Sequence[int]], None],
        max_batch: int,
        max_delay_s: float,
        lengths: Sequence[int] | None = None,
    ) -> None:
        self._run = run
        self._answer = answer
        self._max_batch = max_batch
        self._max_delay_s = max_delay_s
        self._lengths = lengths
        self._waiting: list[Request] = []
        self._arrived = threading.Condition()
        self._closed = False
        self._error: BaseException | None = None
        self.batches: list[tuple[int, ...]] = []
        """Rows of every batch that was run."""

    def submit(self, id: int, row: int) -> None:
        with self._arrived:
            self._waiting.append(Request(id, row, time.monotonic() + self._max_delay_s))
            if len(self._waiting) in (1, self._max_batch):  # between the two, the thread has nothing new to decide
                self._arrived.notify()

    def close(self) -> None:
        """Nothing more arrives: `work` answers what waits and returns."""
        with self._arrived:
            self._closed = True
            self._arrived.notify()

    def work(self) -> None:
        """Until closed, and everyone is answered. After an exception nothing more is run, and it is raised at the end."""
        while batch := self._next():
            rows = tuple(request.row for request in batch)
            if self._error is None:
                try:
                    self._run(rows)
                except BaseException as error:  # noqa: BLE001  # raised at the end; LoadGen waits for every answer
                    self._error = error
                self.batches.append(rows)
            self._answer([request.id for request in batch])
        if self._error is not None:
            raise self._error

    def _next(self) -> list[Request]:
        """Wait for a batch; empty when closed and nothing waits."""
        with self._arrived:
            while not self._waiting and not self._closed:
                self._arrived.wait()
            while self._waiting and len(self._waiting) < self._max_batch and not self._closed:
                left = self._waiting[0].due - time.monotonic()
                if left <= 0:
                    break
                self._arrived.wait(left)
            return self._take()

    def _take(self) -> list[Request]:
        if self._lengths is None or len(self._waiting) <= self._max_batch:
            batch, self._waiting = self._waiting[: self._max_batch], self._waiting[self._max_batch :]
            return batch
        lengths, oldest = self._lengths, self._waiting[0]
        others = sorted(self._waiting[1:], key=lambda request: abs(lengths[request.row] - lengths[oldest.row]))
        batch = [oldest, *others[: self._max_batch - 1]]
        gone = {request.id for request in batch}
        self._waiting = [request for request in self._waiting if request.id not in gone]
        return batch
