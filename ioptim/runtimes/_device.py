"""Where a session runs: threads of the CPU, which GPU, and what to say when there is none."""

from __future__ import annotations

from pathlib import Path

from ioptim.core.runtime import Target
from ioptim.core.target import Hardware
from ioptim.timing import allowed_cpus


def is_gpu(target: Target) -> bool:
    return target.device != "cpu"


def gpu_index(target: Target) -> int:
    """1 for `gpu:1`, 0 for `gpu`."""
    return int(target.device.partition(":")[2] or 0)


def threads_of(target: Target) -> int:
    """The target's threads; one per physical core that this process may run on when it names none."""
    if target.threads is not None:
        return target.threads
    siblings = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    files = {cpu: Path(siblings.format(cpu)) for cpu in allowed_cpus()}
    return max(1, len({file.read_text() if file.is_file() else str(cpu) for cpu, file in files.items()}))


def gpu_objections(target: Target, hardware: Hardware, without: str = "write `device: cpu`") -> list[str]:
    """The objection to a GPU that is not there: what was asked, what there is, what to do (`without` any GPU)."""
    index = gpu_index(target)
    if not is_gpu(target) or index < len(hardware.gpus):
        return []
    names = [f"gpu:{i} {gpu.get('name', '')}".strip() for i, gpu in enumerate(hardware.gpus)]
    there = f"this machine has {', '.join(names)}" if names else "no NVIDIA GPU is found here (nvidia-smi lists none)"
    fix = f"{'write `device: gpu:0`' if names else without}, or run on a machine that has one"
    return [f"the target {target.name} asks for {target.device}; {there}: {fix}"]


BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16"})
FP16_FLAGS = frozenset({"avx512_fp16", "amx_fp16", "asimdhp"})


def precision_objections(wanted: str, target: Target, hardware: Hardware) -> list[str]:
    """The objection to a half precision that the CPU has no instructions for: it would be emulated, or replaced unasked."""
    needed = {"bf16": BF16_FLAGS, "f16": FP16_FLAGS}.get(wanted, frozenset())
    if not needed or is_gpu(target) or needed & set(hardware.cpu_flags):
        return []
    there = ", ".join(hardware.cpu_flags) or "none that matter"
    return [f"{wanted} needs a CPU with one of {', '.join(sorted(needed))}; {hardware.cpu_model} has {there}. Use f32"]
