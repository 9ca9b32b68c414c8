"""`ioptim compare`: terminal, JSON and page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ioptim.cli import main
from ioptim.core.record import NodeRecord, RunRecord, Status
from ioptim.core.target import Hardware
from ioptim.errors import ExitCode
from ioptim.tracking import local

HARDWARE = Hardware(cpu_model="A processor", cpu_flags=("avx2",), cores=2, threads=4, memory_bytes=8_000_000_000)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for name, latency, hardware in (("a", 2.0, HARDWARE), ("b", 1.0, HARDWARE), ("c", 1.0, HARDWARE.model_copy(update={"cores": 64}))):
        subjects = {"compile": {"latency_p50_ms": latency, "size_bytes": 1e6}, "source": {"latency_p50_ms": 4.0, "size_bytes": 4e6}}
        node = NodeRecord(id="benchmark", step="benchmark", target="cpu", parents=(), status=Status.PASSED, subjects=subjects)
        run = RunRecord(run_id=name, recipe="sst2", status=Status.PASSED, hardware=hardware, nodes=(node,))
        local.create_run(tmp_path, run)
        local.write_run(tmp_path, run)
    return tmp_path


def test_terminal(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "a", "b", "--home", str(home)]) == ExitCode.PASS
    said = capsys.readouterr().out
    assert "  candidate latency_p50_ms  2 ms  1 ms (2× faster)\n" in said
    assert "warning" not in said and "What differs" not in said


def test_other_hardware(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "a", "c", "--home", str(home)]) == ExitCode.PASS
    said = capsys.readouterr().out
    assert "warning: the runs were made on different hardware: their times and throughputs do not compare\n" in said
    assert "1 ms (other hardware)" in said and "1 MB (same)" in said
    assert "  cores and threads  2, 4" in said


def test_a_page_that_cannot_be_written(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = home / "missing" / "compared.html"
    assert main(["compare", "a", "b", "--home", str(home), "--html", str(page)]) == ExitCode.UNAVAILABLE
    said = capsys.readouterr().err
    assert said == f"ioptim: cannot write {page}: No such file or directory. Its folder must exist and be writable\n"


def test_page_and_json(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "compared.html"
    assert main(["compare", "a", "b", "c", "--home", str(home), "--html", str(page), "--json"]) == ExitCode.PASS
    document = json.loads(capsys.readouterr().out)
    assert [run["run_id"] for run in document["runs"]] == ["a", "b", "c"]
    [row] = [row for row in document["metrics"] if row["metric"] == "latency_p50_ms"]
    assert row["values"] == [2.0, 1.0, 1.0] and row["comparable"] == [True, True, False]
    assert "3 runs side by side" in page.read_text(encoding="utf-8")
