"""What is asked of a server, and the search for the highest rate that meets it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from ioptim import timing
from ioptim.core.base import Frozen
from ioptim.core.metrics import Metric

RATE = "server_rate_per_s"
TRIAL_S = 1.0
"""Of arrivals in one trial; longer where the percentile needs more requests than arrive in it."""
HOPELESS = 64
"""Times slower than the first guess: where that rate does not meet the bound either, none is said to."""


class ServerLoad(Frozen):
    """Requests that arrive at random, and the bound on how long they may take."""

    latency_bound_ms: float = Field(gt=0, description="time within which requests must be answered, waiting and padding included")
    percentile: float = Field(0.99, ge=0.5, lt=1, description="share of the requests that must be")
    rate_per_s: float | None = Field(
        None, gt=0, description="requests per second; the most that meet the bound, searched for, when left out"
    )
    max_batch: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (1, 8, 32), min_length=1, description="largest batches to try; a batch goes when it is full"
    )
    max_delay_ms: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        (0.0, 2.0), min_length=1, description="longest waits for a batch to fill, to try"
    )
    tolerance: float = Field(0.05, gt=0, le=0.5, description="the search ends when a rate so much higher does not meet the bound")
    duration_s: float = Field(30.0, gt=0, description="seconds the search may take for each model; the rounds after it come on top")

    @property
    def p(self) -> str:
        """`p99`."""
        return f"p{self.percentile * 100:g}"

    @property
    def fewest(self) -> int:
        """Requests that a trial must have for its percentile to be known."""
        return timing.fewest_for(self.percentile)

    def requests(self, rate_per_s: float) -> int:
        """How many a trial has."""
        return max(self.fewest, math.ceil(rate_per_s * TRIAL_S))

    @property
    def settings(self) -> list[Setting]:
        """Every batch size with every delay; a batch of one waits for nobody."""
        delays = {size: self.max_delay_ms if size > 1 else (0.0,) for size in self.max_batch}
        return list(dict.fromkeys(Setting(size, delay) for size in self.max_batch for delay in delays[size]))

    @property
    def bound(self) -> str:
        return f"{self.latency_bound_ms:g} ms at {self.p}"

    @property
    def rate(self) -> Metric:
        """Searched for, or the one asked for."""
        return Metric(name=RATE, higher_is_better=True, description=f"requests per second within {self.bound}", unit="requests/s")

    @property
    def tail(self) -> Metric:
        said = f"time within which {self.percentile:.4g} of the requests at the server's rate are answered"
        return Metric(name=f"server_{self.p.replace('.', '_')}_ms", higher_is_better=False, description=said, unit="ms")


@dataclass(frozen=True)
class Setting:
    max_batch: int
    max_delay_ms: float

    def __str__(self) -> str:
        return f"max_batch {self.max_batch}, max_delay {self.max_delay_ms:g} ms"


class Search:
    """The highest rate that meets the bound, over all settings. A setting that cannot beat the best so far costs one trial."""

    def __init__(self, meets: Callable[[Setting, float], bool], start: float, most: float, asked: ServerLoad) -> None:
        self._meets = meets
        self._start = start
        self._most = most
        self._asked = asked
        self._deadline = time.monotonic() + asked.duration_s
        self.converged = True

    def best(self) -> tuple[Setting, float] | None:
        best: tuple[Setting, float] | None = None
        for setting in self._asked.settings:
            if best is None:
                rate = self._highest(setting, 0.0, self._start)
            else:
                better = best[1] * (1 + self._asked.tolerance)
                beats = self._in_time(better) and self._meets(setting, better)
                rate = self._highest(setting, better, better * 2) if beats else None
            if rate is not None:
                best = setting, rate
        return best

    def _highest(self, setting: Setting, low: float, rate: float) -> float | None:
        """From `rate` outwards by doubling or halving, then by bisection. `low` is known to meet the bound (0: nothing is known)."""
        high = math.inf
        while not (low and high <= low * (1 + self._asked.tolerance)) and low < self._most and self._in_time(rate):
            if self._meets(setting, rate):
                low = rate
            else:
                high = rate
            if not low and high < self._start / HOPELESS:
                return None
            rate = min(self._most, low * 2) if high == math.inf else high / 2 if not low else math.sqrt(low * high)
        return low or None

    def _in_time(self, rate: float) -> bool:
        """Whether a trial at this rate ends before time is up."""
        self.converged &= time.monotonic() + self._asked.requests(rate) / rate <= self._deadline
        return self.converged
