"""What a run says while it goes, where nobody watches a terminal."""

from __future__ import annotations

import subprocess
import sys

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


def test_a_reader_that_goes_does_not_end_the_run() -> None:
    """`ioptim run r.yaml 2>&1 | head -1`: the nodes behind the first line run as well, and the exit code is the run's."""
    code = (
        "import sys; from ioptim.console import _Plain; from ioptim.core.record import *; from ioptim.execute import Event;"
        "node = NodeRecord(id='a', step='null', target=None, parents=(), status=Status.PASSED); shown = _Plain(9000);"
        "[shown(Event('ended', node)) for _ in range(9000)]; raise SystemExit(5)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        process.stderr.readline()
        process.stderr.close()
    assert process.returncode == 5
