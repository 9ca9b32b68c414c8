"""Runs a function, or keeps an object, in a fresh process: its value or its error comes back, within limits on time and memory.

Arguments and results are JSON values and travel over two pipes that nothing else writes to. What the process prints, and what
native code in it prints, goes to a log file. The process is the leader of its own session, so a Ctrl-C at the terminal reaches
only the parent, which ends it; where the parent dies without a word, the kernel ends it (Linux).
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ioptim.errors import BY_NAME, IoptimError, StepError, UnavailableError, rebuild

Progress = Callable[[float, str], None]

GRACE_S = 2.0
"""Between SIGTERM and SIGKILL."""
POLL_S = 0.1
"""How often memory is looked at, and the longest that a silent death stays unseen."""
TAIL_LINES = 15


@dataclass(frozen=True)
class Limits:
    """What a process may use: seconds of wall time (of each call, for a `Worker`), and memory resident in it and its children."""

    seconds: float | None = None
    memory_bytes: int | None = None


def call(
    function: str,
    argument: Any,
    *,
    log: Path,
    limits: Limits | None = None,
    env: Mapping[str, str] | None = None,
    on_progress: Progress | None = None,
    prepared: Prepared | None = None,
) -> Any:
    """Run `"module:function"` with one JSON value in a fresh process and return its JSON value.

    `env` is added to this process's environment. `on_progress` is called in this thread. May be called from any thread;
    `end_all` ends it from another. A `prepared` process that still lives is used up; it keeps its own environment and log.

    Raises:
        KeyboardInterrupt: as it reaches this thread, or `end_all` was called; the process has been ended.
        IoptimError: the one that the function raised, of the same class.
        StepError: any other exception, a crash, a limit; with the last lines of the log. The traceback is in the log only.
    """
    child = prepared.take(limits or Limits()) if prepared else None
    with child or _Child(log, limits or Limits(), env) as child:
        child.send({"target": function, "argument": argument})
        return child.receive(on_progress)


class Prepared:
    """A fresh process that imports modules while it waits for its one `call`; `close` ends one that is not needed.

    A module that cannot be imported is left to the call, which says so where it needs it. On Linux the process ends with the thread
    that started it.
    """

    def __init__(self, modules: Iterable[str], *, log: Path, env: Mapping[str, str] | None = None) -> None:
        self._child: _Child | None = _Child(log, Limits(), env)
        self._child.send({"import": list(modules)})

    def take(self, limits: Limits) -> _Child | None:
        """The process, within limits from now on; None where it is gone."""
        child, self._child = self._child, None
        if child is not None and child.process.poll() is not None:
            child.end()
            return None
        if child is not None:
            child.limits = limits
        return child

    def close(self) -> None:
        """End the process, if nobody took it."""
        if child := self.take(Limits()):
            child.end()


class Worker:
    """An object that lives in a process of its own, with methods that take and return one JSON value.

    Create and use it in one thread: on Linux the process ends with the thread that started it. `cpus` are the logical CPUs it may
    run on, set before anything is imported, so that every thread pool of every library sees them (Linux; elsewhere all of them).

    Raises:
        StepError: see `call`; from the constructor when the object's own constructor failed.
    """

    def __init__(
        self,
        target: str,
        argument: Any,
        *,
        log: Path,
        limits: Limits | None = None,
        env: Mapping[str, str] | None = None,
        cpus: Iterable[int] | None = None,
    ) -> None:
        self._child = _Child(log, limits or Limits(), env)
        self._ask({"target": target, "argument": argument, "keep": True, "cpus": sorted(cpus or ())})

    def call(self, method: str, argument: Any = None) -> Any:
        """Call a method of the object, waking the process if it is paused. Any error ends the process."""
        if self._child.ended:
            raise StepError(f"{method} was asked of a process that has ended")
        self.resume()
        return self._ask({"method": method, "argument": argument})

    def _ask(self, message: Mapping[str, Any]) -> Any:
        try:
            self._child.send(message)
            return self._child.receive(None)
        except BaseException:
            self.close()
            raise

    def pause(self) -> None:
        """Stop every thread of the process, so that none spins beside whatever is measured next. Returns when it stands still."""
        if self._child.paused or self._child.ended:
            return
        self._child.signal_group(signal.SIGSTOP)
        self._child.paused = True
        if hasattr(os, "waitid"):
            with contextlib.suppress(ChildProcessError):  # it crashed meanwhile: the next call says how
                os.waitid(os.P_PID, self._child.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """Let a paused process go on."""
        if self._child.paused:
            self._child.signal_group(signal.SIGCONT)
            self._child.paused = False

    def peak_memory_bytes(self) -> int | None:
        """Most memory that was ever resident in the process, mapped files counted; None where the system does not tell it."""
        return _peak_memory(self._child.process.pid)

    def cpu_seconds(self) -> float | None:
        """CPU time that the process has used so far, all threads; None where the system does not tell it."""
        return _cpu_seconds(self._child.process.pid)

    def close(self) -> None:
        """End the process; harmless when it has ended."""
        self._child.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def end_all() -> None:
    """End every live process that this one started here; each thread that waits for one gets a `KeyboardInterrupt`.

    For the main thread, which alone is told of a Ctrl-C, when other threads wait for the processes.
    """
    children = list(_live)
    for child in children:
        child.interrupted = True
        child.signal_group(signal.SIGCONT)
        child.signal_group(signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S
    for child in children:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.process.wait(max(0.0, deadline - time.monotonic()))
        child.signal_group(signal.SIGKILL)


def progress(done: float, message: str) -> None:
    """Tell the parent how far this process is (`done` from 0 to 1). Does nothing in a process that was not started here."""
    if _channel is not None:
        _channel.progress(done, message)


# ---------------------------------------------------------------- the parent's side

_live: set[_Child] = set()


class _Child:
    """One process, its two pipes and its log."""

    def __init__(self, log: Path, limits: Limits, env: Mapping[str, str] | None) -> None:
        self.limits = limits
        self.log = log
        self.paused = False
        self.ended = False
        self.interrupted = False
        self._buffer = bytearray()
        request_end, self._request = os.pipe()
        self._response, response_end = os.pipe()
        os.set_blocking(self._response, False)
        # -P: a file in the working directory must not shadow a library; -u: what was printed before a crash is kept.
        command = [sys.executable, "-P", "-u", "-X", "faulthandler", "-m", "ioptim.isolate"]
        command += [str(request_end), str(response_end), str(os.getpid())]
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("ab") as file:
                self._log_start = file.tell()
                self.process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                    pass_fds=(request_end, response_end),
                    start_new_session=True,
                    env={**os.environ, **(env or {}), "PYTHONPATH": _module_path()},
                )
        except OSError as error:
            os.close(self._request)
            os.close(self._response)
            raise UnavailableError(f"no process could be started with its output in {log}: {error}") from error
        finally:
            os.close(request_end)
            os.close(response_end)
        _live.add(self)

    def send(self, message: Mapping[str, Any]) -> None:
        data = memoryview(json.dumps(message).encode() + b"\n")
        with contextlib.suppress(BrokenPipeError):  # it died: `receive` says how
            while data:
                data = data[os.write(self._request, data) :]

    def receive(self, on_progress: Progress | None) -> Any:
        """Wait for the answer, passing progress on.

        Raises:
            IoptimError: see `call`.
            KeyboardInterrupt: `end_all` ended the process.
        """
        for message in self._messages():
            if "progress" in message:
                if on_progress is not None:
                    on_progress(*message["progress"])
            elif "error" in message:
                raise self._error(message)
            else:
                return message["result"]
        if self.interrupted:
            raise KeyboardInterrupt
        raise StepError(self._with_tail(self._how_it_ended()))

    def _messages(self) -> Iterator[dict[str, Any]]:
        """Messages as they come, until the process is gone or passes a limit."""
        deadline = None if self.limits.seconds is None else time.monotonic() + self.limits.seconds
        while True:
            gone = self.process.poll() is not None  # asked before reading: its last words are still in the pipe
            ready, _, _ = select.select([self._response], [], [], 0 if gone else POLL_S)
            chunk = os.read(self._response, 1 << 20) if ready else b""
            if chunk:
                yield from self._whole_lines(chunk)
            elif ready or gone:
                return
            if why := self._over_limit(deadline):
                raise StepError(self._with_tail(f"the process {why}"))

    def _whole_lines(self, chunk: bytes) -> Iterator[dict[str, Any]]:
        head, newline, rest = chunk.rpartition(b"\n")
        if not newline:
            self._buffer += chunk
            return
        lines = bytes(self._buffer) + head
        self._buffer = bytearray(rest)
        for line in lines.split(b"\n"):
            yield json.loads(line)

    def _over_limit(self, deadline: float | None) -> str:
        if deadline is not None and time.monotonic() > deadline:
            return f"ran over its time limit of {self.limits.seconds:g} s"
        if self.limits.memory_bytes is None:
            return ""
        used = tree_memory(self.process.pid)
        if used <= self.limits.memory_bytes:
            return ""
        return f"used {_size(used)}, over its memory limit of {_size(self.limits.memory_bytes)}"

    def _error(self, message: Mapping[str, Any]) -> IoptimError:
        if message["ours"]:
            return rebuild(message["error"], message["message"])
        text = f"{message['error']}: {message['message']}" if message["message"] else message["error"]
        return StepError(self._with_tail(text, message["log_end"]))

    def _how_it_ended(self) -> str:
        self.end()
        code = self.process.returncode
        if code == -signal.SIGKILL:
            return "the process was killed, probably out of memory"
        if code < 0:
            return f"the process was killed by signal {-code} ({(signal.strsignal(-code) or 'unknown').lower()})"
        return f"the process ended with exit code {code} before it had answered"

    def _with_tail(self, text: str, end: int | None = None) -> str:
        lines = _tail(self.log, self._log_start, end)
        if not lines:
            return text
        return "\n".join([f"{text}; last lines of its output ({self.log}):", *(f"  {line}" for line in lines)])

    def signal_group(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)

    def end(self) -> None:
        """SIGTERM to the process and all in its group, SIGKILL after the grace; returns when it is gone."""
        if self.ended:
            return
        self.ended = True
        if self.process.poll() is None:
            self.signal_group(signal.SIGCONT)  # a stopped process takes no SIGTERM
            self.signal_group(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(GRACE_S)
        self.signal_group(signal.SIGKILL)  # also what the process left behind
        self.process.wait()
        _live.discard(self)
        os.close(self._request)
        os.close(self._response)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.end()


def tree_memory(pid: int) -> int:
    """Resident bytes of a process and all its descendants; pages that they share count once for each."""
    if not Path("/proc/self/statm").exists():
        return _tree_memory_elsewhere(pid)
    pages, waiting = 0, [pid]
    while waiting:
        folder = Path(f"/proc/{waiting.pop()}")
        with contextlib.suppress(OSError):  # it ended meanwhile
            pages += int((folder / "statm").read_text().split()[1])
            for thread in (folder / "task").iterdir():
                waiting += map(int, (thread / "children").read_text().split())
    return pages * os.sysconf("SC_PAGE_SIZE")


def _tree_memory_elsewhere(pid: int) -> int:
    try:
        import psutil
    except ImportError as error:
        raise UnavailableError("a memory limit on this system needs psutil: pip install psutil") from error
    try:
        process = psutil.Process(pid)
        return sum(each.memory_info().rss for each in (process, *process.children(recursive=True)))
    except psutil.Error:
        return 0


def _peak_memory(pid: int) -> int | None:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None


def _cpu_seconds(pid: int) -> float | None:
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime, stime: see proc(5)
    return None


def _tail(log: Path, start: int, end: int | None) -> list[str]:
    """The last lines written between two offsets; of a crash report only its head, with what came before it."""
    end = log.stat().st_size if end is None else end
    with log.open("rb") as file:
        file.seek(max(start, end - 16384))
        text = file.read(max(0, end - file.tell())).decode(errors="replace")
    # A progress bar rewrites its line with carriage returns: only the last state counts.
    lines = [line.rstrip().rsplit("\r", 1)[-1][:300] for line in text.split("\n")]
    lines = [line for line in lines if line]
    crash = next((i for i, line in enumerate(lines) if line.startswith("Fatal Python error:")), None)
    if crash is not None:
        return lines[max(0, crash - TAIL_LINES // 2) : crash + TAIL_LINES // 2 + 1]
    return lines[-TAIL_LINES:]


def _size(count: int) -> str:
    return f"{round(count / 1e9, 1):g} GB" if count >= 1e9 else f"{round(count / 1e6):g} MB"


def _module_path() -> str:
    """This process's module path, so that the other finds the same modules however this one was started."""
    return os.pathsep.join(str(Path(path).absolute()) for path in sys.path)


# ---------------------------------------------------------------- the process's side

_channel: _Channel | None = None


class _Channel:
    """The two pipes, seen from the process."""

    def __init__(self, request_fd: int, response_fd: int) -> None:
        for fd in (request_fd, response_fd):
            os.set_inheritable(fd, False)  # a process started by a library must not hold the parent's pipe open
        self._requests = os.fdopen(request_fd, "rb")
        self._responses = os.fdopen(response_fd, "wb")
        self._lock = threading.Lock()
        self._last_progress = 0.0

    def requests(self) -> Iterator[dict[str, Any]]:
        for line in self._requests:
            yield json.loads(line)

    def send(self, message: bytes) -> None:
        with self._lock, contextlib.suppress(BrokenPipeError):
            self._responses.write(message + b"\n")
            self._responses.flush()

    def progress(self, done: float, message: str) -> None:
        """At most 20 a second: nobody reads faster, and a loop may report every row."""
        now = time.monotonic()
        if done < 1 and now - self._last_progress < 0.05:
            return
        self._last_progress = now
        self.send(json.dumps({"progress": [done, message]}).encode())


def main(request_fd: int, response_fd: int, parent: int) -> None:
    """Serve one call, or a kept object until the parent closes the pipe."""
    global _channel
    _die_with(parent)
    _channel = _Channel(request_fd, response_fd)
    kept: Any = None
    for request in _channel.requests():
        if "import" in request:
            _import(request["import"])
            continue
        try:
            if "method" in request:
                result = getattr(kept, request["method"])(request["argument"])
            else:
                if request.get("cpus") and hasattr(os, "sched_setaffinity"):
                    os.sched_setaffinity(0, request["cpus"])
                result = _resolve(request["target"])(request["argument"])
                if request.get("keep"):
                    kept, result = result, None
            reply = json.dumps({"result": result})
        except BaseException as error:  # noqa: BLE001  # whatever it is, the parent is told
            reply = json.dumps(_describe(error))
        _flush()
        _channel.send(reply.encode())
        if kept is None:
            break
    # Not sys.exit: native libraries crash or wait in their destructors, and everything worth keeping is written.
    os._exit(0)


def _import(modules: Iterable[str]) -> None:
    for module in modules:
        with contextlib.suppress(Exception):  # whoever needs it meets the error again, where it can be told
            importlib.import_module(module)


def _die_with(parent: int) -> None:
    """Ask the kernel for SIGKILL when the parent dies, and see that it has not died already."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, see prctl(2)
    if os.getppid() != parent:
        os._exit(1)


def _resolve(target: str) -> Any:
    module, _, names = target.partition(":")
    found: Any = importlib.import_module(module)
    for name in names.split("."):
        found = getattr(found, name)
    return found


def _describe(error: BaseException) -> dict[str, Any]:
    """The error as JSON; its traceback goes to the log, after what the message may quote of it."""
    _flush()
    log_end = os.fstat(2).st_size
    traceback.print_exception(error)
    ours = next((cls.__name__ for cls in type(error).__mro__ if BY_NAME.get(cls.__name__) is cls), None)
    message = str(error)
    if isinstance(error, MemoryError) and not message:
        message = "the system gave no more memory"
    return {"error": ours or type(error).__name__, "message": message, "ours": ours is not None, "log_end": log_end}


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).fflush(None)  # what native code printed


if __name__ == "__main__":
    # Under its own name, so that `progress` called by anyone here sees the channel.
    from ioptim import isolate

    isolate.main(*map(int, sys.argv[1:]))
