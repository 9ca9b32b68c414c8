"""What the tests of `ioptim.isolate` run in another process."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from typing import Any

from ioptim import isolate
from ioptim.errors import PlanError, StepError, UnavailableError


class OwnError(StepError):
    """A subclass that the parent does not know."""


def echo(value: Any) -> Any:
    return value


def imported(names: list[str]) -> list[str]:
    return [name for name in names if name in sys.modules]


def process_ids(_: Any) -> list[int]:
    return [os.getpid(), os.getpgid(0), os.getsid(0)]


def environment(name: str) -> str | None:
    return os.environ.get(name)


def chatter(_: Any) -> str:
    print("printed by python")
    os.write(1, b"written by native code\n")
    ctypes.CDLL(None).puts(b"buffered by the C library")
    return sys.stdin.read()


def segfault(_: Any) -> None:
    print("about to crash")
    ctypes.string_at(0)


def abort(_: Any) -> None:
    os.write(2, b"terminate called after throwing an instance of 'std::bad_alloc'\n")
    os.abort()


def no_memory(_: Any) -> None:
    raise MemoryError


def killed(_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def exits(code: int) -> None:
    os._exit(code)


def sys_exits(code: int) -> None:
    sys.exit(code)


def value_error(_: Any) -> None:
    for i in range(40):
        print("line", i)
    raise ValueError("the shape is wrong")


def raises(name: str) -> None:
    raise {"StepError": StepError, "PlanError": PlanError, "UnavailableError": UnavailableError, "OwnError": OwnError}[name](
        f"a {name} in words"
    )


def not_json(_: Any) -> object:
    return object()


def sleep(seconds: float) -> None:
    time.sleep(seconds)


def fill(megabytes: int) -> None:
    held = bytearray(megabytes << 20)
    for i in range(0, len(held), 4096):
        held[i] = 1
    time.sleep(30)


def fill_in_a_child(megabytes: int) -> None:
    subprocess.run([sys.executable, "-c", f"import isolated; isolated.fill({megabytes})"], check=True)


def report(steps: int) -> str:
    for i in range(steps):
        isolate.progress((i + 1) / steps, f"row {i + 1}")
        time.sleep(0.06)
    return "done"


def leave_a_child(_: Any) -> int:
    return subprocess.Popen(["sleep", "60"]).pid


def nested(log: str) -> list[int]:
    from pathlib import Path

    return [os.getpid(), isolate.call("isolated:process_ids", None, log=Path(log))[0]]


class Counter:
    def __init__(self, start: int) -> None:
        if start < 0:
            raise StepError(f"a counter starts at 0 or more, not {start}")
        self.value = start

    def add(self, step: int) -> int:
        self.value += step
        return self.value

    def spin(self, seconds: float) -> float:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pass
        return time.process_time()

    def cpus(self, _: Any) -> list[int]:
        return sorted(os.sched_getaffinity(0))

    def crash(self, _: Any) -> None:
        segfault(None)

    def fail(self, _: Any) -> None:
        raise ValueError("no more")
