"""Energy that the hardware itself has counted, where it lets us read it. Idle power is in it: it is the package's, not the process's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")


class Meter:
    """Joules since some moment, of the CPU packages (RAPL) and of one GPU (NVML); `source` is empty where neither can be read."""

    def __init__(self, gpu: int | None = None, powercap: Path = POWERCAP) -> None:
        self._counters = [path / "energy_uj" for path in sorted(powercap.glob("intel-rapl:*")) if _readable(path / "energy_uj")]
        self._counters = [path for path in self._counters if path.parent.name.count(":") == 1]  # the others are parts of these
        self._wraps_at = [int((path.parent / "max_energy_range_uj").read_text()) for path in self._counters]
        self._last = self._microjoules()
        self._turns = [0] * len(self._counters)
        self._gpu = None if gpu is None else _nvml(gpu)
        found = [*(["RAPL"] if self._counters else []), *(["NVML"] if self._gpu else [])]
        self.source = " and ".join(found)

    def joules(self) -> float:
        """Read often enough (every few minutes), a counter that starts again from zero is noticed."""
        now = self._microjoules()
        self._turns = [turns + (new < old) for turns, new, old in zip(self._turns, now, self._last, strict=True)]
        self._last = now
        cpu = sum(new + turns * most for new, turns, most in zip(now, self._turns, self._wraps_at, strict=True)) / 1e6
        return cpu + (self._gpu() if self._gpu else 0.0)

    def _microjoules(self) -> list[int]:
        return [int(path.read_text()) for path in self._counters]


def _readable(path: Path) -> bool:
    try:
        int(path.read_text())
    except (OSError, ValueError):  # root alone may read it, since Platypus (CVE-2020-8694)
        return False
    return True


def _nvml(index: int) -> Any:
    """A function that returns the joules of a GPU, or None where NVML or its counter is not there."""
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception:  # noqa: BLE001  # NVMLError has a class for each reason, and pynvml may be missing: all mean not readable
        return None
    return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3
