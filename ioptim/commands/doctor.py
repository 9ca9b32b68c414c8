"""`ioptim doctor`: the hardware there is, and every runtime made to compute three numbers."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from ioptim import hardware, isolate
from ioptim.commands._common import print_json
from ioptim.core.target import Hardware
from ioptim.errors import ExitCode, IoptimError
from ioptim.execute import GIGABYTE
from ioptim.plan import installed
from ioptim.recipe import RUNTIMES, RecipeTarget

EXPECTED = [2.0, 4.0, 6.0]


def main(args: argparse.Namespace) -> ExitCode:
    machine = hardware.probe()
    checks = [_check(name, machine) for name in RUNTIMES]
    problems = _conflicts()
    usable = [check["runtime"] for check in checks if check["usable"]]
    code = ExitCode.PASS if usable and not problems else ExitCode.UNAVAILABLE
    if args.json:
        found = machine.model_dump(mode="json") | {"fingerprint": machine.fingerprint}
        print_json({"exit_code": int(code), "hardware": found, "runtimes": checks, "problems": problems})
        return code
    print(f"{machine.cpu_model}: {machine.cores} cores, {machine.threads} threads, {machine.memory_bytes / GIGABYTE:.1f} GB")
    print(f"  instruction sets  {' '.join(machine.cpu_flags) or 'none that matter'}")
    print(f"  GPUs              {', '.join(str(gpu['name']) for gpu in machine.gpus) or 'none'}")
    print(f"  fingerprint       {machine.fingerprint}")
    print()
    for check in checks:
        mark = "✓" if check["usable"] else "✗"
        print(f"{mark} {check['runtime']:<12} {check['says']}")
        if check["fix"]:
            print(f"  {'':<12} {check['fix']}")
    for problem in problems:
        print(f"✗ {problem}")
    return code


def _check(name: str, machine: Hardware) -> dict[str, Any]:
    """One runtime: are its packages there, does it object to this machine, does it compute what it must?"""
    runtime = RUNTIMES[name](runtime=name)
    versions = hardware.versions(runtime.libraries)
    absent = [library for library, version in versions.items() if version is None]
    found: dict[str, Any] = {"runtime": name, "usable": False, "versions": versions, "fix": ""}
    device = "gpu" if runtime.extra == "gpu" else "cpu"
    objections = runtime.check(RecipeTarget.model_validate({"name": "doctor", "device": device, "runtime": {"runtime": name}}), machine)
    if absent:
        says = "; ".join([f"not installed: {', '.join(absent)}", *objections])
        return found | {"says": says, "fix": _install(runtime.extra or "cpu")}
    if objections:
        return found | {"says": "; ".join(objections)}
    with tempfile.TemporaryDirectory() as folder:
        try:
            values = isolate.call(
                "ioptim.commands.doctor:compute",
                {"runtime": name, "device": device},
                log=Path(folder) / "log",
                limits=isolate.Limits(seconds=120),
            )
        except IoptimError as error:
            return found | {"says": str(error)}
    right = all(abs(a - b) < 1e-3 for a, b in zip(values, EXPECTED, strict=True))
    shown = ", ".join(f"{library} {version}" for library, version in versions.items()) or "built in"
    return found | {
        "usable": right,
        "computed": values,
        "says": f"{shown}: computed {values}" + ("" if right else f", expected {EXPECTED}"),
    }


def _install(extra: str) -> str:
    """The command that brings an extra, without the conflict that `_conflicts` finds: `cpu` and `gpu` exclude each other."""
    other = {"cpu": "onnxruntime-gpu", "gpu": "onnxruntime"}.get(extra)
    remove = f"pip uninstall -y {other} && " if other and installed(other) else ""
    return f"{remove}pip install 'ioptim[{extra}]'"


def compute(argument: dict[str, str]) -> list[float]:
    """In a process of its own: the runtime's self-check."""
    tag, device = argument["runtime"], argument["device"]
    target = RecipeTarget.model_validate({"name": "doctor", "device": device, "threads": 1, "runtime": {"runtime": tag}})
    return [float(value) for value in target.runtime.self_check(target)]


def _conflicts() -> list[str]:
    """Packages that shadow each other: the two onnxruntime distributions install the same module."""
    if installed("onnxruntime") and installed("onnxruntime-gpu"):
        return [
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files; keep one:"
            " pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"
        ]
    return []
