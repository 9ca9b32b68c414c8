"""What this machine is, read from the kernel in milliseconds and without a heavy library."""

from __future__ import annotations

import contextlib
import csv
import math
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from ioptim.core.target import Hardware

PROC = Path("/proc")
SYS = Path("/sys")

FLAGS = (
    # x86, as /proc/cpuinfo spells them: vector width, int8 dot products (vnni), tile matrices (amx), half precision.
    *(
        "sse4_1",
        "sse4_2",
        "avx",
        "f16c",
        "fma",
        "avx2",
        "avx512f",
        "avx512bw",
        "avx512dq",
        "avx512vl",
        "avx512_vnni",
        "avx512_bf16",
    ),
    *(
        "avx512_fp16",
        "avx_vnni",
        "avx_vnni_int8",
        "avx_vnni_int16",
        "avx_ne_convert",
        "avx10",
        "amx_tile",
        "amx_int8",
        "amx_bf16",
    ),
    "amx_fp16",
    # Arm: NEON, its half precision and int8 dot products (asimddp, i8mm), scalable vectors and matrices.
    *("asimd", "fphp", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "svei8mm", "svebf16", "sve2", "sme", "sme2"),
)
"""Instruction sets that the kernels of inference libraries are chosen by, in the order they are shown."""

GPU_FIELDS = {
    "index": "index",
    "name": "name",
    "memory_bytes": "memory.total",
    "driver": "driver_version",
    "compute_capability": "compute_cap",
}
NVIDIA_SMI_TIMEOUT_S = 10
MEMORY_STEP = 64 << 20


@cache
def probe() -> Hardware:
    """What this process may use of this machine; read once per process."""
    allowed = _allowed_cpus()
    cpuinfo = _cpuinfo()
    threads = max(1, math.floor(min(len(allowed), _cpu_quota())))
    return Hardware(
        cpu_model=_cpu_model(cpuinfo),
        cpu_flags=_cpu_flags(cpuinfo),
        cores=max(1, min(threads, len({_siblings(cpu) for cpu in allowed}))),
        threads=threads,
        memory_bytes=_memory_bytes(),
        caches=_caches(min(allowed)),
        gpus=read_gpus()[0],
        system=" ".join(part for part in (platform.system(), platform.release(), *platform.libc_ver()) if part),
        python=platform.python_version(),
    )


def versions(distributions: Iterable[str]) -> dict[str, str | None]:
    """Installed version of each distribution, None where it is not installed. Imports none of them."""
    return {name: _version(name) for name in distributions}


def read_gpus() -> tuple[tuple[Mapping[str, Any], ...], str]:
    """NVIDIA's GPUs as `nvidia-smi` lists them, and why it could not say when it is there but failed."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return (), ""
    query = [command, f"--query-gpu={','.join(GPU_FIELDS.values())}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=NVIDIA_SMI_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return (), f"nvidia-smi gave no answer: {error}"
    if done.returncode != 0:
        return (), f"nvidia-smi failed: {(done.stdout + done.stderr).strip()}"
    return tuple(_gpu(row) for row in csv.reader(done.stdout.splitlines(), skipinitialspace=True) if row), ""


def _gpu(row: list[str]) -> Mapping[str, Any]:
    gpu: dict[str, Any] = dict(zip(GPU_FIELDS, row, strict=True))
    gpu["index"] = int(gpu["index"])
    with contextlib.suppress(ValueError):  # "[N/A]" where memory is shared with the CPU
        gpu["memory_bytes"] = int(gpu["memory_bytes"]) * 1024 * 1024  # MiB, see `nvidia-smi --help-query-gpu`
    return gpu


@cache
def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


# ---------------------------------------------------------------- CPU


def _cpuinfo() -> dict[str, str]:
    """The first processor's entries of /proc/cpuinfo; empty where there is none."""
    entries: dict[str, str] = {}
    for line in _text(PROC / "cpuinfo").split("\n\n")[0].splitlines():
        key, _, value = line.partition(":")
        entries[key.strip()] = value.strip()
    return entries


def _cpu_model(cpuinfo: Mapping[str, str]) -> str:
    if "model name" in cpuinfo:
        # "AMD EPYC" alone is what many hypervisors show of five generations: family and model tell them apart.
        numbers = (cpuinfo.get("cpu family"), cpuinfo.get("model"))
        return cpuinfo["model name"] + (f" (family {numbers[0]}, model {numbers[1]})" if all(numbers) else "")
    if "CPU part" in cpuinfo:
        return f"Arm implementer {cpuinfo.get('CPU implementer')} part {cpuinfo['CPU part']}"
    return platform.processor() or platform.machine()


def _cpu_flags(cpuinfo: Mapping[str, str]) -> tuple[str, ...]:
    present = set((cpuinfo.get("flags") or cpuinfo.get("Features") or "").split())
    return tuple(flag for flag in FLAGS if flag in present)


def _allowed_cpus() -> set[int]:
    """Logical CPUs by number that this process is allowed to run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _siblings(cpu: int) -> str:
    """The hardware threads that share a physical core with this one, as the kernel writes them; itself where it does not tell."""
    return _text(SYS / f"devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").strip() or str(cpu)


def _caches(cpu: int) -> dict[str, int]:
    """Bytes by level, as one core sees them: L1d, L1i, L2, L3."""
    found = {}
    for index in sorted((SYS / f"devices/system/cpu/cpu{cpu}/cache").glob("index*")):
        level, kind, size = (_text(index / name).strip() for name in ("level", "type", "size"))
        if size:
            letter = {"Data": "d", "Instruction": "i"}.get(kind, "")
            found[f"L{level}{letter}"] = int(size[:-1]) * {"K": 1 << 10, "M": 1 << 20}[size[-1]]
    return found


# ---------------------------------------------------------------- limits of the control groups that hold this process


def _cpu_quota() -> float:
    """CPUs' worth of time allowed, infinite without a quota."""
    quotas = [math.inf]
    for group, unified in _groups("cpu"):
        names = ("cpu.max",) if unified else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        numbers = " ".join(_text(group / name) for name in names).split()
        if len(numbers) == 2 and numbers[0] not in ("max", "-1"):
            quotas.append(int(numbers[0]) / int(numbers[1]))
    return min(quotas)


def _memory_bytes() -> int:
    """Physical memory or the tightest control group's limit, in whole steps: the kernel's own share varies from boot to boot."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for group, unified in _groups("memory"):
        text = _text(group / ("memory.max" if unified else "memory.limit_in_bytes")).strip()
        if text.isdigit():
            limits.append(int(text))
    return min(limits) // MEMORY_STEP * MEMORY_STEP or min(limits)


def _groups(controller: str) -> Iterator[tuple[Path, bool]]:
    """This process's group and all above it, and whether each is of the unified hierarchy (v2) or of the controller's (v1)."""
    root = SYS / "fs/cgroup"
    for line in _text(PROC / "self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = root / controller if controllers else root
        folder = base / path.lstrip("/")
        yield from ((group, not controllers) for group in (folder, *folder.parents) if group.is_relative_to(base))


def _text(path: Path) -> str:
    """A kernel file's text, empty where it is not there or not ours to read."""
    try:
        return path.read_text()
    except OSError:
        return ""
