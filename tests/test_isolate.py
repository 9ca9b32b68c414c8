from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ioptim import isolate
from ioptim.errors import IoptimError, PlanError, StepError, UnavailableError
from ioptim.isolate import Limits, Prepared, Worker, call

ROOT = Path(__file__).parent.parent
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")


@pytest.fixture(autouse=True)
def functions(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    yield
    assert not isolate._live


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "step.log"


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition: object, seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.01)
    return False


def test_returns_the_value(log: Path) -> None:
    value = {"a": [1, 2.5, None, True, "ü\n"], "b": {}}
    assert call("isolated:echo", value, log=log) == value
    assert log.read_text() == ""


def test_a_prepared_process_imports_before_its_call(log: Path) -> None:
    prepared = Prepared(["wave", "no_such_module", "colorsys"], log=log)
    assert set(call("isolated:imported", ["wave", "colorsys"], log=log, prepared=prepared)) == {"wave", "colorsys"}
    assert call("isolated:imported", ["wave", "colorsys"], log=log) == []
    assert log.read_text() == ""


def test_limits_of_a_prepared_process_count_from_its_call(log: Path) -> None:
    prepared = Prepared([], log=log)
    time.sleep(0.5)
    with pytest.raises(StepError, match="ran over its time limit of 0.3 s"):
        call("isolated:sleep", 30, log=log, limits=Limits(seconds=0.3), prepared=prepared)


def test_a_prepared_process_that_died_is_replaced(log: Path) -> None:
    prepared = Prepared([], log=log)
    assert prepared._child is not None
    prepared._child.process.kill()
    prepared._child.process.wait()
    assert call("isolated:echo", 1, log=log, prepared=prepared) == 1


def test_a_prepared_process_that_is_not_needed_is_ended(log: Path) -> None:
    prepared = Prepared([], log=log)
    assert prepared._child is not None
    pid = prepared._child.process.pid
    prepared.close()
    prepared.close()
    assert not alive(pid)


def test_runs_in_a_session_of_its_own(log: Path) -> None:
    pid, group, session = call("isolated:process_ids", None, log=log)
    assert pid == group == session != os.getpid()
    assert not alive(pid)


def test_passes_big_values_both_ways(log: Path) -> None:
    value = ["x" * 1000] * 20_000
    assert call("isolated:echo", value, log=log) == value


def test_adds_to_the_environment(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IOPTIM_TEST_KEPT", "kept")
    assert call("isolated:environment", "IOPTIM_TEST_KEPT", log=log) == "kept"
    assert call("isolated:environment", "IOPTIM_TEST_NEW", log=log, env={"IOPTIM_TEST_NEW": "new"}) == "new"


def test_output_goes_to_the_log_only(log: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert call("isolated:chatter", None, log=log) == ""  # stdin is empty
    assert log.read_text().splitlines() == ["printed by python", "written by native code", "buffered by the C library"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("error", [StepError, PlanError, UnavailableError])
def test_an_error_of_ours_comes_back_as_itself(log: Path, error: type[IoptimError]) -> None:
    with pytest.raises(IoptimError) as caught:
        call("isolated:raises", error.__name__, log=log)
    assert type(caught.value) is error
    assert str(caught.value) == f"a {error.__name__} in words"
    assert "Traceback" in log.read_text()


def test_a_subclass_comes_back_as_the_class_we_know(log: Path) -> None:
    with pytest.raises(StepError, match=r"^a OwnError in words$"):
        call("isolated:raises", "OwnError", log=log)


def test_another_exception_says_its_class_and_what_was_printed_before(log: Path) -> None:
    with pytest.raises(StepError) as caught:
        call("isolated:value_error", None, log=log)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"ValueError: the shape is wrong; last lines of its output ({log}):"
    assert lines[1:] == [f"  line {i}" for i in range(25, 40)]
    assert "Traceback" in log.read_text()


@pytest.mark.parametrize(
    ("function", "argument", "message"),
    [
        ("no_memory", None, "MemoryError: the system gave no more memory"),
        ("killed", None, "the process was killed, probably out of memory"),
        ("exits", 3, "the process ended with exit code 3 before it had answered"),
        ("sys_exits", 3, "SystemExit: 3"),
        ("not_json", None, "TypeError: Object of type object is not JSON serializable"),
        ("missing", None, "AttributeError: module 'isolated' has no attribute 'missing'"),
    ],
)
def test_says_what_happened(log: Path, function: str, argument: object, message: str) -> None:
    with pytest.raises(StepError) as caught:
        call(f"isolated:{function}", argument, log=log)
    assert str(caught.value) == message


@LINUX
def test_a_segmentation_fault_becomes_an_error_with_the_last_output(log: Path) -> None:
    with pytest.raises(StepError) as caught:
        call("isolated:segfault", None, log=log)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"the process was killed by signal 11 (segmentation fault); last lines of its output ({log}):"
    assert lines[1:3] == ["  about to crash", "  Fatal Python error: Segmentation fault"]
    assert any("segfault" in line for line in lines[3:])


@LINUX
def test_an_abort_of_native_code_shows_its_message(log: Path) -> None:
    with pytest.raises(StepError, match=r"^the process was killed by signal 6 \(aborted\)") as caught:
        call("isolated:abort", None, log=log)
    assert "std::bad_alloc" in str(caught.value)


def test_the_tail_is_of_this_call_only(log: Path) -> None:
    log.parent.mkdir()
    log.write_text("an earlier attempt\n")
    with pytest.raises(StepError, match=r"^the process was killed, probably out of memory$"):
        call("isolated:killed", None, log=log)


def test_time_limit(log: Path) -> None:
    with pytest.raises(StepError, match=r"^the process ran over its time limit of 0\.3 s$"):
        call("isolated:sleep", 60, log=log, limits=Limits(seconds=0.3))


@LINUX
@pytest.mark.parametrize("function", ["fill", "fill_in_a_child"])
def test_memory_limit_counts_the_whole_tree(log: Path, function: str) -> None:
    with pytest.raises(StepError, match=r"^the process used \d+ MB, over its memory limit of 100 MB$"):
        call(f"isolated:{function}", 150, log=log, limits=Limits(seconds=30, memory_bytes=100_000_000))


def test_progress_arrives_in_order(log: Path) -> None:
    seen: list[tuple[float, str]] = []
    assert call("isolated:report", 3, log=log, on_progress=lambda done, message: seen.append((done, message))) == "done"
    assert seen == [(1 / 3, "row 1"), (2 / 3, "row 2"), (1.0, "row 3")]


def test_progress_outside_does_nothing() -> None:
    isolate.progress(0.5, "nobody listens")


def test_an_error_in_on_progress_ends_the_process(log: Path) -> None:
    def stop(done: float, message: str) -> None:
        raise KeyError("stop")

    with pytest.raises(KeyError):
        call("isolated:report", 100, log=log, on_progress=stop)


def test_ends_what_the_process_left_behind(log: Path) -> None:
    pid = call("isolated:leave_a_child", None, log=log)
    assert wait_until(lambda: not alive(pid))


def test_nests(log: Path, tmp_path: Path) -> None:
    outer, inner = call("isolated:nested", str(tmp_path / "inner.log"), log=log)
    assert outer != inner


def test_works_in_another_thread_and_end_all_ends_it(log: Path) -> None:
    interrupted: list[BaseException] = []

    def work() -> None:
        try:
            call("isolated:sleep", 60, log=log)
        except KeyboardInterrupt as error:
            interrupted.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    assert wait_until(lambda: isolate._live)
    isolate.end_all()
    thread.join(10)
    assert not thread.is_alive()
    assert len(interrupted) == 1


def test_a_log_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UnavailableError, match=r"^no process could be started with its output in .*step\.log"):
        call("isolated:echo", 1, log=tmp_path / "file" / "step.log")


@LINUX
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -15), (signal.SIGKILL, -9)])
def test_children_of_children_end_with_the_parent(tmp_path: Path, number: int, code: int) -> None:
    """Whatever ends the parent: Ctrl-C, which it turns into an exit, or a signal that it never sees."""
    (tmp_path / "nested.py").write_text(
        "import os, time\nfrom pathlib import Path\nfrom ioptim.isolate import call\n"
        "def outer(folder):\n    Path(folder, 'outer').write_text(str(os.getpid()))\n"
        "    call('nested:inner', folder, log=Path(folder, 'inner.log'))\n"
        "def inner(folder):\n    Path(folder, 'inner').write_text(str(os.getpid()))\n    time.sleep(60)\n"
    )
    script = (
        "import sys\nfrom pathlib import Path\nfrom ioptim.isolate import call\n"
        "try:\n    call('nested:outer', sys.argv[1], log=Path(sys.argv[1], 'outer.log'))\n"
        "except KeyboardInterrupt:\n    sys.exit(130)\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    parent = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], env=env, start_new_session=True)
    try:
        assert wait_until(lambda: (tmp_path / "inner").exists() and (tmp_path / "inner").read_text())
        pids = [int((tmp_path / name).read_text()) for name in ("outer", "inner")]
        assert all(alive(pid) for pid in pids)
        os.killpg(parent.pid, number)
        assert parent.wait(10) == code
        assert wait_until(lambda: not any(alive(pid) for pid in pids))
    finally:
        parent.kill()


def test_worker_keeps_its_object(log: Path) -> None:
    with Worker("isolated:Counter", 5, log=log) as counter:
        assert counter.call("add", 1) == 6
        assert counter.call("add", 1) == 7
    with pytest.raises(StepError, match="add was asked of a process that has ended"):
        counter.call("add", 1)


def test_worker_whose_constructor_fails(log: Path) -> None:
    with pytest.raises(StepError, match=r"^a counter starts at 0 or more, not -1$"):
        Worker("isolated:Counter", -1, log=log)


@LINUX
def test_worker_that_crashes(log: Path) -> None:
    with Worker("isolated:Counter", 0, log=log) as counter:
        with pytest.raises(StepError, match=r"^the process was killed by signal 11"):
            counter.call("crash")
        with pytest.raises(StepError, match="has ended"):
            counter.call("add", 1)


def test_worker_whose_method_fails(log: Path) -> None:
    with Worker("isolated:Counter", 0, log=log) as counter, pytest.raises(StepError, match=r"^ValueError: no more$"):
        counter.call("fail")


@LINUX
def test_a_paused_worker_stands_still_and_wakes_when_called(log: Path) -> None:
    with Worker("isolated:Counter", 0, log=log) as counter:
        stat = Path(f"/proc/{counter._child.process.pid}/stat")
        for _ in range(3):
            counter.pause()
            assert stat.read_text().rsplit(")", 1)[1].split()[0] == "T"
            assert counter.call("add", 1) > 0
        counter.pause()
    assert not alive(counter._child.process.pid)


@LINUX
def test_peak_memory_of_a_worker(log: Path) -> None:
    with Worker("isolated:Counter", 0, log=log) as counter:
        peak = counter.peak_memory_bytes()
        assert peak is not None
        assert 5_000_000 < peak < 200_000_000
    assert counter.peak_memory_bytes() is None


@LINUX
def test_cpu_time_of_a_worker(log: Path) -> None:
    with Worker("isolated:Counter", 0, log=log) as counter:
        before = counter.cpu_seconds()
        counter.call("spin", 0.1)
        after = counter.cpu_seconds()
        assert before is not None
        assert after is not None
        assert after > before


@LINUX
def test_a_worker_runs_on_the_cpus_it_is_given(log: Path) -> None:
    cpu = max(os.sched_getaffinity(0))
    with Worker("isolated:Counter", 0, log=log, cpus=[cpu]) as counter:
        assert counter.call("cpus") == [cpu]
