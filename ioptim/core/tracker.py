"""Where runs are remembered beyond the local record."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from ioptim.core.record import NodeRecord, RunRecord, TrackingState


class Tracker(Protocol):
    """Follows a run. Called from one thread at a time, in the order begin, node..., end.

    The local record is the truth: everything a tracker writes can be written again from a `RunRecord` and its run folder, which is
    what `ioptim sync` does. A tracker that cannot reach its server raises `UnavailableError`; the run goes on without it.
    """

    @property
    def state(self) -> TrackingState:
        """State of a run that is not yet known to be remembered: where it would be."""

    def begin(self, run: RunRecord) -> None:
        """The run starts; its nodes are known and pending."""

    def node(self, run: RunRecord, node: NodeRecord) -> None:
        """A node has ended (passed, gate failed, error, skipped)."""

    def end(self, run: RunRecord, folder: Path) -> TrackingState:
        """The run has ended; `folder` holds run.json, report.html, recipe.yaml and the logs."""
