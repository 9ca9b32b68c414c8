"""The hardware a recipe wants, and the hardware that is there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from ioptim.core.base import Frozen, digest_of


class Hardware(Frozen):
    """What a probe of this machine found. Everything that changes a timing is in `fingerprint`."""

    cpu_model: str
    cpu_flags: tuple[str, ...] = Field(description="instruction sets that matter for inference, for example avx512_vnni")
    cores: int = Field(description="physical cores this process may run on")
    threads: int = Field(description="logical CPUs this process may run on (affinity and cgroup quota counted)")
    memory_bytes: int = Field(description="memory this process may use (cgroup limit counted)")
    caches: Mapping[str, int] = Field(default_factory=dict, description="cache sizes in bytes by level: L1d, L2, L3")
    gpus: tuple[Mapping[str, Any], ...] = Field((), description="name, memory_bytes, driver, compute capability of each GPU")
    system: str = Field("", description="kernel and C library")
    python: str = ""

    @property
    def fingerprint(self) -> str:
        """Short digest of what a timing depends on; two numbers compare only when it is the same."""
        return digest_of(self.model_dump(mode="json", exclude={"python"}))[:12]
