"""What a run looks like while it goes: a live line on a terminal, plain lines in a pipe. Everything goes to standard error."""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any, Protocol, TextIO

from ioptim.core.record import NodeRecord, Status
from ioptim.core.step import Level
from ioptim.execute import Event

MARK = {
    Status.PASSED: "✓",
    Status.GATE_FAILED: "✗",
    Status.ERROR: "✗",
    Status.SKIPPED: "-",
    Status.INTERRUPTED: "!",
}
COLOUR = {Status.PASSED: "green", Status.GATE_FAILED: "red", Status.ERROR: "red", Status.SKIPPED: "yellow", Status.INTERRUPTED: "yellow"}


def nobody_reads(stream: TextIO) -> None:
    """The reader of a pipe has gone: what is still to be written, by Python's own last flush too, goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class Display(Protocol):
    """Told of every event, from any thread."""

    def __call__(self, event: Event) -> None: ...

    def close(self) -> None: ...


def display(total: int, *, quiet: bool = False) -> Display:
    """The display that fits where standard error goes. `quiet` shows nothing while the run goes."""
    if quiet:
        return _Silent()
    if not sys.stderr.isatty():
        return _Plain(total)
    try:
        return _Live(total)
    except ImportError:  # rich comes with the extras
        return _Plain(total)


class _Silent:
    def __call__(self, event: Event) -> None:
        return

    def close(self) -> None:
        return


class _Plain:
    """A line when a node has ended, and one a minute of what goes on meanwhile: a log of a night's training must not be empty."""

    def __init__(self, total: int, every_s: float = 60.0) -> None:
        self.total, self.every_s = total, every_s
        self.ended = 0
        self.said = time.monotonic()
        self.lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        with self.lock:
            if event.what == "progress" and time.monotonic() - self.said >= self.every_s:
                self._say(f"      {event.node.id}  {event.done:.0%}  {event.message}".rstrip())
            if event.what == "ended":
                self.ended += 1
                first, *rest = ended_lines(event.node)
                self._say(f"[{self.ended}/{self.total}] {first}", *rest)

    def _say(self, *lines: str) -> None:
        """A reader that has gone (`2>&1 | head`) does not end the run."""
        self.said = time.monotonic()
        try:
            sys.stderr.write("".join(f"{line}\n" for line in lines))
            sys.stderr.flush()
        except BrokenPipeError:
            nobody_reads(sys.stderr)

    def close(self) -> None:
        return


class _Live:
    """A spinner with the step, its message and its time; what has ended scrolls above it."""

    def __init__(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self.console = Console(stderr=True, highlight=False)
        self.total = total
        self.bars: dict[str, Any] = {}
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=20), TimeElapsedColumn())
        self.progress = Progress(*columns, TextColumn("{task.fields[message]}"), console=self.console, transient=True)
        self.progress.start()

    def __call__(self, event: Event) -> None:
        node = event.node
        if event.what == "started":
            self.bars[node.id] = self.progress.add_task(node.id, total=1.0, message="")
        elif event.what == "progress" and node.id in self.bars:
            self.progress.update(self.bars[node.id], completed=event.done, message=event.message)
        elif event.what == "ended":
            if node.id in self.bars:
                self.progress.remove_task(self.bars.pop(node.id))
            first, *rest = ended_lines(node)
            self.progress.console.print(first, style=COLOUR.get(node.status), markup=False)
            for line in rest:
                self.progress.console.print(line, markup=False)

    def close(self) -> None:
        self.progress.stop()


def ended_lines(node: NodeRecord) -> list[str]:
    """What is said of a node that has ended: its state and time, then its warnings, verdicts or error."""
    took = f"cached, computed in {node.seconds:.1f} s" if node.cached else f"{node.seconds:.1f} s"
    state = took if node.status in (Status.PASSED, Status.GATE_FAILED) else node.status.value
    size = ""
    if node.artifact and node.status is Status.PASSED and node.step in ("source", "champion", "export", "quantize", "compile"):
        size = f"  {node.artifact.format.value}, {node.artifact.size_bytes / 1e6:.1f} MB"
    lines = [f"{MARK.get(node.status, ' ')} {node.id}  {state}{size}"]
    lines += [f"    warning: {note.text}" for note in node.notes if note.level is Level.WARNING]
    lines += [f"    {gate.verdict.value}: {gate.reason}" for gate in node.gates]
    if node.error:
        lines += [f"    {line}" for line in node.error.splitlines()]
    return lines
