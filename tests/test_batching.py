from __future__ import annotations

import threading
import time

import pytest

from ioptim.batching import Batcher


class Gate:
    """A session that answers when it is let."""

    work: threading.Thread

    def __init__(self) -> None:
        self.open = threading.Event()
        self.started = threading.Event()
        self.ran: list[list[int]] = []
        self.answered: list[int] = []

    def run(self, rows: object) -> None:
        self.ran.append(list(rows))  # type: ignore[call-overload]
        self.started.set()
        assert self.open.wait(10)

    def end(self, batcher: Batcher) -> None:
        batcher.close()
        self.work.join(10)

    def answer(self, ids: object) -> None:
        self.answered += list(ids)  # type: ignore[call-overload]


def busy(max_batch: int, max_delay_s: float = 0.0, lengths: list[int] | None = None) -> tuple[Gate, Batcher]:
    """A batcher whose session works on a first request (id 0, row 0)."""
    gate = Gate()
    batcher = Batcher(gate.run, gate.answer, max_batch, max_delay_s, lengths)
    gate.work = threading.Thread(target=batcher.work)
    gate.work.start()
    batcher.submit(0, 0)
    if max_delay_s == 0:
        assert gate.started.wait(10)
    return gate, batcher


def test_what_waits_when_the_session_is_free_goes_together() -> None:
    gate, batcher = busy(3)
    for i in range(1, 6):
        batcher.submit(i, i * 10)
    gate.open.set()
    gate.end(batcher)
    assert gate.ran == [[0], [10, 20, 30], [40, 50]]
    assert gate.answered == [0, 1, 2, 3, 4, 5]
    assert batcher.batches == [(0,), (10, 20, 30), (40, 50)]


def test_a_full_batch_does_not_wait() -> None:
    gate, batcher = busy(2, max_delay_s=60)
    gate.open.set()
    assert not gate.started.wait(0.05)
    batcher.submit(1, 1)
    assert gate.started.wait(10)
    gate.end(batcher)
    assert gate.ran == [[0, 1]]


def test_the_oldest_waits_no_longer_than_its_delay() -> None:
    gate, batcher = busy(100, max_delay_s=0.02)
    start = time.monotonic()
    assert gate.started.wait(10)
    assert time.monotonic() - start > 0.01
    gate.open.set()
    gate.end(batcher)
    assert gate.ran == [[0]]


def test_rows_of_alike_length_go_with_the_oldest() -> None:
    gate, batcher = busy(2, lengths=[1, 50, 9, 51, 10])
    for i in range(1, 5):
        batcher.submit(i, i)
    gate.open.set()
    gate.end(batcher)
    assert gate.ran == [[0], [1, 3], [2, 4]]


def test_an_error_answers_everyone_and_is_raised_at_the_end() -> None:
    answered: list[int] = []

    def refuse(rows: object) -> None:
        raise ValueError("no")

    batcher = Batcher(refuse, answered.extend, 2, 0.0)
    for i in range(5):
        batcher.submit(i, i)
    batcher.close()
    with pytest.raises(ValueError, match="^no$"):
        batcher.work()
    assert answered == [0, 1, 2, 3, 4]
