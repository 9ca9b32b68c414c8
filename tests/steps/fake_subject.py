"""Stands in for the worker of a benchmark: answers the seconds that its model's file prescribes, without spending them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ioptim.errors import UnavailableError


class Subject:
    def __init__(self, argument: dict[str, Any]) -> None:
        self.model = json.loads((Path(argument["model"]) / "model.json").read_text())
        self.calls: list[Any] = []
        self.position = 0
        if self.model.get("unavailable"):
            raise UnavailableError("the runtime is not installed: pip install it")

    def prepare(self, argument: dict[str, Any]) -> dict[str, Any]:
        self.batch_size = argument["batch_size"]
        examples = min(argument["limit"], self.model.get("rows", 1000))
        self.feeds = max(1, examples // self.batch_size)
        rows = min(examples, self.feeds * self.batch_size)
        self.position = 0
        self.calls.append(["prepare", argument])
        return {"examples": examples, "feeds": self.feeds, "rows": rows}

    def block(self, argument: dict[str, Any]) -> list[float]:
        """Feed i of a pass takes longer than the one before, and the first call after a pause ten times as long."""
        self.calls.append(["block", argument["n"], self.position % self.feeds])
        if self.model.get("crash"):
            os.abort()
        seconds = []
        for i in range(argument["n"]):
            length = 1 + 0.01 * ((self.position + i) % self.feeds)
            seconds.append(self.model["seconds"] * self.batch_size * length * (10 if i == 0 else 1))
        self.position += argument["n"]
        return seconds

    def startup(self, _: Any) -> dict[str, float]:
        return {"load_s": 0.5, "first_inference_s": 0.02}

    def facts(self, _: Any) -> dict[str, Any]:
        return {"provider": "fake", "calls": self.calls, "omp": os.environ["OMP_NUM_THREADS"], "cpus": len(os.sched_getaffinity(0))}
