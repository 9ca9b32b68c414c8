"""Starts the next step's process while the current step works: importing torch and transformers takes four seconds."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ioptim.errors import UnavailableError
from ioptim.graph import Node
from ioptim.isolate import Prepared

MODULES: Mapping[str, tuple[str, ...]] = {
    "torch": ("torch",),
    "transformers": ("transformers.models.auto.modeling_auto", "transformers.modeling_utils", "transformers.modeling_layers"),
}
"""Slow imports, by the distribution that a node says it needs."""


class Ahead:
    """At most one process that waits for one node.

    It never imports beside a measurement: while a measuring step runs nothing is started, and none is started for a node behind one.
    """

    def __init__(self, log_of: Callable[[str], Path]) -> None:
        self._log_of = log_of
        self._waiting: dict[str, Prepared] = {}
        self._lock = threading.Lock()

    def prepare(self, following: Sequence[Node]) -> None:
        """Start the process of the first of these nodes, in the order they will run, that is slow to start."""
        for node in following:
            modules = [] if node.step.opens_elsewhere else [module for library in node.libraries for module in MODULES.get(library, ())]
            if modules:
                self._start(node.id, modules)
            if modules or node.step.measures:
                return

    def _start(self, node_id: str, modules: Sequence[str]) -> None:
        with self._lock, contextlib.suppress(UnavailableError):  # the step itself says it, if it is still so
            if not self._waiting:
                # The worker first: it switches off the telemetry of what is imported after it.
                self._waiting[node_id] = Prepared(["ioptim.worker", *modules], log=self._log_of(node_id))

    def take(self, node_id: str) -> Prepared | None:
        """The process that waits for this node, if one does."""
        with self._lock:
            return self._waiting.pop(node_id, None)

    def close(self) -> None:
        with self._lock:
            while self._waiting:
                self._waiting.popitem()[1].close()
