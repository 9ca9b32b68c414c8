"""What a run says while it goes, where nobody watches a terminal."""

from __future__ import annotations

import pytest

from ioptim.console import _Plain
from ioptim.core.record import NodeRecord, Status
from ioptim.execute import Event

NODE = NodeRecord(id="distill", step="distill", target=None, parents=(), status=Status.PASSED, seconds=2.0)


def test_a_long_step_speaks_up_now_and_then(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("ioptim.console.time.monotonic", lambda: now[0])
    display = _Plain(total=3)
    for seconds in range(0, 150, 10):
        now[0] = 100.0 + seconds
        display(Event("progress", NODE, seconds / 200, f"loss {seconds}"))
    display(Event("ended", NODE))
    assert capsys.readouterr().err.splitlines() == [
        "      distill  30%  loss 60",
        "      distill  60%  loss 120",
        "[1/3] \u2713 distill  2.0 s",
    ]
