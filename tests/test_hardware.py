from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ioptim import hardware
from ioptim.core.target import Hardware

ROOT = Path(__file__).parent.parent
XEON = """processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 143
model name\t: Intel(R) Xeon(R) Platinum 8480+
flags\t\t: fpu sse4_2 avx2 fma f16c avx512f avx512_vnni amx_tile amx_int8 amx_bf16 hypervisor

processor\t: 1
"""
GRAVITON = """processor\t: 0
Features\t: fp asimd asimdhp asimddp sve i8mm bf16
CPU implementer\t: 0x41
CPU part\t: 0xd40
"""


class Machine:
    """A made-up /proc and /sys."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def probe(self) -> Hardware:
        return hardware.probe.__wrapped__()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(hardware, "PROC", tmp_path / "proc")
    monkeypatch.setattr(hardware, "SYS", tmp_path / "sys")
    monkeypatch.setattr(hardware.shutil, "which", lambda name: None)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    return Machine(tmp_path)


def test_this_machine() -> None:
    found = hardware.probe()
    assert found is hardware.probe()
    assert found.cpu_model
    assert 1 <= found.cores <= found.threads
    assert found.memory_bytes > 1 << 28
    assert len(found.fingerprint) == 12
    assert Hardware.model_validate(json.loads(found.model_dump_json())) == found


def test_x86_flags_and_model(machine: Machine) -> None:
    machine.write("proc/cpuinfo", XEON)
    found = machine.probe()
    assert found.cpu_model == "Intel(R) Xeon(R) Platinum 8480+ (family 6, model 143)"
    assert found.cpu_flags == ("sse4_2", "f16c", "fma", "avx2", "avx512f", "avx512_vnni", "amx_tile", "amx_int8", "amx_bf16")


def test_arm_flags_and_model(machine: Machine) -> None:
    machine.write("proc/cpuinfo", GRAVITON)
    found = machine.probe()
    assert found.cpu_model == "Arm implementer 0x41 part 0xd40"
    assert found.cpu_flags == ("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve")


def test_two_threads_share_a_core(machine: Machine) -> None:
    for cpu in range(4):
        machine.write(f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", f"{cpu % 2},{cpu % 2 + 2}\n")
    assert (machine.probe().cores, machine.probe().threads) == (2, 4)


@pytest.mark.parametrize(
    ("files", "threads", "gigabytes"),
    [
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/cpu.max": "200000 100000\n",
                "sys/fs/cgroup/a/b/cpu.max": "max 100000",
            },
            2,
            None,
        ),
        ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": "50000 100000\n"}, 1, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": str(1 << 29)}, 4, 1 << 29),
        (
            {
                "proc/self/cgroup": "5:memory:/x\n4:cpu,cpuacct:/x\n0::/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "300000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/memory/x/memory.limit_in_bytes": str(1 << 30),
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
            },
            3,
            1 << 30,
        ),
    ],
    ids=["v2 quota above", "v2 less than one CPU", "v2 memory", "v1"],
)
def test_limits_of_control_groups(machine: Machine, files: dict[str, str], threads: int, gigabytes: int | None) -> None:
    for path, text in files.items():
        machine.write(path, text)
    found = machine.probe()
    assert found.threads == threads
    assert gigabytes in (None, found.memory_bytes)


def test_caches(machine: Machine) -> None:
    for index, (level, kind, size) in enumerate([("1", "Data", "32K"), ("1", "Instruction", "32K"), ("2", "Unified", "2M")]):
        for name, text in (("level", level), ("type", kind), ("size", size)):
            machine.write(f"sys/devices/system/cpu/cpu0/cache/index{index}/{name}", text + "\n")
    assert machine.probe().caches == {"L1d": 32 << 10, "L1i": 32 << 10, "L2": 2 << 20}


def fake_nvidia_smi(folder: Path, body: str) -> None:
    command = folder / "nvidia-smi"
    command.write_text(f"#!/bin/sh\n{body}\n")
    command.chmod(command.stat().st_mode | stat.S_IXUSR)


def test_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvidia_smi(tmp_path, "echo '0, NVIDIA H100 80GB HBM3, 81559, 550.54.15, 9.0'; echo '1, NVIDIA GB10, [N/A], 580.1, 12.1'")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    first, second = hardware.read_gpus()[0]
    assert first == {
        "index": 0,
        "name": "NVIDIA H100 80GB HBM3",
        "memory_bytes": 81559 * 1024 * 1024,
        "driver": "550.54.15",
        "compute_capability": "9.0",
    }
    assert second["memory_bytes"] == "[N/A]"


def test_a_failing_driver_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvidia_smi(tmp_path, "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert hardware.read_gpus() == ((), "nvidia-smi failed: Failed to initialize NVML: Driver/library version mismatch")


def test_versions() -> None:
    found = hardware.versions(["pydantic", "surely-not-installed"])
    assert found["pydantic"]
    assert found["surely-not-installed"] is None


def test_imports_nothing_heavy() -> None:
    code = "import sys; from ioptim import hardware; hardware.probe(); print({'numpy', 'torch', 'psutil'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.stdout.strip() == "set()", done.stderr
