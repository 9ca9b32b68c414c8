"""What executes a model: `compile` an artifact for a target, `open` it as a session."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from pydantic import Field

from ioptim.core.artifact import Format, ModelArtifact, TensorSpec
from ioptim.core.base import Frozen
from ioptim.core.step import Outcome
from ioptim.core.target import Hardware

if TYPE_CHECKING:
    import numpy as np


class Session(Protocol):
    """A model ready to run. Not thread-safe unless the runtime says so; closed by its owner."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    facts: Mapping[str, Any]
    """What really executes: device or execution provider used, threads, inference precision. Read back, never assumed."""

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One forward pass. Feeds and results are host arrays by tensor name; copies to and from the device are included."""

    def close(self) -> None:
        """Free the model and its threads."""


class Operand(NamedTuple):
    """One tensor that a layer read or wrote."""

    dtype: str
    """NumPy name, bfloat16 and 4-bit types as the runtime calls them."""
    shape: tuple[int, ...]
    weight: bool = False
    """Whether it is part of the model and not computed."""


@dataclass(frozen=True)
class LayerRun:
    """One execution of one layer, told by the runtime's own profiler."""

    name: str
    operator: str
    seconds: float
    inputs: tuple[Operand, ...] = ()
    outputs: tuple[Operand, ...] = ()
    kernel: str = ""
    """The implementation that ran, where the runtime tells."""
    precision: str | None = None
    """NumPy name of what it computed in, where the runtime tells."""


@dataclass(frozen=True)
class ProfiledRun:
    """One forward pass: its wall time with the profiler on, and every layer that executed, in order."""

    seconds: float
    layers: tuple[LayerRun, ...]


class ProfiledSession(Protocol):
    """A session that also keeps the time of every layer."""

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One forward pass."""

    def finish(self) -> Sequence[ProfiledRun]:
        """Every pass in order. Closes the session; the trace is complete."""


class Runtime(Frozen, ABC):
    """One runtime with its options, as the recipe's `targets[].runtime` spells them. One file, found by its name."""

    runtime: str
    libraries: ClassVar[tuple[str, ...]] = ()
    """Distributions it needs, in the order to install them."""
    extra: ClassVar[str] = ""
    """The extra of this project that installs them."""
    accepts: ClassVar[frozenset[Format]] = frozenset()
    """Formats that `compile` takes without an export."""
    compiled: ClassVar[Format]
    """Format of what `compile` writes."""

    def check(self, target: Target, hardware: Hardware) -> list[str]:
        """Objections known without loading the library: a device not there, an option the hardware lacks."""
        return []

    @abstractmethod
    def compile(self, model: ModelArtifact, target: Target, out: Path) -> Outcome:
        """Write to `out` what `open` will load, optimized for the target; report what fused and what did not.

        Raises:
            StepError: the library refused the model.
        """

    @abstractmethod
    def open(self, model: ModelArtifact, target: Target) -> Session:
        """Load a compiled model, or any model in `accepts`, on the target's device with the target's threads.

        Raises:
            UnavailableError: the library or the device is not there.
            StepError: the library refused the model, or placed it elsewhere than asked.
        """

    def open_profiled(self, model: ModelArtifact, target: Target, trace: Path) -> ProfiledSession | None:
        """As `open`, with the runtime's profiler on; a Chrome trace is written to `trace`. None where the runtime tells no layers."""
        return None

    @abstractmethod
    def self_check(self, target: Target) -> list[float]:
        """Build a tiny model, compile it, compute three numbers known beforehand (2, 4, 6) and return them."""


class Target(Frozen):
    """The hardware wanted and the runtime on it, as the recipe's `targets` spell it."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", description="how steps, reports and node ids call this target")
    device: str = Field("cpu", pattern=r"^(cpu|gpu(:\d+)?)$", description="cpu, gpu or gpu:1")
    threads: int | None = Field(None, ge=1, description="threads that a session may use; physical cores when left out")
    memory_gb: float | None = Field(None, gt=0, description="memory a step on this target may use; unlimited when left out")
    price_per_hour: float | None = Field(
        None, gt=0, description="what an hour of this hardware costs, in any currency; benchmarks then give the cost of a million requests"
    )
    pool: str | None = Field(
        None, description="Prefect work pool whose workers have this hardware (not yet: refused by the plan); this machine when left out"
    )
    runtime: Runtime
