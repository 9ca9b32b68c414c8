"""What the benchmarks here share: whole processes timed from outside, their environment, and how figures are printed."""

from __future__ import annotations

import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
MODEL = REPO.parent / "shared/models/minilm-sst2"
DATA = REPO.parent / "shared/data/sst2"
OFFLINE = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "true", "OLIVE_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True)
class Timed:
    """One finished process. `seconds` is the wall time from its start to its end, as its caller sees it; `cpu_seconds` what it and
    the processes it waited for used of the CPUs, which a busy machine changes less."""

    command: tuple[str, ...]
    seconds: float
    cpu_seconds: float
    code: int
    out: str
    err: str

    def json(self) -> Any:
        """The one document on its standard output."""
        return json.loads(self.out)

    def require(self, *codes: int) -> Timed:
        """Itself, when it ended with one of these exit codes."""
        if self.code not in codes:
            raise SystemExit(f"{' '.join(self.command)}\nended with {self.code}\n{(self.out + self.err)[-3000:]}")
        return self


def timed(command: Sequence[str], env: Mapping[str, str] | None = None, cwd: Path = REPO, timeout_s: float = 3600) -> Timed:
    """Run a command to its end, offline and without telemetry, and time all of it."""
    whole = {**os.environ, **OFFLINE, **(env or {})}
    # An installed package has its byte code; compiling it anew is not what a user waits for.
    whole.pop("PYTHONDONTWRITEBYTECODE", None)
    begin, cpu_before = time.perf_counter(), _cpu_of_children()
    done = subprocess.run(command, env=whole, cwd=cwd, capture_output=True, text=True, timeout=timeout_s)
    seconds, cpu_seconds = time.perf_counter() - begin, _cpu_of_children() - cpu_before
    return Timed(tuple(command), seconds, cpu_seconds, done.returncode, done.stdout, done.stderr)


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def ioptim(*arguments: str, home: Path | None = None) -> Timed:
    """Run `ioptim` as a user does: the script beside this interpreter, else the module of this checkout."""
    script = Path(sys.executable).with_name("ioptim")
    command = [str(script)] if script.exists() else [sys.executable, "-m", "ioptim.cli"]
    env = {} if script.exists() else {"PYTHONPATH": str(REPO)}
    if home is not None:
        env["IOPTIM_HOME"] = str(home)
    return timed([*command, *arguments], env)


FILES = {"training": "train.tsv", "calibration": "dev.tsv", "validation": "test.tsv"}


def sst2(model: Path, data: Path, *more: str, recipe: str = "recipes/bert-sst2-int8.yaml", other: str = "calibration") -> list[str]:
    """Arguments that run a recipe for SST-2 on a local checkpoint and local rows; `other` is the role it has beside validation."""
    local = {"model.source": model.absolute()}
    for role in (other, "validation"):
        local |= {f"data.{role}.source": data.absolute() / FILES[role], f"data.{role}.split": "null"}
    values = [*(f"{key}={value}" for key, value in local.items()), *more]
    return [recipe, *(word for value in values for word in ("--set", value))]


def require(*folders: Path) -> None:
    """End with the reason when the checkpoint or the data set is not there."""
    missing = [str(path) for path in folders if not path.is_dir()]
    if missing:
        raise SystemExit(f"not there: {', '.join(missing)}. Name them with --model and --data")


def pins(*names: str) -> list[str]:
    """The versions that this project is tested with, so that a peer runs on the same libraries."""
    lines = (REPO / "constraints.txt").read_text().splitlines()
    return [line for name in names for line in lines if line.startswith(f"{name}==")]


class PlainProcess:
    """`plain_session.py` on one model, under any interpreter. It is stopped between its turns, so that no thread of it spins."""

    def __init__(self, argument: Mapping[str, Any], python: str = sys.executable) -> None:
        command = [python, str(REPO / "benchmarks/plain_session.py"), json.dumps(argument)]
        env = {**os.environ, **OFFLINE}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)

    @classmethod
    def of_artifact(cls, folder: Path, rows: Path, threads: int) -> PlainProcess:
        """On an ONNX model in ioptim's store."""
        model = folder / json.loads((folder / "artifact.json").read_text())["entry"]
        return cls({"model": str(model), "tokenizer": str(folder / "tokenizer.json"), "rows": str(rows), "threads": threads})

    def ask(self, method: str, argument: Any) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.write(json.dumps({method: argument}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(map(str, self.process.args))} ended with {self.process.wait()}")  # type: ignore[arg-type]
        self.process.send_signal(signal.SIGSTOP)
        return json.loads(line)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def spread(values: Sequence[float], digits: int = 2) -> str:
    """`median (least-most)`."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in [columns, ["---"] * len(columns), *rows])


def machine() -> str:
    """One line on where the figures were taken, and how busy it was."""
    model = next((line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), "unknown CPU")
    load = os.getloadavg()[0]
    return f"{model}, {len(os.sched_getaffinity(0))} CPUs, Python {sys.version.split()[0]}, load average {load:.1f}"


class OthersShare:
    """How much of the machine's CPU time went to other processes than this one and those named, from now on (Linux)."""

    def __init__(self, pids: Sequence[int]) -> None:
        self.pids = (os.getpid(), *pids)
        self.before = self._now()

    def percent(self) -> float:
        busy, total, own = (after - before for after, before in zip(self._now(), self.before, strict=True))
        return 100 * max(0.0, busy - own) / max(1, total)

    def _now(self) -> tuple[int, int, int]:
        """Clock ticks: of all CPUs busy, of all CPUs, of the processes."""
        ticks = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        used = 0
        for pid in self.pids:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            used += sum(int(word) for word in fields[11:15])  # its own, and of children that have ended
        return sum(ticks) - ticks[3] - ticks[4], sum(ticks), used


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
