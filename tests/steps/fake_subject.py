"""Stands in for the worker of a benchmark: answers the seconds that its model's file prescribes, without spending them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ioptim.errors import UnavailableError


class Subject:
    """Of a model, `seconds` is what a row takes by itself; a batch takes half as long for each further row. With `slow_every: 3` every
    third block takes ten times as long. With `late_after: 9` every trial of a server after the ninth misses any bound."""

    def __init__(self, argument: dict[str, Any]) -> None:
        self.model = json.loads((Path(argument["model"]) / "model.json").read_text())
        self.target = argument["request"]["target"]
        self.calls: list[Any] = [["logs", Path(argument["logs"]).name]]
        self.begun: dict[str, Any] | None = None
        self.blocks = self.trials = 0
        if self.model.get("unavailable"):
            raise UnavailableError("the runtime is not installed: pip install it")

    def prepare(self, argument: dict[str, Any]) -> dict[str, Any]:
        self.calls.append(["prepare", argument])
        rows = min(argument["limit"], self.model.get("rows", 1000))
        self.rows = rows - rows % argument["batch_size"] if rows > argument["batch_size"] else rows
        return {"rows": self.rows}

    def begin(self, argument: dict[str, Any]) -> dict[str, Any] | None:
        """Row i of a pass takes longer than the one before."""
        self.calls.append(["begin", argument])
        if self.model.get("crash"):
            os.abort()
        load, batch_size = argument["load"], argument["batch_size"]
        queries = load["queries"] // batch_size if load["scenario"] == "offline" else load["queries"]
        in_a_pass = max(1, self.rows // batch_size)
        self.blocks += 1
        busy = 10 if self.blocks % self.model.get("slow_every", 10**9) == 0 else 1
        taken = [busy * self._batch_s(batch_size) * (1 + 0.01 * (i % in_a_pass)) for i in range(queries)]
        before, self.begun = self.begun, {"seconds": taken, "padded_share": 0.0, "overhead_s": 0.0}
        if load["scenario"] == "offline":
            self.begun["seconds"] = [sum(taken[: i + 1]) for i in range(queries)]
            self.begun["padded_share"] = 0.25
        return before

    def finish(self, _: Any) -> dict[str, Any] | None:
        before, self.begun = self.begun, None
        return before

    def serve(self, argument: dict[str, Any]) -> dict[str, Any]:
        """A queue that fills: its waiting time grows without bound as the rate comes near what the largest batch can do."""
        batch, rate = argument["max_batch"], argument["load"]["rate_per_s"]
        self.trials += 1
        service = self._batch_s(batch)
        free = max(0.01, 1 - rate * service / batch)
        self.calls.append(["serve", batch, argument["max_delay_s"], rate, argument["load"]["queries"], argument["load"]["seed"]])
        late_s = 1e3 if self.trials > self.model.get("late_after", 10**9) else 0.0
        seconds = [late_s + argument["max_delay_s"] + service / free] * argument["load"]["queries"]
        return {"seconds": seconds, "mean_batch": batch / 2, "padded_share": 0.1}

    def floor(self, _: Any) -> dict[str, float]:
        return {"query_s": self.model.get("floor_s", 7e-6), "per_s": 40_000.0}

    def startup(self, _: Any) -> dict[str, float]:
        return {"load_s": 0.5, "first_inference_s": 0.02}

    def facts(self, _: Any) -> dict[str, Any]:
        here = {"target": self.target, "omp": os.environ["OMP_NUM_THREADS"], "cpus": len(os.sched_getaffinity(0))}
        return {"provider": "fake", "calls": self.calls, **here}

    def _batch_s(self, rows: int) -> float:
        return self.model["seconds"] * (1 + rows) / 2
